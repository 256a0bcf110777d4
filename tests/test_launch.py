"""Sweeps, and slurm_launch.sh against a real SLURM and on this machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from common.cli import default_args, parse_args
from tests.conftest import REPOSITORY, SMALL
from tests.slurmlab import Slurm
from tests.test_scripts import assert_same_run, step

SWEEPS = sorted((REPOSITORY / "sweeps").glob("*.sh"))


# ---------------------------------------------------------------- sweeps
def lines(sweep: Path, **variables) -> list[str]:
    done = subprocess.run(["bash", sweep], env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda path: path.stem)
def test_every_line_parses_with_its_scripts_own_arguments(sweep):
    import importlib

    folders = []
    for line in lines(sweep):
        python, script, *words = shlex.split(line)
        assert python == "python" and (REPOSITORY / script).exists()
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        args = parse_args(default_args(module.Args, module.DEFAULTS, words), words)
        args = getattr(module, "fill_in", lambda args: args)(args)
        if sweep.stem in ("published", "cosine"):
            assert args.num_seeds == 1 and args.total_steps == 200_000
        elif sweep.stem == "few_labels":
            preferred = getattr(args, "bc_data", "") == "preferred"  # clones its pairs alone
            assert args.num_seeds == 1 and args.use_replay != preferred and args.actor_average
        else:
            assert args.num_seeds == (3 if sweep.stem in ("small", "label_noise") else 5) and args.seed == 1
        assert "cpl" not in script or args.bc_steps < args.total_steps  # cloning leaves updates for CPL's own loss
        folders += [f"{args.run_dir}/seed-{seed}" for seed in range(args.seed, args.seed + args.num_seeds)]
    assert len(set(folders)) == len(folders) > 1  # no two runs share a folder


def test_what_narrows_a_sweep_gives_each_run_a_folder():
    for sweep in ("label_noise", "reward"):
        found = lines(REPOSITORY / f"sweeps/{sweep}.sh", PAIRS="500 4000", STEPS="10000 20000", METHODS="cpl",
                      TASKS="drawer-open-v2", MISTAKES="0", VARIED_TASK="")  # fmt: skip
        assert len(found) == len({re.search(r"--run-dir (\S+)", line)[1] for line in found}) == 4
        assert {re.search(r"--num-preferences (\d+)", line)[1] for line in found} == {"500", "4000"}


def test_sweeps_narrow():
    narrow = lines(REPOSITORY / "sweeps/metaworld.sh", METHODS="ipl_iql", TASKS="drawer-open-v2", PAIRS="500",
                   SEEDS="1 2 4", ARGS="--track")  # fmt: skip
    assert [re.search(r"--seed \d+ --num-seeds \d+", line)[0] for line in narrow] == [
        "--seed 1 --num-seeds 2", "--seed 4 --num-seeds 1"]  # fmt: skip
    assert all(line.endswith(" --track") for line in narrow)
    one = lines(REPOSITORY / "sweeps/locomotion.sh", METHODS="iql", TASKS="x", SEEDS_PER_RUN="2")
    assert [line.split(" --run-dir")[0][-20:] for line in one] == [
        "-seed 1 --num-seeds 2"[-20:], "-seed 3 --num-seeds 2"[-20:], "-seed 5 --num-seeds 1"[-20:]]  # fmt: skip
    assert len(lines(REPOSITORY / "sweeps/metaworld.sh")) == 5 * 7 * 4
    ablations = lines(REPOSITORY / "sweeps/ablations.sh", TASKS="drawer-open-v2", CHI2_COEFF="", BETA="")
    assert [re.search(r"--expectile \S+|$", line)[0] for line in ablations] == [
        "", "--expectile 0.6", "--expectile 0.7", "--expectile 0.8", "--expectile 0.9"]  # fmt: skip


def test_shellcheck():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    scripts = [REPOSITORY / name for name in ("slurm_launch.sh", "setup_shell.sh", ".ci/run")]
    done = subprocess.run(["shellcheck", *scripts, *SWEEPS, REPOSITORY / "sweeps/seeds.bash"], cwd=REPOSITORY,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------- launching
class House:
    """A copy of the repository, whose launcher runs commands."""

    def __init__(self, base: Path, env: dict[str, str]):
        self.folder, self.env = base / "it's a house", env
        folder = self.folder
        folder.mkdir()
        for name in ("algorithms", "common", "sweeps", "tools", "requirements.txt", "pyproject.toml", ".venv"):
            (folder / name).symlink_to(REPOSITORY / name)
        for name in ("slurm_launch.sh", "setup_shell.sh"):
            shutil.copy(REPOSITORY / name, folder)
        (folder / "out").mkdir()

    def start(self, commands: list[str], *options) -> subprocess.Popen:
        words = [str(word) for word in ("./slurm_launch.sh", *options)]
        given = self.folder / "given.txt"
        given.write_text("".join(f"{command}\n" for command in commands))
        with open(given) as stdin:
            pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            process = subprocess.Popen(words, cwd=self.folder, env=self.env, text=True, start_new_session=True, **pipes)
        return process

    def launch(self, commands: list[str], *options, status: int = 0) -> str:
        process = self.start(commands, *options)
        said, errors = process.communicate(timeout=120)
        assert process.returncode == status, said + errors
        return said + errors

    def status(self, name: str = "j") -> str:
        return self.launch([], "--status", name)

    def logs(self, name: str = "j") -> dict[str, str]:
        return {path.stem: path.read_text() for path in sorted((self.folder / f"slurm_logs/{name}").glob("[0-9]*.log"))}

    def out(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "out").iterdir())


def wait_for(what, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def base_env() -> dict[str, str]:
    drop = ("SLURM", "SBATCH_", "SQUEUE_")
    return {k: v for k, v in os.environ.items() if not k.startswith(drop)}


@pytest.fixture
def house(tmp_path) -> House:
    """Without SLURM."""
    if not (REPOSITORY / ".venv").exists():
        pytest.skip("jobs activate .venv: source setup_shell.sh first")
    return House(tmp_path, base_env())


WRONG = [
    (["--jobs-per-instance", "0"], "--jobs-per-instance 0"),
    (["--limit", "many"], "--limit many"),
    (["--remainder", "drop"], "--remainder drop"),
    (["--partitoin", "gpu"], "--partitoin"),
    (["--gpus", "some"], "--gpus some"),
    (["--time"], "--time: needs a value"),
    (["nowhere.sh"], "nowhere.sh"),
    (["--job-name", "a/b"], "--job-name a/b"),
    (["--status", "nobody"], "--status nobody"),
    (["--local", "--cpus", "99999"], "--cpus 99999"),
    (["--local", "--gpus", "1"], "--valid-gpus"),
    (["--local", "--valid-cpus", "99998"], "--valid-cpus"),
    (["--local", "--valid-cpus", "0-99999"], "--valid-cpus"),
    (["--local", "--valid-gpus", "0"], "--valid-gpus"),
    (["--local", "--", "--qos=x"], "--local"),
    (["--status", ""], "--status"),
    (["one.sh", "two.sh"], "two.sh"),
]


@pytest.mark.parametrize(
    ("options", "said"), WRONG, ids=lambda value: "_".join(value) if isinstance(value, list) else None
)
def test_wrong_options_are_one_line_and_nothing_runs(house, options, said):
    shown = house.launch(["touch out/a"], *options, status=2)
    assert said in shown and shown.count("\n") == 1 and house.out() == []


def test_what_would_erase_itself_is_refused(house):
    said = house.launch(["python a.py --overwrite"], "--local", status=2)
    assert "--overwrite: would erase" in said and said.count("\n") == 1


def test_no_commands(house):
    assert "no commands" in house.launch(["", "# nothing"], status=2)
    assert house.launch([], "--help").startswith("Runs the commands of a sweep")


def test_dry_run_shows_the_job_and_submits_nothing(house):
    shown = house.launch([f"echo {i}" for i in range(5)], "--dry-run", "--jobs-per-instance", 2, "--gpus", "1080ti:1",
                         "--cpus", 4, "--mem", "16G", "--limit", 3, "--job-name", "j")  # fmt: skip
    for line in ("--array=0-2%3", "--gres=gpu:1080ti:1", "--cpus-per-task=4", "--mem=16G", "--job-name=j", "--requeue"):
        assert f"#SBATCH {line}\n" in shown
    assert f'--output="{house.folder}/slurm_logs/j/task-%A_%a.log"' in shown
    assert "# task 2: echo 4" in shown and not (house.folder / "slurm_logs").exists()
    split = house.launch([f"echo {i}" for i in range(5)], "--dry-run", "--jobs-per-instance", 2, "--remainder", "split")
    assert re.findall(r"# task (\d): echo", split) == ["0", "0", "0", "1", "1"]


# ---------------------------------------------------------------- this machine
def test_local_runs_every_command_once_each_on_its_own_cores(house):
    cores = sorted(os.sched_getaffinity(0))
    record = f"{shlex.quote(sys.executable)} -c 'import os, sys; print(sorted(os.sched_getaffinity(0)))'"
    commands = [f"{record} >> 'out/a {i}'; date +%s.%N >> 'out/a {i}'; sleep 0.5; date +%s.%N >> 'out/a {i}'"
                for i in range(5)]  # fmt: skip
    commands += [
        """printf '%s|' "a  b" 'c"d' $HOME \\$x '*' > out/quoting""",
        "test $SLURM_CPUS_PER_TASK$OMP_NUM_THREADS = 11",
    ]
    valid = ",".join(map(str, cores[:2]))
    said = house.launch(commands, "--local", "--valid-cpus", valid, "--cpus", 1, "--job-name", "j")
    assert "7 commands: 7 finished, 0 running, 0 failed, 0 waiting" in said
    assert (house.folder / "out/quoting").read_text() == f"""a  b|c"d|{os.environ["HOME"]}|$x|*|"""
    spans = [(house.folder / f"out/a {i}").read_text().split("\n") for i in range(5)]
    assert {span[0] for span in spans} == {f"[{core}]" for core in cores[:2]} and all(len(span) == 4 for span in spans)
    for core in cores[:2]:  # one at a time on a core
        mine = sorted((float(s[1]), float(s[2])) for s in spans if s[0] == f"[{core}]")
        assert all(end <= begin for (_, end), (begin, _) in pairwise(mine))


def test_local_gives_gpus_and_frees_them(house):
    commands = [f"echo $CUDA_VISIBLE_DEVICES >> out/{i}; sleep 0.2" for i in range(6)]
    cores = len(os.sched_getaffinity(0))
    house.launch(commands, "--local", "--valid-gpus", "4,7", "--gpus", 1, "--job-name", "j")
    seen = [(house.folder / f"out/{i}").read_text().strip() for i in range(6)]
    assert set(seen) == ({"4", "7"} if cores > 1 else {"4"})
    house.env["CUDA_VISIBLE_DEVICES"] = "4,7"
    house.launch(['echo "[$CUDA_VISIBLE_DEVICES]" > out/none'], "--local", "--job-name", "k")
    assert (house.folder / "out/none").read_text() == "[]\n"  # those who ask for none see none


def test_local_failures_are_named_and_run_again_alone(house):
    commands = ["echo x >> out/good", "test -e out/repaired || { echo broken; exit 3; }; echo x >> out/bad"]
    said = house.launch(commands, "--local", "--job-name", "j", status=1)
    assert "2 commands: 1 finished, 0 running, 1 failed, 0 waiting" in said
    assert "failed: slurm_logs/j/0002.log (exit status 3)" in said and house.logs()["0002"] == "broken\n"
    (house.folder / "out/repaired").touch()
    assert "2 finished" in house.launch(commands, "--local", "--job-name", "j")
    assert [(house.folder / "out" / name).read_text() for name in ("good", "bad")] == ["x\n", "x\n"]
    assert "nothing to submit" in house.launch(commands, "--local", "--job-name", "j")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_local_stop_ends_its_children_and_only_them(house, signum):
    bystander = subprocess.Popen(["sleep", "1000"])
    # one ends at once, one only after it has written its checkpoint
    commands = ["echo $$ > out/pid0; exec sleep 1000", "trap 'sleep 1; touch out/saved; exit 9' TERM; "
                "echo $$ > out/pid1; while :; do sleep 0.1; done", "touch out/never"]  # fmt: skip
    options = ["--local", "--job-name", "j", "--jobs-per-instance", 2, "--limit", 1]
    process = house.start(commands, *options)
    wait_for(lambda: {"pid0", "pid1"} <= set(house.out()))
    busy = house.launch(commands, *options, status=2)
    assert "runs on this machine already" in busy and "2 running, 0 failed, 1 waiting" in house.status()
    pids = [int((house.folder / f"out/pid{i}").read_text()) for i in range(2)]
    process.send_signal(signum)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "0 finished, 0 running, 3 failed, 0 waiting" in said
    assert "\nnot begun when their job ended, logs in slurm_logs/j: 0003\n" in said
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()] and bystander.poll() is None
    assert "saved" in house.out() and "never" not in house.out()
    bystander.kill()
    bystander.wait()


# ---------------------------------------------------------------- a real SLURM
@pytest.fixture(scope="module")
def slurm():
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
        pytest.skip("SLURM is not installed (Debian: slurmctld slurmd slurm-client munge)")
    if not (REPOSITORY / ".venv").exists():
        pytest.skip("jobs activate .venv: source setup_shell.sh first")
    with Slurm(nodes=2, cpus=8, gpus=4, extra="MaxArraySize=4\n") as slurm:
        yield slurm


@pytest.fixture
def cluster(slurm, tmp_path) -> House:
    # tasks must not take memory from one another: nothing here is large
    return House(tmp_path, {**base_env(), "SLURM_CONF": str(slurm.conf), "SBATCH_MEM_PER_CPU": "100"})


def ended(house: House, name: str = "j") -> str:
    """The status, once nothing runs or waits."""

    def done():
        said = house.status(name)
        return said if "0 running" in said and "0 waiting" in said else ""

    return wait_for(done, 120)


def job_ids(house: House, name: str = "j") -> list[str]:
    paths = sorted((house.folder / f"slurm_logs/{name}").glob("jobs-*.txt"))
    return [line.split()[0] for path in paths for line in path.read_text().splitlines()]


def test_slurm_runs_every_command_once_and_splits_large_arrays(cluster, slurm):
    """11 commands, 2 a task: 6 tasks, more than this cluster's MaxArraySize of 4."""
    commands = [f"echo x >> 'out/it is {i}'" for i in range(10)]
    commands += ["""printf '%s|' "a  b" 'c"d' $SLURM_JOB_NAME \\$x '*' > out/quoting"""]
    said = cluster.launch(commands, "--job-name", "j", "--jobs-per-instance", 2, "--cpus", 4)
    assert "11 of 11 commands" in said
    assert "11 commands: 11 finished, 0 running, 0 failed, 0 waiting" in ended(cluster)
    assert [(cluster.folder / f"out/it is {i}").read_text() for i in range(10)] == ["x\n"] * 10
    assert (cluster.folder / "out/quoting").read_text() == """a  b|c"d|j|$x|*|"""
    arrays = job_ids(cluster)
    assert [len(slurm.jobs(job)) for job in arrays] == [4, 2]


def test_slurm_failure_fails_its_task_alone_and_runs_again(cluster, slurm):
    commands = ["sleep 1; echo x >> out/0", "test -e out/repaired || exit 3; echo x >> out/1", "echo x >> out/2"]
    cluster.launch(commands, "--job-name", "j", "--jobs-per-instance", 2)
    said = ended(cluster)
    assert "2 finished, 0 running, 1 failed" in said and "slurm_logs/j/0002.log (exit status 3)" in said
    (job,) = job_ids(cluster)
    wait_for(lambda: {j["ArrayTaskId"]: j["JobState"] for j in slurm.jobs(job)} == {"0": "FAILED", "1": "COMPLETED"})
    (cluster.folder / "out/repaired").touch()
    assert "1 of 3 commands" in cluster.launch(commands, "--job-name", "j", "--jobs-per-instance", 2)
    assert "3 finished" in ended(cluster)
    assert [(cluster.folder / f"out/{i}").read_text() for i in range(3)] == ["x\n"] * 3
    assert "nothing to submit" in cluster.launch(commands, "--job-name", "j")


def test_slurm_shares_a_tasks_gpu_and_cores_and_limits_tasks(cluster):
    # each waits, up to 10 s, for the one that should be beside it
    commands = [f"echo $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS > out/{i}; date +%s.%N >> out/{i}; "
                f"for _ in $(seq 100); do [ ! -e out/{i ^ 1} ] || break; sleep 0.1; done; sleep 0.5; "
                f"date +%s.%N >> out/{i}" for i in range(6)]  # fmt: skip
    cluster.launch(commands, "--job-name", "j", "--jobs-per-instance", 2, "--gpus", 1, "--cpus", 2, "--limit", 2,
                   "--", "--nodelist=n0")  # fmt: skip
    assert "6 finished" in ended(cluster)
    rows = [(cluster.folder / f"out/{i}").read_text().split() for i in range(6)]
    assert [row[1] for row in rows] == ["1"] * 6  # two cores, two commands
    assert all(rows[i][0] == rows[i + 1][0] != "" for i in (0, 2, 4))  # a task's commands share its GPU
    assert rows[0][0] != rows[2][0]  # tasks side by side have their own
    for i in (0, 2, 4):  # and run side by side
        assert float(rows[i][2]) < float(rows[i + 1][3]) and float(rows[i + 1][2]) < float(rows[i][3])
    assert float(rows[4][2]) > min(float(rows[0][3]), float(rows[2][3]))  # --limit 2


def alive(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append(path.name)
        except OSError:
            pass
    return found


def test_scancel_ends_a_sweep_and_it_stays_ended(cluster, slurm):
    commands = [f"export MARK=mark-{os.getpid()}-{i}; echo x >> out/{i}; while :; do sleep 1; done" for i in range(3)]
    cluster.launch(commands, "--job-name", "j", "--jobs-per-instance", 2)
    wait_for(lambda: len(cluster.out()) == 3)
    wait_for(lambda: alive(f"MARK=mark-{os.getpid()}"))
    assert "3 running" in cluster.status()
    (job,) = job_ids(cluster)
    slurm.run("scancel", job)
    said = ended(cluster)
    assert "0 finished, 0 running, 3 failed, 0 waiting" in said
    wait_for(lambda: all(j["JobState"] == "CANCELLED" for j in slurm.jobs(job)))
    wait_for(lambda: not alive(f"MARK=mark-{os.getpid()}"))
    time.sleep(3)  # a requeue would show
    assert {j["JobState"] for j in slurm.jobs(job)} == {"CANCELLED"}
    assert [(cluster.folder / f"out/{i}").read_text() for i in range(3)] == ["x\n"] * 3


def test_a_lost_node_is_no_loss(cluster, slurm):
    cluster.launch(
        ["echo x >> out/a; test $(wc -l < out/a) = 2 || sleep 1000"], "--job-name", "j", "--", "--nodelist=n1"
    )
    wait_for(cluster.out)
    (job,) = job_ids(cluster)
    slurm.run("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    try:
        wait_for(lambda: slurm.jobs(job)[0]["Restarts"] == "1")
        assert "0 failed" in cluster.status()
    finally:
        slurm.run("scontrol", "update", "nodename=n1", "state=resume", check=False)  # it may be back
    assert "1 finished" in ended(cluster)


def test_usr1_checkpoints_requeues_and_ends_with_the_same_weights(cluster, slurm, data_dir, tmp_path_factory):
    """A real run of ipl_iql beside a short command; SLURM tells it that its time is nearly over."""
    arguments = " ".join(map(str, [*SMALL, "--total-steps", 2000, "--eval-every", 2000, "--log-every", 250]))
    env = cluster.env | {"IPL_DATA_DIR": str(data_dir)}
    cluster.env = env
    commands = [f"python algorithms/ipl_iql.py {arguments} --run-dir runs/x", "echo x >> out/once"]
    cluster.launch(commands, "--job-name", "j", "--jobs-per-instance", 2, "--cpus", 2)
    seed = cluster.folder / "runs/x/seed-1"
    wait_for(lambda: (seed / "train.csv").exists() and (seed / "train.csv").stat().st_size)
    (job,) = job_ids(cluster)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: slurm.jobs(job)[0]["Restarts"] == "1")
    assert not (seed / "final.pt").exists() and 0 < step(seed) < 2000
    whole = tmp_path_factory.mktemp("whole")  # meanwhile an uninterrupted run: SLURM waits before it starts ours again
    beside = subprocess.Popen([*commands[0].split()[:-1], str(whole)], cwd=REPOSITORY, env=env, text=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    wait_for(lambda: "1 waiting" in cluster.status() or "2 finished" in cluster.status())
    assert "2 finished" in ended(cluster)
    assert cluster.logs()["0001"].count("step       0 ") == 1  # it went on
    assert (cluster.folder / "out/once").read_text() == "x\n"  # what was finished did not run again
    errors = beside.communicate(timeout=120)[1]
    assert beside.returncode == 0, errors
    assert_same_run(seed, whole / "seed-1")


def test_usr1_to_the_last_task_requeues_it_alone(cluster, slurm):
    """The last task's own job id is that of the whole array. Nor does a task begin anything after the signal."""
    commands = [f"echo x >> out/{i}; while [ ! -e out/go ]; do sleep 0.1; done; echo y >> out/{i}" for i in range(3)]
    cluster.launch(commands, "--job-name", "j")
    wait_for(lambda: len(cluster.out()) == 3)
    (job,) = job_ids(cluster)
    slurm.run("scancel", "--batch", "--signal=USR1", f"{job}_2")
    restarts = lambda: {j["ArrayTaskId"]: j["Restarts"] for j in slurm.jobs(job)}  # noqa: E731
    wait_for(lambda: restarts()["2"] == "1")
    (cluster.folder / "out/go").touch()
    assert "3 finished" in ended(cluster) and restarts() == {"0": "0", "1": "0", "2": "1"}
    assert [(cluster.folder / f"out/{i}").read_text() for i in range(3)] == ["x\ny\n", "x\ny\n", "x\nx\ny\n"]


def test_preemption_requeues(cluster, slurm):
    """A task of an urgent partition takes the node; ours gives way and comes back. Then scancel ends it for good."""
    command = "echo x >> out/a; sleep 1000"
    cluster.launch([command], "--job-name", "j", "--partition", "debug", "--", "--nodelist=n0", "--exclusive")
    wait_for(cluster.out)
    (job,) = job_ids(cluster)
    slurm.run("sbatch", "-p", "urgent", "--nodelist=n0", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    wait_for(lambda: slurm.jobs(job)[0]["Restarts"] == "1")
    wait_for(lambda: (cluster.folder / "out/a").read_text() == "x\nx\n")
    slurm.run("scancel", job)
    assert "0 finished, 0 running, 1 failed, 0 waiting" in ended(cluster)
    time.sleep(3)  # a requeue would show
    assert [(j["JobState"], j["Restarts"]) for j in slurm.jobs(job)] == [("CANCELLED", "1")]


def test_refused_by_slurm(cluster):
    said = cluster.launch(["true"], "--job-name", "j", "--partition", "nowhere", status=2)
    assert "refused" in said and said.count("\n") == 1
    assert "1 of 1" in cluster.launch(["true"], "--job-name", "j")
    assert "1 finished" in ended(cluster)
