#!/usr/bin/env bash
# IPL's three hyper-parameters that matter, one changed at a time from the defaults: regulariser, expectile, temperature.
# (ipl_awac and ipl_xql have no expectile: EXPECTILE= METHODS=ipl_xql.)
# Prints one command a setting; narrow it with the variables below, e.g. SEEDS="1 2" bash sweeps/ablations.sh.
# The SEEDS of one setting share a process; SEEDS_PER_RUN=1 gives each its own. ARGS is added to every command.
set -euo pipefail
# shellcheck source=sweeps/seeds.bash
. "$(dirname "$0")/seeds.bash"
METHODS=${METHODS:-ipl_iql}
TASKS=${TASKS:-button-press-v2 drawer-open-v2 sweep-into-v2 plate-slide-v2 assembly-v2}
PAIRS=${PAIRS:-2000}
CHI2_COEFF=${CHI2_COEFF-0.5 1 2 4} # default: 3 (ipl_awac: 4)
EXPECTILE=${EXPECTILE-0.6 0.7 0.8 0.9} # default: 0.75
BETA=${BETA-0.1 1} # default: 1/3

settings() {
    local value
    echo default
    for value in $CHI2_COEFF; do echo "chi2-coeff-$value --chi2-coeff $value"; done
    for value in $EXPECTILE; do echo "expectile-$value --expectile $value"; done
    for value in $BETA; do echo "beta-$value --beta $value"; done
}

for task in $TASKS; do
    for pairs in $PAIRS; do
        for method in $METHODS; do
            settings | while read -r name flags; do
                seed_flags | while read -r seeds; do
                    echo "python algorithms/$method.py --env $task --num-preferences $pairs${flags:+ $flags} $seeds" \
                        "--run-dir runs/ablations/$task/pairs-$pairs/$method/$name${ARGS:+ $ARGS}"
                done
            done
        done
    done
done
