#!/usr/bin/env bash
# The runs of the published tables, at the paper's budget, most wanted first; finished ones are in results/published/.
# Prints one command a seed, 0.7 to 3 hours of a core: ./slurm_launch.sh sweeps/published.sh --local --cpus 1
set -euo pipefail
cd "$(dirname "$0")"

# METHODS, TASKS, number of pairs, first and last seed: seed by seed, so that all tasks can be compared early
metaworld() {
    local task seed
    for seed in $(seq "$4" "$5"); do
        for task in $2; do SEEDS=$seed METHODS=$1 TASKS=$task PAIRS=$3 bash metaworld.sh; done
    done
}
human() { # sweep, METHODS, TASKS: the labelled segments alone
    SEEDS="1 2 3" SEEDS_PER_RUN=1 METHODS=$2 TASKS=$3 ARGS="--no-use-replay --total-steps 200000" bash "$1"
}
four="button-press-topdown-v2 drawer-open-v2 sweep-into-v2 plate-slide-v2"
two="drawer-open-v2 sweep-into-v2"

{
    metaworld "ipl_iql mr_iql" "$four" 4000 1 3
    metaworld "cpl bc" "$four" 4000 1 3
    metaworld "ipl_iql mr_iql" "button-press-v2 assembly-v2" 4000 1 3
    metaworld "ipl_iql mr_iql" "$two" 500 1 3
    human robomimic.sh "ipl_iql bc" "lift-ph can-ph"
    human locomotion.sh ipl_iql "hopper-medium-expert-v2 walker2d-medium-expert-v2"
    metaworld "iql pt_iql ipl_xql ipl_awac" "$two" 4000 1 3
    metaworld "ipl_iql mr_iql" "$four button-press-v2 assembly-v2" 4000 4 5
} | sed 's# runs/# runs/published/#' # not in the folders of the full sweeps
