"""Evaluate saved actors on fresh goals, film them, compare them, and take one elsewhere.

python -m tools.evaluate runs/drawer-open-v2/ipl_iql/seed-1/best.pt --episodes 100 --video 3
python -m tools.evaluate runs/drawer-open-v2/ipl_iql/seed-1/best.pt --export policy.onnx

act = load_actor("runs/drawer-open-v2/ipl_iql/seed-1/best.pt")
action = act(obs)
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium import spaces
from scipy import stats
from tqdm import tqdm

from common import suites
from common.actors import Actor, mean_action
from common.cli import parse_args, user_errors
from common.errors import InputError
from common.locks import atomic
from common.rollouts import columns, require_rendering, rollout
from common.seeds import seed_of
from common.suites.base import Task
from common.suites.gym import parts_of
from common.trees import read_saved
from common.workers import Workers, available_cpus

OPSET = 18
"""of ONNX files"""
EXPORT_ERROR = 1e-5
"""largest difference between an ONNX file's actions and `act`'s that rounding explains"""


@dataclass
class EvaluateArgs:
    """Evaluate saved actors (best.pt or final.pt of a run) on fresh goals; several on the same ones."""

    actors: tyro.conf.Positional[tuple[Path, ...]]
    """best.pt or final.pt in a seed's folder; the first one is what further ones are compared with"""
    episodes: Annotated[int, "[1, inf)"] = 100
    """episodes of each actor"""
    seed: Annotated[int, "[0, 4294967295]"] = 1_000_000
    """of the goals; training evaluates with the small seeds of its runs"""
    video: Annotated[int, "[0, inf)"] = 0
    """write MP4s of the first so many episodes, into videos/ beside the actor"""
    export: str = ""
    """write the actor to this file as ONNX instead of evaluating it"""
    export_units: Literal["rescaled", "environment"] = "rescaled"
    """actions of --export: rescaled to [-1, 1], as this code trains and evaluates; or in the environment's own units"""
    workers: Annotated[int, "[0, 1024]"] = 0
    """processes; 0: one a core"""


# ---------------------------------------------------------------- intervals
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


def paired_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of `second` - `first`, (N,) each, of the same episodes.

    Bonett and Price's where all values are 0 or 1 (2012; it adds one episode to either kind of disagreement, so that
    no disagreement at all leaves no interval of width zero), else the bootstrap's over episodes.
    """
    if not np.isin((first, second), (0, 1)).all():
        return bootstrap(second - first)
    n = len(first) + 2
    gained, lost = (((second - first == sign).sum() + 1) / n for sign in (1, -1))
    half = stats.norm.ppf(0.975) * np.sqrt((gained + lost - (gained - lost) ** 2) / n)
    return float(max(gained - lost - half, -1)), float(min(gained - lost + half, 1))


# ---------------------------------------------------------------- a saved actor
def load_script(algorithm: str):
    """The module algorithms/ALGORITHM.py."""
    if importlib.util.find_spec(f"algorithms.{algorithm}") is None:
        raise InputError(f"algorithms/{algorithm}.py: no such script; the actor was trained by it")
    return importlib.import_module(f"algorithms.{algorithm}")


def read_actor(path: Path) -> tuple[dict, Actor]:
    """What best.pt or final.pt says, and its actor. InputError: it is no such file, or its script is not there."""
    if not path.is_file():
        ending = "is a folder; name a best.pt or final.pt in it"
        where = ending if path.is_dir() else "no such file; name a best.pt or final.pt"
        raise InputError(f"{path}: {where}")
    saved = read_saved(path, ("algorithm", "env", "step", "actor"), "name a best.pt or final.pt")
    arrays = {name: p.float().numpy() for name, p in saved["actor"].items()}
    return saved, Actor(load_script(saved["algorithm"]).policy, arrays)


def load_actor(path: str | Path) -> Actor:
    """A policy to take away: `action = load_actor("best.pt")(obs)`.

    Returns:
        A function of one observation (O,) or a batch (..., O) -> actions (..., A) in [-1, 1]; numpy in and out.

    Raises:
        InputError: the file is no best.pt or final.pt, or its script is not there.
    """
    return read_actor(Path(path))[1]


class Mean(torch.nn.Module):
    """An actor as a module: obs (batch, O) -> the mean action (batch, A).

    `box`: bounds of the environment's own actions, to which they are rescaled; None: they are not.
    """

    def __init__(self, actor: Actor, box: spaces.Box | None):
        super().__init__()
        self.policy, self.names = actor.policy, {name: f"p{i}" for i, name in enumerate(actor.params)}
        for name, p in actor.params.items():
            self.register_buffer(self.names[name], p)  # a buffer's own name may have no dots
        bounds = None if box is None else torch.from_numpy(np.float32([box.low, box.high]))
        self.register_buffer("bounds", bounds)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        params = {name: getattr(self, own) for name, own in self.names.items()}
        action = mean_action(self.policy, params, obs.unsqueeze(0))[0]
        if self.bounds is None:
            return action
        low, high = self.bounds
        return (low + (action + 1) / 2 * (high - low)).clamp(low, high)


def beneath(sim: gymnasium.Env, wrapper: type) -> gymnasium.Env:
    """What the outermost `wrapper` wraps; `sim` itself where there is none."""
    inner = sim
    while isinstance(inner, gymnasium.Wrapper):
        if isinstance(inner, wrapper):
            return inner.env
        inner = inner.env
    return sim


def describe_spaces(task: Task) -> tuple[list[dict[str, str | int]], spaces.Box]:
    """The parts of a flat observation, and the environment's own action space."""
    sim = suites.make(task)
    named = getattr(sim.unwrapped, "observation_parts", None)  # of this code's own environments
    parts = parts_of(beneath(sim, gymnasium.wrappers.FlattenObservation).observation_space)
    if named is not None:
        parts = [{"name": name, "size": size, "space": "Box"} for name, size in named.items()]
    box = beneath(sim, gymnasium.wrappers.RescaleAction).action_space
    sim.close()
    return parts, box


def export(path: Path, saved: dict, actor: Actor, task: Task, units: str = "rescaled") -> float:
    """Write an actor as ONNX: float32 `obs` (batch, O) -> `action` (batch, A), rescaled or in the environment's units.

    Its metadata: algorithm, env, step; observation, what `parts_of` says as JSON; action_low and action_high, bounds of
    the environment's own actions as JSON; action_units.

    Returns:
        The largest difference from the actor itself over 1,000 random observations, with actions in [-1, 1].

    Raises:
        InputError: the packages are missing, there is no such folder, or the file's actions are not the actor's.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch's exporter imports it)
    except ImportError as error:
        lines = (Path(__file__).resolve().parent.parent / "requirements.txt").read_text().splitlines()
        packages = next(line for line in lines if line.startswith("#onnx:")).removeprefix("#onnx:").split("#")[0]
        raise InputError(f"--export: needs {error.name}; pip install {' '.join(packages.split())}") from None
    if not path.parent.is_dir():
        raise InputError(f"--export {path}: no such folder; make {path.parent} first")
    batch = torch.export.Dim("batch")
    parts, box = describe_spaces(task)
    numbers = {name: json.dumps(bound.tolist()) for name, bound in (("action_low", box.low), ("action_high", box.high))}
    said = {name: str(saved[name]) for name in ("algorithm", "env", "step")}
    said |= {"observation": json.dumps(parts), **numbers, "action_units": units}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with atomic(path) as partial, warnings.catch_warnings(action="ignore"):
        with contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                Mean(actor, box if units == "environment" else None), (torch.zeros(2, task.obs_dim),),
                input_names=["obs"], output_names=["action"], dynamic_shapes=({0: batch},), opset_version=OPSET,
                dynamo=True,
            )  # fmt: skip
            program.model.metadata_props.update(said)
            program.save(partial, external_data=False)
        session = onnxruntime.InferenceSession(partial.read_bytes(), providers=["CPUExecutionProvider"])
        obs = np.random.default_rng(0).normal(size=(1000, task.obs_dim)).astype(np.float32)
        action = session.run(None, {"obs": obs})[0]
        if units == "environment":
            action = 2 * (action - box.low) / (box.high - box.low) - 1
        error = float(np.abs(action - actor(obs)).max())
        if not error <= EXPORT_ERROR:
            raise InputError(f"--export: ONNX computes other actions than {saved['algorithm']}.py, by {error:.2g}")
    return error


# ---------------------------------------------------------------- evaluation
def require_fit(path: Path, actor: Actor, task: Task) -> None:
    """Raises InputError where the actor is of an environment of other sizes, as one's own may have had before."""
    try:
        shape = Actor(actor.policy, actor.arrays)(np.zeros((1, task.obs_dim), np.float32)).shape
    except RuntimeError:
        shape = ()
    if shape != (1, task.act_dim):
        raise InputError(f"{path}: does not act on {task.obs_dim} numbers by {task.act_dim}, as {task.env} now wants; "
                         "it was trained before that was changed")  # fmt: skip


def table(found: list[dict[str, np.ndarray]]) -> list[str]:
    """Lines of a table: means with 95 % intervals, one row an actor; then every further actor minus the first one."""

    def row(name: str, cells: list[tuple]) -> str:
        return name + "".join(f"  {mean:10.3f} {f'[{low:.3f}, {high:.3f}]':22}" for mean, (low, high) in cells)

    lines = [" " * 10 + "".join(f"  {name:>10} {'':22}" for name in found[0])]
    for i, table in enumerate(found, start=1):
        lines.append(row(f"{f'[{i}]':10}", [(values.mean(), interval(values)) for values in table.values()]))
    for i, table in enumerate(found[1:], start=2):
        pairs = [(found[0][name], values) for name, values in table.items()]
        cells = [((values - first).mean(), paired_interval(first, values)) for first, values in pairs]
        lines.append(row(f"{f'[{i}] - [1]':10}", cells))
    return [line.rstrip() for line in lines]


def main(args: EvaluateArgs) -> list[dict[str, np.ndarray]]:
    """Print mean and interval of success, score, return and length. Returns every episode's, one dict an actor."""
    loaded = [read_actor(path) for path in args.actors]
    tasks = [suites.resolve(saved["env"], saved.get("max_episode_steps", 0)) for saved, _ in loaded]
    if not loaded:
        raise InputError("no actor; name a best.pt or final.pt in a seed's folder")
    for path, task, (_, actor) in zip(args.actors, tasks, loaded, strict=True):
        if task != tasks[0]:
            raise InputError(f"{path}: acts in {task.env}, {args.actors[0]} in {tasks[0].env}, or with another "
                             "--max-episode-steps; compare actors of one environment")  # fmt: skip
        require_fit(path, actor, task)
    if args.export:
        if not args.export.endswith(".onnx"):
            raise InputError(f"--export {args.export}: must end in .onnx")
        if len(loaded) > 1:
            raise InputError(f"--export: takes one actor, not {len(loaded)}")
        error = export(Path(args.export), *loaded[0], tasks[0], args.export_units)
        units = "in [-1, 1]" if args.export_units == "rescaled" else "in the environment's units"
        print(f"{args.export}: opset {OPSET}, obs (batch, {tasks[0].obs_dim}) -> action (batch, {tasks[0].act_dim}) "
              f"{units}; differs from the actor by {error:.1e} at most; metadata: names and bounds")  # fmt: skip
        return []
    workers = Workers(args.workers or available_cpus())
    jobs, seeds = [], [seed_of(args.seed, i) for i in range(args.episodes)]
    for path, task, (_, actor) in zip(args.actors, tasks, loaded, strict=True):
        name = str(path.parent / "videos" / path.stem)
        jobs += [(task, actor, seed, Path(f"{name}-episode-{i}.mp4") if i < args.video else None)
                 for i, seed in enumerate(seeds)]  # fmt: skip
    try:
        if args.video:
            require_rendering(workers, tasks[0], "--video")
        with tqdm(total=len(jobs), desc=tasks[0].env, unit="episode", disable=None) as bar:
            rows = workers.run(rollout, jobs, lambda _: bar.update())
    finally:
        workers.close()
    for row, (*_, seed, _) in zip(rows, jobs, strict=True):
        if row["fault"]:
            print(f"episode of reset(seed={seed}): {row['fault']}", file=sys.stderr)
    together = columns(rows)  # whether there is a success is one answer for all actors
    found = [{name: column[k : k + args.episodes] for name, column in together.items() if column is not None}
             for k in range(0, len(rows), args.episodes)]  # fmt: skip
    for i, (path, task, (saved, _)) in enumerate(zip(args.actors, tasks, loaded, strict=True), start=1):
        print(f"[{i}] {path}: {saved['algorithm']} on {task.env} after {saved['step']} updates")
    same = ", the same goals for all actors" if len(loaded) > 1 else ""
    print(f"{args.episodes} episodes{same}; mean [95 % interval]", *table(found), sep="\n")
    for *_, video in jobs:
        if video:
            print(video)
    return found


if __name__ == "__main__":
    with user_errors():
        main(parse_args(EvaluateArgs(tyro.MISSING)))
