"""Build or download an environment's data ahead of a run, and say what is in them.

    python -m tools.dataset --env drawer-open-v2 --episodes 100 --noise 1.0 --seed 0
    python -m tools.dataset --env lift-ph        # on the login node, where compute nodes have no internet

A training run does the same where data are missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from common import suites
from common.cli import default_data_dir, parse_args, user_errors
from common.data import read_preferences
from common.rollouts import Workers, available_cpus
from common.suites.base import PAIRS, Recipe


@dataclass
class DatasetArgs:
    """Build or download an environment's offline dataset and its human preferences, and print what is in them."""

    env: str = "drawer-open-v2"
    """environment; episodes, noise, seed and pairs are of MetaWorld, whose datasets are built here"""
    episodes: Annotated[int, "[1, inf)"] = 100
    """episodes of each kind: expert, within (another goal), random, cross (another task)"""
    noise: Annotated[float, "[0, inf)"] = 1.0
    """standard deviation of the noise on scripted actions"""
    seed: Annotated[int, "[0, 4294967295]"] = 0
    """seed of goals, noise and pairs"""
    pairs: Annotated[int, "[1, inf)"] = PAIRS
    """preference pairs"""
    data_dir: Path = Path("data")
    """folder of the datasets (IPL_DATA_DIR, if set, is the default)"""
    workers: Annotated[int, "[0, 1024]"] = 0
    """processes; 0: one a core"""


def main(args: DatasetArgs) -> Path:
    """Build or download what is missing; print what is in it."""
    task = suites.resolve(args.env)
    suite = suites.SUITES[task.suite]
    workers = Workers(args.workers or available_cpus())
    if task.env in suite.HUMAN_FILES:
        labelled = suites.human_pairs(task, args.data_dir)
        print(f"{labelled}: {len(read_preferences(labelled, task).label)} pairs")
    try:
        recipe = Recipe(args.episodes, args.noise, args.seed, args.pairs)
        path = suite.dataset(task, args.data_dir, workers, recipe)
    finally:
        workers.close()
    print(path, *suite.describe(path, task), sep="\n")
    return path


if __name__ == "__main__":
    with user_errors():
        main(parse_args(DatasetArgs(data_dir=default_data_dir())))
