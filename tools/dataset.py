"""Build or download an environment's data ahead of a run, and say what is in them.

    python -m tools.dataset --env drawer-open-v2 --episodes 100 --noise 1.0 --seed 0
    python -m tools.dataset --env lift-ph        # on the login node, where compute nodes have no internet
    python -m tools.dataset --env lift-ph --check   # downloads nothing: which of its files are here, or can be had

A training run does the same where data are missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common import suites
from common.cli import default_data_dir, parse_args, user_errors
from common.data import read_preferences
from common.files import probe
from common.rollouts import Workers, available_cpus
from common.suites.base import PAIRS, Recipe, Task


@dataclass
class DatasetArgs:
    """Build or download an environment's offline dataset and its labelled pairs, and print what is in them."""

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
    labels: tuple[Literal["human", "crowd", "released"], ...] = ("human", "crowd")
    """labels to download, where the environment has them"""
    check: bool = False
    """download and build nothing: say which files are here or can be had; exit status 1 where one is neither"""
    data_dir: Path = Path("data")
    """folder of the datasets (IPL_DATA_DIR, if set, is the default)"""
    workers: Annotated[int, "[0, 1024]"] = 0
    """processes; 0: one a core"""


def check(args: DatasetArgs, task: Task) -> bool:
    """Print where each file is, or what its addresses answer. Returns whether all can be had."""
    suite = suites.SUITES[task.suite]
    files = [file for whose in suite.LABELS if task.env in suite.LABELS[whose]
             for file in suites.labels_of(task, whose).files]  # fmt: skip
    found = []
    for file in [*files, *filter(None, [suite.remote(task)])]:
        here = suites.at_hand(file, args.data_dir)
        answers = {} if here else {url: probe(url) for url in file.urls}
        found.append(bool(here) or any(there for there, _ in answers.values()))
        print(f"{file.name}: {f'here, {here}' if here else 'can be downloaded' if found[-1] else 'NOT TO BE HAD'}")
        for url, (there, said) in answers.items():
            print(f"    {'yes' if there else 'no '} {url} ({said})")
    if not found:
        print(f"{task.env}: none of its files is downloaded")
    return all(found)


def main(args: DatasetArgs) -> Path | None:
    """Build or download what is missing; print what is in it."""
    task = suites.resolve(args.env)
    if args.check:
        if not check(args, task):
            raise SystemExit(1)
        return None
    suite = suites.SUITES[task.suite]
    wanted = [whose for whose in args.labels if task.env in suite.LABELS.get(whose, {})]
    labelled = {whose: suites.fetch(suites.labels_of(task, whose), args.data_dir) for whose in wanted}
    for files in labelled.values():
        if len(files) == 1:
            print(f"{files[0]}: {len(read_preferences(files[0], task).label)} pairs")
    workers = Workers(args.workers or available_cpus())
    try:
        recipe = Recipe(args.episodes, args.noise, args.seed, args.pairs)
        path = suite.dataset(task, args.data_dir, workers, recipe)
    finally:
        workers.close()
    print(path, *suite.describe(path, task), sep="\n")
    for whose, files in labelled.items():
        if len(files) > 1:
            pairs = suite.read_labels(suites.labels_of(task, whose), files, path, task)
            print(f"{files[0]}: {len(pairs.label)} pairs")
    return path


if __name__ == "__main__":
    with user_errors():
        main(parse_args(DatasetArgs(data_dir=default_data_dir())))
