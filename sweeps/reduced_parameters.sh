#!/usr/bin/env bash
# MetaWorld with small networks: how far each method gets with few parameters (Hejna & Sadigh 2023).
# Prints one command a setting; narrow it with the variables below, e.g. SEEDS="1 2" bash sweeps/reduced_parameters.sh.
# The SEEDS of one setting share a process; SEEDS_PER_RUN=1 gives each its own. ARGS is added to every command.
set -euo pipefail
# shellcheck source=sweeps/seeds.bash
. "$(dirname "$0")/seeds.bash"
METHODS=${METHODS:-ipl_iql mr_iql}
TASKS=${TASKS:-button-press-v2 drawer-open-v2 sweep-into-v2 plate-slide-v2 assembly-v2}
PAIRS=${PAIRS:-500 1000 2000 4000}
SIZES=${SIZES:-64,64 35,35}

for task in $TASKS; do
    for pairs in $PAIRS; do
        for sizes in $SIZES; do
            for method in $METHODS; do
                seed_flags | while read -r seeds; do
                    echo "python algorithms/$method.py --env $task --num-preferences $pairs --hidden-sizes ${sizes//,/ }" \
                        "$seeds --run-dir runs/reduced_parameters/$task/pairs-$pairs/$method-${sizes//,/-}${ARGS:+ $ARGS}"
                done
            done
        done
    done
done
