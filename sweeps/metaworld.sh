#!/usr/bin/env bash
# MetaWorld, synthetic preferences: the paper's scaling with the number of pairs (Hejna & Sadigh 2023), CPL and cloning.
# Prints one command a setting; narrow it with the variables below, e.g. SEEDS="1 2" bash sweeps/metaworld.sh.
# The SEEDS of one setting share a process; SEEDS_PER_RUN=1 gives each its own. ARGS is added to every command.
set -euo pipefail
# shellcheck source=sweeps/seeds.bash
. "$(dirname "$0")/seeds.bash"
METHODS=${METHODS:-ipl_iql mr_iql pt_iql ipl_awac iql cpl bc}
TASKS=${TASKS:-button-press-v2 drawer-open-v2 sweep-into-v2 plate-slide-v2 assembly-v2}
PAIRS=${PAIRS:-500 1000 2000 4000}

for task in $TASKS; do
    for pairs in $PAIRS; do
        for method in $METHODS; do
            seed_flags | while read -r seeds; do
                echo "python algorithms/$method.py --env $task --num-preferences $pairs $seeds" \
                    "--run-dir runs/metaworld/$task/pairs-$pairs/$method${ARGS:+ $ARGS}"
            done
        done
    done
done
