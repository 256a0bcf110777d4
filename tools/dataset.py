"""Build or download an environment's data ahead of a run, and say what is in them.

    python -m tools.dataset --env drawer-open-v2 --episodes 100 --noise 1.0 --seed 0
    python -m tools.dataset --env lift-ph        # on the login node, where compute nodes have no internet
    python -m tools.dataset --env drawer-open-v2 --teacher mistake=0.1 --out pairs.npz   # a simulated teacher's labels
    python -m tools.dataset --env button-press-topdown-v2-goal-observable --dataset saved_replay_buffer_*.pkl \
        --tie-margin 12.5 --out lire.hdf5        # replay buffers of LiRE (docs/datasets.md) -> one dataset
    python -m tools.dataset --env lift-ph --check   # downloads nothing: which of its files are here, or can be had

A training run does the same where data are missing.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from common import suites
from common.cli import default_data_dir, parse_args, user_errors
from common.data import join_pairs, read_preferences
from common.download import at_hand, probe
from common.errors import InputError
from common.suites.base import PAIRS, Preferences, Recipe, Task, describe_pairs
from common.suites.metaworld import KINDS
from common.workers import Workers, available_cpus
from tools import teachers
from tools.lire import convert_lire


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
    kinds: tuple[Literal[KINDS], ...] = ()
    """kinds of episodes to collect, for a dataset without an expert say; empty: all four"""
    labels: tuple[Literal["human", "crowd", "released"], ...] = ("human", "crowd")
    """labels to download, where the environment has them"""
    dataset: tuple[str, ...] = ()
    """offline datasets (.hdf5) to take instead of the environment's own; or replay buffers of LiRE (.pkl), which are
    written as one dataset to --out"""
    quality: Annotated[float, "(0, inf)"] = 1.0
    """of LiRE's: the first 100,000 x quality rows of each file"""
    tie_margin: Annotated[float, "[0, inf)"] = 0.0
    """of LiRE's: pairs are ties where the returns differ by this at most (LiRE, APPO and MCP: 12.5)"""
    teacher: tuple[str, ...] = ()
    """write the pairs as a simulated teacher labels them (B-Pref): any of mistake=0.1 equal=5 skip=20 beta=1 myopic=0.9
    seed=1; `perfect` gives the labels as they are"""
    out: str = ""
    """file that --teacher (.npz, for --preferences) or LiRE's --dataset (.hdf5) writes"""
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
        here = at_hand(file, args.data_dir)
        answers = {} if here else {url: probe(url) for url in file.urls}
        found.append(bool(here) or any(there for there, _ in answers.values()))
        print(f"{file.name}: {f'here, {here}' if here else 'can be downloaded' if found[-1] else 'NOT TO BE HAD'}")
        for url, (there, said) in answers.items():
            print(f"    {'yes' if there else 'no '} {url} ({said})")
    if not found:
        print(f"{task.env}: none of its files is downloaded")
    return all(found)


def find_datasets(args: DatasetArgs, task: Task) -> list[Path]:
    """--dataset, or the environment's own, built or downloaded if it is not there."""
    kinds = tuple(kind for kind in KINDS if kind in args.kinds)
    recipe = Recipe(args.episodes, args.noise, args.seed, args.pairs, kinds)
    with closing(Workers(args.workers or available_cpus())) as workers:
        way = "name one with --dataset FILE.hdf5"
        return suites.find_datasets(args.dataset, task, args.data_dir, workers, way, recipe)


def convert(args: DatasetArgs, task: Task) -> None:
    """Write replay buffers of LiRE as one dataset with labelled pairs, and print what is in it."""
    out, files = Path(args.out), [Path(name) for name in args.dataset]
    if out.suffix != ".hdf5" or args.teacher:
        raise InputError(f"--dataset {args.dataset[0]}: is converted first, by --out FILE.hdf5 and without --teacher")
    out.parent.mkdir(parents=True, exist_ok=True)
    convert_lire(files, out, task, args.quality, args.tie_margin, Recipe(pairs=args.pairs, seed=args.seed))
    print(out, *suites.SUITES[task.suite].describe(out, task), sep="\n")


def teach(args: DatasetArgs, task: Task) -> None:
    """Write the pairs of the dataset as --teacher labels them, and print what is in them."""
    teacher, out = teachers.parse(args.teacher), Path(args.out)
    if out.suffix != ".npz":
        raise InputError(f"--out {args.out}: --teacher writes a file that ends in .npz; name it")
    pairs = join_pairs([read_preferences(path, task) for path in find_datasets(args, task)])
    if pairs.lengths is not None:
        raise InputError(f"--dataset {' '.join(args.dataset)}: have segments of unequal length, which no one .npz "
                         "holds; write one a dataset")  # fmt: skip
    pairs = teachers.labelled_by(pairs, teacher)
    teachers.write(out, pairs, teacher, task.env)
    print(out, *describe_pairs(pairs), sep="\n")


def compare_labels(one: Preferences, other: Preferences, names: str) -> list[str]:
    """How often two files of the same pairs prefer the same segment: people and rewards, say. Empty for other pairs."""
    if not (np.array_equal(one.start, other.start) and np.array_equal(one.obs, other.obs)):
        return []
    decided = (one.label != 0.5) & (other.label != 0.5)
    share = (one.label == other.label)[decided].mean() if decided.any() else float("nan")
    return [f"labels of {names} agree: {100 * share:.0f} % of the {decided.sum()} pairs without a tie"]


def main(args: DatasetArgs) -> None:
    """Build or download what is missing; print what is in it."""
    task = suites.resolve(args.env)
    if args.check:
        if not check(args, task):
            raise SystemExit(1)
        return
    if any(name.endswith(".pkl") for name in args.dataset):
        convert(args, task)
        return
    if args.quality != 1 or args.tie_margin:
        raise InputError("--quality, --tie-margin: are of LiRE's --dataset FILE.pkl; else take --teacher equal=12.5")
    if args.teacher or args.out:
        teach(args, task)
        return
    suite = suites.SUITES[task.suite]
    wanted = [suites.labels_of(task, whose) for whose in args.labels if task.env in suite.LABELS.get(whose, {})]
    labelled = [(labels, suites.fetch(labels, args.data_dir)) for labels in wanted]
    alone = {files[0]: read_preferences(files[0], task) for _, files in labelled if len(files) == 1}
    for path, pairs in alone.items():
        print(path, *describe_pairs(pairs), sep="\n")
    for one, other in combinations(alone, 2):
        print(*compare_labels(alone[one], alone[other], f"{one.name} and {other.name}"), sep="\n")
    paths = find_datasets(args, task)
    for path in paths:
        print(path, *suite.describe(path, task), sep="\n")
    for labels, files in labelled:
        if len(files) > 1 and len(paths) == 1:  # these labels are rows of one dataset
            print(files[0], *describe_pairs(suite.read_labels(labels, files, paths[0], task)), sep="\n")


if __name__ == "__main__":
    with user_errors():
        main(parse_args(DatasetArgs(data_dir=default_data_dir())))
