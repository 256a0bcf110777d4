"""The reward that a run has learned: how good it is, a page of pictures, a film, and the dataset labelled with it.

    python -m tools.reward runs/drawer-open-v2/ipl_iql/seed-1 --preferences other_episodes.hdf5
    python -m tools.reward runs/drawer-open-v2/ipl_iql/seed-1 --film reward.gif

Of IPL it is the implied reward, Q(s, a) - gamma V(s'); of MR-IQL and PT-IQL their model's. A script takes part by a
function `learned_reward(state, batch, args)`. Several runs are compared in one table and one picture.
"""

from __future__ import annotations

import dataclasses
import io
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path

import imageio
import numpy as np
import pandas as pd
import torch
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from scipy import stats

from common import suites
from common.arrays import fingerprint, read_arrays
from common.cli import default_data_dir, parse_args, user_errors
from common.data import find_files, read_pairs, read_preferences
from common.errors import InputError
from common.locks import atomic
from common.rollouts import require_rendering
from common.suites.base import Preferences, Task, Transitions, first_rows
from common.trees import read_saved, tree_map
from common.workers import Workers, available_cpus
from tools.evaluate import interval, load_actor, load_script
from tools.report import COLOURS, METHODS, markdown

RESAMPLES = 2_000
"""of episodes, for the intervals of correlations"""
BINS = 10
"""of the calibration plot"""
FRAME_EVERY, FRAMES_AFTER_SUCCESS = 4, 6
"""steps between two pictures of a film; pictures after the first success"""
GIF_BYTES = 1_000_000
"""size of a GIF at the most: it is drawn smaller until it fits"""
OTHER, SAME, TRAINED = "pairs of other episodes", "pairs held out of the same episodes", "pairs trained on"
"""which pairs a reward is judged by: those of --preferences, what --num-preferences left, what it took"""
KINDS, CORRELATIONS = (OTHER, SAME, TRAINED), ("pearson", "spearman")
LEVELS = [f"by {level}{which}" for which in ("", ", other episodes") for level in ("step", "segment", "episode")]
MEASURES = [(kind, name) for kind in KINDS for name in ("accuracy", "log-loss")]
MEASURES += [(level, name) for level in LEVELS for name in CORRELATIONS]
"""of the table, in order"""
Measured = dict[tuple[str, str], tuple[float, float, float]]
"""(what, measure) -> value, and its 95 % interval"""
LEARNED, TRUE = "#0072B2", "#D55E00"


@dataclass
class RewardArgs:
    """What reward a run has learned: numbers and a page of pictures, or a film, or a labelled dataset."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """seeds' folders, with checkpoint.pt and config.json inside"""
    out: Path = Path("reward")
    """folder of the pictures"""
    preferences: str = ""
    """file of pairs (.npz or .hdf5) of episodes that the runs never saw, to judge their rewards by"""
    film: str = ""
    """write one episode of the policy, with its reward as a curve, to this .mp4 or .gif instead"""
    relabel: str = ""
    """write the offline dataset, with the learned reward in place of its own, to this .hdf5 instead; of a Minari
    dataset to minari:NAMESPACE/NAME-v0"""
    seed: int = 1_000_000
    """of the film's episode"""
    data_dir: Path = Path("data")
    """folder of the datasets (IPL_DATA_DIR, if set, is the default)"""


@dataclass
class Learned:
    """A run and its reward."""

    folder: Path
    config: dict
    task: Task
    script: object  # module of algorithms/
    args: object  # its Args
    state: dict  # leaves (1, ...)
    step: int
    history: bool  # the reward of a step depends on those before it: PT-IQL's
    window: int = 0  # steps of the pairs' segments, once `read_data` has read them
    pairs: dict[str, int] = dataclasses.field(default_factory=dict)  # one of KINDS -> how many it is judged by

    def reward(self, obs, action, next_obs, terminal, first=None) -> np.ndarray:
        """The learned reward (N,) of transitions (N, O), (N, A), (N, O), (N,).

        `first`: (N,) the first row of each row's episode, all of whose rows are there; None: all are one episode.
        """
        first, parts = np.zeros(len(obs), int) if first is None else first, []
        for rows in np.array_split(np.arange(len(obs)), 1 if self.history else max(1, len(obs) // 8192)):
            arrays = {"obs": obs[rows], "action": action[rows], "next_obs": next_obs[rows],
                      "discount": self.args.gamma * (1 - terminal[rows])}  # fmt: skip
            batch = {name: torch.as_tensor(a, dtype=torch.float32).unsqueeze(0) for name, a in arrays.items()}
            batch |= {"first": torch.as_tensor(first[rows]), "window": torch.tensor(self.window)}
            with torch.no_grad():
                parts.append(self.script.learned_reward(self.state, batch, self.args)[0].numpy())
        return np.concatenate(parts).astype(np.float64)


# ---------------------------------------------------------------- reading
def read_run(folder: Path, data_dir: Path) -> Learned:
    """A seed's folder. InputError: it is none, or its method learns no reward that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
        script, values = load_script(config["algorithm"]), config["args"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder}: no run's folder (config.json); name one like runs/ENV/ipl_iql/seed-1") from None
    if not hasattr(script, "learned_reward"):
        raise InputError(f"{folder}: {config['algorithm']} has no learned_reward(state, batch, args); only "
                         "methods that learn a reward from states and actions can be looked at")  # fmt: skip
    fields = {f.name for f in dataclasses.fields(script.Args)}
    args = script.Args(**{k: v for k, v in values.items() if k in fields} | {"data_dir": data_dir})
    remedy, model = "name a folder with a run's checkpoint.pt", folder / "reward.pt"
    saved = read_saved(folder / "checkpoint.pt", ("step", "state"), remedy)
    if model.exists():
        saved["state"] |= {"reward": read_saved(model, ("model",), remedy)["model"]}
    state = tree_map(lambda p: p.float().unsqueeze(0), saved["state"])
    task = suites.resolve(args.env, args.max_episode_steps, args.dataset)
    return Learned(folder, config, task, script, args, state, saved["step"], model.exists())


def read_data(run: Learned) -> tuple[Preferences, Path, Path | None]:
    """The run's pairs, their first file and the dataset's. InputError: they are not what it was trained on."""
    workers = Workers(available_cpus())
    try:
        files, dataset, labels = find_files(run.args, run.task, workers, "name its folder with --data-dir")
    finally:
        workers.close()
    for name, paths in (("preferences", files), ("dataset", [dataset])):
        trained = run.config.get("dataset_fingerprint", {}).get(name)
        if trained and trained != (now := fingerprint(*paths)):
            raise InputError(f"{paths[0]}: is not what {run.folder} was trained on (fingerprint {trained} -> {now}); "
                             "name the folder of the old data with --data-dir")  # fmt: skip
    p = read_pairs(files, dataset, labels, run.task)
    run.window = p.length
    return p, files[0], dataset


# ---------------------------------------------------------------- numbers
def read_others(run: Learned, path: Path, p: Preferences, dataset: Path | None) -> Preferences:
    """The pairs of --preferences. InputError: some are of the pairs `p` or the dataset that the run was trained on."""

    def steps(x: Preferences | Transitions, at=slice(None)) -> Iterator[bytes]:
        return (row.tobytes() for row in np.concatenate([x.obs[at], x.action[at]], 1, dtype=np.float32))

    others, seen = read_preferences(path, run.task), set(steps(p))
    if dataset is not None:
        seen.update(steps(suites.SUITES[run.task.suite].read_transitions(dataset, run.task)))
    rows = others.start.reshape(-1, 1) + np.arange(others.length)  # all steps: some may be alike in other episodes
    known = np.array([step in seen for step in steps(others, rows.ravel())]).reshape(rows.shape).all(1)
    if known.any():
        raise InputError(f"--preferences {path}: {known.sum()} of its {len(rows)} segments are in the data of "
                         f"{run.folder}; take other episodes (MetaWorld: those of tools.dataset --seed 1)")  # fmt: skip
    return others


def sums_of(run: Learned, p: Preferences, first: int = 0, last: int | None = None) -> dict[str, np.ndarray]:
    """Of the pairs `first` to `last`: summed rewards (P, 2) of their segments' transitions, label (P,).

    A segment of L steps has L - 1 transitions: its last step leads to no known state.
    """
    rows = p.start[first:last, :, None] + np.arange(p.length - 1)  # (P, 2, L - 1)
    flat, at = rows.reshape(-1), np.arange(rows.size)
    reward = run.reward(p.obs[flat], p.action[flat], p.obs[flat + 1], np.zeros(len(flat)), at - at % (p.length - 1))
    sums = {"learned": reward.reshape(rows.shape).sum(-1), "label": p.label[first:last]}
    return sums | ({} if p.reward is None else {"true": p.reward[rows].sum(-1)})


def score_pairs(found: dict[str, np.ndarray]) -> dict[str, tuple]:
    """Accuracy but for ties, with Wilson's interval, and log-loss: (mean, low, high)."""
    logits, label = found["learned"][:, 1] - found["learned"][:, 0], found["label"]
    right = ((logits > 0) == (label > 0.5))[label != 0.5].astype(float)
    loss = np.logaddexp(0, logits) - label * logits
    return {name: (x.mean(), *interval(x)) for name, x in (("accuracy", right), ("log-loss", loss)) if len(x)}


def correlations(x: list[np.ndarray], y: list[np.ndarray]) -> dict[str, tuple]:
    """Pearson's and Spearman's correlation of two quantities, given by episode, with 95 % intervals.

    The bootstrap draws episodes; ranks are those of all data. Empty where one of the two is constant.
    """
    if any(constant(np.concatenate(v)) for v in (x, y)):
        return {}
    number = np.array([len(part) for part in x])
    episode = np.repeat(np.arange(len(x)), number)
    draws = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)), RESAMPLES)  # (R, E) counts
    found = {}
    for name, change in (("pearson", lambda v: v), ("spearman", stats.rankdata)):
        a, b = (stats.zscore(change(np.concatenate(v))) for v in (x, y))
        columns = (np.ones_like(a), a, b, a * a, b * b, a * b)
        sums = np.stack([np.bincount(episode, v, len(x)) for v in columns], 1)  # (E, 6)
        n, sa, sb, saa, sbb, sab = (draws @ sums).T
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (n * sab - sa * sb) / np.sqrt((n * saa - sa**2) * (n * sbb - sb**2))
        found[name] = (float((a * b).mean()), *np.nanpercentile(r, (2.5, 97.5)))
    return found


def constant(x: np.ndarray) -> bool:
    return len(x) < 2 or np.ptp(x) <= 1e-6 * np.abs(x).max()


def split(t: Transitions) -> list[slice]:
    """The episodes of an offline dataset."""
    return [slice(a, b) for a, b in pairwise([*first_rows(t), len(t.obs)])]


def reward_of(run: Learned, t: Transitions) -> np.ndarray:  # -> (T,)
    """The learned reward of an offline dataset."""
    first = np.concatenate([np.full(e.stop - e.start, e.start) for e in split(t)])
    return run.reward(t.obs, t.action, t.next_obs, t.terminal, first)


def correlate(learned: np.ndarray, true: np.ndarray, episodes: list[slice], segment: int) -> dict[str, dict]:
    """Correlations by step, by segment (the episodes' windows one after the other) and by episode."""

    def sums(reward: np.ndarray) -> list[np.ndarray]:
        parts = [reward[e][: (e.stop - e.start) // segment * segment] for e in episodes]
        return [part.reshape(-1, segment).sum(1) for part in parts]

    levels = {"step": [[r[e] for e in episodes] for r in (learned, true)],
              "segment": [sums(learned), sums(true)],
              "episode": [[r[e].sum(keepdims=True) for e in episodes] for r in (learned, true)]}  # fmt: skip
    return {level: correlations(*pair) for level, pair in levels.items()}


# ---------------------------------------------------------------- pictures
def scaled(reward: np.ndarray) -> np.ndarray:
    """Mean zero, standard deviation one: what a preference cannot tell of a reward."""
    return (reward - reward.mean()) / max(reward.std(), 1e-12)


def calibration(axes, found: dict[str, np.ndarray], kind: str) -> None:
    """Predicted probability of the preferred segment against how often it was right, in bins of equal size."""
    strict = found["label"] != 0.5
    logits = (found["learned"][:, 1] - found["learned"][:, 0])[strict]
    right = (logits > 0) == (found["label"][strict] > 0.5)
    probability = 1 / (1 + np.exp(-np.abs(logits)))
    bins = [part for part in np.array_split(np.argsort(probability), BINS) if len(part)]
    means = [probability[part].mean() for part in bins], [right[part].mean() for part in bins]
    axes.plot(*means, "o-", color=LEARNED)
    axes.plot([0.5, 1], [0.5, 1], ":", color="grey")
    axes.set(xlabel="predicted probability", ylabel="share that was right", title=f"calibration,\n{kind}")


def sums(axes, found: dict[str, np.ndarray], kind: str) -> None:
    """Sums of segments, learned against true."""
    axes.plot(found["true"].ravel(), found["learned"].ravel(), ".", ms=2, alpha=0.3, color=LEARNED)
    axes.set(xlabel="true reward", ylabel="learned reward", title=f"sums of segments,\n{kind}")


def returns(axes, t: Transitions, learned: np.ndarray, episodes: list[slice]) -> None:
    """Returns of the dataset's episodes, learned against true."""
    axes.plot(*(np.array([r[e].sum() for e in episodes]) for r in (t.reward, learned)), ".", color=LEARNED)
    axes.set(xlabel="true return", ylabel="learned return", title="episodes of the dataset")


def along(row, t: Transitions, learned: np.ndarray, episodes: list[slice], kinds: np.ndarray | None) -> None:
    """The reward along three episodes; `kinds`: MetaWorld's kind of each, if known."""
    chosen = {"expert": 0, "random": 2, "cross": 3}
    shown = [(name, int(np.flatnonzero(kinds == k)[0])) for name, k in chosen.items()] if kinds is not None else [
        (f"episode {i}", i) for i in (0, len(episodes) // 2, len(episodes) - 1)]  # fmt: skip
    for axes, (name, i) in zip(row, shown, strict=True):
        for r, words, colour in ((learned, "learned", LEARNED), (t.reward, "true", TRUE)):
            axes.plot(scaled(r)[episodes[i]], color=colour, label=words, lw=1)
        axes.set(xlabel="step", title=name)
    row[0].set_ylabel("reward, scaled over the dataset")
    row[0].legend()


def page(run: Learned, kind: str, found: dict, t: Transitions | None, learned, episodes, kinds) -> Figure | None:
    """One page: pairs `found`, of one of KINDS, and the dataset. What says nothing is left out; None: all of it."""
    panels = []
    if "true" in found and not constant(found["true"].ravel()):
        panels.append(lambda axes: sums(axes, found, kind))
    if not run.history and (found["label"] != 0.5).any():  # PT-IQL's rewards are scaled for IQL, and are no log-odds
        panels.append(lambda axes: calibration(axes, found, kind))
    if t is not None and not constant(t.reward):
        panels.append(lambda axes: returns(axes, t, learned, episodes))
    if not panels and t is None:
        return None
    rows, columns = (1, len(panels)) if t is None else (2, 3)
    figure = Figure(figsize=(11, 7) if t is not None else (5 * columns, 4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax, panel in zip_longest(axes[0], panels):
        panel(ax) if panel else ax.set_axis_off()
    if t is not None:
        along(axes[1], t, learned, episodes, kinds)
    figure.suptitle(f"{run.config['algorithm']} on {run.task.env} after {run.step} updates")
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """PNG and PDF, atomically."""
    FigureCanvasAgg(figure)
    for suffix in ("png", "pdf"):
        with atomic(path.with_suffix(f".{suffix}")) as partial:
            figure.savefig(partial, format=suffix, dpi=120)


def short_names(runs: list[Learned]) -> list[str]:
    """The runs' folders without what all of them share, and their updates."""
    parts = [run.folder.resolve().parts for run in runs]
    shared = {column[0] for column in zip(*parts, strict=False) if len(set(column)) == 1}
    names = ["/".join(part for part in folder if part not in shared) or folder[-1] for folder in parts]
    return [f"{name}, {run.step}" for name, run in zip(names, runs, strict=True)]


def compare(runs: list[Learned], measured: list[Measured]) -> Figure | None:
    """A row a run, a panel a measure, with intervals; of correlations Pearson's filled and Spearman's hollow. None:
    there is nothing to draw."""
    panels = {f"accuracy, {kind}": [(kind, "accuracy")] for kind in KINDS}
    panels |= {f"correlation {level}": [(level, name) for name in CORRELATIONS] for level in LEVELS}
    panels = {title: keys for title, keys in panels.items() if any(key in found for key in keys for found in measured)}
    if not panels:
        return None
    names = short_names(runs)
    width = 0.08 * max(map(len, names)) + 2 * len(panels)  # inches: names of any length leave the panels their room
    figure = Figure(figsize=(width, 1.6 + 0.32 * len(runs)), layout="constrained")
    for axes, (title, keys) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(),
                                   strict=True):  # fmt: skip
        for i, (run, found) in enumerate(zip(runs, measured, strict=True)):
            method = run.config["algorithm"]
            colour = COLOURS[METHODS.index(method) if method in METHODS else -1]
            for k, key in enumerate(keys):
                if key not in found:
                    continue
                (value, low, high), at = found[key], i + (k - (len(keys) - 1) / 2) * 0.3
                axes.plot([low, high], [at, at], color=colour, lw=1.2)
                axes.plot(value, at, "os"[k], color=colour, mfc=("white", colour)[k == 0], ms=5)
        chance = 0.5 if len(keys) == 1 else 0
        axes.axvline(chance, color="grey", ls=":", lw=1)
        axes.set(title=textwrap.fill(title, 20), ylim=(len(runs) - 0.5, -0.5))
        axes.grid(axis="x", alpha=0.3)
        axes.set_yticks(range(len(runs)), names)
    if len(panels) > 1:
        marks = [Line2D([], [], ls="", marker=m, color="black", mfc=f) for m, f in (("o", "black"), ("s", "white"))]
        figure.legend(marks, ["Pearson", "Spearman"], loc="outside lower right", ncols=2, frameon=False)
    return figure


# ---------------------------------------------------------------- film
def episode(run: Learned, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """One episode of the policy, up to a while after its success: pictures, learned and true reward (n,)."""
    act = load_actor(next(run.folder / n for n in ("final.pt", "best.pt") if (run.folder / n).exists()))
    env = suites.make(run.task, render=True)
    obs, rows, frames, left, done = env.reset(seed=seed)[0], [], [], None, False
    while not done and left != 0:
        if len(rows) % FRAME_EVERY == 0:
            frames.append(env.render())
            left = None if left is None else left - 1
        action = act(obs)
        next_obs, reward, terminated, truncated, info = env.step(action)
        rows.append((obs, action, next_obs, float(terminated), float(reward)))
        obs, done = next_obs, terminated or truncated
        if info.get("success", info.get("is_success")) and left is None:
            left = FRAMES_AFTER_SUCCESS
    o, a, n, terminal, true = (np.array(column) for column in zip(*rows, strict=True))
    return frames, run.reward(o, a, n, terminal), true


def draw_film(frames: list[np.ndarray], learned: np.ndarray, true: np.ndarray) -> list[Image.Image]:
    """Every picture with the rewards up to it beside it, both scaled over the episode."""
    curves = ((scaled(learned), "learned reward", LEARNED), (scaled(true), "true reward", TRUE))
    low, high = (f([f(curve) for curve, *_ in curves]) for f in (np.min, np.max))
    drawn = []
    for k, frame in enumerate(frames):
        figure = Figure(figsize=(4.2, 3.6), dpi=100, layout="constrained")
        axes = figure.subplots()
        for curve, words, colour in curves:
            axes.plot(curve[: k * FRAME_EVERY + 1], color=colour, label=words)
        axes.set(xlim=(0, len(learned)), ylim=(low - 0.2, high + 0.2), xlabel="step", ylabel="reward, scaled")
        axes.legend(loc="upper left")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        chart = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
        picture = Image.fromarray(frame)
        picture = picture.resize((round(picture.width * chart.height / picture.height), chart.height))
        whole = Image.new("RGB", (picture.width + chart.width, chart.height), "white")
        whole.paste(picture, (0, 0))
        whole.paste(chart, (picture.width, 0))
        drawn.append(whole)
    return drawn


def write_film(path: Path, pictures: list[Image.Image]) -> None:
    """MP4, or a GIF of at most GIF_BYTES."""
    if path.suffix == ".mp4":
        partial = path.with_name(f".{path.stem}.partial.mp4")  # imageio goes by the suffix
        imageio.mimwrite(partial, [np.asarray(p) for p in pictures], fps=15, macro_block_size=8)
        partial.replace(path)
        return
    for factor in (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
        small = [p.resize((int(p.width * factor), int(p.height * factor)), Image.Resampling.LANCZOS) for p in pictures]
        palette = small[-1].quantize(64)
        coded = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in small]
        memory = io.BytesIO()
        wait = [80] * (len(coded) - 1) + [1500]  # ms; the last picture stands
        coded[0].save(memory, "GIF", save_all=True, append_images=coded[1:], duration=wait, loop=0, optimize=True)
        if len(memory.getbuffer()) <= GIF_BYTES:
            break
    with atomic(path) as partial:
        partial.write_bytes(memory.getbuffer())


def film(run: Learned, path: Path, seed: int) -> None:
    """One episode of the policy beside its learned and true reward. InputError: it cannot be made."""
    if path.suffix not in (".mp4", ".gif") or not path.parent.is_dir():
        raise InputError(f"--film {path}: must be an .mp4 or .gif in a folder that exists")
    workers = Workers(1)
    try:
        require_rendering(workers, run.task, "--film")
    finally:
        workers.close()
    if run.history:
        read_data(run)  # for the window
    frames, learned, true = episode(run, seed)
    write_film(path, draw_film(frames, learned, true))
    print(f"{path}: {len(learned)} steps, {path.stat().st_size / 1e6:.2f} MB")


# ---------------------------------------------------------------- relabelling
def write_dataset(run: Learned, target: str) -> None:
    """The offline dataset with the learned reward, in its own layout; run and commit in its attributes.

    Raises:
        InputError: there is no dataset, or `target` is none that its suite can write.
    """
    _, _, dataset = read_data(run)
    if dataset is None:
        raise InputError(f"--relabel {target}: {run.folder} was trained on pairs alone; there is no dataset to label")
    suite = suites.SUITES[run.task.suite]
    t = suite.read_transitions(dataset, run.task)
    made = {"reward": f"learned by {run.config['algorithm']}", "run": str(run.folder), "step": run.step,
            "git_commit": run.config.get("git_commit")}  # fmt: skip
    suite.write_rewards(dataset, run.task, target, reward_of(run, t), made)
    print(f"{target}: {len(t.obs)} transitions")


# ---------------------------------------------------------------- the command
def judge(run: Learned, args: RewardArgs) -> tuple[dict[str, dict], Path | None, Preferences]:
    """The pairs that the reward is judged by, one of KINDS -> what `sums_of` gives; the dataset; the run's pairs."""
    p, source, dataset = read_data(run)
    count, found = run.args.num_preferences or len(p.label), {}
    if args.preferences:
        found[OTHER] = sums_of(run, read_others(run, Path(args.preferences), p, dataset))
    if count < len(p.label):
        found[SAME] = sums_of(run, p, count)
    else:
        found[TRAINED] = sums_of(run, p)
        if not args.preferences:
            print(f"{source}: {run.folder} was trained on all of its pairs; --preferences FILE judges by others, or "
                  f"train on fewer than {count}")  # fmt: skip
    run.pairs = {kind: len(sums["label"]) for kind, sums in found.items()}
    return found, dataset, p


def look(run: Learned, args: RewardArgs) -> Measured:
    """Numbers of one run; writes its page into --out."""
    found, dataset, p = judge(run, args)
    numbers: Measured = {}
    for kind, pairs in found.items():
        scores = score_pairs(pairs)
        if run.history:
            scores.pop("log-loss")
        numbers |= {(kind, name): cells for name, cells in scores.items()}
    t, learned, episodes, kinds = None, None, [], None
    others = Path(args.preferences) if args.preferences and not args.preferences.endswith(".npz") else None
    for path, which in ((others, ", other episodes"), (dataset, "")):
        if path is None:
            continue
        t = suites.SUITES[run.task.suite].read_transitions(path, run.task)
        if t.reward is None:
            print(f"{path}: no correlation: it holds no rewards")
            t = None
            continue
        learned, episodes = reward_of(run, t), split(t)
        for level, values in correlate(learned, t.reward.astype(np.float64), episodes, p.length).items():
            numbers |= {(f"by {level}{which}", name): cells for name, cells in values.items()}
            if not values:
                print(f"{path}: no correlation by {level}: the true or the learned reward is constant")
    if dataset is not None:
        kinds = read_arrays(dataset, lambda name: name == "episodes/kind").get("episodes/kind")
        kinds = kinds if kinds is not None and set(range(4)) <= set(kinds) else None
    args.out.mkdir(parents=True, exist_ok=True)
    name = "-".join([run.task.env.replace("/", "-").replace(":", "-"), run.config["algorithm"], run.folder.name,
                     str(run.step)])  # fmt: skip
    kind, pairs = next(iter(found.items()))
    if (figure := page(run, kind, pairs, t if dataset else None, learned, episodes, kinds)) is not None:
        write_figure(figure, args.out / name)
        print(f"{args.out / name}.png, .pdf")
    return numbers


def table(runs: list[Learned], measured: list[Measured]) -> list[list[str]]:
    """One run: a row a measure. Several: a row a run, a column a measure."""
    if len(runs) == 1:
        rows = [["run", "updates", "what", "measure", "value", "95 % interval"]]
        for (what, measure), (mean, low, high) in measured[0].items():
            what = f"{runs[0].pairs[what]} {what}" if what in KINDS else what
            cells = [what, measure, f"{mean:.3f}", f"{low:.3f} to {high:.3f}"]
            rows.append([str(runs[0].folder), str(runs[0].step), *cells])
        return rows
    columns = [key for key in MEASURES if any(key in found for found in measured)]
    kinds = [kind for kind in KINDS if any(kind in run.pairs for run in runs)]
    rows = [["run", "updates", *kinds, *(f"{measure}{',' * (what in KINDS)} {what}" for what, measure in columns)]]
    for run, found in zip(runs, measured, strict=True):
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*found[key]) if key in found else "" for key in columns]
        rows.append([str(run.folder), str(run.step), *(str(run.pairs.get(kind, "")) for kind in kinds), *cells])
    return rows


def write_numbers(path: Path, runs: list[Learned], measured: list[Measured]) -> None:
    """What the report's --reward reads: a line a run and measure."""
    lines = [(run.folder.resolve(), run.step, *key, *cells, run.pairs.get(key[0]))
             for run, found in zip(runs, measured, strict=True) for key, cells in found.items()]  # fmt: skip
    table = pd.DataFrame(lines, columns=["run", "updates", "what", "measure", "value", "low", "high", "pairs"])
    with atomic(path) as partial:
        table.astype({"pairs": "Int64"}).to_csv(partial, index=False, float_format="%.6g", lineterminator="\n")


def main(args: RewardArgs) -> None:
    """Print the table and write the pictures; or the film; or the labelled dataset."""
    runs = [read_run(folder, args.data_dir) for folder in args.runs]
    if not runs or ((args.film or args.relabel) and len(runs) > 1):
        raise InputError(f"{len(runs)} runs: name at least one; --film and --relabel take exactly one")
    if args.film:
        film(runs[0], Path(args.film), args.seed)
    if args.relabel:
        write_dataset(runs[0], args.relabel)
    if args.film or args.relabel:
        return
    measured = [look(run, args) for run in runs]
    write_numbers(args.out / "reward.csv", runs, measured)
    print(f"{args.out / 'reward.csv'}")
    if len(runs) > 1 and (figure := compare(runs, measured)) is not None:
        write_figure(figure, args.out / "compare")
        print(f"{args.out / 'compare'}.png, .pdf")
    print("\n" + markdown(table(runs, measured)))


if __name__ == "__main__":
    with user_errors():
        main(parse_args(RewardArgs(tyro.MISSING, data_dir=default_data_dir())))
