"""Does it learn, on the real simulator with the full dataset?"""

from __future__ import annotations

import csv
import subprocess

import pytest

from tests.conftest import command, environment


def last_success(folder, script: str, *arguments) -> list[float]:
    """Train with the defaults on drawer-open-v2 in `folder`; the last evaluation's success of every seed."""
    args = ["--env", "drawer-open-v2", "--run-dir", "run", *arguments]
    done = subprocess.run(command(script, *args), **{**environment(folder / "data", folder), "timeout": 7000})
    assert done.returncode == 0, done.stderr
    found = []
    for path in sorted((folder / "run").glob("seed-*/eval.csv")):
        with open(path, newline="") as file:
            found.append(float(list(csv.DictReader(file))[-1]["success"]))
    return found


def test_ipl_iql_learns_drawer_open(tmp_path):
    """10,000 pairs, 5,000 steps, dataset built on the way. Seen here over seeds 1, 2, 3: 1.00, 1.00, 0.95."""
    success = last_success(tmp_path, "ipl_iql", "--total-steps", 5000, "--eval-every", 5000, "--num-preferences", 0)
    assert len(success) == 1 and success[0] >= 0.7


# Learning checks of the other methods with 10,000 pairs: (script, steps, seeds). `pytest -m slow`. Seen so far:
# ipl_awac 1.00 and 0.65 after 10,000 steps; ipl_xql 0.00 and 1.00 after 10,000; mr_iql, one seed, 0.75 after 40,000 and
# still rising; iql, one seed, 0.25 after 30,000 and still rising. The steps below are where 0.8 is to be expected, and
# only those of ipl_awac have been run.
CHECKS = [("ipl_awac", 10_000, 2), ("ipl_xql", 20_000, 3), ("mr_iql", 60_000, 2), ("iql", 100_000, 2)]


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("script", "steps", "seeds"), CHECKS)
def test_method_learns_drawer_open(tmp_path, script, steps, seeds):
    arguments = ["--total-steps", steps, "--eval-every", steps, "--num-preferences", 0, "--num-seeds", seeds]
    success = last_success(tmp_path, script, *arguments)
    assert sum(success) / len(success) >= 0.8
