"""The rows of the benchmark for a GPU, on the CPU and short: what is measured elsewhere must have run before."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests import benchmark
from tests.conftest import REPOSITORY


def device_rows(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.benchmark", "--rows", "device", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="it compiles: needs a C++ compiler")
def test_the_rows_of_a_device():
    done = device_rows("--device", "cpu", "--updates", 20, "--scripts", "bc")
    assert done.returncode == 0, done.stderr
    run, tests, *speed = re.findall(r"^\| (.*?) \| (.*?) \|.* \| (yes|no) \|$", done.stdout, re.MULTILINE)
    assert run[0] == "bc: 20 updates on cpu" and re.fullmatch(r"\d+\.\d s", run[1]) and run[2] == "yes"
    assert tests[0] == "pytest -k gpu" and re.match(r"\d+ (skipped|passed)", tests[1]) and tests[2] == "yes"
    kinds = [f"bc on cpu, {seeds}, {kind}" for seeds in ("1 seed", "5 seeds") for kind in ("float32", "tf32")]
    assert [name for name, *_ in speed] == [f"{kind}: compiled / eager" for kind in kinds]
    assert all(float(part) > 0 for _, times, _ in speed for part in re.findall(r"[\d.]+(?:e\+\d+)?", times))


def test_a_run_that_fails_and_a_device_that_is_not_there(tmp_path):
    _, fault = benchmark.run_on("cpu", "bc", 0, tmp_path / "none.hdf5", tmp_path)
    assert re.fullmatch(r"bc.py: error: --total-steps 0: .*", fault)
    wrong = device_rows("--device", "cuda:77")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "--device cuda:77" in wrong.stderr
