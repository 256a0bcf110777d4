#!/usr/bin/env bash
# A person's few labels: pairs as the label page draws them, answered by the larger return, and the page's own command.
# Prints one command a seed; narrow it with the variables below, e.g. SEEDS="1 2" bash sweeps/few_labels.sh.
# DATA names another offline dataset of each task, DATA/TASK.hdf5. ARGS is added to every command.
# Make the files first: bash sweeps/few_labels.sh files | bash
set -euo pipefail
METHODS=${METHODS:-bc bc-preferred ipl_iql mr_iql}
TASKS=${TASKS:-button-press-topdown-v2 sweep-into-v2 drawer-open-v2}
PAIRS=${PAIRS:-50 200 4000}
SEEDS=${SEEDS:-1 2 3}
DATA=${DATA:-}
ARGS="--total-steps 10000 --eval-every 1000 --actor-average 0.002${ARGS:+ $ARGS}" # of two values the last counts

for seed in $SEEDS; do
    for task in $TASKS; do
        labels=labels/few${DATA:+/$(basename "$DATA")}/seed-$seed # the seed's own answers
        data="--env $task${DATA:+ --dataset $DATA/$task.hdf5}"
        runs=runs/few_labels${DATA:+/$(basename "$DATA")}/$task
        if [ "${1-}" = files ]; then
            echo "python -m tools.label $data --teacher perfect --pairs 4000 --seed $seed --labels-dir $labels"
            continue
        fi
        for method in $METHODS; do
            if [ "$method" = bc ]; then # of the whole dataset, without a label
                echo "python algorithms/bc.py $data --use-replay --seed $seed --run-dir $runs/bc $ARGS"
                continue
            fi
            for pairs in $PAIRS; do
                [ "$method" = bc-preferred ] && how="--bc-data preferred" || how=--use-replay
                echo "python algorithms/${method%-preferred}.py $data --preferences $labels/$task.npz" \
                    "--num-preferences $pairs $how --seed $seed --run-dir $runs/pairs-$pairs/$method $ARGS"
            done
        done
    done
done
