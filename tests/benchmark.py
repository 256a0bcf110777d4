"""How fast, compared with what? Most rows are ratios of two things measured in turn in the same process.

    python -m tests.benchmark                    # all rows; nothing else should run
    python -m tests.benchmark --rows step seeds  # some of them
    python -m tests.benchmark --rows peers --peers FOLDER  # beside the code of others: docs/speed.md
    python -m tests.benchmark --rows device      # on a GPU: is it right, does every script run, how fast? eight minutes

`floor` is arithmetic: the multiply-adds of all matrix products of an update, at the rate of its largest product, which
is measured beside it; and the random numbers of its dropout. A ratio is the median of the turns' ratios, not the
quotient of the medians beside it; its quartiles say how much the machine wavers.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, redirect_stdout
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
import tyro
from torch.utils._python_dispatch import TorchDispatchMode

from common import suites
from common.actors import Actor
from common.buffers import PreferenceBuffer, ReplayBuffer
from common.cli import default_args, setup_device, user_errors
from common.rollouts import evaluate
from common.suites.base import Recipe
from common.suites.metaworld import SEEN, MetaWorld, collect, plan
from common.training import Training
from common.trees import tree_map
from common.workers import Workers
from tests import peers
from tests.parity import updates

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = {path.stem: "" for path in sorted((REPOSITORY / "algorithms").glob("*.py"))}
SCRIPTS |= {"mr_iql": " with its reward model's step", "pt_iql": ", its IQL"}  # the part of the training that is timed
METAWORLD, LOCOMOTION = "drawer-open-v2", "hopper-medium-expert-v2"


# ---------------------------------------------------------------- one update and its floor
class Products(TorchDispatchMode):
    """Remembers the operands of every matrix product."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            self.found.append(tuple(t.detach() for t in args[-2:]))
        return function(*args, **(kwargs or {}))


def steps(script: str, env: str, seeds: int, compiled: bool, device: str = "cpu"):
    """(run `n` updates, sampling included; as many floors)"""
    module = importlib.import_module(f"algorithms.{script}")
    args = default_args(module.Args, module.DEFAULTS, ["--env", env])
    args = getattr(module, "fill_in", lambda args: args)(args)
    rng, task = np.random.default_rng(0), suites.resolve(env)
    obs_dim, act_dim = task.obs_dim, task.act_dim
    length, pairs = (25, 4000) if env == METAWORLD else (100, 100)
    obs, action = rng.normal(size=(2 * pairs * length, obs_dim)), rng.uniform(-1, 1, (2 * pairs * length, act_dim))
    start, label = np.arange(2 * pairs).reshape(-1, 2) * length, rng.integers(0, 2, pairs)
    buffer = PreferenceBuffer(obs, action, start, label, length, rng.normal(size=len(obs)), device)
    transitions = ReplayBuffer(obs, action, rng.normal(size=len(obs)), obs, np.zeros(len(obs)), device)
    numbers = list(range(1, seeds + 1))
    fresh = [module.init(args, seed, obs_dim, act_dim) for seed in numbers]
    state = tree_map(lambda *x: torch.stack(x).to(device), *fresh)
    torch._dynamo.config.trace_autograd_ops = True
    eager, update = updates(module, args), updates(module, args, compile_whole if compiled else lambda update: update)
    pair_batches = buffer.batches(numbers, 0, args.preference_batch_size, args.segment_length)
    replay_batches = transitions.batches(numbers, 0, args.replay_batch_size) if args.use_replay else None
    at = 0

    def batch():
        nonlocal at
        at += 1
        return module.make_batch(
            args, numbers, at, next(pair_batches), next(replay_batches) if replay_batches else None
        )

    products = Products()
    with products:
        eager(tree_map(torch.clone, state), batch(), at)
    work = [a.numel() * b.shape[-1] for a, b in products.found]  # multiply-adds
    largest = work.index(max(work))
    share, (a, b) = sum(work) / work[largest], products.found[largest]

    def run(n: int) -> None:
        for _ in range(n):
            update(state, batch(), at)
        if device != "cpu":
            torch.accelerator.synchronize()

    drawn = batch() if getattr(args, "dropout", 0) else {}

    def floor(n: int) -> None:
        for _ in range(round(n * share)):
            a @ b
        for _ in range(n if drawn else 0):
            module.draw_noise(args, numbers, at, drawn)

    return run, floor


def compile_whole(update):
    return torch.compile(update, fullgraph=True)


def ms(function, seconds: float) -> float:
    """Milliseconds of one of function(n)'s n rounds."""
    began = time.perf_counter()
    function(3)
    n = max(3, int(seconds / ((time.perf_counter() - began) / 3)))
    began = time.perf_counter()
    function(n)
    return 1000 * (time.perf_counter() - began) / n


def set_up(threads: int, device: str = "cpu") -> str:
    """What a run sets up. Returns its precision: see `common.cli.onednn_is_faster`."""
    setup_device(importlib.import_module("algorithms.ipl_iql").Args(device=device, threads=threads))
    return torch.get_float32_matmul_precision()


def in_turn(functions: list, precisions: list[str] | None = None, repeats: int = 15) -> list[list[float]]:
    """Milliseconds of each function, `repeats` times, one after the other in every repeat, at a precision each.

    Many short turns: a shared machine has bad moments of seconds, and a ratio of two times of the same moment keeps.
    """
    given = torch.get_float32_matmul_precision()
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for k, function in enumerate(functions):
            torch.set_float32_matmul_precision(precisions[k] if precisions else given)
            taken = ms(function, 0.4)
            if repeat:  # the first warms up, and compiles
                times[k].append(taken)
    return times


# ---------------------------------------------------------------- measured in a process of their own
def child_step(script: str, env: str, threads: int) -> dict:
    """One update against its floor; with the products of MKL against oneDNN's, or float32 against bfloat16."""
    own = set_up(threads)
    run, floor = steps(script, env, 1, True)
    if script != "ipl_iql":
        full, least = in_turn([run, floor])
        return {"step": full, "floor": least}
    other = "highest" if own == "medium" else "medium"
    eager, _ = steps(script, env, 1, False)
    full, least, changed, slow = in_turn([run, floor, run, eager], [own, own, other, own])
    return {"step": full, "floor": least, other: changed, "eager": slow}


def child_loop() -> dict:
    """The training loop against the updates in it, in turns of 100 updates."""
    from algorithms import ipl_iql

    stamps, compile_update = [], Training.compile

    def compile_timed(training: Training, update):
        inner = compile_update(training, update)

        def timed(state, batch):
            began = time.perf_counter()
            metrics = inner(state, batch)
            stamps.append((began, time.perf_counter()))
            return metrics

        return timed

    Training.compile = compile_timed
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        args = default_args(ipl_iql.Args, ipl_iql.DEFAULTS, ["--env", METAWORLD])
        ipl_iql.train(replace(args, total_steps=1101, eval_every=1101, eval_episodes=1, threads=1, device="cpu",
                              run_dir=folder))  # fmt: skip
    firsts = range(100, 1100, 100)
    return {"loop": [10 * (stamps[k + 100][0] - stamps[k][0]) for k in firsts],
            "update": [10 * sum(end - began for began, end in stamps[k : k + 100]) for k in firsts]}  # fmt: skip


def child_seeds(threads: int, seeds: int) -> dict:
    """Several seeds as one batch against one."""
    set_up(threads)
    many, _ = steps("ipl_iql", METAWORLD, seeds, True)
    one, _ = steps("ipl_iql", METAWORLD, 1, True)
    together, alone = in_turn([many, one])
    return {"together": together, "alone": alone}


def child_alone(threads: int, seconds: float, start_at: float) -> dict:
    """One training beside whatever else runs, its step's milliseconds: five turns that end at set times."""
    set_up(threads)
    run, _ = steps("ipl_iql", METAWORLD, 1, True)
    run(20)
    if start_at and time.time() > start_at:
        raise SystemExit("not ready when the measurement began; try again")
    time.sleep(max(0.0, start_at - time.time()))
    times, first = [], start_at or time.time()
    for turn in range(1, 6):
        began, count = time.time(), 0
        while time.time() < first + turn * seconds / 5:
            run(1)
            count += 1
        times.append(1000 * (time.time() - began) / count)
    return {"step": times}


def child_device(script: str, device: str, seeds: int, updates: int) -> dict:
    """An update compiled and eager, in float32 and in what a GPU calls tf32: ten turns of a tenth of `updates`."""
    set_up(0, device)
    compiled, eager = (steps(script, METAWORLD, seeds, how, device)[0] for how in (True, False))
    kinds = {"float32": ("highest", compiled), "float32 eager": ("highest", eager),
             "tf32": ("high", compiled), "tf32 eager": ("high", eager)}  # fmt: skip
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(11):  # the first warms up, and compiles
        for kind, (precision, run) in kinds.items():
            torch.set_float32_matmul_precision(precision)
            n = max(1, updates // 10 if turn else 1)
            began = time.perf_counter()
            run(n)
            times[kind] += [1000 * (time.perf_counter() - began) / n] if turn else []
    return times


def child_turns(script: str, env: str, threads: int, seeds: int) -> dict:
    """One thing among others that take turns: `in_processes`."""
    set_up(threads)
    peers.serve(steps(script, env, seeds, True)[0])
    return {}


def child_label() -> dict:
    """The Preference Transformer's rewards of many windows against one window at a time."""
    from algorithms import pt_iql

    torch.set_num_threads(min(4, len(os.sched_getaffinity(0))))
    model = pt_iql.make_reward_model(pt_iql.Args(), 1, 39, 4).eval()
    rows = 20_480
    obs, action, first = torch.randn(rows, 39), torch.rand(rows, 4), torch.arange(rows) // 500 * 500
    many, one = [], []
    for _ in range(5):
        began = time.perf_counter()
        pt_iql.label_transitions(model, obs, action, first, 25, 500)
        many.append(1e3 * (time.perf_counter() - began) / rows)
        began = time.perf_counter()
        with torch.no_grad():
            for i in range(400):
                window = slice(i, i + 25)
                model(obs[window].unsqueeze(0), action[window].unsqueeze(0), torch.ones(1, 25), last=True)
        one.append(1e3 * (time.perf_counter() - began) / 400)
    return {"many": many, "one": one}


def child_collect() -> dict:
    """A step of data collection against a bare step of the two simulators that it takes, resets included."""
    bare, collected = [], []
    target, guide = MetaWorld(METAWORLD), MetaWorld(METAWORLD + SEEN)
    rng = np.random.default_rng(0)
    for repeat in range(6):
        began = time.perf_counter()
        episodes = collect(METAWORLD, repeat, 1.0, "within", METAWORLD, list(range(4)))
        count = sum(len(episode[1]) for episode in episodes)
        taken = time.perf_counter() - began
        began = time.perf_counter()
        for i, episode in enumerate(episodes):
            target.reset(seed=i)
            guide.reset(seed=i)
            for action in rng.uniform(-1, 1, (len(episode[1]), 4)).astype(np.float32):
                target.step(action)
                guide.step(action)
        if repeat:
            bare.append(1e3 * (time.perf_counter() - began) / count)
            collected.append(1e3 * taken / count)
    return {"bare": bare, "collected": collected}


CHILDREN = {name: function for name, function in globals().items() if name.startswith("child_")}


def call(name: str, *arguments) -> list[str]:
    return [sys.executable, "-m", "tests.benchmark", "--child", json.dumps([name, *arguments])]


def start(name: str, *arguments, prefix: tuple[str, ...] = ()) -> subprocess.Popen:
    return subprocess.Popen([*prefix, *call(name, *arguments)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> dict:
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a measurement failed with status {process.returncode}")
    return json.loads(said.splitlines()[-1])


def in_processes(calls: dict[str, list[str]], threads: int, turns: int = 9) -> dict[str, list[float]]:
    """Milliseconds of an update of each program, `turns` times, one after the other in every turn, on the same cores.

    The others run without GOMP_SPINCOUNT, which `setup_shell.sh` sets for ours.
    """
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    one = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" if threads == 1 else ""
    plain = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | {"XLA_FLAGS": one}
    processes, times = {}, {name: [] for name in calls}
    try:
        for name, command in calls.items():
            processes[name] = subprocess.Popen(["taskset", "-c", cores, *command], cwd=REPOSITORY, text=True,
                                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                               env=os.environ if name == "ours" else plain)  # fmt: skip
            if processes[name].stdout.readline() != "ready\n":
                raise SystemExit(f"{name} did not start")
        for _ in range(turns):
            for name, process in processes.items():
                process.stdin.write("\n")
                process.stdin.flush()
                times[name].append(float(process.stdout.readline()))
    finally:
        for process in processes.values():
            process.communicate()  # ends with its stdin
    return times


# ---------------------------------------------------------------- rows
def row(what: str, tops: list[float], bases: list[float], target: str, factor: float = 1.0) -> None:
    """Print a row: the median ratio, and its quartiles, of tops to factor x bases, taken in pairs; milliseconds."""
    low, ratio, high = np.percentile(np.array(tops) / (factor * np.array(bases)), (25, 50, 75))
    reached = ratio >= float(target.split()[-1]) if "least" in target else ratio <= float(target.split()[-1])
    print(f"| {what} | {median(tops):.3g} / {factor * median(bases):.3g} ms | {ratio:.2f} ({low:.2f} to {high:.2f}) "
          f"| {target} | {'yes' if reached else 'no'} |", flush=True)  # fmt: skip


def plain_row(what: str, values: list[float], unit: str, most: float) -> None:
    """Print a row that compares nothing: the median with its quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    print(f"| {what} | {middle:.3g} ({low:.3g} to {high:.3g}) {unit} | | at most {most:g} "
          f"| {'yes' if middle <= most else 'no'} |", flush=True)  # fmt: skip


def rows_step() -> None:
    for threads in sorted({min(2, len(os.sched_getaffinity(0))), 1}, reverse=True):
        for script, part in SCRIPTS.items():
            found = finish(start("child_step", script, METAWORLD, threads))
            name = f"{script}{part}, MetaWorld, {threads} thread{'s' * (threads > 1)}"
            row(f"{name}: step / floor", found["step"], found["floor"], "at most 1.3")
            if "medium" in found:
                row(f"{name}: bfloat16 / float32 products", found["medium"], found["step"], "at most 0.5")
            if "highest" in found:
                row(f"{name}: products by oneDNN / by MKL", found["step"], found["highest"], "at most 0.6")
                row(f"{name}: compiled / eager", found["step"], found["eager"], "at most 1.0")
        found = finish(start("child_step", "iql", LOCOMOTION, threads))
        name = f"iql, locomotion, {threads} thread{'s' * (threads > 1)}"
        row(f"{name}: step / floor", found["step"], found["floor"], "at most 1.6")


def rows_loop() -> None:
    found = finish(start("child_loop"))
    row("ipl_iql, MetaWorld, 1 thread: loop / updates in it", found["loop"], found["update"], "at most 1.02")


def rows_seeds() -> None:
    threads = min(2, len(os.sched_getaffinity(0)))
    found = finish(start("child_seeds", threads, 5))
    row("5 seeds in one process / 5 x one seed", found["together"], found["alone"], "at most 1.0", factor=5)


def rows_beside() -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        return
    both = ("taskset", "-c", f"{cores[0]},{cores[1]}")
    pin = [("taskset", "-c", str(core)) for core in cores]
    for what, threads, prefixes, target in (
        ("one thread each, side by side / alone on one thread", 1, pin, "at most 1.15"),
        ("default flags, not pinned, side by side / alone", 0, [both, both], "at most 2.2"),
    ):
        alone = finish(start("child_alone", threads, 20, 0, prefix=prefixes[0]))["step"]
        start_at = time.time() + 60  # after both have compiled
        pair = [start("child_alone", threads, 20, start_at, prefix=prefix) for prefix in prefixes]
        slower = [finish(process)["step"] for process in pair]
        row(what, [max(two) for two in zip(*slower, strict=True)], alone, target)


def rows_whole() -> None:
    """Evaluation's share of a 200,000-step run, start, memory: from a real run of the script."""
    module = importlib.import_module("algorithms.ipl_iql")
    arrays = tree_map(lambda p: p.numpy(), module.init(module.Args(), 1, 39, 4)["actor"])
    actor, task = Actor(module.policy, arrays), suites.resolve(METAWORLD)
    workers = Workers(len(os.sched_getaffinity(0)))
    evaluate(workers, task, [actor], [1], 0, 4).result()  # started
    times = []
    for repeat in range(5):
        began = time.perf_counter()
        evaluate(workers, task, [actor], [1], repeat, 20).result()
        times.append(time.perf_counter() - began)
    workers.close()
    step = finish(start("child_alone", 0, 10, 0))["step"]
    evals, training = [81e3 * t for t in times], [2e5 * s for s in step]
    row("evaluation's share of 200,000 steps", evals, [e + t for e, t in zip(evals, training, strict=True)],
        "at most 0.2")  # fmt: skip
    workers = Workers(len(os.sched_getaffinity(0)))
    suites.SUITES[task.suite].dataset(task, Path(os.environ.get("IPL_DATA_DIR") or "data"), workers)
    workers.close()
    memory = []
    with tempfile.TemporaryDirectory() as folder:
        for what, flags, fresh, most in (
            ("start to first update, eager", ["--device", "cpu", "--no-compile"], False, 8),
            ("the same compiled, no cache", ["--device", "cpu"], True, 20),
            ("the same compiled, from the cache", ["--device", "cpu"], False, 8),
        ):
            found = [first_update(Path(folder), f"cache{turn if fresh else 0}", *flags) for turn in range(5)]
            plain_row(what, [seconds for seconds, _ in found], "s", most)
            memory.append(max(gigabytes for _, gigabytes in found))
    plain_row("peak memory of these starts, main process", memory, "GB", 1.2)


def first_update(folder: Path, cache: str, *flags: str) -> tuple[float, float]:
    """(seconds from the start of the script to its first update, less its first evaluation; peak memory in GB)"""
    command = [sys.executable, REPOSITORY / "algorithms/ipl_iql.py", "--env", METAWORLD, "--total-steps", "1",
               "--eval-episodes", "1", "--overwrite", "--run-dir", folder / "run", *flags]  # fmt: skip
    env, table = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / cache)}, folder / "run/seed-1/train.csv"
    table.unlink(missing_ok=True)
    began = time.perf_counter()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=log, stderr=log)
    while not (table.exists() and table.stat().st_size):
        time.sleep(0.02)
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended and not table.exists():
            raise SystemExit((folder / "log").read_text())
    taken = time.perf_counter() - began
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit((folder / "log").read_text())
    with open(folder / "run/seed-1/time.csv") as file:
        evaluation = float(next(csv.DictReader(file))["time/eval"])
    return taken - evaluation, usage.ru_maxrss * 1024 / 1e9


def rows_data() -> None:
    cores = len(os.sched_getaffinity(0))
    jobs = [(METAWORLD, 0, 1.0, *job) for job in plan(METAWORLD, 10, 0)]
    times: dict[int, list[float]] = {1: [], cores: []}
    for _ in range(5):
        for count in times:
            workers = Workers(count)
            workers.run(sum, [((0,),)] * count)  # started
            began = time.perf_counter()
            workers.run(collect, jobs)
            times[count].append(time.perf_counter() - began)
            workers.close()
    row(f"building a dataset: one core / {cores}", *([1e3 * t for t in times[n]] for n in (1, cores)), "at least 1.8")
    found = finish(start("child_collect"))
    row("a step of collection / bare steps of its two simulators", found["collected"], found["bare"], "at most 1.3")
    found = finish(start("child_label"))
    row("Preference Transformer: one window at a time / labelling", found["one"], found["many"], "at least 20")


def run_on(device: str, script: str, updates: int, dataset: Path, folder: Path) -> tuple[float, str]:
    """(seconds of the updates of a run, compiling included; "", or the last line that a run said which failed)"""
    command = [sys.executable, REPOSITORY / f"algorithms/{script}.py", "--env", METAWORLD, "--dataset", dataset,
               "--num-preferences", "0", "--total-steps", str(updates), "--eval-every", str(updates),
               "--eval-episodes", "2", "--device", device, "--run-dir", folder / script]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return 0.0, (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    with open(folder / script / "seed-1/time.csv") as file:
        return float(list(csv.DictReader(file))[-1]["time/train"]), ""


def rows_device(device: str, updates: int, scripts: tuple[str, ...]) -> None:
    """A GPU: does it compute what a CPU does, does every script run on it, and how fast is an update of the first?"""
    set_up(0, device)  # wrong: said once
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    tests = [sys.executable, "-m", "pytest", "-k", "gpu", "tests/test_update.py"]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(4) as pool, closing(Workers(2)) as workers:
        tested = pool.submit(subprocess.run, tests, cwd=REPOSITORY, capture_output=True, text=True)  # takes longest
        recipe, task = Recipe(episodes=1, pairs=60), suites.resolve(METAWORLD)
        dataset = suites.SUITES[task.suite].dataset(task, Path(folder), workers, recipe)
        runs = [pool.submit(run_on, device, script, updates, dataset, Path(folder)) for script in scripts]
        for script, run in zip(scripts, runs, strict=True):
            taken, fault = run.result()
            print(f"| {script}: {updates} updates on {name} | {fault or f'{taken:.1f} s'} | | ends "
                  f"| {'no' if fault else 'yes'} |", flush=True)  # fmt: skip
        done = tested.result()
        print(f"| pytest -k gpu | {done.stdout.strip().splitlines()[-1]} | | passes "
              f"| {'no' if done.returncode else 'yes'} |", flush=True)  # fmt: skip
    for seeds in (1, 5):
        found = finish(start("child_device", scripts[0], device, seeds, updates))
        what = f"{scripts[0]} on {name}, {seeds} seed{'s' * (seeds > 1)}"
        for kind in ("float32", "tf32"):
            row(f"{what}, {kind}: compiled / eager", found[kind], found[f"{kind} eager"], "at most 1.0")


IQL, IPL = ("iql", "walker2d-medium-expert-v2", "IQL, locomotion"), ("ipl_iql", METAWORLD, "IPL-IQL, MetaWorld")
COMPARED = (  # what; threads; seeds in one process; repositories, with our targets
    (IQL, 1, 1, {"unifloral": "at most 1.1", "JAX-CORL": "at most 0.95", "CORL": "at most 1.0"}),
    (IQL, 2, 1, {"unifloral": "at most 1.2", "JAX-CORL": "at most 1.0", "CORL": "at most 1.0"}),
    (IQL, 1, 5, {"unifloral": "at most 0.95"}),
    (IPL, 1, 1, {"inverse-preference-learning": "at most 0.6"}),
    (IPL, 2, 1, {"inverse-preference-learning": "at most 0.6"}),
)


def rows_peers(folder: Path) -> None:
    """Ours beside the code of others, of those whose repositories `folder` holds."""
    for (script, env, what), threads, seeds, targets in COMPARED:
        names = [name for name in targets if (folder / name).exists()]
        if not names or threads > len(os.sched_getaffinity(0)):
            continue
        calls = {"ours": call("child_turns", script, env, threads, seeds)}
        for name in names:
            python = folder / ".venv/bin/python" if name in ("unifloral", "JAX-CORL") else sys.executable
            calls[name] = [python, "tests/peers.py", folder, name, str(threads), str(seeds)]
        found = in_processes(calls, threads)
        how = f"{seeds} seeds in one process, " * (seeds > 1) + f"{threads} thread{'s' * (threads > 1)}"
        for name in names:
            row(f"{what}, {how}: ours / {name}", found["ours"], found[name], targets[name])


ROWS = {
    "step": rows_step,
    "loop": rows_loop,
    "seeds": rows_seeds,
    "beside": rows_beside,
    "whole": rows_whole,
    "data": rows_data,
}


@dataclass
class BenchmarkArgs:
    """Measure, and print a Markdown table."""

    rows: tuple[str, ...] = (*ROWS, "peers")
    """which: step, loop, seeds, beside, whole, data, peers, device"""
    peers: Path | None = None
    """folder with repositories of others, and .venv with jax (docs/speed.md); without it their rows are left out"""
    device: str = "cuda"
    """of the rows of --rows device"""
    updates: int = 1000
    """of each script there"""
    scripts: tuple[str, ...] = ("ipl_iql", *(script for script in SCRIPTS if script != "ipl_iql"))
    """which run there; an update of the first is timed"""
    child: str = ""
    """for the program itself: one measurement, as JSON"""


def main(args: BenchmarkArgs) -> None:
    if args.child:
        name, *arguments = json.loads(args.child)
        print(json.dumps(CHILDREN[name](*arguments)))
        return
    names = ("torch", "numpy", "metaworld", "mujoco")
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in cpu if line.startswith("model name")), "?")
    print(f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, "
          + ", ".join(f"{name} {version(name)}" for name in names)
          + f", GOMP_SPINCOUNT={os.environ.get('GOMP_SPINCOUNT', '')}\n")  # fmt: skip
    print("| what | measured / compared with | ratio (quartiles) | target | reached |\n| --- | --- | --- | --- | --- |")
    rows = ROWS | {"peers": lambda: rows_peers(args.peers.absolute()) if args.peers else None,
                   "device": lambda: rows_device(args.device, args.updates, args.scripts)}  # fmt: skip
    for name in args.rows:
        rows[name]()


if __name__ == "__main__":
    with user_errors():
        main(tyro.cli(BenchmarkArgs))
