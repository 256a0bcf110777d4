#!/usr/bin/env bash
# IPL's three hyper-parameters that matter, one changed at a time: regulariser, expectile, temperature.
# Prints one command a run; narrow it with the variables below, e.g. SEEDS="1 2" bash sweeps/ablations.sh.
# The SEEDS of one setting share a process; SEEDS_PER_RUN=1 gives each its own. ARGS is added to every command.
set -euo pipefail
# shellcheck source=sweeps/seeds.bash
. "$(dirname "$0")/seeds.bash"
METHODS=${METHODS:-ipl_iql}
TASKS=${TASKS:-button-press-v2 drawer-open-v2 sweep-into-v2 plate-slide-v2 assembly-v2}
PAIRS=${PAIRS:-2000}
CHI2_COEFF=${CHI2_COEFF-0.5 1 2 3 4}
EXPECTILE=${EXPECTILE-0.6 0.7 0.75 0.8 0.9}
BETA=${BETA-0.1 0.3333333333333333 1}

settings() {
    local value
    for value in $CHI2_COEFF; do echo "--chi2-coeff $value"; done
    for value in $EXPECTILE; do echo "--expectile $value"; done
    for value in $BETA; do echo "--beta $value"; done
}

for task in $TASKS; do
    for pairs in $PAIRS; do
        for method in $METHODS; do
            settings | while read -r flag value; do
                seed_flags | while read -r seeds; do
                    echo "python algorithms/$method.py --env $task --num-preferences $pairs $flag $value $seeds" \
                        "--run-dir runs/ablations/$task/pairs-$pairs/$method/${flag#--}-$value${ARGS:+ $ARGS}"
                done
            done
        done
    done
done
