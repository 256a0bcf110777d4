"""A script of your own in algorithms/, for example a copy of ipl_iql.py: does it train, resume and evaluate?

    pytest --script my_method

A minute, on a small dataset from the real simulator. Without --script nothing here runs, and no other test looks at it.
"""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.actors import Actor
from common.cli import default_args, parse_args
from tests.conftest import REPOSITORY, command, environment
from tests.test_scripts import assert_same_run, rows, start_until, tensors

# 20 updates; a script need not have all of these flags
SMALL = {"env": "drawer-open-v2", "total_steps": 20, "eval_every": 10, "eval_episodes": 2, "log_every": 5,
         "num_preferences": 50, "hidden_sizes": (16, 16), "preference_batch_size": 4, "threads": 1, "compile": False,
         "device": "cpu", "reward_epochs": 10, "reward_width": 16, "reward_batch_size": 16}  # fmt: skip


@pytest.fixture(scope="module")
def script(request):
    """The module."""
    name = request.config.getoption("script")
    return importlib.import_module(f"algorithms.{name}") if name else pytest.skip("give --script NAME")


@pytest.fixture(scope="module")
def line(script) -> list[str]:
    """The command line of a small run."""
    words = []
    for name in [field.name for field in dataclasses.fields(script.Args) if field.name in SMALL]:
        flag, value = name.replace("_", "-"), SMALL[name]
        words += [f"--no-{flag}"] if value is False else [
            f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]  # fmt: skip
    return command(Path(script.__file__).stem, *words)


@pytest.fixture(scope="module")
def trained(line, data_dir, tmp_path_factory) -> Path:
    """The folder of seed 1 of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    done = subprocess.run([*line, "--run-dir", "run"], **environment(data_dir, folder))
    assert done.returncode == 0, done.stderr
    return folder / "run/seed-1"


def test_it_parses(script, line):
    assert Path(script.__file__).stem == script.ALGORITHM  # the name of its folders, and what tools find it by
    args = parse_args(default_args(script.Args, script.DEFAULTS, line[2:]), line[2:])
    assert args.total_steps == 20
    shown = subprocess.run([*line[:2], "--help"], capture_output=True, text=True)
    assert shown.returncode == 0 and "--total-steps" in shown.stdout, shown.stderr
    wrong = subprocess.run([*line, "--total-steps", "none"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "--total-steps" in wrong.stderr, wrong.stderr


def test_it_trains(trained):
    assert [row["step"] for row in rows(trained / "eval.csv")] == ["0", "10", "20"]
    assert [row["step"] for row in rows(trained / "train.csv")] == ["5", "10", "15", "20"]
    final = torch.load(trained / "final.pt", weights_only=True)
    assert final["step"] == 20 and all(p.isfinite().all() for p in final["actor"].values())


def test_it_resumes(line, trained, data_dir, tmp_path):
    """Killed in the middle and started again, it ends where the run did that was not: what an update needs is in the
    state, or is drawn from the seed and the step."""
    seed = tmp_path / "run/seed-1"
    process = start_until(data_dir, tmp_path, lambda _: (seed / "train.csv").exists() and "\n10," in (
        seed / "train.csv").read_text(), *line[2:], "--run-dir", "run", script=Path(line[1]).stem)  # fmt: skip
    process.kill()
    process.wait()
    assert not (seed / "final.pt").exists()
    again = subprocess.run([*line, "--run-dir", "run"], **environment(data_dir, tmp_path))
    assert again.returncode == 0, again.stderr
    assert_same_run(seed, trained)


def test_it_is_evaluated(script, trained):
    """By the network that is trained, and by tools.evaluate."""
    actor = tensors(trained / "final.pt")
    obs = torch.randn(1, 7, 39, generator=torch.Generator().manual_seed(0))
    mean = script.policy({name: p.unsqueeze(0) for name, p in actor.items()}, obs)
    mean = (mean[0] if isinstance(mean, tuple) else mean)[0].clamp(-1, 1)
    acted = Actor(script.policy, {name: p.numpy() for name, p in actor.items()})(obs[0].numpy())
    torch.testing.assert_close(torch.from_numpy(acted), mean)
    words = [sys.executable, "-m", "tools.evaluate", str(trained / "final.pt"), "--episodes", "2"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and f"{script.ALGORITHM} on drawer-open-v2 after 20 updates" in done.stdout, done.stderr
