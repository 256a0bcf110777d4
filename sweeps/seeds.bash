# Sourced by the sweeps. Prints one line a process: the flags of consecutive SEEDS, at most SEEDS_PER_RUN of them.
# shellcheck shell=bash
seed_flags() {
    local seed first="" count=0
    for seed in ${SEEDS:-1 2 3 4 5} end; do
        if [ -n "$first" ] && { [ "$seed" != $((first + count)) ] || [ "$count" = "${SEEDS_PER_RUN:-1000}" ]; }; then
            echo "--seed $first --num-seeds $count"
            first=""
        fi
        [ -n "$first" ] || { first=$seed count=0; }
        count=$((count + 1))
    done
}
