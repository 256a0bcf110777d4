"""What happens when things go wrong: faults done to the real scripts as real processes. docs/faults.md has the table.

The quick part runs with every `pytest`; `pytest -m slow tests/test_faults.py` is the long one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import importlib.util
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algorithms import ipl_iql
from common import suites
from common.arrays import fingerprint, read_arrays, write_hdf5
from common.cli import compiled, default_args, inside, parse_args, user_errors
from common.data import read_preferences
from common.errors import InputError, WorkersError
from common.rollouts import write_video
from common.seed_folder import RESULTS, SeedFolder
from common.suites.base import Recipe
from common.workers import Jobs, Workers
from tests.conftest import REPOSITORY, SHIPPED, SMALL, SMALL_OF, command, environment, few_of
from tests.fuzz import MINARI, PROJECT
from tests.test_scripts import assert_same_run, children, rows, start_until
from tools.label.answers import CHOICES, open_answers
from tools.label.questions import ask

SCRIPTS = SHIPPED


def seed_folder(folder: Path, script: str = "ipl_iql") -> Path:
    return folder / "runs/drawer-open-v2" / script / "seed-1"


# ---------------------------------------------------------------- numbers
@pytest.mark.parametrize("cores", [1, 2])  # on two beside the first evaluation
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(run, data_dir, tmp_path, cores):
    done = run("ipl_iql", *SMALL, "--lr", 1e30, **environment(data_dir, tmp_path, cores))
    assert done.returncode == 1 and "not finite" in done.stderr and "Traceback" not in done.stderr
    base = seed_folder(tmp_path).parent
    saved = torch.load(base / "not-finite.pt", weights_only=True)
    assert saved["batch"]["obs"].isfinite().all() and 1 <= saved["step"] <= 5
    checkpoint = torch.load(base / "seed-1/checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 0 and all(p.isfinite().all() for p in checkpoint["state"]["actor"].values())
    assert not (base / "seed-1/final.pt").exists()
    assert [row["step"] for row in rows(base / "seed-1/eval.csv")] == ["0"]


def test_a_reward_model_that_is_not_finite_stops_the_run(run, tmp_path, monkeypatch):
    obs, action = np.full((2, 60, 25, 39), 1e30), np.zeros((2, 60, 25, 4))  # finite, but not their squares
    obs[..., -3:] = 0  # the goal, which the environment hides
    np.savez(tmp_path / "p.npz", obs_1=obs[0], obs_2=obs[1], action_1=action[0], action_2=action[1], label=np.ones(60))
    done = run("pt_iql", *SMALL, *SMALL_OF["pt_iql"], "--preferences", "p.npz")
    assert (
        done.returncode == 1 and "loss of the reward model not finite" in done.stderr and done.stderr.count("\n") == 1
    )
    assert not (seed_folder(tmp_path, "pt_iql") / "reward.pt").exists()


# ---------------------------------------------------------------- evaluation workers
def loky_children(pid: int) -> list[int]:
    """The worker processes of a run, not loky's own helpers."""
    found = []
    for child in children(pid):
        try:
            if b"popen_loky" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except OSError:
            pass
    return found


def test_a_killed_worker_is_replaced_once(run, data_dir, tmp_path, whole):
    """Killed in the first evaluation: the run ends as one without a fault. Killed always: one line, exit status 1."""
    process = start_until(data_dir, tmp_path, lambda seed: (seed / "checkpoint.pt").exists())
    end = time.monotonic() + 60
    while not (workers := loky_children(process.pid)):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(120) == 0
    assert_same_run(seed_folder(tmp_path), whole())

    options = environment(data_dir, tmp_path / "again")
    (tmp_path / "again").mkdir()
    process = subprocess.Popen(command("ipl_iql", *SMALL), cwd=options["cwd"], env=options["env"], text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        for worker in loky_children(process.pid):
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.02)
    said = process.stderr.read()
    assert process.wait() == 1 and "worker processes failed twice" in said and said.count("\n") == 1
    assert (seed_folder(tmp_path / "again") / "checkpoint.pt").exists()
    assert run("ipl_iql", *SMALL, cwd=tmp_path / "again").returncode == 0  # the same command resumes
    assert_same_run(seed_folder(tmp_path / "again"), whole())


@pytest.mark.parametrize("fault", few_of([None, "worker", signal.SIGKILL, signal.SIGTERM], signal.SIGKILL))
def test_an_evaluation_beside_training_changes_nothing(run, data_dir, tmp_path, whole, fault):
    """A fault while training is ahead of an evaluation, or none: the same end as one after the other."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def ahead(seed: Path) -> bool:
        return (seed / "train.csv").exists() and (seed / "train.csv").stat().st_size > 0

    process, seed = start_until(data_dir, tmp_path, ahead, cores=2), seed_folder(tmp_path)
    assert not (seed / "eval.csv").exists()
    if fault == "worker":
        while not (workers := loky_children(process.pid)):
            time.sleep(0.01)
        os.kill(workers[0], signal.SIGKILL)
    elif fault:
        process.send_signal(fault)
    assert process.wait(120) == {signal.SIGKILL: -9, signal.SIGTERM: 143}.get(fault, 0)
    if not (seed / "final.pt").exists():
        assert fault and torch.load(seed / "checkpoint.pt")["step"] == 0 and not (seed / "eval.csv").exists()
        done = run("ipl_iql", *SMALL, **environment(data_dir, tmp_path, cores=2))
        assert done.returncode == 0, done.stderr
    assert_same_run(seed, whole())
    events = EventAccumulator(str(seed))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/success")] == [0, 20, 40]
    assert [event.step for event in events.Scalars("losses/preference")] == [10, 20, 30, 40]


def test_jobs_beside_their_caller_are_at_work_by_and_by():
    """And all at once where it waits; a pool that broke meanwhile is replaced."""
    with contextlib.closing(Workers(2)) as workers:
        jobs = Jobs(workers, pow, [(2, i) for i in range(6)], at_once=2, combine=sum)
        assert len(jobs.pending) == 2
        while not jobs.done():
            assert sum(not future.done() for future in jobs.pending) <= 2
        assert jobs.result() == 63
        jobs = Jobs(workers, time.sleep, [(0.2,)] * 6, at_once=1)
        os.kill(loky_children(os.getpid())[0], signal.SIGKILL)
        while not jobs.done():
            time.sleep(0.01)
        assert jobs.result() == [None] * 6 and len(jobs.results) == 6
        jobs = Jobs(workers, int, [("1",), ("one",), ("2",)], at_once=1)
        with pytest.raises(ValueError, match="one"):
            jobs.result()


def running(pid: int) -> bool:
    """Whether a process is there and not only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def patched(setup: str, script: str, *arguments) -> list[str]:
    """The command line of a script after `setup`, Python code that shortens a time limit."""
    words = command(script, *arguments)[1:]
    code = f"import sys, runpy; sys.path.insert(0, {str(REPOSITORY)!r}); {setup}; sys.argv = {words!r}; "
    return [sys.executable, "-c", code + f"runpy.run_path({words[0]!r}, run_name='__main__')"]


def hang(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def starve(pid: int) -> None:
    """From now on every allocation fails; once the simulator is loaded, lest the start be what fails."""
    end = time.monotonic() + 20
    while "libmujoco" not in Path(f"/proc/{pid}/maps").read_text() and time.monotonic() < end:
        time.sleep(0.001)
    resource.prlimit(pid, resource.RLIMIT_AS, (1, 1))


@pytest.mark.thorough
@pytest.mark.parametrize(("fault", "said"), [(hang, "no episode finished within 3 s"), (starve, "")])
def test_a_worker_that_hangs_or_has_no_memory_is_replaced_once(data_dir, tmp_path, fault, said):
    """Once in the first evaluation: the run ends well. In every one: one line, exit status 1, nobody left behind."""
    for always in (False, True):
        folder = tmp_path / str(always)
        folder.mkdir()
        options = environment(data_dir, folder)
        limit = 3 if always else 10  # the second pool of the run that ends well must finish its episodes in time
        line = patched(f"import common.workers; common.workers.EPISODE_TIMEOUT = {limit}", "ipl_iql", *SMALL)
        process = subprocess.Popen(line, cwd=folder, env=options["env"], text=True, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)  # fmt: skip
        hit: set[int] = set()
        end = time.monotonic() + 150
        while process.poll() is None and time.monotonic() < end:
            for worker in loky_children(process.pid):
                if worker not in hit and (always or not hit):  # the first pool's only one
                    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                        fault(worker)
                    hit.add(worker)
            time.sleep(0.01)
        errors = process.stderr.read()
        assert hit and process.wait() == int(always), errors
        assert not [pid for pid in hit if running(pid)]
        if always:
            *before, last = errors.splitlines()  # a worker's own last words may come before ours
            assert "worker processes failed twice" in last and len(last.replace(str(REPOSITORY), "")) < 200, errors
            assert fault is starve or (said in last and not before), errors
            assert (seed_folder(folder) / "checkpoint.pt").exists()


# ---------------------------------------------------------------- disks
@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_one_line_and_the_same_command_resumes(run, small_disk, whole):
    filler, full = small_disk / "filler", 0
    for free in (40_000, 120_000, 400_000):  # full at the first files, at the first checkpoint, later
        size = shutil.disk_usage(small_disk).free - free
        filler.write_bytes(b"x" * max(0, size))
        done = run("ipl_iql", *SMALL, "--run-dir", small_disk / "run")
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr
        assert done.returncode == 0 or "No space left" in done.stderr, done.stderr
        full += done.returncode
        filler.unlink()
    assert full >= 2
    done = run("ipl_iql", *SMALL, "--run-dir", small_disk / "run")
    assert done.returncode == 0, done.stderr
    assert_same_run(small_disk / "run/seed-1", whole())


def build(folder: Path, workers: Workers) -> Path:
    task = suites.resolve("drawer-open-v2")
    return suites.SUITES["metaworld"].dataset(task, folder, workers, Recipe(episodes=1, pairs=60))


@pytest.mark.parametrize("always", [False, True])
def test_a_builder_whose_worker_hangs_replaces_it_once(data_dir, tmp_path, monkeypatch, always):
    """Once: the dataset is the same. Always: an error, no file, nobody left behind."""
    hit: list[int] = []

    def hang_workers() -> bool:  # asked twice a second whether to stop
        for worker in loky_children(os.getpid()):
            if worker not in hit and (always or not hit):
                hang(worker)
                hit.append(worker)
        replaced = hit and not running(hit[0]) and not always
        monkeypatch.setattr("common.workers.EPISODE_TIMEOUT", 60 if replaced else 1)
        return False

    workers = Workers(1, hang_workers)
    if always:
        with pytest.raises(WorkersError, match=r"failed twice .*no episode finished within 1 s"):
            build(tmp_path, workers)
        assert len(hit) == 2 and not [*tmp_path.rglob("*.hdf5"), *tmp_path.rglob("*.partial")]
    else:
        assert build(tmp_path, workers).read_bytes() == next(data_dir.rglob("*.hdf5")).read_bytes()
        workers.close()
        assert len(hit) == 1
    assert not [pid for pid in hit if running(pid)]


def test_a_full_disk_under_the_data_leaves_no_half_file(run, small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 50_000))
    workers = Workers(1)
    with pytest.raises(OSError, match=r"No space left|write|unable"):
        build(small_disk / "data", workers)
    assert not [*(small_disk / "data").rglob("*.hdf5"), *(small_disk / "data").rglob("*.partial")]
    filler.unlink()
    assert build(small_disk / "data", workers).exists()
    workers.close()


@pytest.mark.thorough
def test_a_folder_that_becomes_read_only_is_one_line_and_the_same_command_resumes(
    run, data_dir, small_disk, tmp_path, whole
):
    """The run's folder in its first evaluation; then also a new run's folder and the data's."""
    arguments = [*SMALL, "--run-dir", tmp_path / "run"]
    seed, options = tmp_path / "run/seed-1", environment(data_dir, tmp_path)
    process = subprocess.Popen(command("ipl_iql", *arguments), cwd=tmp_path, env=options["env"], text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    end = time.monotonic() + 100
    while not (seed / "checkpoint.pt").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    # a mount of its own: a file system as a whole stays writable while files of it are open
    subprocess.run(["mount", "--bind", seed, seed], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", seed], check=True)
    said = process.communicate()[1]
    assert process.returncode == 1 and "Read-only" in said and said.count("\n") == 1, said
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    kept = (seed / "checkpoint.pt").read_bytes()
    for line in ([*arguments], [*SMALL, "--run-dir", small_disk / "new"]):
        done = run("ipl_iql", *line)
        assert done.returncode in (1, 2) and "Read-only" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    data = {**options["env"], "IPL_DATA_DIR": str(small_disk / "data")}
    done = run("ipl_iql", *SMALL, "--run-dir", tmp_path / "elsewhere", env=data)
    assert done.returncode in (1, 2) and "Read-only" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert (seed / "checkpoint.pt").read_bytes() == kept
    subprocess.run(["umount", seed], check=True)
    assert run("ipl_iql", *arguments).returncode == 0
    assert_same_run(seed, whole())


# ---------------------------------------------------------------- files that are not what they should be
class Code:
    """Pickled, this creates the file HERE when it is read."""

    def __reduce__(self):
        return (os.mkdir, ("HERE",))


def test_other_checkpoints_are_refused_in_one_line_and_run_no_code(run, data_dir, tmp_path, whole, monkeypatch):
    """Of another schema, task, method or size of networks; damaged; with code. The file stays as it was."""
    monkeypatch.chdir(tmp_path)
    folder = seed_folder(tmp_path)
    shutil.copytree(whole(), folder)
    path, other = folder / "checkpoint.pt", tmp_path / "other.pt"
    good = torch.load(path, weights_only=True)
    content = path.read_bytes()

    def saved(changes: dict) -> bytes:
        torch.save({**good, **changes}, other)
        return other.read_bytes()

    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    narrow = {**good["state"], "actor": {k: v[..., :1] for k, v in good["state"]["actor"].items()}}
    fewer = {**good["state"], "value": {k: v for k, v in good["state"]["value"].items() if k != "b0"}}
    cases = {
        "has schema 0": saved({"schema": 0}),
        "other arguments (--env button-press-v2": saved({"args": {**good["args"], "env": "button-press-v2"}}),
        "holds other networks": saved({"state": narrow}),
        "other networks": saved({"state": fewer}),
        "damaged": bytes(flipped),
        "damaged, or another kind of file": content[:-100],
        "(BadZipFile)": b"",
        "checkpoint.pt: damaged": b"\x80\x04c__builtin__\nexit\n.",
        "(UnpicklingError)": saved({"args": Code()}),
    }
    (folder / "final.pt").unlink()  # not finished, so that it would resume
    for what, damaged in cases.items():
        path.write_bytes(damaged)
        refused("ipl_iql", data_dir, tmp_path, what, [])
        assert path.read_bytes() == damaged
    done = run("ipl_iql", *SMALL)  # and as a real process: the last of them
    assert done.returncode == 2 and "checkpoint.pt: damaged" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("HERE"))
    path.write_bytes(content)
    assert run("ipl_iql", *SMALL).returncode == 0


def test_a_reward_model_of_another_task_or_size_is_refused(data_dir, tmp_path, whole, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = seed_folder(tmp_path, "pt_iql") / "reward.pt"
    shutil.copytree(whole("pt_iql"), path.parent)
    good = torch.load(path, weights_only=True)
    for other in set(RESULTS) | {"checkpoint.pt"}:  # phase 1 has not ended
        path.with_name(other).unlink(missing_ok=True)
    for changes, what in (({"args": {**good["args"], "env": "button-press-v2"}}, "--env button-press-v2"),
                          ({"model": {}}, "holds other networks"), ({"epoch": Code()}, "damaged")):  # fmt: skip
        torch.save({**good, **changes}, path)
        refused("pt_iql", data_dir, tmp_path, what, SMALL_OF["pt_iql"])
    assert not list(tmp_path.rglob("HERE"))


def refused(script: str, data_dir: Path, folder: Path, what: str, more: list[str]) -> None:
    """Training in this process raises InputError: one line that says `what` and names the run's folder."""
    module = importlib.import_module(f"algorithms.{script}")
    words = [*SMALL, *more, "--run-dir", str(folder / "runs/drawer-open-v2" / script), "--data-dir", str(data_dir)]
    with pytest.raises(InputError) as error:
        module.train(parse_args(default_args(module.Args, module.DEFAULTS, words), words))
    said = str(error.value)
    del error
    gc.collect()  # and with it the folder's lock
    assert what in said and "seed-1" in said and "\n" not in said


def good_files(seed: Path, data_dir: Path, folder: Path) -> list[tuple[str, Path, int, int]]:
    """Files to damage: kind in tests/fuzz.py, path, damaged copies in the quick test and in the slow one."""
    rng, dataset, hopper = np.random.default_rng(0), folder / "dataset.hdf5", folder / "hopper.hdf5"
    shutil.copy(seed / "checkpoint.pt", folder)
    shutil.copy(next(data_dir.rglob("*.hdf5")), dataset)
    obs, action = rng.normal(size=(2, 4, 25, 39)), rng.uniform(-1, 1, (2, 4, 25, 4))
    np.savez(folder / "p.npz", obs_1=obs[0], obs_2=obs[1], action_1=action[0], action_2=action[1], label=np.ones(4))
    for name, numbers in (("labels", np.arange(20) % 3 - 1), ("first", np.arange(20)), ("second", np.arange(250, 270))):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(numbers))
    with open_answers(folder / "a.jsonl", PROJECT | {"dataset": fingerprint(dataset)}) as answers:
        for question in ask(20, 0):
            answers.add(question, 0, CHOICES[question.number % 3], 1.5, 0.2)
    with h5py.File(hopper, "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(600, 11)), rng.uniform(-1, 1, (600, 3))
        file["rewards"], file["terminals"] = rng.normal(size=600), np.arange(600) % 200 == 199
    task = suites.resolve("hopper-medium-v2")
    steps = rng.normal(size=(501, 39)).astype(np.float32)
    buffer = {"observations": steps[:-1], "actions": rng.uniform(-1, 1, (500, 4)), "next_observations": steps[1:],
              "rewards": np.ones((500, 1)), "dones": np.arange(500)[:, None] == 499}  # fmt: skip
    (folder / "lire.pkl").write_bytes(pickle.dumps(buffer))
    write_video(folder / "episode-0.webm", list(rng.integers(0, 255, (8, 64, 64, 3), np.uint8)))
    transitions = len(suites.SUITES["d4rl"].read_transitions(hopper, task).obs)
    suites.SUITES["d4rl"].write_rewards(
        hopper, task, folder / "new.hdf5", rng.normal(size=transitions), {"reward": "learned"}
    )
    files = [("checkpoint", folder / "checkpoint.pt", 60, 2000), ("dataset", dataset, 60, 2000),
             ("pairs", folder / "p.npz", 60, 2000), ("labels", folder / "labels.pkl", 60, 500),
             ("labels", folder / "second.pkl", 60, 500), ("answers", folder / "a.jsonl", 60, 500),
             ("merged", folder / "a.jsonl", 60, 500), ("relabelled", folder / "new.hdf5", 8, 1000),
             ("lire", folder / "lire.pkl", 60, 500), ("video", folder / "episode-0.webm", 12, 100)]  # fmt: skip
    if importlib.util.find_spec("jax"):  # the packages of #record in requirements.txt
        record_pendulum(folder)
        data = folder / "me/fuzzed-v0/data"
        files += [("minari", data / "main_data.hdf5", 8, 500), ("minari", data / "metadata.json", 20, 500)]
    return files


def record_pendulum(folder: Path) -> None:
    """MINARI of tests/fuzz.py."""
    sim = minari.DataCollector(gymnasium.make("Pendulum-v1", max_episode_steps=60))
    for seed in range(3):
        sim.reset(seed=seed)
        while not sim.step(sim.action_space.sample())[3]:
            pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        sim.create_dataset(MINARI.removeprefix("minari:"), ref_min_score=-1000.0, ref_max_score=-200.0)


def fuzz(folder: Path, files: list[tuple[str, Path, int]]) -> None:
    """Every damaged copy of a file is refused in one line that names it, or read; prints how many."""
    line = [sys.executable, "-m", "tests.fuzz", *(str(word) for file in files for word in file)]
    env = {**os.environ, "MINARI_DATASETS_PATH": str(folder)}
    done = subprocess.run(line, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout[-50:], done.stderr[-2000:])
    print(*[said for said in done.stdout.splitlines() if "refused" in said], sep="\n")


def test_damaged_files_are_refused_or_read_right(data_dir, tmp_path, whole):
    fuzz(tmp_path, [(*file, few) for *file, few, _ in good_files(whole(), data_dir, tmp_path)])


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_damaged_files_are_refused_or_read_right(data_dir, tmp_path, whole):
    fuzz(tmp_path, [(*file, many) for *file, _, many in good_files(whole(), data_dir, tmp_path)])


def test_a_damaged_list_inside_a_foreign_hdf5_is_refused_in_one_line(tmp_path):
    """h5py says RuntimeError there, not OSError."""
    path = tmp_path / "hopper.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((60, 11))
    content = bytearray(path.read_bytes())
    content[content.index(b"HEAP") + 16] ^= 0xFF  # where its free list begins
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_preferences(path, suites.resolve("hopper-medium-v2"))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [
    {"protocol": []}, {"protocol": {"segment": "x"}}, {"protocol": {"segment": -5}}, {"protocol": {"segment": 10**9}},
    {"obs": b"text"}, {"obs": np.array("x", "S1")}, {"reward": np.zeros(60, complex)}, {"preferences/start": 1.5},
    {"episodes/row": np.array([50], np.uint8), "episodes/length": np.array([250], np.uint8)},
])  # fmt: skip
def test_wrong_types_under_a_right_checksum_are_refused_in_one_line(tmp_path, changes):
    task, path = suites.resolve("drawer-open-v2"), tmp_path / "handmade.hdf5"
    arrays = {"obs": np.zeros((60, 39)), "action": np.zeros((60, 4)), "reward": np.zeros(60),
              "episodes/row": np.array([0]), "episodes/length": np.array([59]),
              "preferences/start": np.zeros((2, 2), int), "preferences/label": np.ones(2)}  # fmt: skip
    write_hdf5(path, arrays, {"segment": 25})
    assert len(read_preferences(path, task).label) == 2
    changed = dict(changes)
    write_hdf5(path, arrays | {k: v for k, v in changed.items() if k != "protocol"}, changed.get("protocol", {}))
    with pytest.raises(InputError) as error:
        read_preferences(path, task)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------- logs that fail, odd places
@pytest.mark.thorough
def test_training_resumes_without_wandb_and_tensorboard(run, data_dir, tmp_path):
    env = {**environment(data_dir, tmp_path)["env"], "WANDB_MODE": "online", "HOME": str(tmp_path),
           "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "3"}  # fmt: skip
    done = run("ipl_iql", *SMALL, "--track", env=env)
    assert done.returncode == 0 and done.stderr.count("Weights & Biases failed") == 1, done.stderr
    assert (seed_folder(tmp_path) / "final.pt").exists()


@pytest.mark.thorough
def test_training_resumes_where_the_folder_of_wandb_is_full(data_dir, small_disk, tmp_path):
    """The folder is a link into a full disk, in a run that is resumed; it trains and evaluates."""
    process = start_until(data_dir, tmp_path, lambda seed: (seed / "eval.csv").exists()
                          and "\n20," in (seed / "eval.csv").read_text(), *SMALL, "--total-steps", 100_000)  # fmt: skip
    process.send_signal(signal.SIGTERM)
    process.wait()
    seed = seed_folder(tmp_path)
    before = len((seed / "eval.csv").read_text().splitlines())
    (seed / "wandb").symlink_to(small_disk)
    (small_disk / "filler").write_bytes(b"x" * shutil.disk_usage(small_disk).free)
    line = command("ipl_iql", *SMALL, "--total-steps", 100_000, "--track")
    options = environment(data_dir, tmp_path)
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(line, cwd=tmp_path, env=options["env"], stdout=said, stderr=said)
        wait_until = time.monotonic() + 100
        while len((seed / "eval.csv").read_text().splitlines()) < before + 2:
            assert process.poll() is None and time.monotonic() < wait_until, (tmp_path / "said").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    text = (tmp_path / "said").read_text()
    assert text.count("Weights & Biases failed") == 1 and "Traceback" not in text, text


@pytest.mark.thorough
def test_a_clock_that_is_set_back(data_dir, tmp_path, whole):
    """Killed, and started again two days before it began; then at the end of the year 2037."""
    if not shutil.which("faketime"):
        pytest.skip("faketime is not installed")
    process = start_until(data_dir, tmp_path, lambda seed: (seed / "checkpoint.pt").exists())
    process.kill()
    process.wait()
    options, seed, end = environment(data_dir, tmp_path), seed_folder(tmp_path), time.monotonic() + 120
    stopped = subprocess.Popen(["faketime", "-f", "-2d", *command("ipl_iql", *SMALL)], cwd=options["cwd"],
                               env=options["env"], stderr=subprocess.PIPE, text=True)  # fmt: skip
    while not (seed / "eval.csv").exists():  # from then on its workers run; a signal as they start upsets loky
        assert stopped.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    os.kill(int((seed / ".lock").read_text().split()[1]), signal.SIGUSR1)  # faketime hands no signal on
    said = stopped.communicate(timeout=120)[1]
    assert stopped.returncode == 0 and "Traceback" not in said, said
    assert not (seed / "final.pt").exists()
    done = subprocess.run(["faketime", "2037-12-31 23:59:50", *command("ipl_iql", *SMALL)], **options)
    assert done.returncode == 0, done.stderr
    assert_same_run(seed_folder(tmp_path), whole())


def test_packages_in_a_path_with_a_space_run_eager(monkeypatch, capsys):
    """torch hands the folder of its libraries to the linker unquoted."""
    monkeypatch.setattr(torch, "__file__", "/home/me/my code/.venv/torch/__init__.py")
    assert compiled(len, torch.device("cpu")) is len
    said = capsys.readouterr().err
    assert said.startswith("torch.compile needs a path without spaces") and said.count("\n") == 1


def test_odd_folders_locale_and_time_zone(data_dir, tmp_path, whole):
    """Stopped after its first evaluation and started again where the local time is a day earlier."""
    odd = tmp_path / 'it\'s a "run" - für Ünïcode'
    odd.mkdir()
    options = environment(data_dir, odd)
    options["env"] |= {"LC_ALL": "C", "TZ": "Pacific/Kiritimati"}
    if str(REPOSITORY).isascii():  # else torch cannot be imported
        options["env"]["PYTHONUTF8"] = "0"
    line = command("ipl_iql", *SMALL, "--run-dir", '../"Läufe" zum Test')
    seed, end = tmp_path / '"Läufe" zum Test/seed-1', time.monotonic() + 120
    first = subprocess.Popen(line, cwd=odd, env=options["env"], stderr=subprocess.PIPE, text=True)
    while not (seed / "eval.csv").exists():
        assert first.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 143 and "Traceback" not in said, said
    assert not (seed / "final.pt").exists()
    options["env"] |= {"TZ": "America/Anchorage"}
    done = subprocess.run(line, **options)
    assert done.returncode == 0, done.stderr
    assert_same_run(seed, whole())


# ---------------------------------------------------------------- senseless values
def intervals(args_class: type) -> dict[str, str]:
    """The interval beside each number's flag."""
    hints = typing.get_type_hints(args_class, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_has_its_interval(script):
    args_class = importlib.import_module(f"algorithms.{script}").Args
    numbers = {field.name for field in dataclasses.fields(args_class) if field.type in ("int", "float")}
    assert not numbers, f'write {numbers.pop()}: Annotated[float, "[0, 1)"] beside the flag'
    assert all(re.fullmatch(r"[\[(]\S+, \S+[\])]", interval) for interval in intervals(args_class).values())


@pytest.mark.thorough
@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SCRIPTS), st.data())
def test_any_number_for_any_flag_is_taken_or_refused_in_one_line(script, data):
    """In this process, up to the point where data would be read: the parser and the limits."""
    module = importlib.import_module(f"algorithms.{script}")
    allowed = intervals(module.Args)
    name = data.draw(st.sampled_from(sorted(allowed)))
    odd = st.sampled_from(["1e400", "-0", "0x10", "1_000", " 1", "inf", "-inf", "nan"])
    value = data.draw(st.one_of(st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=5), odd))
    words = [f"--{name.replace('_', '-')}={value}"]
    try:
        args = parse_args(default_args(module.Args, module.DEFAULTS, words), words)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return
    except SystemExit as end:  # tyro's own words
        assert end.code == 2
        return
    accepted = getattr(args, name)
    assert inside(accepted, allowed[name]) and accepted == accepted and abs(accepted) != float("inf")


# ---------------------------------------------------------------- the long part
LONG = (*SMALL, "--total-steps", 400, "--eval-every", 40, "--log-every", 20)


def begin(script: str, folder: Path, data_dir: Path) -> subprocess.Popen:
    """A run of LONG that has taken its folder, and with it its signals."""
    seed, options = seed_folder(folder, script), environment(data_dir, folder)
    process = subprocess.Popen(command(script, *LONG, *SMALL_OF.get(script, [])), cwd=folder, env=options["env"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    while not (seed / ".lock").exists() or f"pid {process.pid} on" not in (seed / ".lock").read_text():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process


def uninterrupted(script: str, folder: Path, data_dir: Path) -> float:
    """A whole run of LONG; the seconds that it takes from `begin` on."""
    folder.mkdir()
    process, began = begin(script, folder, data_dir), time.monotonic()
    assert process.wait(600) == 0, process.stderr.read()
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("script", SCRIPTS)
def test_fifty_kills_at_random_moments(run, data_dir, tmp_path, script):
    """kill -9 at random moments; whenever the run ends, it equals an uninterrupted one, bitwise."""
    folder, whole, draw = seed_folder(tmp_path, script), tmp_path / "whole", random.Random(script)
    length, kills, ends = uninterrupted(script, whole, data_dir), 0, 0
    while kills < 50:
        process = begin(script, tmp_path, data_dir)
        try:
            said = process.communicate(timeout=draw.uniform(0.0, length))[1]
            assert process.returncode == 0, said
            assert_same_run(folder, seed_folder(whole, script))
            ends += 1
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        if (folder / "final.pt").exists():
            shutil.rmtree(folder.parent)  # once more from the start
    print(f"{script}: {kills} kills, each within {length:.1f} s after the start; {ends} ends between them")
    done = run(script, *LONG, *SMALL_OF.get(script, []))
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, seed_folder(whole, script))
    assert json.loads((folder / "config.json").read_text())["algorithm"] == script


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_while_a_dataset_is_built(tmp_path):
    """Two builders at a time, one of them killed at a random moment; what is left is what one alone builds."""
    line = [sys.executable, "-m", "tools.dataset", "--env", "drawer-open-v2", "--episodes", "2", "--pairs", "60"]
    whole = subprocess.run([*line, "--data-dir", tmp_path / "whole"], cwd=REPOSITORY, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    (expected,) = (tmp_path / "whole").rglob("*.hdf5")
    path, draw, kills = tmp_path / "data/metaworld" / expected.name, random.Random(0), 0
    while kills < 50:
        pair = [subprocess.Popen([*line, "--data-dir", tmp_path / "data"], cwd=REPOSITORY, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL) for _ in range(2)]  # fmt: skip
        time.sleep(draw.uniform(0.5, 12.0))
        for process in pair:
            if process.poll() is None and (process is pair[0] or draw.random() < 0.7):
                process.kill()
                kills += 1
        assert all(process.wait(120) in (0, -signal.SIGKILL) for process in pair)
        if path.exists():
            assert path.read_bytes() == expected.read_bytes()
            path.unlink()
    done = subprocess.run([*line, "--data-dir", tmp_path / "data"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and path.read_bytes() == expected.read_bytes()
    assert not list(path.parent.glob(".*.partial"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("script", SCRIPTS)
def test_twenty_signals_at_random_moments(run, data_dir, tmp_path, script):
    """Each ends the run within 10 seconds with its exit status; the end equals an uninterrupted run's."""
    folder, whole, draw = seed_folder(tmp_path, script), tmp_path / "whole", random.Random(script)
    length, sent, slowest = uninterrupted(script, whole, data_dir), 0, 0.0
    signums = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 0}
    while sent < 20:
        process = begin(script, tmp_path, data_dir)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.0, length))
        signum = draw.choice(list(signums))
        if process.poll() is None:
            left, began = children(process.pid), time.monotonic()
            process.send_signal(signum)
            said = process.communicate(timeout=10)[1]
            slowest = max(slowest, time.monotonic() - began)
            ended = {0, -signum} if (folder / "final.pt").exists() else set()  # it had finished by itself
            assert process.returncode in {signums[signum], *ended} and "Traceback" not in said, (signum, said)
            while [pid for pid in left if running(pid)]:
                assert time.monotonic() - began < 10
                time.sleep(0.01)
            sent += 1
        if (folder / "final.pt").exists():
            shutil.rmtree(folder.parent)
    print(f"{script}: {sent} signals, each within {length:.1f} s after the start; slowest end {slowest:.1f} s")
    done = run(script, *LONG, *SMALL_OF.get(script, []))
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, seed_folder(whole, script))


def test_a_lock_of_a_dead_process_does_not_block(tmp_path):
    """The lock is the kernel's: what its file says of another process is only for the message."""
    from algorithms.ipl_iql import Args

    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1/.lock").write_text("pid 1 on elsewhere")
    SeedFolder(tmp_path / "seed-1", Args(), "ipl_iql").close()


# ---------------------------------------------------------------- folders that a run did not write
def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("files", [
    ["config.json", "eval.csv", "time.csv"], ["eval.csv"], ["config.json"], ["notes.txt"], ["final.pt"],
    [".lock", "config.json", "eval.csv"], [".lock", "notes.txt"], ["photos/1.jpg"],
])  # fmt: skip
def test_a_folder_without_a_checkpoint_is_refused_and_left_as_it_is(tmp_path, files):
    from algorithms.ipl_iql import Args

    seed = tmp_path / "seed-1"
    for name in files:
        (seed / name).parent.mkdir(parents=True, exist_ok=True)
        (seed / name).write_text("step,success\n0,1.0\n")
    before = contents(seed)
    with pytest.raises(InputError, match="and no checkpoint of a run"):
        SeedFolder(seed, Args(), "ipl_iql")
    assert contents(seed) == before


def test_published_results_are_not_touched(run, data_dir):
    """Pointed at folders of results/, as a command copied from sweeps/published.sh would be."""
    status = ["git", "-C", str(REPOSITORY), "status", "--porcelain", "--ignored", "results"]
    before = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    seeds = sorted({path.parent for path in (REPOSITORY / "results").rglob("config.json")})
    for seed in seeds[:: len(seeds) // 2]:
        done = run("bc", "--run-dir", seed.parent, "--seed", seed.name.removeprefix("seed-"), *SMALL)
        assert done.returncode == 2 and "no checkpoint of a run" in done.stderr
    assert subprocess.run(status, capture_output=True, text=True, check=True).stdout == before


def test_overwrite_removes_what_a_run_writes_and_nothing_else(run, whole, tmp_path):
    seed = shutil.copytree(whole("ipl_iql"), seed_folder(tmp_path))
    foreign = ["notes.txt", "videos/mine.mp4", "wandb/mine.txt", ".env", "sub/config.json"]
    own = ["videos/step-0000020.mp4", "videos/.step-0000020.77.mp4", "wandb/offline-run-1/a", ".best.pt.77.partial"]
    for name in foreign + own:
        (seed / name).parent.mkdir(parents=True, exist_ok=True)
        (seed / name).write_text("x")
    (seed / "best.pt").unlink()
    done = run("ipl_iql", *SMALL, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert all((seed / name).read_text() == "x" for name in foreign)
    assert not any((seed / name).exists() for name in own) and (seed / "best.pt").exists()
    assert len(list(seed.glob("events.*"))) == 1


def test_a_repository_or_a_home_is_never_a_seeds_folder(tmp_path, monkeypatch):
    from algorithms.ipl_iql import Args

    (tmp_path / "seed-1/.git").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "seed-2"))
    (tmp_path / "seed-2").mkdir()
    for folder in (tmp_path / "seed-1", tmp_path / "seed-2", Path("/")):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="is a home, a root or a repository"):
                SeedFolder(folder, Args(overwrite=overwrite), "ipl_iql")
    assert not list((tmp_path / "seed-2").iterdir()) and [p.name for p in (tmp_path / "seed-1").iterdir()] == [".git"]


def test_damaged_rows_are_refused_and_a_cut_one_is_dropped(tmp_path):
    from algorithms.ipl_iql import Args

    run = SeedFolder(tmp_path / "seed-1", Args(), "ipl_iql")
    table = tmp_path / "seed-1/train.csv"
    for text in ("step,a\n1,2,3\n", "step,a\nx,2\n", "a\n1\n"):
        table.write_text(text)
        with pytest.raises(InputError, match=r"train.csv: has a damaged row"):
            run.log.open_table("train", 10)
    table.write_text("step,a\n1,2\n2,3\n3,")
    run.log.open_table("train", 1)
    assert table.read_text() == "step,a\n1,2\n"
    run.close()


@pytest.mark.parametrize("damage", few_of(["byte", "cell", "other", "short", "more", "empty", "gone"], "gone"))
def test_a_damaged_table_of_evaluations_is_one_line(run, data_dir, tmp_path, whole, damage):
    """Of a run that is finished, and of one that is resumed."""
    folder = tmp_path / "runs/seed-1"
    shutil.copytree(whole(), folder)
    table = folder / "eval.csv"
    text = table.read_bytes()
    if damage == "gone":
        table.unlink()
    else:
        value = text.splitlines()[-1].split(b",")[2]  # of return_mean
        last = text.splitlines()[-1]
        change = {"byte": (b"step", b"st\xff"), "cell": (value, b"abc"), "empty": (text, b""),
                  "other": (last, last.rpartition(b",")[0] + b",x"), "short": (last, last[: last.index(b",") + 2]),
                  "more": (last, last + b",1")}  # fmt: skip
        table.write_bytes(text.replace(*change[damage]))
    for longer in (False, True):
        steps = ["--total-steps", 50] if longer else []
        done = run("ipl_iql", *SMALL, *steps, "--run-dir", "runs")
        if longer and damage in ("empty", "gone"):  # the next evaluation begins the table again
            assert done.returncode == 0, done.stderr
        else:
            assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"{table.name}: " in done.stderr


def test_a_longer_run_that_was_stopped_ahead_of_its_end_is_not_finished(run, tmp_path, whole):
    """Its last checkpoint is written ahead of the last evaluation; final.pt is still of the shorter run."""
    folder = tmp_path / "runs/seed-1"
    shutil.copytree(whole(), folder)
    before = torch.load(folder / "final.pt")["step"]
    saved = torch.load(folder / "checkpoint.pt")
    longer = ["--total-steps", before + 20, "--run-dir", "runs"]
    saved["step"] = saved["args"]["total_steps"] = before + 20
    saved["state"]["step"] += 20
    torch.save(saved, folder / "checkpoint.pt")
    done = run("ipl_iql", *SMALL, *longer)
    assert done.returncode == 0 and "finished already" not in done.stdout, done.stderr
    assert torch.load(folder / "final.pt")["step"] == before + 20
    assert (folder / "eval.csv").read_text().splitlines()[-1].startswith(f"{before + 20},")
    assert "finished already" in run("ipl_iql", *SMALL, *longer).stdout


def test_a_metric_that_comes_or_goes_has_empty_cells(tmp_path):
    from algorithms.ipl_iql import Args

    run = SeedFolder(tmp_path / "seed-1", Args(), "ipl_iql")
    run.log.open_table("train", -1)
    for step, row in ((10, {"a": 1.0}), (20, {"a": 2.0, "b": 3.0}), (30, {"b": 4.0})):
        run.log.row("train", step, row)
    assert (tmp_path / "seed-1/train.csv").read_text() == "step,a,b\n10,1.0,\n20,2.0,3.0\n30,,4.0\n"
    run.log.open_table("train", 20)
    run.log.row("train", 30, {"b": 4.0})
    assert (tmp_path / "seed-1/train.csv").read_text() == "step,a,b\n10,1.0,\n20,2.0,3.0\n30,,4.0\n"
    run.close()


def test_a_flag_that_an_older_run_had_not_had_its_default(tmp_path):
    from algorithms.ipl_iql import Args

    run = SeedFolder(tmp_path / "seed-1", Args(), "ipl_iql")
    del run.args["beta"]
    run.time = {"data": 0.0, "train": 0.0, "eval": 0.0}
    run.save_checkpoint(5, {})
    run.close()
    SeedFolder(tmp_path / "seed-1", Args(), "ipl_iql").close()
    with pytest.raises(InputError, match=r"--beta 0.333\d* -> 0.5"):
        SeedFolder(tmp_path / "seed-1", Args(beta=0.5), "ipl_iql")


def test_code_that_changed_under_a_run_is_said(whole, data_dir, tmp_path, capsys):
    """In config.json and on stderr; and stays said."""
    shutil.copytree(whole(), tmp_path / "seed-1")
    (tmp_path / "seed-1/final.pt").unlink()
    path = tmp_path / "seed-1/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"git_commit": "0" * 40, "git_dirty": False, "code": "other"}))
    words = [*SMALL, "--data-dir", str(data_dir)]
    args = parse_args(default_args(ipl_iql.Args, {}, words), words)
    for _ in range(2):
        run = SeedFolder(tmp_path / "seed-1", args, "ipl_iql")
        run.begin(config["dataset_fingerprint"], torch.device("cpu"), track=False)
        run.close()
        assert json.loads(path.read_text())["git_dirty"]
    assert capsys.readouterr().err.count(f"was started at commit {'0' * 40} with other code than today's") == 1


def test_a_finished_run_is_not_shown_for_other_answers(whole, data_dir, tmp_path, capsys):
    """Another name of the same file is no other data."""
    shutil.copytree(whole(), tmp_path / "seed-1")
    same = next((data_dir / "metaworld").glob("*.hdf5"))
    arrays, named = read_arrays(same), tmp_path / "named.hdf5"
    arrays["action"][0] = 0.5
    write_hdf5(other := tmp_path / "other.hdf5", arrays, arrays.pop("protocol"))
    shutil.copy(same, named)

    def again(*more) -> dict:
        words = [*SMALL, "--data-dir", str(data_dir), "--run-dir", str(tmp_path), *map(str, more)]
        return ipl_iql.train(parse_args(default_args(ipl_iql.Args, ipl_iql.DEFAULTS, words), words))

    assert again() == again("--preferences", named)
    assert capsys.readouterr().out.count("finished already; --overwrite") == 2
    with pytest.raises(InputError, match="was started on other data"):
        again("--preferences", other)
    config = json.loads((tmp_path / "seed-1/config.json").read_text())
    config["args"]["preferences"] = [str(named)]
    (tmp_path / "seed-1/config.json").write_text(json.dumps(config))
    shutil.copy(other, named)
    with pytest.raises(InputError, match="was started on other data"):
        again("--preferences", named)  # more answers in the file of the same name


@pytest.mark.parametrize(("error", "said"), [
    (torch.OutOfMemoryError("out of memory.\nTried to allocate 1 GiB"), "out of memory. Tried to allocate 1 GiB"),
    (torch.AcceleratorError("CUDA error: unspecified\nadvice on debugging"), "CUDA error: unspecified"),
])  # fmt: skip
def test_faults_of_a_gpu_are_one_line(capsys, error, said):
    with pytest.raises(SystemExit) as end, user_errors():
        raise error
    errors = capsys.readouterr().err
    assert end.value.code == 1 and errors.endswith(f"error: {said}\n") and errors.count("\n") == 1
