#!/usr/bin/env bash
# MetaWorld with wrong labels: how far each method gets when a share of them is flipped (B-Pref, Lee et al. 2021).
# Prints one command a setting; narrow it with the variables below, e.g. SEEDS="1 2" bash sweeps/label_noise.sh.
# The SEEDS of one setting share a process; SEEDS_PER_RUN=1 gives each its own. ARGS is added to every command.
# Make the files first: bash sweeps/label_noise.sh files | bash
set -euo pipefail
# shellcheck source=sweeps/seeds.bash
. "$(dirname "$0")/seeds.bash"
METHODS=${METHODS:-ipl_iql mr_iql cpl}
TASKS=${TASKS:-drawer-open-v2}
PAIRS=${PAIRS:-4000}
MISTAKES=${MISTAKES:-0 0.1 0.2 0.3 0.4}
SEEDS=${SEEDS:-1 2 3}
STEPS=${STEPS:-10000} # updates, far fewer than the paper's 200,000
ARGS="--eval-every 500${ARGS:+ $ARGS}" # of two values the last counts

for task in $TASKS; do
    for mistake in $MISTAKES; do
        file=data/label_noise/$task-mistake-$mistake.npz
        if [ "${1-}" = files ]; then
            echo "python -m tools.dataset --env $task --teacher mistake=$mistake --out $file"
            continue
        fi
        for method in $METHODS; do
            for pairs in $PAIRS; do
                for steps in $STEPS; do
                    run=runs/label_noise/$task/mistake-$mistake/$method
                    [ "$pairs" = 4000 ] || run+=-pairs-$pairs
                    [ "$steps" = 10000 ] || run+=-updates-$steps
                    seed_flags | while read -r seeds; do
                        echo "python algorithms/$method.py --env $task --preferences $file --num-preferences $pairs" \
                            "--total-steps $steps $seeds --run-dir $run $ARGS"
                    done
                done
            done
        done
    done
done
