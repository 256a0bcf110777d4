#!/usr/bin/env bash
# IPL-IQL whose actor's learning rate falls to zero, as MR-IQL's does; all else as in published.sh.
# Prints one command a seed, one to three hours of a core: ./slurm_launch.sh sweeps/cosine.sh --local --cpus 1
set -euo pipefail
cd "$(dirname "$0")"
SEEDS=${SEEDS:-1 2 3} SEEDS_PER_RUN=1 METHODS=ipl_iql PAIRS=4000 ARGS=--actor-cosine \
    TASKS=${TASKS:-sweep-into-v2 button-press-topdown-v2 drawer-open-v2 plate-slide-v2} bash metaworld.sh |
    sed 's# runs/# runs/cosine/#' # not in the folders of the full sweeps
