"""Does it learn, on the real simulator with the full dataset? `pytest -m slow tests/test_learning.py`; the quick suite
learns in tests/test_docs.py, on the environment of docs/data.md."""

from __future__ import annotations

import csv
import subprocess

import pytest

from tests.conftest import command, environment


def last_success(folder, script: str, *arguments) -> list[float]:
    """Train with the defaults on drawer-open-v2 in `folder`; the last evaluation's success of every seed."""
    args = ["--env", "drawer-open-v2", "--run-dir", script, *arguments]
    done = subprocess.run(command(script, *args), **{**environment(folder / "data", folder), "timeout": 7000})
    assert done.returncode == 0, done.stderr
    found = []
    for path in sorted((folder / script).glob("seed-*/eval.csv")):
        with open(path, newline="") as file:
            found.append(float(list(csv.DictReader(file))[-1]["success"]))
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)  # on a slow processor without AVX-512 it takes more than seven minutes alone
def test_ipl_iql_learns_drawer_open(tmp_path):
    """10,000 pairs, 5,000 steps, dataset built on the way. Seen here over seeds 1 to 4: 0.80, 0.90, 0.90, 0.80."""
    arguments = ["--total-steps", 5000, "--eval-every", 5000, "--num-preferences", 0, "--seed", 3, "--threads", 1]
    success = last_success(tmp_path, "ipl_iql", *arguments)
    assert len(success) == 1 and success[0] >= 0.7


# Learning checks of the other methods, on 10,000 pairs unless --num-preferences says otherwise: `pytest -m slow`. Seen:
# ipl_awac 1.00, 0.65 (both 1.00 at 7,500); ipl_xql 1.00, 1.00, 1.00; mr_iql 1.00, 1.00 (from 30,000 on); iql 1.00, 1.00
# (at 45,000; 0.30, 0.95 at 30,000); pt_iql, one seed, 1.00 (0.00 at 30,000), its reward model right on 0.95 of the
# held-out pairs.
CHECKS = [
    ("ipl_awac", 10_000, 2, []),
    ("ipl_xql", 10_000, 3, []),
    ("mr_iql", 60_000, 2, []),
    ("pt_iql", 40_000, 1, ["--num-preferences", 4000, "--reward-epochs", 15]),
    ("iql", 60_000, 2, []),
]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("script", "steps", "seeds", "more"), CHECKS, ids=[check[0] for check in CHECKS])
def test_method_learns_drawer_open(tmp_path, script, steps, seeds, more):
    arguments = ["--total-steps", steps, "--eval-every", steps, "--num-preferences", 0, "--num-seeds", seeds]
    success = last_success(tmp_path, script, *arguments, *more)
    assert sum(success) / len(success) >= 0.8


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("script", ["cpl", "bc"])
def test_cloning_and_cpl_learn_drawer_open(tmp_path, script):
    """`pytest -m slow tests/test_learning.py -k cloning`: 4,000 pairs, three seeds. Seen: cpl 0.00, 1.00, 1.00; bc
    0.80, 1.00, 0.45. docs/choosing.md says why CPL is not above cloning here."""
    arguments = ["--total-steps", 10_000, "--eval-every", 10_000, "--num-seeds", 3]
    arguments += ["--bc-steps", 4000, "--warmup-steps", 400] if script == "cpl" else []
    success = last_success(tmp_path, script, *arguments)
    assert sum(success) / len(success) >= 0.5
