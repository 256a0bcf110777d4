#!/usr/bin/env bash
# Runs at a small budget, not the paper's, where published.sh has no finished runs; they are in results/small/.
# Prints one command a setting; six to seven hours on two cores: ./slurm_launch.sh sweeps/small.sh --local --cpus 1
set -euo pipefail
cd "$(dirname "$0")"
export SEEDS="1 2 3"

tasks="drawer-open-v2 button-press-topdown-v2 sweep-into-v2 plate-slide-v2"
human="--no-use-replay --total-steps 20000"

metaworld() { ARGS="--total-steps $3 --eval-every 5000${4:+ $4}" METHODS=$1 TASKS=$tasks PAIRS=$2 bash metaworld.sh; }

{
    metaworld "ipl_iql mr_iql" 1000 30000
    metaworld "ipl_awac ipl_xql iql" 4000 10000
    metaworld pt_iql 4000 10000 "--reward-epochs 15"
    METHODS=ipl_iql TASKS="hopper-medium-expert-v2 walker2d-medium-expert-v2" ARGS="$human --eval-every 5000" \
        bash locomotion.sh
    METHODS=ipl_iql TASKS="lift-ph can-ph" ARGS="$human --eval-every 10000" bash robomimic.sh
} | sed 's# runs/# runs/small/#' # not in the folders of the full sweeps
