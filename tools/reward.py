"""The reward that a run has learned: how good it is, a page of pictures, a film, and the dataset labelled with it.

    python -m tools.reward runs/drawer-open-v2/ipl_iql/seed-1 --preferences other_episodes.hdf5
    python -m tools.reward runs/drawer-open-v2/ipl_iql/seed-1 --film reward.gif

Of IPL it is the implied reward, Q(s, a) - gamma V(s'); of MR-IQL and PT-IQL their model's. A script takes part by a
function `learned_reward(state, batch, args)`. Several runs are compared in one table and one picture.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import textwrap
from dataclasses import dataclass
from itertools import pairwise, product, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from common import suites
from common.arrays import fingerprint
from common.cli import default_data_dir, parse_args, user_errors
from common.data import find_files, join_pairs, listed, read_pairs, read_preferences, read_transitions
from common.errors import InputError
from common.locks import atomic
from common.suites.base import Preferences, Task, Transitions, first_rows
from common.trees import read_saved, tree_map
from common.workers import Workers, available_cpus
from tools.evaluate import interval, load_actor, load_script
from tools.film import LEARNED, TRUE, make_film, scaled
from tools.report import COLOURS, METHODS, markdown

RESAMPLES, BINS = 2_000, 10
"""of episodes, for the intervals of correlations; of the calibration plot"""
OTHER, SAME, TRAINED = "pairs of other episodes", "pairs held out of the same episodes", "pairs trained on"
"""which pairs a reward is judged by: those of --preferences, what --num-preferences left, what it took"""
KINDS, CORRELATIONS = (OTHER, SAME, TRAINED), ("pearson", "spearman")
LEVELS = [f"by {level}{which}" for which in ("", ", other episodes") for level in ("step", "segment", "episode")]
MEASURES = [*product(KINDS, ("accuracy", "log-loss")), *product(LEVELS, CORRELATIONS)]
"""of the table, in order"""
Measured = dict[tuple[str, str], tuple[float, float, float]]
"""(what, measure) -> value, and its 95 % interval"""


@dataclass
class RewardArgs:
    """What reward a run has learned: numbers and a page of pictures, or a film, or a labelled dataset."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """seeds' folders, with checkpoint.pt and config.json inside"""
    out: Path = Path("reward")
    """folder of the pictures"""
    preferences: tuple[str, ...] = ()
    """files of pairs (.npz or .hdf5) of episodes that the runs never saw, to judge their rewards by"""
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
    log_odds: bool  # sums of rewards are log-odds; not where rewards are scaled for IQL
    window: int = 0  # steps of the pairs' segments, once `read_data` has read them
    pairs: dict[str, int] = dataclasses.field(default_factory=dict)  # one of KINDS -> how many it is judged by

    def reward(self, obs, action, next_obs, terminal, first=None) -> np.ndarray:
        """The learned reward (N,) of transitions (N, O), (N, A), (N, O), (N,).

        `first`: (N,) the first row of each row's episode, all of whose rows are there; None: all are one episode.
        """
        first, parts = np.zeros(len(obs), int) if first is None else first, []
        for rows in np.array_split(np.arange(len(obs)), 1 if self.history else max(1, len(obs) // 8192)):
            arrays = {"obs": obs[rows], "action": action[rows], "next_obs": next_obs[rows],
                      "discount": getattr(self.args, "gamma", 1.0) * (1 - terminal[rows])}  # fmt: skip
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
    log_odds = not (model.exists() or getattr(args, "normalize_reward", False))
    return Learned(folder, config, task, script, args, state, saved["step"], model.exists(), log_odds)


def read_data(run: Learned) -> tuple[Preferences, list[Path], list[Path]]:
    """The run's pairs, their files and the dataset's. InputError: they are not what it was trained on."""
    with contextlib.closing(Workers(available_cpus())) as workers:
        files, datasets, labels = find_files(run.args, run.task, workers, "name its folder with --data-dir")
    for name, paths in (("preferences", files), ("dataset", datasets)):
        trained = run.config.get("dataset_fingerprint", {}).get(name)
        if trained and trained != (now := fingerprint(*paths)):
            raise InputError(f"{listed(paths)}: is not what {run.folder} was trained on (fingerprint {trained} -> "
                             f"{now}); name the folder of the old data with --data-dir")  # fmt: skip
    p = read_pairs(files, datasets, labels, run.task)
    taken = None if p.lengths is None else p.lengths[: run.args.num_preferences or None]
    run.window = p.length if taken is None else int(taken.min())
    return p, files, datasets


# ---------------------------------------------------------------- numbers
def read_others(run: Learned, paths: list[Path], p: Preferences, datasets: list[Path]) -> Preferences:
    """The pairs of --preferences. InputError: some are of the pairs `p` or the datasets that the run was trained on."""

    def steps(x: Preferences | Transitions) -> list[bytes]:
        return [row.tobytes() for row in np.concatenate([x.obs, x.action], 1, dtype=np.float32)]

    others, seen = join_pairs([read_preferences(path, run.task) for path in paths]), set(steps(p))
    if datasets:
        seen.update(steps(read_transitions(datasets, run.task)))
    rows = others.start.reshape(-1, 1) + np.arange(others.length)
    known = np.array([step in seen for step in steps(others)])[rows].all(1)  # single ones may be alike elsewhere
    if known.any():
        raise InputError(f"--preferences {listed(paths)}: {known.sum()} of its {len(rows)} segments are in the data of "
                         f"{run.folder}; take other episodes (MetaWorld: those of tools.dataset --seed 1)")  # fmt: skip
    return others


def sums_of(run: Learned, p: Preferences, first: int = 0, last: int | None = None) -> dict[str, np.ndarray]:
    """Of the pairs `first` to `last`: summed rewards (P, 2) of their segments' transitions, one fewer than steps, since
    the last step leads to no known state; label (P,)."""
    lengths = (np.full(len(p.label), p.length) if p.lengths is None else p.lengths)[first:last, None, None]
    along = np.arange(lengths.max() - 1)
    rows = p.start[first:last, :, None] + np.minimum(along, lengths - 2)  # (P, 2, L - 1)
    flat, at, inside = rows.reshape(-1), np.arange(rows.size), along < lengths - 1
    reward = run.reward(p.obs[flat], p.action[flat], p.obs[flat + 1], np.zeros(len(flat)), at - at % len(along))
    sums = {"learned": (reward.reshape(rows.shape) * inside).sum(-1), "label": p.label[first:last]}
    return sums | ({} if p.reward is None else {"true": (p.reward[rows] * inside).sum(-1)})


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
    episode = np.repeat(np.arange(len(x)), [len(part) for part in x])
    draws = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)), RESAMPLES)  # (R, E) counts
    found = {}
    for name, change in (("pearson", lambda v: v), ("spearman", stats.rankdata)):
        a, b = (stats.zscore(change(np.concatenate(v))) for v in (x, y))
        terms = (np.ones_like(a), a, b, a * a, b * b, a * b)
        sums = np.stack([np.bincount(episode, v, len(x)) for v in terms], 1)  # (E, 6)
        n, sa, sb, saa, sbb, sab = (draws @ sums).T
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (n * sab - sa * sb) / np.sqrt((n * saa - sa**2) * (n * sbb - sb**2))
        found[name] = (float((a * b).mean()), *np.nanpercentile(r, (2.5, 97.5)))
    return found


def constant(x: np.ndarray) -> bool:
    return x.size < 2 or np.ptp(x) <= 1e-6 * np.abs(x).max()


def reward_of(run: Learned, t: Transitions) -> np.ndarray:  # -> (T,)
    """The learned reward of an offline dataset."""
    start = first_rows(t)
    first = np.repeat(start, np.diff([*start, len(t.obs)]))
    return run.reward(t.obs, t.action, t.next_obs, t.terminal, first)


def correlate(learned: np.ndarray, true: np.ndarray, episodes: list[slice], segment: int) -> dict[str, dict]:
    """Correlations by step, by segment (the episodes' windows one after the other) and by episode."""

    def sums(reward: np.ndarray, steps: int) -> list[np.ndarray]:
        """By episode, of its windows of `steps` steps; 0: of all its steps."""
        parts = [(reward[e], steps or e.stop - e.start) for e in episodes]
        return [part[: len(part) // n * n].reshape(-1, n).sum(1) for part, n in parts]

    levels = {"step": 1, "segment": segment, "episode": 0}
    return {level: correlations(sums(learned, steps), sums(true, steps)) for level, steps in levels.items()}


# ---------------------------------------------------------------- pictures
def scatter(axes, true: np.ndarray, learned: np.ndarray, title: str) -> None:
    """Learned against true reward."""
    axes.plot(true.ravel(), learned.ravel(), ".", ms=3, alpha=0.4, color=LEARNED)
    axes.set(xlabel="true reward", ylabel="learned reward", title=title)


def calibration(axes, found: dict[str, np.ndarray], kind: str) -> None:
    """Predicted probability of the preferred segment against how often it was right, in bins of equal size."""
    strict = found["label"] != 0.5
    logits = (found["learned"][:, 1] - found["learned"][:, 0])[strict]
    right = (logits > 0) == (found["label"][strict] > 0.5)
    probability = 1 / (1 + np.exp(-np.abs(logits)))
    bins = [part for part in np.array_split(np.argsort(probability), BINS) if len(part)]
    axes.plot(*([x[part].mean() for part in bins] for x in (probability, right)), "o-", color=LEARNED)
    axes.plot([0.5, 1], [0.5, 1], ":", color="grey")
    axes.set(xlabel="predicted probability", ylabel="share that was right", title=f"calibration,\n{kind}")


def page(run: Learned, kind: str, found: dict, t: Transitions | None, learned, episodes: list[slice]) -> Figure | None:
    """One page: pairs `found`, of one of KINDS, and the dataset. What says nothing is left out; None: all of it."""
    panels = []
    if "true" in found and not constant(found["true"]):
        panels.append(lambda axes: scatter(axes, found["true"], found["learned"], f"sums of segments,\n{kind}"))
    if run.log_odds and (found["label"] != 0.5).any():
        panels.append(lambda axes: calibration(axes, found, kind))
    if t is not None and not constant(t.reward):
        returns = [np.array([reward[e].sum() for e in episodes]) for reward in (t.reward, learned)]
        panels.append(lambda axes: scatter(axes, *returns, "returns of the dataset's episodes"))
    if not panels and t is None:
        return None
    rows, columns = (1, len(panels)) if t is None else (2, 3)
    figure = Figure(figsize=(4 * columns, 3.6 * rows), layout="constrained")
    upper, *lower = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip_longest(upper, panels):
        panel(axes) if panel else axes.set_axis_off()
    for axes, i in zip(lower[0], (0, len(episodes) // 2, len(episodes) - 1), strict=True) if lower else ():
        for reward, words, colour in ((learned, "learned", LEARNED), (t.reward, "true", TRUE)):
            axes.plot(scaled(reward)[episodes[i]], color=colour, label=words, lw=1)
        axes.set(xlabel="step", ylabel="reward, scaled over the dataset", title=f"episode {i}")
        axes.legend()
    figure.suptitle(f"{run.config['algorithm']} on {run.task.env} after {run.step} updates: {run.folder}")
    return figure


def write_figure(figure: Figure | None, path: Path) -> None:
    """PNG and PDF, atomically; nothing of no figure."""
    if figure is None:
        return
    FigureCanvasAgg(figure)
    for suffix in ("png", "pdf"):
        with atomic(path.with_name(f"{path.name}.{suffix}")) as partial:  # a name may have dots
            figure.savefig(partial, format=suffix, dpi=120)
    print(f"{path}.png, .pdf")


def compare(runs: list[Learned], measured: list[Measured]) -> Figure | None:
    """A row a run, a panel a measure, with intervals; of correlations both. None: nothing to draw."""
    panels = {f"accuracy, {kind}": [(kind, "accuracy")] for kind in KINDS}
    panels |= {f"correlation {level}": [(level, name) for name in CORRELATIONS] for level in LEVELS}
    panels = {title: keys for title, keys in panels.items() if any(key in found for key in keys for found in measured)}
    if not panels:
        return None
    names = [f"{run.folder}, {run.step}" for run in runs]
    width = 0.08 * max(map(len, names)) + 2 * len(panels)  # inches: names of any length leave the panels their room
    figure = Figure(figsize=(width, 1.6 + 0.32 * len(runs)), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, keys) in zip(grid, panels.items(), strict=True):
        for i, (run, found) in enumerate(zip(runs, measured, strict=True)):
            colour = dict(zip(METHODS, COLOURS, strict=True)).get(run.config["algorithm"], COLOURS[-1])
            for k, key in enumerate(key for key in keys if key in found):
                value, low, high = found[key]
                axes.plot([low, value, high], [i + 0.3 * k] * 3, color=colour, marker="os"[k], markevery=[1], ms=5)
        axes.axvline(0.5 if len(keys) == 1 else 0, color="grey", ls=":", lw=1)  # chance
        axes.set(title=textwrap.fill(title, 20), ylim=(len(runs) - 0.5, -0.5), yticks=range(len(runs)))
        axes.set(yticklabels=names, xlabel="" if len(keys) == 1 else "● Pearson, ■ Spearman")
        axes.grid(axis="x", alpha=0.3)
    return figure


# ---------------------------------------------------------------- the command
def relabel(run: Learned, target: str) -> None:
    """Write the offline dataset with the learned reward, in its own layout, and how it was made. InputError: there is
    none, or its suite cannot write it to `target`."""
    _, _, datasets = read_data(run)
    if len(datasets) != 1:
        what = "on several datasets, and one file is written" if datasets else "on pairs alone"
        raise InputError(f"--relabel {target}: {run.folder} was trained {what}; take a run with one --dataset")
    suite, dataset = suites.SUITES[run.task.suite], datasets[0]
    t = suite.read_transitions(dataset, run.task)
    made = {"reward": f"learned by {run.config['algorithm']}", "run": str(run.folder), "step": run.step,
            "git_commit": run.config.get("git_commit")}  # fmt: skip
    suite.write_rewards(dataset, run.task, target, reward_of(run, t), made)
    print(f"{target}: {len(t.obs)} transitions")


def look(run: Learned, args: RewardArgs) -> Measured:
    """Numbers of one run, by the pairs of KINDS and by its dataset; writes its page into --out."""
    p, files, datasets = read_data(run)
    count, found = run.args.num_preferences or len(p.label), {}
    if args.preferences:
        found[OTHER] = sums_of(run, read_others(run, list(map(Path, args.preferences)), p, datasets))
    if count < len(p.label):
        found[SAME] = sums_of(run, p, count)
    else:
        found[TRAINED] = sums_of(run, p)
        if not args.preferences:
            print(f"{listed(files)}: {run.folder} was trained on all of its pairs; --preferences FILE judges by "
                  f"others, or train on fewer than {count}")  # fmt: skip
    run.pairs = {kind: len(sums["label"]) for kind, sums in found.items()}
    scores = {kind: score_pairs(pairs) for kind, pairs in found.items()}
    numbers: Measured = {(kind, name): cells for kind, named in scores.items() for name, cells in named.items()
                         if run.log_odds or name == "accuracy"}  # fmt: skip
    t, learned, episodes = None, None, []
    others = [Path(name) for name in args.preferences if not name.endswith(".npz")]
    for paths, which in ((others, ", other episodes"), (datasets, "")):
        if not paths:
            continue
        t = read_transitions(paths, run.task)
        if t.reward is None:
            print(f"{listed(paths)}: no correlation: it holds no rewards")
            t = None
            continue
        learned = reward_of(run, t)
        episodes = [slice(a, b) for a, b in pairwise([*first_rows(t), len(t.obs)])]
        for level, values in correlate(learned, t.reward.astype(np.float64), episodes, p.length).items():
            numbers |= {(f"by {level}{which}", name): cells for name, cells in values.items()}
            if not values:
                print(f"{listed(paths)}: no correlation by {level}: the true or the learned reward is constant")
    name = "-".join(part for part in (*Path(os.path.relpath(run.folder)).parts, str(run.step)) if part != "..")
    write_figure(page(run, *next(iter(found.items())), t if datasets else None, learned, episodes), args.out / name)
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


def main(args: RewardArgs) -> None:
    """Print the table and write the pictures; or the film; or the labelled dataset."""
    runs = [read_run(folder, args.data_dir) for folder in args.runs]
    if not runs or ((args.film or args.relabel) and len(runs) > 1):
        raise InputError(f"{len(runs)} runs: name at least one; --film and --relabel take exactly one")
    if args.film:
        if runs[0].history:
            read_data(runs[0])  # for the window
        saved = [path for name in ("final.pt", "best.pt") if (path := runs[0].folder / name).exists()]
        if not saved:
            raise InputError(f"{runs[0].folder}: has no final.pt or best.pt yet; wait for the run's first evaluation")
        make_film(Path(args.film), runs[0].task, load_actor(saved[0]), runs[0].reward, args.seed)
    if args.relabel:
        relabel(runs[0], args.relabel)
    if args.film or args.relabel:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    measured = [look(run, args) for run in runs]
    lines = [(run.folder.resolve(), run.step, *key, *cells, run.pairs.get(key[0]))
             for run, found in zip(runs, measured, strict=True) for key, cells in found.items()]  # fmt: skip
    numbers = pd.DataFrame(lines, columns=["run", "updates", "what", "measure", "value", "low", "high", "pairs"])
    with atomic(args.out / "reward.csv") as partial:  # which the report's --reward reads
        numbers.astype({"pairs": "Int64"}).to_csv(partial, index=False, float_format="%.6g", lineterminator="\n")
    print(args.out / "reward.csv")
    if len(runs) > 1:
        write_figure(compare(runs, measured), args.out / "compare")
    print("\n" + markdown(table(runs, measured)))


if __name__ == "__main__":
    with user_errors():
        main(parse_args(RewardArgs(tyro.MISSING, data_dir=default_data_dir())))
