#!/usr/bin/env bash
# Runs the commands of a sweep, as one SLURM job array or on this machine. Started again, it runs what is not finished.
#
#   ./slurm_launch.sh sweeps/metaworld.sh --partition gpu --gpus 1 --cpus 4 --mem 16G --time 24:00:00 --job-name mw
#   ./slurm_launch.sh sweeps/metaworld.sh --local --valid-cpus 0-7 --cpus 2 --job-name mw
#   grep drawer my_commands.txt | ./slurm_launch.sh --job-name drawer --partition gpu
#   ./slurm_launch.sh --status mw
#
# SWEEP: a bash file that prints one command a line; without it, commands come from standard input.
#   --job-name NAME          logs and state go to slurm_logs/NAME (default: the sweep's name)
#   --jobs-per-instance K    commands side by side in one task of the array, sharing its cores and GPUs (default 1)
#   --remainder split|new    what K does not divide: spread over the other tasks, or a task of its own (default new)
#   --limit N                at most N tasks at a time
#   --dry-run                print the job script and the commands of each task; submit nothing
#   --status NAME            finished, running, failed and waiting commands; the logs of the failed ones
#   --cpus N  --gpus [TYPE:]N   of each task
#   --partition --time --nodes --ntasks-per-node --mem --output --error --exclude --nodelist --account: as in sbatch
#   --                       what follows goes to sbatch as it is
#   --local                  run here, as many tasks at a time as fit, each on its own --cpus cores and --gpus GPUs
#                            (without --gpus they see none)
#   --valid-cpus 0-7         cores that --local may use (default: all that this process may)
#   --valid-gpus 0,1         GPUs that --local may use
#
# A task checkpoints and requeues itself ahead of its time limit and when it is preempted; scancel ends it for good.
# Exit status: 0; 2 wrong options, or refused by SLURM; with --local 1 if a command failed, 130 if it was stopped.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "slurm_launch: $*" >&2; exit 2; }

# ---------------------------------------------------------------- options
sweep="" name="" per_task=1 remainder=new limit="" dry="" local="" status="" valid_cpus="" valid_gpus="" cpus="" gpus=""
headers=() extra=()

number() { [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 $2: must be a positive number"; }

while [ $# -gt 0 ]; do
    option=$1 value=${2-}
    if [[ $option == --*=* ]]; then
        value=${option#*=} option=${option%%=*}
        set -- "$option" "$value" "${@:2}"
    fi
    case $option in
        --dry-run | --local | --help) ;;
        --) extra=("${@:2}"); break ;;
        --*) [ $# -ge 2 ] || die "$option: needs a value" ;;
    esac
    case $option in
        --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        --dry-run) dry=1; shift; continue ;;
        --local) local=1; shift; continue ;;
        --job-name) name=$value ;;
        --status) [ -n "$value" ] || die "--status: needs the name of a job"; status=$value ;;
        --jobs-per-instance) number "$option" "$value"; per_task=$value ;;
        --limit) number "$option" "$value"; limit=$value ;;
        --remainder) [[ $value == split || $value == new ]] || die "--remainder $value: must be split or new"; remainder=$value ;;
        --cpus) number "$option" "$value"; cpus=$value; headers+=("--cpus-per-task=$value") ;;
        --gpus) [[ $value =~ ^([A-Za-z0-9_.-]+:)?[1-9][0-9]*$ ]] || die "--gpus $value: must be N or TYPE:N"
                gpus=${value##*:}; headers+=("--gres=gpu:$value") ;;
        --nodes | --ntasks-per-node) number "$option" "$value"; headers+=("$option=$value") ;;
        --partition | --time | --mem | --output | --error | --exclude | --nodelist | --account)
            [ -n "$value" ] || die "$option: needs a value"
            headers+=("$option=$value") ;;
        --valid-cpus) [[ $value =~ ^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$ ]] || die "--valid-cpus $value: must be like 0-7 or 0,2"
                      valid_cpus=$value ;;
        --valid-gpus) [[ $value =~ ^[0-9]+(,[0-9]+)*$ ]] || die "--valid-gpus $value: must be like 0,1"; valid_gpus=$value ;;
        -*) die "$option: no such option; see --help" ;;
        *) [ -z "$sweep" ] || die "$option: only one sweep at a time, and $sweep was given"
           sweep=$option; shift; continue ;;
    esac
    shift 2
done

name=${status:-${name:-$(basename "${sweep:-sweep}" .sh)}}
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "--job-name $name: letters, digits, dots, dashes and underscores only"
dir=$root/slurm_logs/$name

# ---------------------------------------------------------------- what became of the commands
# slurm_logs/NAME: commands.txt (line N is command N, never removed), 0001.log and 0001.status ("STATE SUBMISSION
# [EXIT STATUS]"), and of submission M tasks-M.txt (line T: the commands of task T), job-M.sh and, once it is
# submitted, jobs-M.txt ("JOBID FIRST_TASK", one array a line, or "local").
declare -A state=() detail=()
inspect() {  # fills state[ID] (finished running failed waiting) and detail[ID]
    local m jobs job first task id ids path word by code array index said
    declare -A latest=() active=() queued=()
    if grep -qsv '^local' "$dir"/jobs-*.txt; then
        said=$(squeue --noheader --array --user "$(id -un)" --format %F_%K 2>&1) || die "squeue failed: ${said//$'\n'/; }"
        while IFS=_ read -r array index; do queued[$array.$index]=1; done <<<"$said"
    fi
    for ((m = 1; ; m++)); do
        [ -e "$dir/tasks-$m.txt" ] || break
        [ -s "$dir/jobs-$m.txt" ] || continue
        mapfile -t jobs <"$dir/jobs-$m.txt"
        task=0
        while read -r -a ids; do
            for id in "${ids[@]}"; do
                latest[$id]=$m active[$id]=
                for job in "${jobs[@]}"; do
                    first=${job#* } job=${job% *}
                    if [ "$job" = local ]; then
                        is_local_running && active[$id]=1
                    elif [ -n "${queued[$job.$((task - first))]-}" ]; then
                        active[$id]=1
                    fi
                done
            done
            task=$((task + 1))
        done <"$dir/tasks-$m.txt"
    done
    total=$(wc -l <"$dir/commands.txt")
    for ((index = 1; index <= total; index++)); do
        id=$(printf %04d "$index") word="" by=0 code=""
        path=$dir/$id.status
        [ ! -e "$path" ] || read -r word by code <"$path" || true
        m=${latest[$id]-0}
        state[$id]=failed detail[$id]=
        if [ "$word" = finished ]; then
            state[$id]=finished
        elif [ "$by" != "$m" ] || [ -z "$word" ]; then  # this submission has not begun it
            if [ -n "${active[$id]-}" ]; then state[$id]=waiting; else detail[$id]="ended before it began"; fi
        elif [ "$word" = failed ]; then
            detail[$id]="exit status $code"
        elif [ -n "${active[$id]-}" ]; then
            state[$id]=$([ "$word" = running ] && echo running || echo waiting)
        else
            detail[$id]=$([ "$word" = running ] && echo "ended without a word: killed, out of memory, or its node was lost" || echo stopped)
        fi
    done
}

is_local_running() { ! flock --shared --nonblock "$dir/.local" true; }  # its tasks hold the lock as long as one of them lives

print_status() {
    local id count log never=()
    declare -A count=([finished]=0 [running]=0 [failed]=0 [waiting]=0)
    for id in "${!state[@]}"; do count[${state[$id]}]=$((count[${state[$id]}] + 1)); done
    echo "$name: ${#state[@]} commands: ${count[finished]} finished, ${count[running]} running," \
        "${count[failed]} failed, ${count[waiting]} waiting"
    for id in $(printf '%s\n' "${!state[@]}" | sort); do
        log=$dir/$id.log
        [ -e "$log" ] || log="$dir: see the tasks' logs for command $id"
        if [ "${detail[$id]}" = "ended before it began" ]; then
            never+=("$id")
        elif [ "${state[$id]}" = failed ]; then
            echo "failed: ${log#"$PWD"/} (${detail[$id]})"
        fi
    done
    [ ${#never[@]} = 0 ] || echo "not begun when their job ended, logs in ${dir#"$PWD"/}: ${never[*]}"
}

if [ -n "$status" ]; then
    [ -e "$dir/commands.txt" ] || die "--status $name: there is no $dir"
    inspect
    print_status
    exit 0
fi

# ---------------------------------------------------------------- the commands, and which of them to run
if [ -n "$sweep" ]; then
    [ -r "$sweep" ] || die "$sweep: no such file"
    text=$(bash "$sweep") || die "$sweep: failed, see above"
else
    [ ! -t 0 ] || die "no sweep: give a file that prints commands, or commands on standard input"
    text=$(cat)
fi
mapfile -t commands < <(grep -v -e '^[[:space:]]*#' -e '^[[:space:]]*$' <<<"$text" || true)
[ ${#commands[@]} -gt 0 ] || die "${sweep:-standard input}: holds no commands"

for line in "${commands[@]}"; do  # a command is started again after a requeue, and by the next launch
    [[ " $line " != *" --overwrite "* ]] || die "--overwrite: would erase at every start what the command has so far; remove the old runs, or choose another --run-dir: $line"
done
[ -z "$local" ] || [ ${#extra[@]} = 0 ] || die "--: goes to sbatch, which --local does not use"
[ -n "$local" ] || [ -n "$dry" ] || command -v sbatch >/dev/null || die "sbatch: not found; are you on the cluster? --local runs here"

cores() {  # "0-2,5" -> 0, 1, 2, 5, one a line
    local part
    for part in ${1//,/ }; do seq "${part%-*}" "${part#*-}"; done | sort -nu
}

if [ -n "$local" ]; then
    may=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)
    mapfile -t all_cpus < <(cores "${valid_cpus:-$may}")
    for core in "${all_cpus[@]}"; do
        [[ " $(cores "$may" | tr '\n' ' ')" == *" $core "* ]] || die "--valid-cpus $valid_cpus: this machine lets us use $may"
    done
    IFS=, read -r -a all_gpus <<<"$valid_gpus"
    cpus=${cpus:-1} gpus=${gpus:-0}
    [ "$gpus" != 0 ] || [ -z "$valid_gpus" ] || die "--valid-gpus $valid_gpus: say how many each task takes with --gpus"
    [ "$gpus" = 0 ] || [ ${#all_gpus[@]} -gt 0 ] || die "--gpus $gpus: name this machine's GPUs with --valid-gpus"
    slots=$((${#all_cpus[@]} / cpus))
    [ $slots -gt 0 ] || die "--cpus $cpus: only ${#all_cpus[@]} are valid"
    if [ "$gpus" -gt 0 ]; then
        [ $((${#all_gpus[@]} / gpus)) -gt 0 ] || die "--gpus $gpus: only ${#all_gpus[@]} are valid"
        [ $slots -le $((${#all_gpus[@]} / gpus)) ] || slots=$((${#all_gpus[@]} / gpus))
    fi
    [ -z "$limit" ] || [ $slots -le "$limit" ] || slots=$limit
fi

if [ -n "$dry" ]; then
    real=$dir dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
    [ ! -d "$real" ] || cp "$real"/*.txt "$real"/*.status "$dir"/ 2>/dev/null || true
fi
mkdir -p "$dir" || die "$dir: cannot be made"
touch "$dir/commands.txt"
exec 9>"$dir/.submitting"
flock 9  # two launchers at once take turns
if [ -n "$local" ] && [ -z "$dry" ] && is_local_running; then die "$name: runs on this machine already"; fi

declare -A known=()
ids=() lines=0
while IFS= read -r line; do
    lines=$((lines + 1))
    known[$line]+="$(printf %04d "$lines") "
done <"$dir/commands.txt"
before=$lines
for line in "${commands[@]}"; do  # the n-th of equal lines is the n-th of the equal ones before
    if [ -n "${known[$line]-}" ]; then
        ids+=("${known[$line]%% *}") known[$line]=${known[$line]#* }
    else
        printf '%s\n' "$line" >>"$dir/commands.txt"
        lines=$((lines + 1))
        ids+=("$(printf %04d "$lines")")
    fi
done
inspect
todo=()
for id in "${ids[@]}"; do
    case ${state[$id]} in finished | running | waiting) ;; *) todo+=("$id") ;; esac
done
if [ ${#todo[@]} = 0 ]; then
    echo "$name: nothing to submit: all ${#ids[@]} commands are finished, running or waiting; another --job-name runs them again"
    exit 0
fi

# ---------------------------------------------------------------- tasks and job script
submission=1
while [ -e "$dir/tasks-$submission.txt" ]; do submission=$((submission + 1)); done
tasks=$((${#todo[@]} / per_task)) rest=$((${#todo[@]} % per_task))
if [ $rest -gt 0 ] && { [ "$remainder" = new ] || [ $tasks = 0 ]; }; then tasks=$((tasks + 1)) rest=0; fi
at=0
for ((task = 0; task < tasks; task++)); do
    size=$((per_task + rest / tasks + (task < rest % tasks)))
    echo "${todo[*]:at:size}"
    at=$((at + size))
done >"$dir/tasks-$submission.txt"

job_script() {  # $1: first task of this array, $2: its last index
    echo '#!/usr/bin/env bash'
    printf '#SBATCH %s\n' "--job-name=$name" "--array=0-$2${limit:+%$limit}" "--output=\"${real:-$dir}/task-%A_%a.log\"" \
        --open-mode=append --requeue --signal=B:USR1@120 ${headers[@]+"${headers[@]}"}
    printf 'root=%q dir=%q submission=%s first=%s\n' "$root" "${real:-$dir}" "$submission" "$1"
    cat <<'JOB'
cd "$root" || exit 1

note() {  # ID STATE [EXIT STATUS]
    echo "$2 $submission ${3-}" >"$dir/.$1.status" && mv "$dir/.$1.status" "$dir/$1.status"
    echo "$(date '+%F %T') $1 $2 ${3-}"
}

forward() {  # SIGNAL PID DEPTH: to our own two shells, and to what they and shells below them run
    local name child children=""
    read -r name 2>/dev/null <"/proc/$2/comm" || return 0
    case $name in bash | sh | dash) read -r children 2>/dev/null <"/proc/$2/task/$2/children" || true ;; esac
    if [ "$3" -lt 2 ] || [ -z "$children" ]; then kill -s "$1" "$2" 2>/dev/null || true; fi
    for child in $children; do forward "$1" "$child" $(($3 + 1)); done
}

pids=() signal=""
pass() {
    signal=$1
    local pid
    for pid in ${pids[@]+"${pids[@]}"}; do forward "$1" "$pid" 0; done
}
trap 'pass USR1' USR1
trap 'pass TERM' TERM INT HUP

run() {  # ID: in a subshell of its own
    local code=0 signal="" command
    trap 'signal=USR1' USR1
    trap 'signal=TERM' TERM INT HUP
    command=$(sed -n "$((10#$1))p" "$dir/commands.txt")
    if [ -z "$signal" ] && [ -z "$command" ]; then note "$1" failed 127; return; fi
    note "$1" running
    if [ -z "$signal" ]; then  # the shell ends at a signal once what it runs has ended, and begins nothing more
        bash -c "trap 'exit 143' USR1 TERM INT HUP; $command" >>"$dir/$1.log" 2>&1 </dev/null || code=$?
    fi
    if [ -n "$signal" ]; then
        note "$1" stopped  # even where it ended with 0: that may be a checkpoint, and a finished run ends at once
    elif [ $code = 0 ]; then
        note "$1" finished
    else
        note "$1" failed $code
    fi
}

# shellcheck disable=SC1091
. ./setup_shell.sh || exit 1
[ "${GOMP_SPINCOUNT-}" != 300 ] || unset GOMP_SPINCOUNT  # setup_shell's: for runs that share their cores
read -r -a ids < <(sed -n "$((SLURM_ARRAY_TASK_ID + first + 1))p" "$dir/tasks-$submission.txt")
[ ${#ids[@]} -gt 0 ] || { echo "cannot read $dir/tasks-$submission.txt"; exit 1; }
share=$((${SLURM_CPUS_PER_TASK:-1} / ${#ids[@]}))  # cores of each command
((share > 0)) || share=1
export SLURM_CPUS_PER_TASK=$share OMP_NUM_THREADS=$share MKL_NUM_THREADS=$share TORCHINDUCTOR_COMPILE_THREADS=$share

for id in "${ids[@]}"; do
    word="" by=""
    [ ! -e "$dir/$id.status" ] || read -r word by _ <"$dir/$id.status"
    # A task that was requeued resumes what it had not ended, and no later submission has taken over.
    if [ -n "$signal" ] || [ "$word" = finished ] || [ "${by:-0}" -gt "$submission" ]; then continue; fi
    if [ "$word" = failed ] && [ "$by" = "$submission" ]; then continue; fi
    run "$id" &
    pids+=($!)
    [ -z "$signal" ] || pass "$signal"
done
for pid in ${pids[@]+"${pids[@]}"}; do
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done  # a signal interrupts wait
done

failed=0 stopped=0
for id in "${ids[@]}"; do
    word="" by=""
    [ ! -e "$dir/$id.status" ] || read -r word by _ <"$dir/$id.status"
    [ "${by:-0}" -le "$submission" ] || continue
    case $word in finished) ;; failed) failed=1 ;; *) stopped=1 ;; esac
done
if [ $stopped = 1 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    # USR1: the time limit or a preemption is near. TERM: scancel, unless SLURM has preempted this run of the task.
    me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID  # the last task's own id is the array's: it would name all tasks
    shown=$(scontrol --oneliner show job "$me")
    began=$(sed -n 's/.* StartTime=\([^ ]*\).*/\1/p' <<<"$shown")
    preempted=$(sed -n 's/.* PreemptTime=\([0-9][^ ]*\).*/\1/p' <<<"$shown")
    if [ "$signal" = USR1 ] || [[ -n $preempted && ! $preempted < $began ]]; then
        echo "$(date '+%F %T') requeue"
        scontrol requeue "$me" && sleep 300  # until SLURM ends this script
    fi
fi
[ $stopped = 0 ] || exit 143
exit $failed
JOB
}

slot_script() {  # of --local: task $1, on the cores and GPUs of slot $SLOT
    printf 'all_cpus=(%s) all_gpus=(%s) cpus=%s gpus=%s job=%q\n' "${all_cpus[*]}" "${all_gpus[*]-}" "$cpus" "$gpus" \
        "$dir/job-$submission.sh"
    cat <<'SLOT'
join() { local IFS=,; echo "$*"; }
if [ "$gpus" = 0 ]; then  # robosuite takes an empty list for a bad number, unless it is told the renderer
    export CUDA_VISIBLE_DEVICES="" MUJOCO_EGL_DEVICE_ID=${MUJOCO_EGL_DEVICE_ID:-0}
else
    export CUDA_VISIBLE_DEVICES=$(join "${all_gpus[@]:SLOT * gpus:gpus}")
fi
export SLURM_CPUS_PER_TASK=$cpus SLURM_ARRAY_TASK_ID=$1
taskset -c "$(join "${all_cpus[@]:SLOT * cpus:cpus}")" bash "$job" 2>>"${job%.sh}.log" || exit 1
SLOT
}

if [ -n "$dry" ]; then
    job_script 0 $((tasks - 1))
    task=0
    while read -r -a part; do
        for id in "${part[@]}"; do echo "# task $task: $(sed -n "$((10#$id))p" "$dir/commands.txt")"; done
        task=$((task + 1))
    done <"$dir/tasks-$submission.txt"
    [ ${#extra[@]} = 0 ] || echo "# sbatch ${extra[*]}"
    exit 0
fi

if [ -n "$local" ]; then
    job_script 0 $((tasks - 1)) >"$dir/job-$submission.sh"
    echo "$name: ${#todo[@]} commands, $slots at a time on $cpus core(s)${valid_gpus:+ and $gpus GPU(s)} each; logs in ${dir#"$PWD"/}"
    exec 8>"$dir/.local"
    flock 8  # inherited by every task
    echo "local 0" >"$dir/jobs-$submission.txt"
    flock --unlock 9
    slot_script >"$dir/slot-$submission.sh"
    # A group of its own, so that all of it, and nothing else, can be ended.
    seq 0 $((tasks - 1)) | env -u SLURM_JOB_ID setsid xargs --max-procs="$slots" --max-args=1 --process-slot-var=SLOT \
        bash "$dir/slot-$submission.sh" 9>&- &
    group=$! stopped=""
    trap 'stopped=1; kill -TERM -- "-$group" 2>/dev/null || true' INT TERM HUP
    exec 8>&-
    while kill -0 $group 2>/dev/null; do wait $group || true; done
    if [ -n "$stopped" ]; then  # xargs is gone, its tasks write their checkpoints
        exec 8>"$dir/.local"
        flock --wait 60 8 || kill -KILL -- "-$group" 2>/dev/null || true
        exec 8>&-
    fi
    inspect
    print_status
    [ -z "$stopped" ] || exit 130
    for id in "${ids[@]}"; do [ "${state[$id]}" = finished ] || exit 1; done
    exit 0
fi

# ---------------------------------------------------------------- SLURM
largest=$(scontrol show config 2>/dev/null | sed -n 's/^MaxArraySize *= *//p') || true
largest=${largest:-1001}
previous=""
for ((first = 0; first < tasks; first += largest)); do
    last=$((tasks - first < largest ? tasks - first - 1 : largest - 1))
    script=$dir/job-$submission${previous:+-$first}.sh
    job_script $first $last >"$script"
    # with --limit, one array after the other: the limit is each array's own
    said=$(sbatch --parsable ${limit:+${previous:+"--dependency=afterany:$previous"}} ${extra[@]+"${extra[@]}"} "$script" 2>&1) || {
        said="sbatch refused: ${said//$'\n'/; }"
        [ -z "$previous" ] || { echo "slurm_launch: $said, after the job(s) above were submitted" >&2; exit 1; }
        rm -f "$dir/tasks-$submission.txt" "$script"
        sed -i "$((before + 1)),\$d" "$dir/commands.txt"
        die "$said"
    }
    previous=${said##*$'\n'} previous=${previous%%;*}
    echo "$previous $first" >>"$dir/jobs-$submission.txt"
    echo "$name: submitted job $previous, $((last + 1)) task(s)"
done
echo "$name: ${#todo[@]} of ${#ids[@]} commands to run; ./slurm_launch.sh --status $name"
