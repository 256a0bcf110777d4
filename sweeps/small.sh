#!/usr/bin/env bash
# Runs at a small budget, not the paper's, where published.sh has no finished runs; they are in results/small/.
# Prints one command a setting; four to five hours on two cores: ./slurm_launch.sh sweeps/small.sh --local --cpus 1
set -euo pipefail
cd "$(dirname "$0")"
export SEEDS="1 2 3"

tasks="drawer-open-v2 button-press-topdown-v2 sweep-into-v2 plate-slide-v2"
human="--no-use-replay --total-steps 20000"

{
    METHODS="ipl_iql mr_iql" TASKS=$tasks PAIRS=1000 ARGS="--total-steps 30000 --eval-every 5000" bash metaworld.sh
    METHODS=ipl_iql TASKS="hopper-medium-expert-v2 walker2d-medium-expert-v2" ARGS="$human --eval-every 5000" \
        bash locomotion.sh
    METHODS=ipl_iql TASKS="lift-ph can-ph" ARGS="$human --eval-every 10000" bash robomimic.sh
} | sed 's# runs/# runs/small/#' # not in the folders of the full sweeps
