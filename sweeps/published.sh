#!/usr/bin/env bash
# The runs of the README's tables, whose evaluations are in results/: a small budget, not the paper's.
# Prints one command a setting; five and a half hours on two cores: ./slurm_launch.sh sweeps/published.sh --local --cpus 1
set -euo pipefail
cd "$(dirname "$0")"
export SEEDS="1 2 3"

metaworld() { ARGS="--total-steps $4 --eval-every 5000" METHODS=$1 TASKS=$2 PAIRS=$3 bash metaworld.sh; }

{
    metaworld "ipl_iql mr_iql" "drawer-open-v2 button-press-topdown-v2 sweep-into-v2 plate-slide-v2" 4000 30000
    metaworld ipl_iql "drawer-open-v2 button-press-topdown-v2 sweep-into-v2 plate-slide-v2" 1000 30000
    METHODS=ipl_iql TASKS=hopper-medium-expert-v2 ARGS="--no-use-replay --total-steps 20000 --eval-every 5000" \
        bash locomotion.sh
} | sed 's# runs/# runs/published/#' # not in the folders of the full sweeps
