"""What happens when things go wrong: faults done to the real scripts as real processes. The README has the table.

The quick part runs with every `pytest`; `pytest -m slow tests/test_faults.py` is the long one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.datasets import ensure
from common.envs import InputError, Workers
from common.runs import LIMITS, Run, check_args, default_args, parse_args
from tests.conftest import REPOSITORY, SMALL, SMALL_OF, command, environment
from tests.test_scripts import assert_same_run, children, start_until

SCRIPTS = sorted(path.stem for path in (REPOSITORY / "algorithms").glob("*.py"))


def seed_folder(folder: Path, script: str = "ipl_iql") -> Path:
    return folder / "runs/drawer-open-v2" / script / "seed-1"


# ---------------------------------------------------------------- numbers
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(run, tmp_path):
    done = run("ipl_iql", *SMALL, "--lr", 1e30)
    assert done.returncode == 1 and "not finite" in done.stderr and "Traceback" not in done.stderr
    base = seed_folder(tmp_path).parent
    saved = torch.load(base / "not-finite.pt", weights_only=True)
    assert saved["batch"]["obs"].isfinite().all() and 1 <= saved["step"] <= 5
    checkpoint = torch.load(base / "seed-1/checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 0 and all(p.isfinite().all() for p in checkpoint["state"]["actor"].values())
    assert not (base / "seed-1/final.pt").exists()


def test_a_reward_model_that_is_not_finite_stops_the_run(run, tmp_path, monkeypatch):
    obs, action = np.full((2, 60, 25, 39), 1e30), np.zeros((2, 60, 25, 4))  # finite, but not their squares
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


def test_a_killed_worker_is_replaced_once(run, data_dir, tmp_path):
    """Killed in the first evaluation: the run ends as one without a fault. Killed always: one line, exit status 1."""
    assert run("ipl_iql", *SMALL, "--run-dir", tmp_path / "whole").returncode == 0
    process = start_until(data_dir, tmp_path, lambda seed: (seed / "checkpoint.pt").exists())
    end = time.monotonic() + 60
    while not (workers := loky_children(process.pid)):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(120) == 0
    assert_same_run(seed_folder(tmp_path), tmp_path / "whole/seed-1")

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
    assert run("ipl_iql", *SMALL, cwd=tmp_path / "again").returncode == 0  # the same command goes on
    assert_same_run(seed_folder(tmp_path / "again"), tmp_path / "whole/seed-1")


# ---------------------------------------------------------------- disks
@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(run, small_disk, tmp_path):
    assert run("ipl_iql", *SMALL, "--run-dir", tmp_path / "whole").returncode == 0
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
    assert_same_run(small_disk / "run/seed-1", tmp_path / "whole/seed-1")


def test_a_full_disk_under_the_data_leaves_no_half_file(run, small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 50_000))
    workers = Workers(1)
    with pytest.raises(OSError, match=r"No space left|write|unable"):
        ensure("drawer-open-v2", small_disk / "data", workers, episodes=1, pairs=60)
    assert not list((small_disk / "data").rglob("*.hdf5"))
    filler.unlink()
    assert ensure("drawer-open-v2", small_disk / "data", workers, episodes=1, pairs=60).exists()
    workers.close()


# ---------------------------------------------------------------- logs that fail, odd places
def test_training_goes_on_without_wandb_and_tensorboard(run, data_dir, tmp_path):
    env = {**environment(data_dir, tmp_path)["env"], "WANDB_MODE": "online", "HOME": str(tmp_path),
           "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "3"}  # fmt: skip
    done = run("ipl_iql", *SMALL, "--track", env=env)
    assert done.returncode == 0 and done.stderr.count("Weights & Biases failed") == 1, done.stderr
    assert (seed_folder(tmp_path) / "final.pt").exists()


def test_odd_folders_locale_and_time_zone(run, data_dir, tmp_path):
    assert run("ipl_iql", *SMALL, "--run-dir", tmp_path / "whole").returncode == 0
    odd = tmp_path / 'it\'s a "run" - für Ünïcode'
    env = {**environment(data_dir, tmp_path)["env"], "LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Pacific/Kiritimati"}
    assert run("ipl_iql", *SMALL, "--run-dir", odd, "--total-steps", 20, env=env).returncode == 0
    odd2 = tmp_path / "relative"
    odd2.mkdir()
    for zone in ("Pacific/Kiritimati", "America/Anchorage"):  # another local time at the second start
        done = run("ipl_iql", *SMALL, "--run-dir", "../ein Lauf", cwd=odd2, env={**env, "TZ": zone})
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "ein Lauf/seed-1", tmp_path / "whole/seed-1")


# ---------------------------------------------------------------- senseless values
NUMBERS = [name for _, _, names in LIMITS for name in names.split()
           if name not in ("hidden_sizes", "matmul_precision", "preference_labels")]  # fmt: skip


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(SCRIPTS), st.data())
def test_any_number_for_any_flag_is_taken_or_refused_in_one_line(script, data):
    """In this process, up to the point where data would be read: the parser and the limits."""
    import importlib

    module = importlib.import_module(f"algorithms.{script}")
    fields = [name for name in NUMBERS if hasattr(module.Args, name)]
    name = data.draw(st.sampled_from(fields))
    odd = st.sampled_from(["1e400", "-0", "0x10", "1_000", " 1", "inf", "-inf", "nan"])
    value = data.draw(st.one_of(st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=5), odd))
    words = [f"--{name.replace('_', '-')}={value}"]
    try:
        args = parse_args(default_args(module.Args, module.DEFAULTS, words), words)
        check_args(args)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return
    accepted = getattr(args, name)
    accepts = next(accept for _, accept, names in LIMITS if name in names.split())
    assert accepts(accepted) and accepted == accepted and abs(accepted) != float("inf")


# ---------------------------------------------------------------- the long part
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("script", SCRIPTS)
def test_fifty_kills_at_random_moments(run, data_dir, tmp_path, script):
    """kill -9 at random moments until the run has ended; the end equals an uninterrupted run's, bitwise."""
    arguments = [*SMALL, *SMALL_OF.get(script, []), "--total-steps", 400, "--eval-every", 40, "--log-every", 20]
    whole = run(script, *arguments, "--run-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    folder, options, draw = seed_folder(tmp_path, script), environment(data_dir, tmp_path), random.Random(script)
    kills = 0
    while kills < 50:
        process = subprocess.Popen(command(script, *arguments), cwd=options["cwd"], env=options["env"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
        try:
            said = process.communicate(timeout=draw.uniform(1.5, 9.0))[1]
            assert process.returncode == 0, said
            shutil.rmtree(folder.parent)  # it ended: once more from the start
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, tmp_path / "whole/seed-1")
    assert json.loads((folder / "config.json").read_text())["algorithm"] == script


def test_a_lock_of_a_dead_process_does_not_block(tmp_path):
    """The lock is the kernel's: what its file says of another process is only for the message."""
    from algorithms.ipl_iql import Args

    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1/.lock").write_text("pid 1 on elsewhere")
    Run(tmp_path / "seed-1", Args(), "ipl_iql").close()
