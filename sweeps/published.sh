#!/usr/bin/env bash
# The runs of the published tables, at the paper's budget, most wanted first. Those in results/published/ are left out;
# ALL=1 prints them too. One command a seed, 0.2 to 3 hours of a core: ./slurm_launch.sh sweeps/published.sh --local --cpus 1
set -euo pipefail
cd "$(dirname "$0")"

# METHODS, TASKS, number of pairs, first and last seed: seed by seed, so that all tasks can be compared early
metaworld() {
    local task seed
    for seed in $(seq "$4" "$5"); do
        for task in $2; do SEEDS=$seed METHODS=$1 TASKS=$task PAIRS=$3 bash metaworld.sh; done
    done
}
missing() { # of the commands on standard input, those whose seed has no results
    local line seed folder
    while read -r line; do
        seed=${line##*--seed } folder=${line##*--run-dir runs/}
        [ -z "${ALL-}" ] && [ -e "../results/${folder%% *}/seed-${seed%% *}/eval.csv" ] || echo "$line"
    done
}
four="button-press-topdown-v2 drawer-open-v2 sweep-into-v2 plate-slide-v2"
five="$four button-press-v2"

{
    ARGS=--use-replay metaworld bc "$five" 4000 1 3 | sed 's#/bc #/bc-replay #' # the whole dataset, without a label
    metaworld "ipl_iql mr_iql bc" "$four" 4000 1 3
    metaworld cpl "$four" 4000 1 1
    metaworld "ipl_iql mr_iql bc" button-press-v2 4000 1 3
    metaworld ipl_xql "$five" 4000 1 1
    metaworld "ipl_iql mr_iql bc" "$four" 500 1 1
} | sed 's# runs/# runs/published/#' | missing # not in the folders of the full sweeps
