#!/usr/bin/env bash
# D4RL locomotion, human preferences: the paper's main table (Hejna & Sadigh 2023), CPL and cloning.
# Prints one command a setting; narrow it with the variables below, e.g. SEEDS="1 2" bash sweeps/locomotion.sh.
# The SEEDS of one setting share a process; SEEDS_PER_RUN=1 gives each its own. ARGS is added to every command.
set -euo pipefail
# shellcheck source=sweeps/seeds.bash
. "$(dirname "$0")/seeds.bash"
METHODS=${METHODS:-ipl_iql mr_iql pt_iql iql cpl bc}
TASKS=${TASKS:-hopper-medium-replay-v2 hopper-medium-expert-v2 walker2d-medium-replay-v2 walker2d-medium-expert-v2}

for task in $TASKS; do
    for method in $METHODS; do
        seed_flags | while read -r seeds; do
            echo "python algorithms/$method.py --env $task $seeds --run-dir runs/locomotion/$task/$method${ARGS:+ $ARGS}"
        done
    done
done
