"""Run folders -> tables and pictures.

    python -m tools.report runs                                    # all runs below runs/, into report/
    python -m tools.report runs/ablations --filter env=drawer-open-v2 --x wall-clock

Writes tables.md, tables.tex, curves.png, .pdf and .csv and, where runs of a method differ in their number of pairs,
scaling.png and .pdf.
"""

from __future__ import annotations

import contextlib
import csv
import fnmatch
import glob
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from common import suites
from common.cli import parse_args, user_errors
from common.files import InputError, atomic
from common.folder import INCIDENTAL, headline
from tools.evaluate import bootstrap

NAMES = {"success": "success, %", "score": "D4RL score", "return_mean": "return"}  # of the metrics
SCALE = {"success": 100.0}  # shown in percent
UNSET = "unset"  # an argument that there was not yet when a run was made
METHODS = (
    "ipl_iql",
    "mr_iql",
    "ipl_awac",
    "ipl_xql",
    "pt_iql",
    "iql",
    "cpl",
    "bc",
)  # each looks the same in all pictures
# Okabe and Ito's colours, told apart by the colour-blind; line styles and markers tell them apart in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
STYLES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "^", "D", "v", "P", "X", "*")


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
    trained at once), or pairs (no curves, last values against the number of pairs)"""
    metric: str = ""
    """success, score or return_mean; empty: the first of score, success and return that there is"""
    into: str = ""
    """Markdown file whose lines between `<!-- report -->` and `<!-- end of report -->` become the tables"""


@dataclass
class Seed:
    """What one seed's folder says."""

    folder: Path
    args: dict  # of config.json, with `algorithm`; `preferences`, `dataset`: the files' fingerprints
    step: np.ndarray  # (K,) of the evaluations
    value: np.ndarray  # (K,) the metric, in percent where it is the success
    seconds: np.ndarray  # (K,) wall-clock, NaN where time.csv does not say
    metric: str
    episodes: int  # of the last evaluation
    commit: str  # of the code; with a + where files were changed

    @property
    def finished(self) -> bool:
        return self.step[-1] >= self.args["total_steps"]


# ---------------------------------------------------------------- reading
def read_seed(folder: Path, metric: str) -> Seed:
    """Raises ValueError, KeyError or OSError where config.json or eval.csv is missing, damaged or empty."""
    config = json.loads((folder / "config.json").read_text())
    data = {name: config.get("dataset_fingerprint", {}).get(name) for name in ("preferences", "dataset")}
    args = {**config["args"], **data, "algorithm": config["algorithm"]}
    for kind, names in ((str, ("algorithm", "env")), (int, ("seed", "num_preferences", "total_steps"))):
        for name in names:
            if not isinstance(args[name], kind):
                raise ValueError(f"{name} is {args[name]!r}")
    with open(folder / "eval.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    if not rows:
        raise ValueError("no evaluation yet")
    metric = metric or headline(rows[0])[0]
    rows = [row for row in rows if row[metric]]
    if not rows:
        raise ValueError(f"eval.csv has no {metric}")
    step = np.array([int(row["step"]) for row in rows])
    value = np.array([float(row[metric]) for row in rows]) * SCALE.get(metric, 1.0)
    if not np.isfinite(value).all():
        raise ValueError(f"eval.csv holds a {metric} that is not finite")
    seconds = {}
    with contextlib.suppress(OSError, ValueError, KeyError, csv.Error), open(folder / "time.csv", newline="") as file:
        for row in csv.DictReader(file):
            seconds[int(row["step"])] = sum(float(v or 0) for k, v in row.items() if k and k.startswith("time/"))
    commit = str(config.get("git_commit"))[:7] + ("+" if config.get("git_dirty") else "")
    seconds = np.array([seconds.get(s, np.nan) for s in step])
    return Seed(folder, args, step, value, seconds, metric, int(rows[-1]["episodes"]), commit)


def read_seeds(args: ReportArgs) -> list[Seed]:
    """All seeds below the given folders that pass the filters; a warning on stderr for each that cannot be read.

    Raises:
        InputError: there is nothing to report.
    """
    folders: dict[Path, Path] = {}  # where a folder is -> by which name it was found
    for path in args.runs:
        if not path.is_dir():
            print(f"warning: {path}: no such folder", file=sys.stderr)
        for name in ("config.json", "eval.csv"):
            for found in glob.glob(f"{glob.escape(str(path))}/**/{name}", recursive=True):  # follows links
                folder = Path(found).parent
                if not {"wandb", "videos"} & set(folder.relative_to(path).parts):
                    folders.setdefault(folder.resolve(), folder)
    seeds = []
    for folder in sorted(folders.values()):
        try:
            seeds.append(read_seed(folder, args.metric))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            print(f"warning: {folder}: skipped ({type(error).__name__}: {error})", file=sys.stderr)
    if not seeds:
        where = " ".join(map(str, args.runs))
        raise InputError(f"{where}: no run to report; a run's folder holds config.json, eval.csv")
    for part in [part for parts in args.filter for part in parts]:
        name, _, pattern = part.partition("=")
        name = name.replace("-", "_")
        if not any(name in seed.args for seed in seeds):
            raise InputError(f"--filter {part}: no run has an argument {name}")
        values = [words(seed.args.get(name)) for seed in seeds]
        seeds = [seed for seed, value in zip(seeds, values, strict=True)
                 if pattern.lower() == value.lower() or fnmatch.fnmatchcase(value, pattern)]  # fmt: skip
        if not seeds:
            raise InputError(f"--filter {part}: no run is left; there are {', '.join(sorted(set(values)))}")
    return seeds


def words(value) -> str:
    """An argument's value as tables and filters have it: 3 for 3.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def suite(env: str) -> str:
    """The suite of an environment, or its own name where this code does not know it."""
    with contextlib.suppress(InputError):
        return suites.identify(env)[0]
    return env


def group(seeds: list[Seed]) -> dict[tuple[str, int, str], list[Seed]]:
    """(environment, pairs, method) -> its seeds. Other arguments in which runs of one method differ join its name, on
    all tasks of a suite if on one of them, so that a method has one name there."""
    usual = {"env", "seed", "algorithm", "num_preferences", "eval_every", "eval_episodes", "log_every",
             *INCIDENTAL} - {"preferences", "dataset"}  # fmt: skip
    values: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    names = sorted({name for seed in seeds for name in seed.args} - usual)
    for seed in seeds:
        for name in names:
            if (value := seed.args.get(name, UNSET)) is not None:  # None: the fingerprint of what was not read
                values[seed.args["algorithm"], seed.args["env"], name].add(json.dumps(value))
    varied = {key for key, found in values.items() if len(found) > 1}
    varied |= {(method, suite(env), name) for method, env, name in varied if name not in ("preferences", "dataset")}
    groups = defaultdict(list)
    for seed in sorted(seeds, key=lambda seed: (seed.args["seed"], -seed.step[-1])):  # of twins the one that went on
        method, env = seed.args["algorithm"], seed.args["env"]
        own = [f"{name}={words(seed.args.get(name, UNSET))}" for name in names
               if {(method, env, name), (method, suite(env), name)} & varied]  # fmt: skip
        key = env, seed.args["num_preferences"], " ".join([method, *own])
        twin = next((other for other in groups[key] if other.args["seed"] == seed.args["seed"]), None)
        if twin:
            print(f"warning: {seed.folder}: skipped, the same seed and arguments as {twin.folder}", file=sys.stderr)
        else:
            groups[key].append(seed)
    return dict(sorted(groups.items(), key=lambda item: (suite(item[0][0]), *item[0][:2], rank(item[0][2]))))


def rank(method: str) -> tuple[int, str]:
    """Sorts METHODS first, in their order."""
    return METHODS.index(method) if method in METHODS else len(METHODS), method


# ---------------------------------------------------------------- tables
def cell(values: np.ndarray) -> str:
    """Mean and 95 % bootstrap interval over seeds."""
    low, high = bootstrap(values)
    return f"{values.mean():.1f}" + (f" [{low:.1f}, {high:.1f}]" if len(values) > 1 else "")


def unfinished(seeds: list[Seed]) -> str:
    return "" if all(seed.finished for seed in seeds) else " (unfinished)"


def span(seeds: list[Seed]) -> str:
    """The steps at which seeds stand."""
    steps = sorted({int(seed.step[-1]) for seed in seeds})
    return (str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}") + unfinished(seeds)


def main_table(groups: dict) -> list[list[str]]:
    """One row a group: the last evaluation of its seeds, and the best of each."""
    rows = [["task", "pairs", "method", "seeds", "steps", "metric", "last evaluation", "best evaluation"]]
    for (env, pairs, method), seeds in groups.items():
        last, best = (np.array([choose(seed.value) for seed in seeds]) for choose in (lambda v: v[-1], np.max))
        rows.append([env, str(pairs or "all"), method, str(len(seeds)), span(seeds),
                     NAMES[seeds[0].metric], cell(last), cell(best)])  # fmt: skip
    return rows


def iqm_table(groups: dict) -> list[list[str]]:
    """Interquartile mean over tasks and seeds by rliable, of methods that ran on more than one task of a suite."""
    found = defaultdict(lambda: defaultdict(dict))
    for (env, pairs, method), seeds in groups.items():
        found[suite(env), seeds[0].metric, pairs][method][env] = seeds
    rows = [["method", "pairs", "metric", "tasks", "seeds", "steps", "interquartile mean, last evaluation"]]
    for (_, metric, pairs), methods in sorted(found.items()):
        methods = {method: tasks for method, tasks in methods.items() if len(tasks) > 1}
        same = len({frozenset(tasks) for tasks in methods.values()}) < 2
        if not same:
            print(f"warning: {pairs or 'all'} pairs: interquartile means of different tasks; compare none of them "
                  "(--filter takes the tasks in common)", file=sys.stderr)  # fmt: skip
        for method, tasks in methods.items():
            count = min(map(len, tasks.values()))
            if count < max(map(len, tasks.values())):
                print(f"warning: {method}, {pairs} pairs: interquartile mean of the first {count} seeds of each task, "
                      "some have more", file=sys.stderr)  # fmt: skip
            point, low, high = interquartile_mean([[seed.value[-1] for seed in seeds[:count]]
                                                   for seeds in tasks.values()])  # fmt: skip
            rows.append([method, str(pairs or "all"), NAMES[metric],
                         str(len(tasks)) if same else f"{len(tasks)}: {', '.join(tasks)}", str(count),
                         span([seed for seeds in tasks.values() for seed in seeds]),
                         f"{point:.1f}" + (f" [{low:.1f}, {high:.1f}]" if count > 1 else "")])  # fmt: skip
    return rows


def interquartile_mean(scores: list[list[float]]) -> tuple[float, float, float]:
    """Interquartile mean of (tasks, seeds) and its 95 % interval, by rliable's bootstrap of each task's seeds."""
    import warnings

    with warnings.catch_warnings(action="ignore"):
        from rliable import library, metrics

        np.random.seed(0)  # rliable's bootstrap draws from numpy's global state
        point, ends = library.get_interval_estimates(
            {"": np.array(scores).T}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000
        )
    return point[""][0], *ends[""].ravel()


def ablation_table(seeds: list[Seed]) -> list[list[str]]:
    """Mean score by the value of each argument that varies: over the settings of all other arguments, tasks and methods
    in which every value of it was run, each setting with the mean of its seeds."""
    rows = [["argument", "value", "settings", "runs", "mean of last evaluations"]]
    skip = {"seed", *INCIDENTAL} - {"preferences", "dataset"}
    if len({seed.metric for seed in seeds}) > 1:
        return rows
    for name in sorted({name for seed in seeds for name in seed.args} - skip - {"env", "algorithm"}):
        settings: dict[str, dict] = defaultdict(lambda: defaultdict(list))  # all other arguments -> value -> results
        for seed in seeds:
            rest = {k: v for k, v in seed.args.items() if k not in skip | {name}}
            value = json.dumps(seed.args.get(name, UNSET))
            settings[json.dumps(rest, sort_keys=True)][value].append(seed.value[-1])
        settings = {rest: results for rest, results in settings.items() if len(results) > 1}  # else nothing to compare
        values = {value: json.loads(value) for results in settings.values() for value in results}
        whole = [results for results in settings.values() if len(results) == len(values)]
        if len(whole) < len(settings):
            print(f"warning: {name}: {len(settings) - len(whole)} of {len(settings)} settings lack some of its values "
                  "and are not in the table of arguments", file=sys.stderr)  # fmt: skip
        for value in sorted(values, key=lambda v: (0, values[v]) if isinstance(values[v], float | int) else (1, v)):
            found = [results[value] for results in whole]
            if found:
                rows.append([name, value.strip('"'), str(len(found)), str(sum(map(len, found))),
                             f"{np.mean([np.mean(scores) for scores in found]):.1f}"])  # fmt: skip
    return rows


def note(seeds: list[Seed]) -> str:
    """What the numbers are, and the code that made them."""
    commits, episodes = Counter(seed.commit for seed in seeds), sorted({seed.episodes for seed in seeds})
    code = ", ".join(f"{commit.removesuffix('+')} ({count} runs{', files changed' if commit[-1] == '+' else ''})"
                     for commit, count in sorted(commits.items()))  # fmt: skip
    return (
        "In brackets: 95 % bootstrap interval over seeds; of 3 seeds it is the lowest and the highest, and holds "
        "the true mean 3 times in 4, not 95 in 100. That of the interquartile mean, which leaves out the lowest "
        "and the highest quarter of all runs, draws anew the seeds of each task. Last: at the last step. Best: "
        "each seed's best evaluation, biased upwards, the more so the more a method wavers. Episodes of an "
        f"evaluation: {', '.join(map(str, episodes))}. Code: {code}."
    )


def markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("---" for _ in rows[0]) + " |", *lines[1:]])


def latex(rows: list[list[str]]) -> str:
    def safe(text: str) -> str:
        for sign in "&%_#":
            text = text.replace(sign, "\\" + sign)
        return text

    body = [" & ".join(map(safe, row)) + r" \\" for row in rows]
    return "\n".join([rf"\begin{{tabular}}{{{'l' * len(rows[0])}}}", r"\toprule", body[0], r"\midrule", *body[1:],
                      r"\bottomrule", r"\end{tabular}"])  # fmt: skip


# ---------------------------------------------------------------- pictures
def new_figure(panels: int):
    import matplotlib.figure  # without pyplot, which keeps every figure and looks for a display

    matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                            "grid.alpha": 0.3, "pdf.fonttype": 42})  # fmt: skip
    columns = min(panels, 3)
    lines = -(-panels // columns)
    figure = matplotlib.figure.Figure(figsize=(2.7 * columns, 2.4 * lines))
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[panels:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:panels])


def look(groups: dict) -> dict[str, dict]:
    """The colour, line style and marker of each method, no two alike among 32."""
    others = sorted({method for *_, method in groups} - set(METHODS))
    return {method: {"color": COLOURS[i % 8], "linestyle": STYLES[(i + i // 8) % 4], "marker": MARKERS[i % 8]}
            for i, method in enumerate([*METHODS, *others])}  # fmt: skip


def save_figure(figure, axes, out: Path, name: str) -> list[Path]:
    """Write NAME.png and .pdf, with one legend below all panels."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    handles = {label: handles[label] for label in sorted(handles, key=rank)}
    width, height = figure.get_size_inches()
    columns = int(width / (0.6 + 0.08 * max(map(len, handles), default=1)))  # inches of a line and of a letter
    columns = max(1, min(columns, len(handles)))
    legend = 0.1 + 0.2 * -(-len(handles) // columns)
    figure.set_size_inches(width, height + legend)
    figure.tight_layout(rect=(0, legend / (height + legend), 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=columns, frameon=False)
    paths = [out / f"{name}.png", out / f"{name}.pdf"]
    figure.savefig(paths[0], dpi=150, bbox_inches="tight", metadata={"Software": None})
    figure.savefig(paths[1], bbox_inches="tight", metadata={"CreationDate": None, "Producer": None})
    return paths


def curve(method: str, seeds: list[Seed], x: str) -> np.ndarray:
    """(K, 4) x, mean over seeds, low and high end of its 95 % interval, at the steps that all seeds have."""

    def warn(seed: Seed, what: str) -> None:
        print(f"warning: {seed.folder}: {what}", file=sys.stderr)

    if x == "wall-clock":
        seeds = [seed for seed in seeds if np.isfinite(seed.seconds).all() or warn(seed, "no time.csv, left out")]
    last = max((seed.step[-1] for seed in seeds), default=0)
    for seed in seeds:
        if seed.step[-1] < last:
            warn(seed, f"ends at step {seed.step[-1]}, and so does the curve of {method}")
    steps = sorted(set.intersection(*(set(seed.step) for seed in seeds))) if seeds else []
    rows = []
    for step in steps:
        at = [float(step if x == "step" else seed.seconds[seed.step == step][0]) for seed in seeds]
        values = np.array([seed.value[seed.step == step][0] for seed in seeds])
        rows.append((np.mean(at), values.mean(), *bootstrap(values)))
    return np.array(rows).reshape(-1, 4)


def percent(axis, metric: str) -> None:
    axis.set_ylabel(NAMES[metric])
    if metric in SCALE:
        axis.set_ylim(-4, 104)


def curves(groups: dict, x: str, out: Path) -> list[Path]:
    """Mean over seeds with its 95 % interval, a panel for each task and number of pairs; and the numbers as CSV."""
    found = {key: line for key, seeds in groups.items() if len(line := curve(key[2], seeds, x))}
    panels, styles, label = Counter(key[:2] for key in found), look(groups), "updates"
    if x == "wall-clock":
        label = "wall-clock of the process, s"
    figure, axes = new_figure(len(panels))
    for axis, (env, pairs) in zip(axes, panels, strict=True):
        mark = ""
        for (*panel, method), line in found.items():
            if (env, pairs) == tuple(panel):
                seeds, style = groups[env, pairs, method], styles[method]
                mark = mark or unfinished(seeds)
                at, mean, low, high = line.T
                axis.plot(at, mean, label=method, markersize=3.5, linewidth=1.4, **style)
                faint = 0.15 if panels[env, pairs] < 4 else 0.05  # many bands on one another would be one grey
                axis.fill_between(at, low, high, color=style["color"], alpha=faint, linewidth=0)
                for edge in (low, high):  # tells bands apart in grey
                    axis.plot(at, edge, color=style["color"], linestyle=style["linestyle"], linewidth=0.4)
                percent(axis, seeds[0].metric)
        axis.set_title(f"{env}, {pairs or 'all'} pairs{mark}", fontsize=8)
        axis.set_xlabel(label)
        axis.locator_params(axis="x", nbins=4)
    with open(out / "curves.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "pairs", "method", "updates" if x == "step" else "seconds", "mean", "low", "high"])
        for key, line in found.items():
            writer.writerows([*key, *(f"{number:.6g}" for number in row)] for row in line)
    return [out / "curves.csv", *save_figure(figure, axes, out, "curves")]


def by_pairs(groups: dict) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """task -> method -> number of pairs -> last evaluations, where a method has more than one number of pairs."""
    found = defaultdict(lambda: defaultdict(dict))
    for (env, pairs, method), seeds in groups.items():
        if pairs:  # 0, all pairs, has no place on the axis
            found[env][method][pairs] = np.array([seed.value[-1] for seed in seeds])
    scaled = {env: {m: results for m, results in methods.items() if len(results) > 1} for env, methods in found.items()}
    return {env: methods for env, methods in scaled.items() if methods}


def scaling(groups: dict, out: Path) -> list[Path]:
    """The last evaluation against the number of pairs, a panel for each task."""
    tasks, styles = by_pairs(groups), look(groups)
    figure, axes = new_figure(len(tasks))
    for axis, (env, methods) in zip(axes, tasks.items(), strict=True):
        for i, (method, results) in enumerate(methods.items()):
            pairs, means = np.array(sorted(results)), np.array([results[p].mean() for p in sorted(results)])
            low, high = np.array([bootstrap(results[p]) for p in pairs]).T
            beside = pairs * 2 ** (0.08 * (i - (len(methods) - 1) / 2))  # else the intervals hide one another
            axis.errorbar(beside, means, yerr=(means - low, high - means), label=method, markersize=4, capsize=2,
                          linewidth=1.4, **styles[method])  # fmt: skip
        axis.set_xscale("log", base=2)
        ticks = sorted({p for results in methods.values() for p in results})
        axis.set_xticks(ticks, [str(p) for p in ticks])
        axis.minorticks_off()
        axis.set_title(env, fontsize=8)
        axis.set_xlabel("pairs")
        percent(axis, next(seeds for (e, *_), seeds in groups.items() if e == env)[0].metric)
    return save_figure(figure, axes, out, "scaling")


def main(args: ReportArgs) -> list[Path]:
    """Write tables and pictures; print the tables. Returns the paths written."""
    if args.x not in ("step", "wall-clock", "pairs"):
        raise InputError(f"--x {args.x}: must be step, wall-clock or pairs")
    if args.metric not in ("", *NAMES):
        raise InputError(f"--metric {args.metric}: must be one of {', '.join(NAMES)}")
    for part in [part for parts in args.filter for part in parts]:
        if "=" not in part:
            raise InputError(f"--filter {part}: must be ARGUMENT=PATTERN")
    if args.into and not Path(args.into).is_file():
        raise InputError(f"--into {args.into}: no such file")
    begin, end = "<!-- report -->", "<!-- end of report -->"
    document = Path(args.into).read_text() if args.into else ""
    if args.into and not 0 <= document.find(begin) < document.find(end):
        raise InputError(f"--into {args.into}: has no lines {begin} and {end}")
    groups = group(read_seeds(args))
    seeds = [seed for seeds in groups.values() for seed in seeds]
    if args.x == "pairs" and not by_pairs(groups):
        raise InputError("--x pairs: no method has runs with more than one number of pairs on a task")
    if args.x == "wall-clock" and not any(np.isfinite(seed.seconds).all() for seed in seeds):
        raise InputError("--x wall-clock: no run has a time.csv")
    tables = [("", main_table(groups)), ("Interquartile mean over tasks and seeds", iqm_table(groups)),
              ("By the value of an argument, all others alike", ablation_table(seeds))]  # fmt: skip
    tables = [(title, rows) for title, rows in tables if len(rows) > 1]
    text = "\n\n".join((f"{title}:\n\n" if title else "") + markdown(rows) for title, rows in tables)
    explained = note(seeds)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("curves.png", "curves.pdf", "curves.csv", "scaling.png", "scaling.pdf"):
        (args.out / name).unlink(missing_ok=True)  # of an earlier report
    (args.out / "tables.md").write_text(f"{text}\n\n{explained}\n")
    (args.out / "tables.tex").write_text("\n\n".join(latex(rows) for _, rows in tables) + f"\n% {explained}\n")
    paths = [args.out / "tables.md", args.out / "tables.tex"]
    if args.into:
        before, _, rest = document.partition(begin)
        with atomic(Path(args.into)) as partial:
            partial.write_text(f"{before}{begin}\n\n{text}\n\n{explained}\n\n{end}{rest.partition(end)[2]}")
    if args.x != "pairs":
        paths += curves(groups, args.x, args.out)
    if by_pairs(groups):
        paths += scaling(groups, args.out)
    print(f"{text}\n\n{explained}\n" + "\n".join(map(str, paths)))
    return paths


if __name__ == "__main__":
    with user_errors():
        main(parse_args(ReportArgs(tyro.MISSING)))
