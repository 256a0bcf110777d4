"""Run folders -> tables and pictures.

    python -m tools.report runs                                    # all runs below runs/, into report/
    python -m tools.report runs/ablations --filter env=drawer-open-v2 --x wall-clock

Writes tables.md, tables.tex, curves.png, .pdf and .csv and, where runs of a method differ in their number of pairs,
scaling.png and .pdf; of runs of sweeps/label_noise.sh noise.png and .pdf. The note under the tables explains their
columns.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import io
import json
import re
import sys
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import tyro

from common import suites
from common.cli import parse_args, user_errors
from common.errors import InputError
from common.locks import atomic
from common.seed_folder import INCIDENTAL
from tools.evaluate import bootstrap

NAMES = {"score": "D4RL score", "success": "success, %", "return_mean": "return"}  # of the metrics, the first counts
SCALE = {"success": 100.0}  # shown in percent
AXES = {"step": "updates", "wall-clock": "wall-clock of the process, s", "pairs": "pairs"}
FILES = ("preferences", "dataset")  # arguments that are told apart by what is in the files
UNSET = "unset"  # an argument that there was not yet when a run was made
HEAD, POINT = ["task", "pairs", "method", "seeds"], ["panel", "metric", "method", "mean", "low", "high"]
BEGIN, END = "<!-- report -->", "<!-- end of report -->"
METHODS = ("ipl_iql", "mr_iql", "ipl_awac", "ipl_xql", "pt_iql", "iql", "cpl", "bc",
           "bc --use-replay")  # look the same in all pictures  # fmt: skip
# Okabe and Ito's colours and a brown, told apart by the colour-blind; dashes and markers do so in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#7F4A1E")
DASHES, MARKERS = ("", (4, 1.5), (4, 1.2, 1, 1.2), (1, 1)), ("o", "s", "^", "D", "v", "P", "X", "*")
PARTS = {"tenth": 10, "quarter": 4, "half": 2}
AVERAGED = (2, 1)  # dashes of the averaged actor, in its method's colour


@dataclass
class ReportArgs:
    """Tables and pictures of run folders: any mix of methods, tasks, pairs and seeds, unfinished ones too."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of runs, or folders that hold some"""
    out: Path = Path("report")
    """folder to write to"""
    filter: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """keep runs with ARGUMENT=PATTERN, e.g. 'env=drawer-*' algorithm=ipl_iql num_preferences=500"""
    x: str = "step"
    """x-axis of the curves: step, wall-clock (data, training and evaluation of the process, with all seeds that it
    trained at once), or pairs (no curves, only final against the number of pairs)"""
    metric: str = ""
    """success, score or return_mean; empty: the first of score, success and return_mean that there is"""
    into: str = ""
    """Markdown file whose lines between `<!-- report -->` and `<!-- end of report -->` become the first table
    and the note"""
    reward: str = ""
    """reward.csv of tools.reward, whose accuracies and correlations a further table puts beside the results"""
    late: Literal["tenth", "quarter", "half"] = "tenth"
    """the last part of training, whose evaluations `final` is the mean of"""
    smooth: Annotated[int, "[1, inf)"] = 1
    """evaluations in the moving average of `best`; the curves are averaged over at least a sixteenth of training"""


@dataclass
class Seed:
    """What one seed's folder says of its actor, or of the averaged one."""

    folder: Path
    args: dict  # of config.json, with `algorithm` and `averaged`; `preferences`, `dataset`: the files' fingerprints
    curve: pd.DataFrame  # step -> value: the metric, success in percent; seconds: wall-clock, NaN without time.csv
    metric: str
    episodes: int  # of the last evaluation
    commit: str  # of the code; with a + where files were changed
    step: int  # of the last evaluation, also where it is dropped
    dropped: tuple[int, ...] = ()  # steps of the evaluations that were not finite; they are not in the curve
    part: str = "tenth"  # of training, the last, that counts for `final`

    @property
    def finished(self) -> bool:
        return self.step >= self.args["total_steps"]

    @property
    def late(self) -> pd.Series:
        """The evaluations in the last part of training; the last alone where that part holds none."""
        late = self.curve.value[PARTS[self.part] * (self.step - self.curve.index) < max(self.step, 1)]
        return late if len(late) else self.curve.value.tail(1)

    @property
    def final(self) -> float:
        return self.late.mean()


Groups = dict[tuple[str, int, str], list[Seed]]  # (environment, pairs, method) -> its seeds
Rows = list[list[str]]  # of a table; the first one is its head


# ---------------------------------------------------------------- reading
def warn(what) -> None:
    print(f"warning: {what}", file=sys.stderr)


def reads_pairs(args: dict) -> bool:
    """Not cloning of the whole dataset, nor the oracle on it."""
    return not (args["algorithm"] in ("bc", "iql") and args.get("use_replay"))


def read_seed(folder: Path, metric: str, empty: str | None = None, averaged: bool = False) -> Seed:
    """`empty`: what stands for an empty cell of `metric`; None: such rows are left out.

    Raises ValueError, KeyError, TypeError, AttributeError or OSError where config.json or eval.csv is missing,
    damaged or empty."""
    config = json.loads((folder / "config.json").read_text())
    args = {**config["args"], "algorithm": config["algorithm"], "averaged": averaged}
    args |= {name: config.get("dataset_fingerprint", {}).get(name) for name in FILES}
    if not averaged:
        args["actor_average"] = None  # nothing of the actor itself depends on it
    if not reads_pairs(args):
        args["preferences"] = None  # older runs read pairs without need
    files = suites.several(config["args"].get("preferences") or ())
    share = re.search(r"mistake-([\d.]+)\.npz$", files[0]) if len(files) == 1 else None  # of sweeps/label_noise.sh
    if share:
        args |= {"mistake": float(share[1]), "preferences": None}  # says more than the file's fingerprint
    if files and all(f"seed-{args['seed']}" in Path(file).parts for file in files):  # of sweeps/few_labels.sh
        own = [["seed-*" if part == f"seed-{args['seed']}" else part for part in Path(file).parts] for file in files]
        args["preferences"] = args["preferences"] and " ".join(map("/".join, own))
    for name in ("algorithm", "env", "seed", "num_preferences", "total_steps"):
        if not isinstance(args[name], str if name in ("algorithm", "env") else int):
            raise InputError(f"config.json: {name} is {args[name]!r}")
    text = (folder / "eval.csv").read_text()
    whole = io.StringIO(text[: text.rfind("\n") + 1])  # without a row that was cut
    rows = pd.read_csv(whole, dtype=str, keep_default_na=False, na_values=[""])
    if averaged:
        rows = rows.drop(columns=list(NAMES)).rename(columns=lambda name: name.removeprefix("average_"))
        rows = rows.dropna(subset="return_mean")  # it began late
    metric = metric or next((name for name in NAMES if name in rows and rows[name].notna().any()), "return_mean")
    rows = rows.dropna(subset=metric) if empty is None else rows.fillna({metric: empty})
    if rows.empty:
        raise InputError(f"eval.csv has no {metric} yet")
    steps = rows["step"].astype(int)
    results = rows.reindex(columns=list(NAMES)).fillna("0").astype(float)  # an empty cell is not a NaN
    finite = np.isfinite(results).all(axis=1)
    if not finite.any():
        raise InputError("eval.csv has no evaluation that is finite")
    value = results.loc[finite, metric].to_numpy() * SCALE.get(metric, 1.0)
    curve = pd.DataFrame({"value": value, "seconds": np.nan}, index=steps[finite])
    with contextlib.suppress(OSError, ValueError, KeyError):
        times = pd.read_csv(folder / "time.csv", index_col="step").filter(like="time/").sum(axis=1)
        curve["seconds"] = times[~times.index.duplicated(keep="last")].reindex(curve.index)
    commit = str(config.get("git_commit"))[:7] + ("+" if config.get("git_dirty") else "")
    episodes = int(rows["episodes"].iloc[-1])
    return Seed(folder, args, curve, metric, episodes, commit, int(steps.iloc[-1]), tuple(steps[~finite]))


def read_folder(folder: Path, metric: str) -> list[Seed]:
    """The actor and, where it was evaluated, the averaged one; a warning on stderr where they cannot be read."""
    seeds = []
    try:
        seeds.append(read_seed(folder, metric))
        with open(folder / "eval.csv") as file:
            if "average_return_mean" in file.readline():
                seeds.append(read_seed(folder, metric, averaged=True))
        return seeds
    except FileNotFoundError as error:
        reason = f"no {Path(error.filename).name} yet"
    except InputError as error:
        reason = str(error)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"damaged ({type(error).__name__}: {error})"
    warn(f"{folder}: skipped: {reason}")
    return seeds


def read_seeds(args: ReportArgs) -> list[Seed]:
    """All seeds below the given folders that pass the filters; a warning on stderr for each that cannot be read.

    Raises:
        InputError: there is nothing to report.
    """
    if not args.runs:
        raise InputError("name a folder that holds runs, such as runs or results")
    folders: dict[Path, Path] = {}  # where a folder is -> by which name it was found
    for path in args.runs:
        if not path.is_dir():
            warn(f"{path}: no such folder")
        for name in ("config.json", "eval.csv"):
            for found in glob.glob(f"{glob.escape(str(path))}/**/{name}", recursive=True):  # follows links
                folder = Path(found).parent
                if not {"wandb", "videos"} & set(folder.relative_to(path).parts):
                    folders.setdefault(folder.resolve(), folder)
    first = "" if args.metric == "success" else args.metric  # of runs without one, others there may have had some
    seeds = [seed for folder in sorted(folders.values()) for seed in read_folder(folder, first)]
    if not seeds:
        where = " ".join(map(str, args.runs))
        raise InputError(f"{where}: no run to report; a run's folder holds config.json, eval.csv")
    solved = {seed.args["env"] for seed in seeds if seed.metric == "success"}  # others there never had a success
    for i, seed in enumerate(seeds):
        if seed.metric == "return_mean" and seed.args["env"] in solved and first == "":
            seeds[i] = read_seed(seed.folder, "success", "0", seed.args["averaged"])
        seeds[i].part = args.late
    if args.metric == "success":
        for folder in dict.fromkeys(seed.folder for seed in seeds if seed.metric != "success"):
            warn(f"{folder}: skipped: eval.csv has no success yet")
        seeds = [seed for seed in seeds if seed.metric == "success"]
    if not seeds:
        raise InputError("--metric success: no run has one")
    for part in [part for parts in args.filter for part in parts]:
        name, equals, pattern = part.partition("=")
        name = name.replace("-", "_")
        if not equals:
            raise InputError(f"--filter {part}: must be ARGUMENT=PATTERN")
        if not any(name in seed.args for seed in seeds):
            raise InputError(f"--filter {part}: no run has an argument {name}")
        values = {words(seed.args.get(name)) for seed in seeds}
        fit = {value for value in values if pattern.lower() == value.lower() or fnmatch.fnmatchcase(value, pattern)}
        if not fit:
            raise InputError(f"--filter {part}: no run is left; there are {', '.join(sorted(values))}")
        seeds = [seed for seed in seeds if words(seed.args.get(name)) in fit
                 or (name == "num_preferences" and not reads_pairs(seed.args))]  # fmt: skip
    return seeds


def words(value) -> str:
    """An argument's value as tables and filters have it: 3 for 3.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def flag(name: str, value) -> str:
    """An argument as part of a method's name; a switch that is off leaves no word, nor does what plays no part."""
    if value is None or isinstance(value, bool):
        return f"--{name.replace('_', '-')}" if value else ""
    return f"{name}={words(value)}"


def suite(env: str) -> str:
    """The suite of an environment, or its own name where this code does not know it."""
    with contextlib.suppress(InputError):
        return suites.identify(env)[0]
    return env


def group(seeds: list[Seed]) -> Groups:
    """Other arguments in which runs of one method differ join its name, on all tasks of a suite if on one of them, so
    that a method has one name there. A run that reads no pairs stands beside those of each number of pairs."""
    usual = {"env", "seed", "algorithm", "num_preferences", "eval_every", "eval_episodes", "log_every", "averaged",
             *INCIDENTAL} - set(FILES)  # fmt: skip
    values: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    names = sorted({name for seed in seeds for name in seed.args} - usual)
    for seed in seeds:
        for name in names:
            if (value := seed.args.get(name, UNSET)) is not None:  # None: what was not read, or plays no part
                values[seed.args["algorithm"], seed.args["env"], name].add(json.dumps(value))
    varied = {key for key, found in values.items() if len(found) > 1}
    varied |= {(method, suite(env), name) for method, env, name in varied if name not in FILES}
    groups = defaultdict(list)
    labelled = {(seed.args["env"], seed.args["num_preferences"]) for seed in seeds if reads_pairs(seed.args)}
    for seed in sorted(seeds, key=lambda seed: (seed.args["seed"], -seed.step)):  # of twins the longer one
        method, env = seed.args["algorithm"], seed.args["env"]
        own = [flag(name, seed.args.get(name, UNSET)) for name in names
               if {(method, env, name), (method, suite(env), name)} & varied]  # fmt: skip
        name = " ".join(filter(None, [method, *own, "averaged" if seed.args["averaged"] else ""]))
        beside = [] if reads_pairs(seed.args) else [pairs for task, pairs in labelled if task == env]
        keys = [(env, pairs, name) for pairs in beside or [seed.args["num_preferences"]]]
        twin = next((other for other in groups[keys[0]] if other.args["seed"] == seed.args["seed"]), None)
        if twin:
            warn(f"{seed.folder}: skipped, the same seed and arguments as {twin.folder}")
        for key in [] if twin else keys:
            groups[key].append(seed)
    return dict(sorted(groups.items(), key=lambda item: (suite(item[0][0]), *item[0][:2], rank(item[0][2]))))


def rank(method: str) -> tuple[int, str]:
    """Sorts METHODS first, in their order, each before its average."""
    own = method.removesuffix(" averaged")
    return METHODS.index(own) if own in METHODS else len(METHODS), method


# ---------------------------------------------------------------- tables
def head(key: tuple[str, int, str], seeds: list[Seed]) -> list[str]:
    return [key[0], str(key[1] or "all"), key[2], str(len(seeds))]


def finals(seeds: list[Seed]) -> np.ndarray:
    return np.array([seed.final for seed in seeds])


def mean_and_interval(seeds: list[Seed]) -> tuple[float, float, float]:
    """Of final, over seeds: the mean, and the ends of its 95 % bootstrap interval."""
    return finals(seeds).mean(), *bootstrap(finals(seeds))


def cell(values: np.ndarray, digits: int = 1) -> str:
    """Mean and 95 % bootstrap interval over seeds."""
    mean, low, high = (f"{number:.{digits}f}" for number in (values.mean(), *bootstrap(values)))
    return mean + (f" [{low}, {high}]" if len(values) > 1 else "")


def unfinished(seeds: list[Seed]) -> str:
    return "" if all(seed.finished for seed in seeds) else " (unfinished)"


def span(seeds: list[Seed]) -> str:
    """The steps at which seeds stand."""
    steps = sorted({seed.step for seed in seeds})
    mark = "*" if any(seed.dropped for seed in seeds) else ""
    return (str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}") + mark + unfinished(seeds)


def together(seeds: list[Seed], column: str = "value") -> pd.DataFrame:
    """(K, S): a column of every seed's curve, at the steps that all of them have."""
    return pd.concat([seed.curve[column] for seed in seeds], axis=1, join="inner")


def main_table(groups: Groups, smooth: int) -> Rows:
    """One row a group; `note` explains the columns."""
    rows = [[*HEAD, "steps", "metric", "final", "best"]]
    for key, seeds in groups.items():
        mean = together(seeds).mean(axis=1)
        best = f"{mean.rolling(min(smooth, len(mean))).mean().max():.1f}" if len(mean) else ""  # no step in common
        if best and (last := mean.index.max()) < max(seed.curve.index.max() for seed in seeds):
            best += f" (to {last})"  # one is behind
        rows.append([*head(key, seeds), span(seeds), NAMES[seeds[0].metric], cell(finals(seeds)), best])
    return rows


def stability_table(groups: Groups) -> Rows:
    """One row a group whose fifths of training have eight evaluations or more: 160 episodes, of 20 each."""
    rows = [[*HEAD, "1st fifth", "2nd", "3rd", "4th", "5th", "change"]]
    for key, seeds in groups.items():
        values = together(seeds).loc[1:].to_numpy()  # without the untrained policy's
        if len(values) >= 40 and len({seed.step for seed in seeds}) == 1:
            fifths = [cell(part.mean(axis=0), 0) for part in np.array_split(values, 5)]
            change = np.abs(np.diff(values[len(values) // 2 :], axis=0)).mean(axis=0)
            rows.append([*head(key, seeds), *fifths, cell(change, 0)])
    return rows


def iqm_table(groups: Groups) -> Rows:
    """Interquartile mean over tasks and seeds by rliable, of methods that ran on more than one task of a suite."""
    found = defaultdict(lambda: defaultdict(dict))
    for (env, pairs, method), seeds in groups.items():
        found[suite(env), seeds[0].metric, pairs][method][env] = seeds
    rows = [["method", "pairs", "metric", "tasks", "seeds", "steps", "interquartile mean of final"]]
    for (_, metric, pairs), methods in sorted(found.items()):
        methods = {method: tasks for method, tasks in methods.items() if len(tasks) > 1}
        same = len(set(map(frozenset, methods.values()))) < 2
        if not same:
            warn(f"{pairs or 'all'} pairs: interquartile means of different tasks; compare none of them (--filter "
                 "takes the tasks in common)")  # fmt: skip
        for method, tasks in methods.items():
            every = [seed for some in tasks.values() for seed in some]
            count = min(map(len, tasks.values()))
            rows.append([method, str(pairs or "all"), NAMES[metric],
                         str(len(tasks)) if same else f"{len(tasks)}: {', '.join(tasks)}",
                         str(count) if len(every) == count * len(tasks) else f"the first {count}", span(every),
                         interquartile_mean([finals(seeds[:count]) for seeds in tasks.values()])])  # fmt: skip
    return rows


def interquartile_mean(scores: list[np.ndarray]) -> str:
    """Interquartile mean of (tasks, seeds) and its 95 % interval, by rliable's bootstrap of each task's seeds."""
    with warnings.catch_warnings(action="ignore"):
        from rliable import library, metrics

        np.random.seed(0)  # rliable's bootstrap draws from numpy's global state
        point, ends = library.get_interval_estimates(
            {"": np.array(scores).T}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000
        )
    low, high = ends[""].ravel()
    return f"{point[''][0]:.1f}" + (f" [{low:.1f}, {high:.1f}]" if len(scores[0]) > 1 else "")


def ablation_table(seeds: list[Seed]) -> Rows:
    """Mean score by the value of each argument that varies: over the settings of all other arguments, tasks and methods
    in which every value of it was run, each setting with the mean of its seeds."""
    rows = [["argument", "value", "settings", "runs", "mean of final"]]
    if len({seed.metric for seed in seeds}) > 1:
        return rows
    runs = pd.DataFrame([{name: json.dumps(value) for name, value in seed.args.items()} for seed in seeds])
    runs = runs.drop(columns={"seed", *INCIDENTAL} - set(FILES), errors="ignore").fillna(json.dumps(UNSET))
    for name in sorted(set(runs) - {"env", "algorithm"}):
        others = runs.drop(columns=name).agg(" ".join, axis=1)
        settings = pd.DataFrame({"final": finals(seeds)}).groupby([others, runs[name]])["final"]
        settings = settings.agg(["mean", "size"]).unstack()
        settings = settings[settings["mean"].count(axis=1) > 1].dropna(axis=1, how="all")  # else nothing to compare
        whole = settings.dropna()
        if len(whole) < len(settings):
            warn(f"{name}: {len(settings) - len(whole)} of {len(settings)} settings lack some of its values and are "
                 "not in the table of arguments")  # fmt: skip
        values = {value: json.loads(value) for value in whole["mean"]} if len(whole) else {}
        for value in sorted(values, key=lambda v: (0, values[v]) if isinstance(values[v], float | int) else (1, v)):
            rows.append([name, value.strip('"'), str(len(whole)), str(int(whole["size"][value].sum())),
                         f"{whole['mean'][value].mean():.1f}"])  # fmt: skip
    return rows


def reward_table(groups: Groups, path: str) -> Rows:
    """One row a group: what its seeds reached when their rewards were measured, and how good those were.

    InputError: `path` is not what `tools.reward` wrote, or of other runs.
    """
    try:
        rows = pd.read_csv(path)
        apart = np.where(rows["what"].str.startswith("by "), " ", ", ")
        rows["measure"] = rows["measure"] + apart + rows["what"]
        found = rows.pivot_table(values="value", index="run", columns="measure", sort=False, aggfunc="last")
        updates = rows.groupby("run")["updates"].last()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--reward {path}: not a reward.csv of tools.reward ({type(error).__name__})") from None
    table = [[*HEAD, "updates", "metric", "evaluation", *found]]
    for key, seeds in groups.items():
        folders = {str(seed.folder.resolve()): seed for seed in seeds}
        mine = found.loc[[folder for folder in folders if folder in found.index]]
        if len(mine):
            seeds = [folders[folder] for folder in mine.index]
            then = [folders[folder].curve.value.loc[: updates[folder]].iloc[-1] for folder in mine.index]
            cells = ["" if mine[m].isna().any() else cell(mine[m].to_numpy(), 3) for m in found]
            table.append([*head(key, seeds), "/".join(map(str, sorted(set(updates[mine.index])))),
                          NAMES[seeds[0].metric], cell(np.array(then)), *cells])  # fmt: skip
    if len(table) == 1:
        raise InputError(f"--reward {path}: measures none of these runs; make it with tools.reward of the same folders")
    return table


def note(seeds: list[Seed], smooth: int) -> str:
    """What the numbers are, and the code that made them."""
    commits = Counter({seed.folder: seed.commit for seed in seeds}.values())
    code = ", ".join(f"{commit.removesuffix('+')} ({count} runs{', files changed' if commit[-1] == '+' else ''})"
                     for commit, count in sorted(commits.items()))  # fmt: skip
    late, episodes = ({len(seed.late) for seed in seeds}, {seed.episodes for seed in seeds})
    lost = "; ".join(f"{seed.folder} at {', '.join(map(str, seed.dropped))}" for seed in seeds if seed.dropped)
    left_out = f" Steps with * are of runs without the evaluations that were not finite: {lost}." if lost else ""
    smoothed = "" if smooth == 1 else f", after a moving average over {smooth} evaluations"
    averaged = " Averaged: the actor whose weights are an average over the updates, from the same starts."
    return (
        f"Final: the mean of a seed's evaluations in the last {seeds[0].part} of training, averaged over seeds. "
        f"Evaluations in that {seeds[0].part}: {', '.join(map(str, sorted(late)))}. "
        f"Best: the maximum over training of the seeds' mean curve{smoothed}, as the original's plotter prints it; it "
        "is biased upwards. In brackets: 95 % bootstrap interval over seeds. Of "
        "3 seeds it is the lowest and the highest, and holds the true mean 3 times in 4, not 95 in 100; of 2, 1 in 2. "
        f"Episodes of an evaluation: {', '.join(map(str, sorted(episodes)))}. Code: {code}.{left_out}"
    ) + (averaged if any(seed.args["averaged"] for seed in seeds) else "")


def markdown(rows: Rows) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    return "\n".join(lines)


def for_page(rows: Rows) -> str:
    """The main table, where what is the same in all rows stands in a line above it."""
    table = pd.DataFrame(rows[1:], columns=rows[0])
    same = [name for name in ("pairs", "steps", "metric") if table[name].nunique() == 1]
    line = "; ".join(f"{name}: {table[name][0]}" for name in same)
    table = table.drop(columns=same)
    return (f"{line}\n\n" if line else "") + markdown([list(table), *table.to_numpy().tolist()])


def latex(rows: Rows) -> str:
    escaped = str.maketrans({sign: "\\" + sign for sign in "&%_#"})
    body = [" & ".join(word.translate(escaped) for word in row) + r" \\" for row in rows]
    return "\n".join([rf"\begin{{tabular}}{{{'l' * len(rows[0])}}}", r"\toprule", body[0], r"\midrule", *body[1:],
                      r"\bottomrule", r"\end{tabular}"])  # fmt: skip


# ---------------------------------------------------------------- pictures
def look(methods: set[str]) -> dict:
    """seaborn's colour, dashes and marker of each method, no two alike among 36. An average has its method's colour,
    and others than METHODS have first the colours of those that are not there."""
    names, styles = {m.removesuffix(" averaged") for m in methods}, {}
    place = {method: i for i, method in enumerate(METHODS)}
    free = sorted(range(len(METHODS), 36), key=lambda i: i % 9 in {place[m] % 9 for m in names & place.keys()})
    place |= zip(sorted(names - place.keys()), cycle(free), strict=False)
    for own, i in place.items():
        styles[own] = COLOURS[i % 9], DASHES[i % 4], MARKERS[i % 8]
        styles[f"{own} averaged"] = COLOURS[i % 9], AVERAGED, MARKERS[i % 8]
    styles = {method: style for method, style in styles.items() if method in methods}
    palette, dashes, markers = ({m: style[k] for m, style in styles.items()} for k in range(3))
    return {"palette": palette, "dashes": dashes, "markers": markers, "hue_order": list(styles)}


def draw(lines: pd.DataFrame, label: str, out: Path, name: str) -> list[Path]:
    """NAME.png and .pdf of `lines` (panel, metric, method, x, mean, low, high): a panel for each task, one legend below
    all; with bands or, where there is a column `pairs`, with markers and error bars over x in powers of two."""
    import matplotlib

    matplotlib.use("Agg")  # needs no display
    import seaborn as sns

    methods, count, points = set(lines["method"]), lines["panel"].nunique(), "pairs" in lines
    style = look(methods) | ({} if points else {"markers": False})
    sns.set_theme("paper", "whitegrid", rc={"pdf.fonttype": 42, "grid.alpha": 0.4, "axes.titlesize": 8})
    grid = sns.relplot(lines, x="x", y="mean", hue="method", style="method", kind="line", col="panel", errorbar=None,
                       col_wrap=2 if count in (2, 4) else min(count, 3), height=2.3, aspect=1.2, linewidth=1.3, **style,
                       facet_kws={"sharex": False, "sharey": False, "legend_out": False})  # fmt: skip
    for panel, axis in grid.axes_dict.items():
        here = lines[lines["panel"] == panel]
        for method, line in here.groupby("method"):
            ends, colour = (line["x"], line["low"], line["high"]), style["palette"][method]
            if points:
                axis.vlines(*ends, color=colour, linewidth=1)
            else:
                axis.fill_between(*ends, color=colour, alpha=0.12, linewidth=0)
        metric = here["metric"].iloc[0]
        axis.set(title=panel, xlabel=label, ylabel=NAMES[metric])
        if metric in SCALE:
            axis.set_ylim(-4, 104)
        if points:
            ticks = sorted(set(here["pairs"]))
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, list(map(str, ticks)))
            axis.minorticks_off()
        else:
            axis.locator_params(axis="x", nbins=4)
    with warnings.catch_warnings(action="ignore"):  # long names
        grid.figure.tight_layout()
    entry = 0.6 + 0.08 * max(map(len, methods))  # inches of a line and of its letters
    columns = max(1, min(int(grid.figure.get_figwidth() / entry), len(methods)))
    sns.move_legend(grid, "upper center", bbox_to_anchor=(0.5, 0), title=None, frameon=False, ncol=columns)
    paths = [out / f"{name}.png", out / f"{name}.pdf"]
    for path, said in zip(paths, ({"Software": None}, {"CreationDate": None, "Producer": None}), strict=True):
        grid.figure.savefig(path, dpi=150, bbox_inches="tight", metadata=said)
    matplotlib.pyplot.close(grid.figure)
    return paths


def curve(method: str, seeds: list[Seed], x: str, smooth: int) -> pd.DataFrame:
    """(K, 4) x, mean over seeds, low and high end of its 95 % interval, at the steps that all seeds have. Each seed's
    evaluations are averaged over `smooth` neighbours, at least over a sixteenth of them all."""
    if x == "wall-clock":
        for seed in seeds:
            if seed.curve.seconds.isna().any():
                warn(f"{seed.folder}: no time.csv, left out")
        seeds = [seed for seed in seeds if seed.curve.seconds.notna().all()]
    if not seeds:
        return pd.DataFrame()
    last = max(seed.step for seed in seeds)
    for seed in seeds:
        if seed.step < last:
            warn(f"{seed.folder}: ends at step {seed.step}, and so does the curve of {method}")
    values = together(seeds)
    values = values.rolling(max(smooth, len(values) // 16), center=True, min_periods=1).mean()
    at = values.index if x == "step" else together(seeds, "seconds").mean(axis=1)
    low, high = np.array([bootstrap(row) for row in values.to_numpy()]).reshape(-1, 2).T
    return pd.DataFrame({"x": np.array(at, float), "mean": values.mean(axis=1).to_numpy(), "low": low, "high": high})


def shown_pairs(groups: Groups) -> dict[str, int]:
    """task -> the number of pairs that most methods have there, of several the largest."""
    count = Counter(key[:2] for key in groups)
    return dict(sorted(count, key=lambda key: (count[key], key[1] or np.inf)))  # the last one of a task counts


def without_mistake(method: str) -> str:
    """The name of a line in a picture that shows the share of wrong labels elsewhere."""
    return re.sub(r" mistake=\S+", "", method)


def curves(groups: Groups, x: str, smooth: int, out: Path) -> list[Path]:
    """Mean over seeds with its 95 % interval, a panel for each task and share of wrong labels, at one number of pairs.
    All lines, of any number of pairs, as CSV."""
    found = {key: line for key, seeds in groups.items() if len(line := curve(key[2], seeds, x, smooth))}
    if not found:
        return []
    lines = pd.concat(found, names=["task", "pairs", "method"]).reset_index(level=[0, 1, 2])
    lines.rename(columns={"x": "updates" if x == "step" else "seconds"}).to_csv(
        out / "curves.csv", index=False, float_format="%.6g", lineterminator="\n")  # fmt: skip
    shown, panels = shown_pairs(found), {}
    for key in found:
        if shown[key[0]] == key[1]:
            share = groups[key][0].args.get("mistake")
            where = f"{key[1] or 'all'} pairs" if share is None else f"{100 * share:g} % wrong labels"
            panels[key] = f"{key[0]}, {where}"
    marks = {panels[key]: mark for key in reversed(panels) if (mark := unfinished(groups[key]))}
    drawn = [found[key].assign(panel=panel + marks.get(panel, ""), method=without_mistake(key[2]),
                               metric=groups[key][0].metric) for key, panel in panels.items()]  # fmt: skip
    return [out / "curves.csv", *draw(pd.concat(drawn), AXES[x], out, "curves")]


def by_pairs(groups: Groups) -> dict[str, dict[str, list[int]]]:
    """task -> method -> its numbers of pairs, where it has more than one; 0, all pairs, has no place on the axis."""
    found, scaled = defaultdict(lambda: defaultdict(list)), set()
    for (env, pairs, method), seeds in groups.items():
        if pairs:
            found[env][method].append(pairs)
        if len(found[env][method]) > 1 and reads_pairs(seeds[0].args):
            scaled.add(env)
    return {env: {m: some for m, some in found[env].items() if len(some) > 1} for env in found if env in scaled}


def scaling(groups: Groups, out: Path) -> list[Path]:
    """Final against the number of pairs, a panel for each task."""
    rows = []
    for env, methods in by_pairs(groups).items():
        for i, (method, some) in enumerate(methods.items()):
            beside = 2 ** (0.08 * (i - (len(methods) - 1) / 2))  # else the intervals hide one another
            for pairs in some:
                seeds = groups[env, pairs, method]
                rows.append((env, seeds[0].metric, method, *mean_and_interval(seeds), pairs * beside, pairs))
    return draw(pd.DataFrame(rows, columns=[*POINT, "x", "pairs"]), "pairs", out, "scaling")


def noise(groups: Groups, out: Path) -> list[Path]:
    """Final against the share of wrong labels, a panel for each task; none where no two shares were run."""
    rows = [(f"{env}, {pairs or 'all'} pairs", seeds[0].metric, without_mistake(method), *mean_and_interval(seeds),
             seeds[0].args["mistake"]) for (env, pairs, method), seeds in groups.items()
            if "mistake" in seeds[0].args]  # fmt: skip
    lines = pd.DataFrame(rows, columns=[*POINT, "x"]).sort_values("x")
    return draw(lines, "share of wrong labels", out, "noise") if lines["x"].nunique() > 1 else []


def main(args: ReportArgs) -> list[Path]:
    """Write tables and pictures; print the tables. Returns the paths written."""
    for name, known in (("x", AXES), ("metric", ("", *NAMES))):
        if getattr(args, name) not in known:
            raise InputError(f"--{name} {getattr(args, name)}: must be one of {', '.join(filter(None, known))}")
    if args.into and not Path(args.into).is_file():
        raise InputError(f"--into {args.into}: no such file")
    document = Path(args.into).read_text() if args.into else BEGIN + END
    if not 0 <= document.find(BEGIN) < document.find(END):
        raise InputError(f"--into {args.into}: has no lines {BEGIN} and {END}")
    groups = group(read_seeds(args))
    seeds = list({id(seed): seed for seeds in groups.values() for seed in seeds}.values())
    if args.x == "pairs" and not by_pairs(groups):
        raise InputError("--x pairs: no method has runs with more than one number of pairs on a task")
    if args.x == "wall-clock" and not any(seed.curve.seconds.notna().all() for seed in seeds):
        raise InputError("--x wall-clock: no run has a time.csv")
    tables = {
        "": main_table(groups, args.smooth),
        "Interquartile mean over tasks and seeds, without the lowest and the highest quarter of all runs; its interval "
        "resamples the seeds of each task:\n\n": iqm_table(groups),
        "Mean of each fifth of training, and the mean change between successive evaluations of the second half:\n\n":
            stability_table(groups),
        "By the value of an argument, all others alike:\n\n": ablation_table(seeds),
        "Learned reward, and the evaluation at the same update:\n\n":
            reward_table(groups, args.reward) if args.reward else [],
    }  # fmt: skip
    tables = {title: rows for title, rows in tables.items() if len(rows) > 1}
    text = "\n\n".join(title + markdown(rows) for title, rows in tables.items())
    explained = note(seeds, args.smooth)
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.out / "tables.md").exists():  # of an earlier report, whose other pictures would stay
        for name in "curves.png curves.pdf curves.csv scaling.png scaling.pdf noise.png noise.pdf".split():
            (args.out / name).unlink(missing_ok=True)
    paths = [args.out / "tables.md", args.out / "tables.tex"]
    paths[0].write_text(f"{text}\n\n{explained}\n")
    paths[1].write_text("\n\n".join(map(latex, tables.values())) + f"\n% {explained}\n")
    if args.into:
        before, _, rest = document.partition(BEGIN)
        with atomic(Path(args.into)) as partial:
            partial.write_text(
                f"{before}{BEGIN}\n\n{for_page(tables[''])}\n\n{explained}\n\n{END}{rest.partition(END)[2]}"
            )
    if args.x != "pairs":
        paths += curves(groups, args.x, args.smooth, args.out)
    if by_pairs(groups):
        paths += scaling(groups, args.out)
    paths += noise(groups, args.out)
    print(f"{text}\n\n{explained}\n" + "\n".join(map(str, paths)))
    return paths


if __name__ == "__main__":
    with user_errors():
        main(parse_args(ReportArgs(tyro.MISSING)))
