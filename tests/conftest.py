"""What the tests share: one small dataset from the real simulator, and scripts run as real processes."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = "bc cpl ipl_awac ipl_iql ipl_xql iql mr_iql pt_iql".split()
"""The scripts of algorithms/ that are ours, which the tests are about. Another one is its author's: --script NAME."""
os.environ.setdefault("MUJOCO_GL", "glx")  # tests that render say so themselves

# A shell that starts pytest in the background lets it, and so what it starts, ignore Ctrl-C; some tests send one.
signal.signal(signal.SIGINT, signal.default_int_handler)

import torch  # noqa: E402

from common import suites  # noqa: E402
from common.suites.base import Recipe  # noqa: E402
from common.workers import Workers  # noqa: E402

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

# A run of seconds, on the real simulator: what matters is that every part of a real run takes part.
SMALL = (
    "--env drawer-open-v2 --total-steps 40 --eval-every 20 --eval-episodes 1 --log-every 10 --num-preferences 50 "
    "--hidden-sizes 16 16 --preference-batch-size 4 --threads 1 --no-compile --device cpu"
).split()


# the reward model of pt_iql, as small; cpl's cloning, which must end within the run
SMALL_OF = {"pt_iql": "--reward-epochs 10 --reward-width 16 --reward-batch-size 16".split()}
SMALL_OF["cpl"] = "--bc-steps 25 --reference --warmup-steps 10".split()


def few_of(cases: list, *quick) -> list:
    """The cases of a parametrized test: `quick` are for every `pytest`, the others for `pytest -m thorough`."""
    others = [case for case in cases if case not in quick]
    return [*quick, *(pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.thorough)
                      for case in others)]  # fmt: skip


@pytest.fixture(autouse=True)
def torch_as_it_was():
    """A script that ran in this process changed it; hypothesis needs denormal numbers."""
    yield
    torch.set_flush_denormal(False)
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data folder whose default dataset holds one episode of each kind, so that no test builds the full one."""
    if made := os.environ.get("IPL_SMALL_DATA"):  # by the tests that started these
        return Path(made)
    folder = tmp_path_factory.mktemp("data")
    workers = Workers(2)
    small = suites.SUITES["metaworld"].dataset(
        suites.resolve("drawer-open-v2"), folder, workers, Recipe(episodes=1, pairs=60)
    )
    workers.close()
    small.rename(small.with_name("drawer-open-v2_episodes-100_noise-1_pairs-10000_seed-0.hdf5"))
    return folder


@pytest.fixture(scope="session")
def whole(data_dir, tmp_path_factory):
    """whole(script) -> the folder of seed 1 of an uninterrupted small run, made once: copy it to change it."""

    @functools.cache
    def seed_folder(script: str = "ipl_iql") -> Path:
        folder = tmp_path_factory.mktemp("whole")
        done = subprocess.run(command(script, *SMALL, *SMALL_OF.get(script, [])), **environment(data_dir, folder))
        assert done.returncode == 0, done.stderr
        assert "success" in done.stdout and "wall-clock: data" in done.stdout
        return folder / "runs/drawer-open-v2" / script / "seed-1"

    return seed_folder


@pytest.fixture
def run(data_dir, tmp_path):
    """run(script, *arguments, **options of subprocess.run) -> CompletedProcess; new folder, small dataset."""

    def start(script: str, *arguments, **options) -> subprocess.CompletedProcess:
        return subprocess.run(command(script, *arguments), **{**environment(data_dir, tmp_path), **options})

    return start


def command(script: str, *arguments) -> list[str]:
    """The command line of a script of algorithms/."""
    return [sys.executable, str(REPOSITORY / "algorithms" / f"{script}.py"), *map(str, arguments)]


def environment(data_dir: Path, folder: Path, cores: int = 1) -> dict:
    """Options of `subprocess.run` for a script: working folder, data folder, captured output; a worker a core."""
    if cores > len(os.sched_getaffinity(0)):
        pytest.skip(f"needs {cores} cores")
    env = {**os.environ, "IPL_DATA_DIR": str(data_dir), "WANDB_MODE": "offline", "SLURM_CPUS_PER_TASK": str(cores)}
    return {"cwd": folder, "env": env, "capture_output": True, "text": True, "timeout": 300}


def pytest_addoption(parser) -> None:
    parser.addoption("--script", metavar="NAME", help="try algorithms/NAME.py, a script of your own, and nothing else")


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "house: the style of the scripts that we ship")
    name = config.getoption("script")
    if name and not (REPOSITORY / f"algorithms/{name}.py").exists():
        raise pytest.UsageError(f"--script {name}: there is no algorithms/{name}.py")


def pytest_ignore_collect(collection_path: Path, config) -> bool | None:
    """With --script tests/test_own_script.py alone, else all but it."""
    own, asked = collection_path.name == "test_own_script.py", bool(config.getoption("script"))
    return True if collection_path.name.startswith("test_") and own != asked else None


# The files that take longest first, so that two workers of pytest-xdist (see .ci/run) end at about the same time.
LONGEST = (
    "learning scripts faults suites label record report launch reward house docs average judge guess update".split()
)


def pytest_collection_modifyitems(items: list) -> None:
    rank = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))
