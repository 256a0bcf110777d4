#!/usr/bin/env bash
# What a learned reward is worth, early and late in training: methods at several lengths of training, then IPL-IQL with
# one of chi2, gamma, expectile and learning rate changed at a time. docs/reward.md measures the runs.
# Prints one command a setting; narrow it with the variables below, e.g. SEEDS="1 2" bash sweeps/reward.sh.
# The SEEDS of one setting share a process; SEEDS_PER_RUN=1 gives each its own. ARGS is added to every command.
set -euo pipefail
# shellcheck source=sweeps/seeds.bash
. "$(dirname "$0")/seeds.bash"
METHODS=${METHODS:-ipl_iql ipl_xql mr_iql pt_iql}
TASKS=${TASKS:-drawer-open-v2 sweep-into-v2}
PAIRS=${PAIRS:-4000}
STEPS=${STEPS:-20000 200000} # updates
VARIED_TASK=${VARIED_TASK-drawer-open-v2}
CHI2_COEFF=${CHI2_COEFF-1 10 30} # default: 3
GAMMA=${GAMMA-0.9 0.97} # default: 0.99
EXPECTILE=${EXPECTILE-0.5 0.9} # default: 0.75
LR=${LR-1e-4 1e-3} # default: 3e-4

line() { # task, method, name of the setting, flags
    seed_flags | while read -r seeds; do
        for pairs in $PAIRS; do
            [ "$pairs" = 4000 ] && more="" || more=-pairs-$pairs
            echo "python algorithms/$2.py --env $1 --num-preferences $pairs --total-steps $steps${4:+ $4} $seeds" \
                "--run-dir runs/reward/$1/updates-$steps/$3$more${ARGS:+ $ARGS}"
        done
    done
}

for steps in $STEPS; do
    for task in $TASKS; do
        for method in $METHODS; do line "$task" "$method" "$method" ""; done
    done
done
for steps in $STEPS; do
    for task in $VARIED_TASK; do
        for value in $CHI2_COEFF; do line "$task" ipl_iql "chi2-coeff-$value" "--chi2-coeff $value"; done
        for value in $GAMMA; do line "$task" ipl_iql "gamma-$value" "--gamma $value"; done
        for value in $EXPECTILE; do line "$task" ipl_iql "expectile-$value" "--expectile $value"; done
        for value in $LR; do line "$task" ipl_iql "lr-$value" "--lr $value"; done
    done
done
