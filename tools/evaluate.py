"""Evaluate a saved actor on fresh goals, and film it.

python -m tools.evaluate runs/drawer-open-v2/ipl_iql/seed-1/best.pt --episodes 100 --video 3
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from scipy import stats
from tqdm import tqdm

from common import suites
from common.cli import parse_args, user_errors
from common.files import InputError
from common.rollouts import Act, Actor, Workers, available_cpus, require_rendering, rollout, travelling
from common.seeds import seed_of
from common.states import read_saved


@dataclass
class EvaluateArgs:
    """Evaluate a saved actor (best.pt or final.pt of a run) on fresh goals."""

    actor: tyro.conf.Positional[Path]
    """best.pt or final.pt in a seed's folder"""
    episodes: Annotated[int, "[1, inf)"] = 100
    """episodes"""
    seed: Annotated[int, "[0, 4294967295]"] = 1_000_000
    """of the goals; training evaluates with the small seeds of its runs"""
    video: Annotated[int, "[0, inf)"] = 0
    """write MP4s of the first so many episodes, into videos/ beside the actor"""
    workers: Annotated[int, "[0, 1024]"] = 0
    """processes; 0: one a core"""


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean, from 10,000 resamples (percentiles); the mean itself where there is one value."""
    rng = np.random.default_rng(0)
    draws = [rng.choice(values, (100, len(values))).mean(1) for _ in range(100)]  # all at once may not fit in memory
    low, high = np.percentile(np.concatenate(draws), (2.5, 97.5))
    return float(low), float(high)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean: Wilson's where all values are 0 or 1, else the bootstrap's."""
    if not np.isin(values, (0, 1)).all():
        return bootstrap(values)
    found = stats.binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def load_act(algorithm: str) -> Act:
    """The function `act` of algorithms/ALGORITHM.py."""
    if importlib.util.find_spec(f"algorithms.{algorithm}") is None:
        raise InputError(f"algorithms/{algorithm}.py: no such script; the actor was trained by it")
    return importlib.import_module(f"algorithms.{algorithm}").act


def read_actor(path: Path) -> tuple[dict, Actor]:
    """What best.pt or final.pt says, and its actor's arrays. InputError: it is no such file."""
    if not path.is_file():
        where = (
            "is a folder; name a best.pt or final.pt in it"
            if path.is_dir()
            else "no such file; name a best.pt or final.pt"
        )
        raise InputError(f"{path}: {where}")
    saved = read_saved(path, ("algorithm", "env", "step", "actor"), "name a best.pt or final.pt")
    return saved, {name: p.float().numpy() for name, p in saved["actor"].items()}


def main(args: EvaluateArgs) -> dict[str, np.ndarray]:
    """Print mean and interval of success, score, return and length. Returns every episode's."""
    saved, actor = read_actor(args.actor)
    task, act = suites.resolve(saved["env"], saved.get("max_episode_steps", 0)), load_act(saved["algorithm"])
    workers = Workers(args.workers or available_cpus())
    folder = args.actor.parent / "videos"
    videos = [folder / f"{args.actor.stem}-episode-{i}.mp4" if i < args.video else None for i in range(args.episodes)]
    try:
        if args.video:
            require_rendering(workers, task, "--video")
        jobs = [(task, travelling(act), actor, seed_of(args.seed, i), video) for i, video in enumerate(videos)]
        with tqdm(total=args.episodes, desc=task.env, unit="episode", disable=None) as bar:
            found = workers.run(rollout, jobs, lambda _: bar.update())
    finally:
        workers.close()
    names = [name for name, value in found[0].items() if value is not None]
    columns = {name: np.array([row[name] for row in found], dtype=float) for name in names}
    print(f"{args.actor}: {saved['algorithm']} on {task.env} after {saved['step']} updates, {args.episodes} episodes")
    for name, values in columns.items():
        low, high = interval(values)
        print(f"{name:8} {values.mean():10.3f}   95 % interval {low:.3f} to {high:.3f}")
    for video in filter(None, videos):
        print(video)
    return columns


if __name__ == "__main__":
    with user_errors():
        main(parse_args(EvaluateArgs(tyro.MISSING)))
