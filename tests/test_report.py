"""Tables and pictures of run folders; evaluation of a saved actor."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from common import suites
from common.cli import default_args, parse_args
from common.errors import InputError
from common.seed_folder import stored
from tests.conftest import REPOSITORY
from tools import report
from tools.report import ReportArgs

SWEEPS = ["published", "cosine", "small", "label_noise", "few_labels"]


def write_run(base: Path, method: str, env: str, pairs: int, seed: int, values: list[float], **args) -> Path:
    """A seed's folder with evaluations every 10 steps; `values`: success, or score where the environment is D4RL's."""
    folder = base / env / f"{method}-{pairs}-{'-'.join(map(str, args.values()))}" / f"seed-{seed}"
    folder.mkdir(parents=True)
    total = 10 * (len(values) - 1)
    config = {"algorithm": method, "args": {"env": env, "seed": seed, "num_preferences": pairs, "total_steps": total,
                                            "beta": 0.5, **args}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    rows = ["step,episodes,return_mean,return_std,success,score,length"]
    for i, value in enumerate(values):
        success, score = ("", value) if "medium" in env else (value, "")
        rows.append(f"{10 * i},20,{100 * value},1.0,{success},{score},500.0")
    (folder / "eval.csv").write_text("\n".join(rows) + "\n")
    times = [f"{10 * i},1.0,{5.0 * i},2.0" for i in range(len(values))]
    (folder / "time.csv").write_text("\n".join(["step,time/data,time/train,time/eval", *times]) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path) -> Path:
    base = tmp_path / "runs"
    for pairs, ends in ((500, (0.2, 0.4, 0.6)), (1000, (0.5, 0.7, 0.9))):
        for seed, end in enumerate(ends, 1):
            for env in ("drawer-open-v2", "sweep-into-v2"):
                write_run(base, "ipl_iql", env, pairs, seed, [0.0, 1.0, end])
    for seed in (1, 2):
        write_run(base, "mr_iql", "drawer-open-v2", 500, seed, [0.0, 0.1])
        write_run(base, "ipl_iql", "hopper-medium-expert-v2", 100, seed, [1.0, 50.0 * seed])
    return base


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_tables_by_hand(runs, tmp_path):
    report.main(ReportArgs((runs,), tmp_path / "out"))
    table = {tuple(row[:3]): row[3:] for row in rows_of((tmp_path / "out/tables.md").read_text())}
    low, high = np.percentile(np.random.default_rng(0).choice([20.0, 40.0, 60.0], (10_000, 3)).mean(1), (2.5, 97.5))
    assert table["drawer-open-v2", "500", "ipl_iql"] == [
        "3", "20", "success, %", f"40.0 [{low:.1f}, {high:.1f}]", "100.0"]  # fmt: skip
    assert table["drawer-open-v2", "500", "mr_iql"][1:4] == ["10", "success, %", "10.0 [10.0, 10.0]"]
    assert table["hopper-medium-expert-v2", "100", "ipl_iql"][2:4] == ["D4RL score", "75.0 [50.0, 100.0]"]
    iqm = stats.trim_mean([20, 40, 60, 20, 40, 60], 0.25)
    assert table["ipl_iql", "500", "success, %"][:3] == ["2", "3", "20"]
    assert table["ipl_iql", "500", "success, %"][3].startswith(f"{iqm:.1f} [")
    tex = (tmp_path / "out/tables.tex").read_text()
    assert r"drawer-open-v2 & 500 & ipl\_iql & 3 & 20 & success, \%" in tex


def test_rules_of_reporting(tmp_path):
    """final and best of 21 evaluations of two seeds, by hand; best smoothed as the original."""
    curves = np.random.default_rng(0).integers(0, 21, (2, 21)) / 20
    for seed, values in enumerate(curves, 1):
        write_run(tmp_path / "runs", "ipl_iql", "drawer-open-v2", 500, seed, list(values))
    late = 100 * curves[:, [19, 20]].mean(1)  # steps 190 and 200 of 200; 180 is the end of the tenth before
    for smooth in (1, 5, 50):
        report.main(ReportArgs((tmp_path / "runs",), tmp_path / "out", smooth=smooth))
        (row,) = [row for row in rows_of((tmp_path / "out/tables.md").read_text()) if row[0] == "drawer-open-v2"]
        width = min(smooth, 21)
        best = 100 * np.convolve(curves.mean(0), np.ones(width) / width, "valid").max()
        found = [float(cell.split(" [")[0]) for cell in row[6:]]
        assert found == pytest.approx([late.mean(), best], abs=0.051)
    report.main(ReportArgs((tmp_path / "runs",), tmp_path / "quarter", late="quarter"))
    text = (tmp_path / "quarter/tables.md").read_text()
    (row,) = [row for row in rows_of(text) if row[0] == "drawer-open-v2"]
    assert float(row[6].split(" [")[0]) == pytest.approx(100 * curves[:, 16:].mean(), abs=0.051)  # 160 to 200
    assert "in the last quarter of training" in text and "in that quarter: 5." in text
    explained = (tmp_path / "out/tables.md").read_text().split("\n")[-2]
    assert "moving average over 50 evaluations" in explained and "in that tenth: 2." in explained
    assert report.Seed(tmp_path, {}, pd.DataFrame({"value": [3.0]}, index=[0]), "score", 1, "", 0).final == 3  # at once


def test_a_run_without_a_success_had_none_where_others_had_some(tmp_path):
    """Never is a success beside a return."""
    write_run(tmp_path / "runs", "ipl_iql", "My-v0", 50, 1, [0.0, 0.5])
    never = write_run(tmp_path / "runs", "ipl_iql", "My-v0", 50, 2, [0.0, 0.5]) / "eval.csv"
    never.write_text("".join(line.replace(",0.5,,", ",,,").replace(",0.0,,", ",,,") for line in never.open()))
    assert report.read_seed(never.parent, "").metric == "return_mean"
    seeds = report.read_seeds(ReportArgs((tmp_path / "runs",)))
    assert [(seed.metric, seed.final) for seed in seeds] == [("success", 50.0), ("success", 0.0)]
    asked = report.read_seeds(ReportArgs((tmp_path / "runs",), metric="success"))
    assert [(seed.metric, seed.final) for seed in asked] == [("success", 50.0), ("success", 0.0)]


def test_a_seed_that_is_behind_and_files_of_ones_own(tmp_path):
    """`best` says how far it goes, and no fifths are shown; a report removes the pictures of another one alone."""
    write_run(tmp_path / "runs", "ipl_iql", "drawer-open-v2", 500, 1, [0.0, 0.25] + [1.0] * 60, total_steps=610)
    write_run(tmp_path / "runs", "ipl_iql", "drawer-open-v2", 500, 2, [0.0, 0.25] + [0.5] * 50, total_steps=610)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("noise.png", "scaling.csv"):
        (out / name).write_text("mine")
    report.main(ReportArgs((tmp_path / "runs",), out))
    text = (out / "tables.md").read_text()
    assert rows_of(text)[2][-2:] == ["75.0 [50.0, 100.0]", "75.0 (to 510)"] and "1st fifth" not in text
    assert (out / "noise.png").read_text() == (out / "scaling.csv").read_text() == "mine"
    report.main(ReportArgs((tmp_path / "runs",), out))
    assert not (out / "noise.png").exists() and (out / "scaling.csv").exists()


def test_each_fifth_of_training(tmp_path):
    """Means of eight evaluations each, without the one of step 0; change in the second half; none of shorter runs."""
    for seed, values in ((1, [1.0] + [0.0, 0.5] * 20), (2, [1.0] + [1.0] * 32 + [0.25] * 8)):
        write_run(tmp_path / "runs", "ipl_iql", "drawer-open-v2", 500, seed, values)
    write_run(tmp_path / "runs", "mr_iql", "drawer-open-v2", 500, 1, [0.0, 0.5] * 20)
    report.main(ReportArgs((tmp_path / "runs",), tmp_path / "out"))
    rows = rows_of((tmp_path / "out/tables.md").read_text())
    (row,) = rows[next(i for i, row in enumerate(rows) if "1st fifth" in row) + 2 :]
    early = ["62 [25, 100]"] * 4
    assert row == ["drawer-open-v2", "500", "ipl_iql", "2", *early, "25 [25, 25]", "27 [4, 50]"]  # 75 / 19 = 4


def test_curves_show_each_task_once(tmp_path):
    """At the number of pairs that most methods have; the CSV has all, smoothed where there are many evaluations."""
    for pairs, methods in ((500, ("ipl_iql", "mr_iql")), (4000, ("ipl_iql",))):
        for method in methods:
            write_run(tmp_path / "runs", method, "drawer-open-v2", pairs, 1, [0.0, 1.0] * 24)
    groups = report.group(report.read_seeds(ReportArgs((tmp_path / "runs",))))
    (tmp_path / "out").mkdir()
    assert [path.name for path in report.curves(groups, "step", 1, tmp_path / "out")][1:] == [
        "curves.png",
        "curves.pdf",
    ]
    table = pd.read_csv(tmp_path / "out/curves.csv")
    assert set(zip(table["pairs"], table["method"], strict=True)) == {
        (500, "ipl_iql"), (500, "mr_iql"), (4000, "ipl_iql")}  # fmt: skip
    assert set(table["mean"][table["updates"].between(10, 460)].round(3)) == {33.333, 66.667}  # 48 evaluations: of 3
    assert report.shown_pairs(groups) == {"drawer-open-v2": 500}


def test_pictures_of_label_noise(tmp_path, monkeypatch):
    """A panel of curves for each share of wrong labels; final against the share."""
    for share, end in ((0, 1.0), (0.2, 0.5)):
        for method in ("ipl_iql", "cpl"):
            name = f"data/drawer-open-v2-mistake-{share}.npz"
            write_run(tmp_path / f"runs/{share}", method, "drawer-open-v2", 4000, 1, [0.0, end], preferences=name)
    drawn = {}
    monkeypatch.setattr(report, "draw", lambda lines, label, out, name: drawn.update({name: lines}) or [])
    report.main(ReportArgs((tmp_path / "runs",), tmp_path / "out"))
    lines = drawn["curves"]
    assert set(zip(lines["panel"], lines["method"], strict=True)) == {
        (f"drawer-open-v2, {share} % wrong labels", method) for share in (0, 20) for method in ("ipl_iql", "cpl")
    }
    found = [tuple(row) for row in drawn["noise"][["method", "x", "mean"]].to_numpy()]
    assert found == [
        (method, share, end) for share, end in ((0.0, 100.0), (0.2, 50.0)) for method in ("cpl", "ipl_iql")
    ]


def test_report_is_the_same_every_time(runs, tmp_path):
    """Bytes of tables and pictures, in processes of their own."""
    for name in ("a", "b"):
        call = [sys.executable, "-m", "tools.report", str(runs), "--out", str(tmp_path / name)]
        assert subprocess.run(call, cwd=REPOSITORY, capture_output=True).returncode == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["curves.csv", "curves.pdf", "curves.png", "scaling.pdf", "scaling.png", "tables.md", "tables.tex"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).stat().st_size > 200


@pytest.mark.parametrize(
    ("runs", "source", "out"),
    [("published", "docs/results.md", "results/report"), ("small", "", "results/small/report"),
     ("label_noise", "", "results/label_noise/report"), ("few_labels", "", "results/few_labels/report")],
)  # fmt: skip
def test_published_results_are_what_the_report_makes_of_them(tmp_path, runs, source, out):
    """A page and its pictures, by the command that the page shows. Tables to the byte; pictures but for what another
    processor rounds otherwise."""
    published, page = REPOSITORY / out, tmp_path / "results.md"
    call = [sys.executable, "-m", "tools.report", f"results/{runs}", "--out", str(tmp_path / "report")]
    call += ["--late", "half"] if runs == "few_labels" else []
    if source:
        shutil.copy(REPOSITORY / source, page)
        call += ["--into", str(page)]
    done = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "skipped" not in done.stderr, done.stderr  # runs enter as they finish
    assert not source or page.read_text() == (REPOSITORY / source).read_text()
    assert sorted(path.name for path in published.iterdir()) == sorted(p.name for p in (tmp_path / "report").iterdir())
    for path in (tmp_path / "report").iterdir():
        if path.suffix in (".md", ".tex", ".csv"):
            assert path.read_bytes() == (published / path.name).read_bytes()
        if path.suffix == ".png":
            new, old = (imageio.imread(file).astype(float) / 255 for file in (path, published / path.name))
            assert new.shape == old.shape and np.abs(new - old).mean() < 4e-4


@pytest.mark.parametrize("sweep", SWEEPS)
def test_published_results_are_those_of_the_sweep(sweep):
    """Every run in results/SWEEP is one of sweeps/SWEEP.sh's, with its arguments. Runs enter as they finish."""
    shown = subprocess.run(["bash", REPOSITORY / f"sweeps/{sweep}.sh"], env=os.environ | {"ALL": "1"},
                           capture_output=True, text=True, check=True)  # fmt: skip
    found = {path.parent for path in (REPOSITORY / "results" / sweep).rglob("config.json")}
    for line in shown.stdout.splitlines():
        _, script, *words = shlex.split(line)
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        args = parse_args(default_args(module.Args, module.DEFAULTS, words), words)
        args = getattr(module, "fill_in", lambda args: args)(args)
        for seed in range(args.seed, args.seed + args.num_seeds):
            folder = REPOSITORY / "results" / Path(args.run_dir).relative_to("runs") / f"seed-{seed}"
            if folder not in found:
                continue
            found.remove(folder)
            config = json.loads((folder / "config.json").read_text())
            wanted = stored(args) | {"seed": seed}
            for both in (config["args"], wanted):  # which were one name once
                both |= {name: suites.several(both[name]) for name in ("dataset", "preferences")}
            for name in set(config["args"]) - {"data_dir", "run_dir"}:  # a flag that came later has its default
                assert config["args"][name] == wanted.get(name), (folder, name)
            assert config["algorithm"] == module.ALGORITHM
            assert report.read_seed(folder, "").finished
    assert not found  # of no command


def test_results_are_of_sweeps():
    assert {path.name for path in (REPOSITORY / "results").iterdir()} <= {*SWEEPS, "report"}


def test_tables_go_into_a_document(runs, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- report -->\nstale\n<!-- end of report -->\nafter\n<!-- end of report -->\n")
    report.main(ReportArgs((runs,), tmp_path / "out", into=str(page)))
    text = page.read_text()
    assert text.startswith("before\n<!-- report -->\n\n| task |") and "stale" not in text
    assert "| drawer-open-v2 | 500 |" in text and "| 2nd |" not in text and "| argument |" not in text  # one table
    report.main(ReportArgs((runs,), tmp_path / "out", (("env=sweep-*", "seed=1"),), into=str(page)))
    assert (
        "\npairs: 500" not in page.read_text()
        and "\nsteps: 20; metric: success, %\n\n| task | pairs |" in page.read_text()
    )
    assert text.endswith("\n<!-- end of report -->\nafter\n<!-- end of report -->\n")
    page.write_text("nothing here")
    with pytest.raises(InputError, match="has no lines"):
        report.main(ReportArgs((runs,), tmp_path / "out", into=str(page)))
    assert page.read_text() == "nothing here"


def test_an_evaluation_without_any_number_is_skipped(runs, tmp_path, capsys):
    bad = write_run(runs, "iql", "drawer-open-v2", 500, 1, [0.0])
    (bad / "eval.csv").write_text("step,episodes,return_mean,return_std,success,score,length\n0,20,,,,,\n")
    report.main(ReportArgs((runs,), tmp_path / "out"))
    assert f"warning: {bad}: skipped: eval.csv has no return_mean yet" in capsys.readouterr().err


def test_an_evaluation_that_is_not_finite_is_left_out(tmp_path, capsys):
    """Its run stays, with a mark at its steps and a word in the note; also where it is the last one."""
    one = write_run(tmp_path / "runs", "ipl_iql", "drawer-open-v2", 500, 1, [0.0, float("nan"), 0.6])
    write_run(tmp_path / "runs", "ipl_iql", "drawer-open-v2", 500, 2, [0.0, 1.0, 0.2])
    end = write_run(tmp_path / "runs", "mr_iql", "drawer-open-v2", 500, 1, [0.0, 0.4, 0.8])
    text = (end / "eval.csv").read_text()
    (end / "eval.csv").write_text(text.replace("10,20,40.0", "10,20,inf").replace("20,20,80.0", "20,20,-inf"))
    write_run(tmp_path / "runs", "bc", "drawer-open-v2", 500, 1, [0.0, 0.5])
    lost = write_run(tmp_path / "runs", "cpl", "drawer-open-v2", 500, 1, [float("inf")])
    report.main(ReportArgs((tmp_path / "runs",), tmp_path / "out"))
    table = {row[2]: row[3:8] for row in rows_of((tmp_path / "out/tables.md").read_text())}
    assert table["ipl_iql"] == ["2", "20*", "success, %", "40.0 [20.0, 60.0]", "40.0"]  # best: without the 1.0 at 10
    assert table["mr_iql"] == ["1", "20*", "success, %", "0.0", "0.0"]
    assert table["bc"][1] == "10" and "cpl" not in table
    said = capsys.readouterr()
    assert f"not finite: {one} at 10; {end} at 10, 20." in said.out
    assert said.err == f"warning: {lost}: skipped: eval.csv has no evaluation that is finite\n"
    write_run(tmp_path / "apart", "iql", "drawer-open-v2", 500, 1, [0.1], total_steps=10)  # no step in common
    write_run(tmp_path / "apart", "iql", "drawer-open-v2", 500, 2, [float("nan"), 0.3])
    report.main(ReportArgs((tmp_path / "apart",), tmp_path / "out"))
    assert "| iql | 2 | 0 to 10* (unfinished) | success, % | 20.0 [10.0, 30.0] |  |" in capsys.readouterr().out


def test_averaged_actors_have_rows_and_lines_of_their_own(tmp_path, monkeypatch):
    """Beside runs without them, whose numbers stay; late ones too, and rates that differ; dashed in the same colour."""
    base = tmp_path / "runs"
    for seed, rate, averages in ((1, 0.002, ("0.1", "0.3", "0.7")), (2, 0.002, ("", "0.5", "0.9")), (3, None, ())):
        more = {} if rate is None else {"actor_average": rate}
        table = write_run(base, "ipl_iql", "drawer-open-v2", 500, seed, [0.0, 0.2, 0.4], **more) / "eval.csv"
        if averages:
            head, *lines = table.read_text().splitlines()
            rows = [f"{head},average_return_mean,average_success,average_score"]
            rows += [f"{line},{average and 5.0},{average}," for line, average in zip(lines, averages, strict=True)]
            table.write_text("\n".join(rows) + "\n20,20,1.0,1.0,1.0,,500.0,7")  # and one that was cut
    drawn = {}
    monkeypatch.setattr(report, "draw", lambda lines, label, out, name: drawn.update({name: lines}) or [])
    report.main(ReportArgs((base,), tmp_path / "out"))
    text = (tmp_path / "out/tables.md").read_text()
    assert [row[2:] for row in rows_of(text) if row[0] == "drawer-open-v2"] == [
        ["ipl_iql", "3", "20", "success, %", "40.0 [40.0, 40.0]", "40.0"],
        ["ipl_iql averaged", "2", "20", "success, %", "80.0 [70.0, 90.0]", "80.0"]]  # fmt: skip
    assert "Code: None (3 runs)" in text and "Averaged: " in text
    lines = drawn["curves"]
    assert list(lines[lines["method"] == "ipl_iql averaged"]["mean"]) == [40.0, 80.0]  # where both seeds have one
    style = report.look({"ipl_iql", "mr_iql", "ipl_iql averaged"})
    assert style["palette"]["ipl_iql averaged"] == style["palette"]["ipl_iql"] != style["palette"]["mr_iql"]
    assert style["dashes"] == {"ipl_iql": "", "ipl_iql averaged": (2, 1), "mr_iql": (4, 1.5)}
    report.main(ReportArgs((base,), tmp_path / "out", (("averaged=false",),)))
    assert "ipl_iql averaged" not in (tmp_path / "out/tables.md").read_text()
    folder = write_run(base, "ipl_iql", "drawer-open-v2", 500, 4, [0.0, 0.2, 0.4], actor_average=0.01)
    (folder / "eval.csv").write_text(table.parent.parent.parent.joinpath(
        "ipl_iql-500-0.002/seed-1/eval.csv").read_text())  # fmt: skip
    report.main(ReportArgs((base,), tmp_path / "out"))
    names = [row[2] for row in rows_of((tmp_path / "out/tables.md").read_text()) if row[0] == "drawer-open-v2"]
    assert names == ["ipl_iql", "ipl_iql actor_average=0.002 averaged", "ipl_iql actor_average=0.01 averaged"]


def test_cloning_without_labels_stands_beside_every_number_of_pairs(tmp_path, capsys):
    """As in sweeps/few_labels.sh, where all methods train on the dataset; its evaluations count once."""
    base = tmp_path / "runs"
    for pairs in (50, 200):
        write_run(base, "ipl_iql", "drawer-open-v2", pairs, 1, [0.0, pairs / 250], use_replay=True)
    write_run(base, "bc", "drawer-open-v2", 4000, 1, [0.0, 0.6], use_replay=True)
    report.main(ReportArgs((base,), tmp_path / "out"))
    said = capsys.readouterr().out
    assert [row[1:3] + row[6:7] for row in rows_of(said) if row[0].endswith("-v2")] == [
        ["50", "ipl_iql", "20.0"], ["50", "bc", "60.0"], ["200", "ipl_iql", "80.0"], ["200", "bc", "60.0"]]  # fmt: skip
    assert "(3 runs" in said


def test_a_switch_is_named_like_on_the_command_line(tmp_path, capsys):
    """As in sweeps/published.sh: cloning of the segments is `bc`, of the whole dataset `bc --use-replay`."""
    base = tmp_path / "runs"
    for env in ("drawer-open-v2", "sweep-into-v2"):
        write_run(base, "bc", env, 4000, 1, [0.0, 0.2], use_replay=False)
    folder = write_run(base, "bc", "drawer-open-v2", 4000, 1, [0.0, 0.6], use_replay=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"dataset_fingerprint": {"dataset": "d", "preferences": "p"}})
    )
    report.main(ReportArgs((base,), tmp_path / "out"))
    said = capsys.readouterr()
    assert [row[:3] + row[6:7] for row in rows_of(said.out) if row[0].endswith("-v2")] == [
        ["drawer-open-v2", "4000", "bc", "20.0"], ["drawer-open-v2", "4000", "bc --use-replay", "60.0"],
        ["sweep-into-v2", "4000", "bc", "20.0"]]  # fmt: skip
    assert not said.err
    assert ",bc --use-replay,10," in (tmp_path / "out/curves.csv").read_text()
    assert report.look({"ipl_iql", "my_ipl"})["palette"]["my_ipl"] not in report.COLOURS[:1]
    styles = report.look(set(report.METHODS) | {f"m{i}" for i in range(27)})
    assert len({(styles["palette"][m], styles["dashes"][m]) for m in styles["hue_order"]}) == 36


def test_runs_from_before_a_flag_are_not_those_with_it(tmp_path, capsys):
    for seed in (1, 2):
        write_run(tmp_path / "runs", "ipl_iql", "drawer-open-v2", 500, seed, [0.0, 0.2])
        write_run(tmp_path / "runs", "ipl_iql", "drawer-open-v2", 500, seed, [0.0, 0.6], regulariser="l1")
    report.main(ReportArgs((tmp_path / "runs",), tmp_path / "out"))
    printed = capsys.readouterr()
    table = {row[2]: row[6] for row in rows_of(printed.out) if row[0] == "drawer-open-v2"}
    assert table["ipl_iql regulariser=unset"].startswith("20.0") and table["ipl_iql regulariser=l1"].startswith("60.0")
    assert ["regulariser", "unset", "1", "2", "20.0"] in rows_of(printed.out) and not printed.err


def test_filters_axes_and_metrics(runs, tmp_path, capsys):
    wanted = (("env=drawer-*",), ("num-preferences=500", "beta=0.5", "total_steps=2*"))  # given in two flags
    report.main(ReportArgs((runs,), tmp_path / "o", wanted, "wall-clock", "return_mean"))
    table = rows_of(capsys.readouterr().out)
    assert {row[0] for row in table if row[0].endswith("-v2")} == {"drawer-open-v2"}
    (mine,) = [row for row in table if row[2] == "ipl_iql" and len(row) == 8 and row[0] == "drawer-open-v2"]
    assert mine[5] == "return" and mine[6].startswith("40.0")
    report.main(ReportArgs((runs,), tmp_path / "p", (), "pairs"))
    assert not (tmp_path / "p/curves.png").exists() and (tmp_path / "p/scaling.pdf").exists()
    scaled = report.by_pairs(report.group(report.read_seeds(ReportArgs((runs,)))))
    assert {(env, *methods) for env, methods in scaled.items()} == {  # not mr_iql, which has one number of pairs
        ("drawer-open-v2", "ipl_iql"), ("sweep-into-v2", "ipl_iql")}  # fmt: skip
    report.main(ReportArgs((runs,), tmp_path / "p", wanted))  # no picture of an earlier report stays
    assert (tmp_path / "p/curves.png").exists() and not (tmp_path / "p/scaling.pdf").exists()
    assert (tmp_path / "p/curves.csv").read_text().splitlines()[:3] == [
        "task,pairs,method,updates,mean,low,high", "drawer-open-v2,500,ipl_iql,0,0,0,0",
        "drawer-open-v2,500,ipl_iql,10,100,100,100"]  # fmt: skip
    call = [sys.executable, "-m", "tools.report", str(runs), "--filter", "env=hopper*", "--filter", "seed=1", "seed=?"]
    done = subprocess.run([*call, "--out", tmp_path / "q"], cwd=REPOSITORY, capture_output=True, text=True)
    assert "| hopper-medium-expert-v2 | 100 | ipl_iql | 1 |" in done.stdout and "drawer" not in done.stdout
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/runs").symlink_to(runs)
    report.main(ReportArgs((tmp_path / "linked", runs), tmp_path / "r", wanted))
    said = capsys.readouterr()
    assert "| drawer-open-v2 | 500 | ipl_iql | 3 |" in said.out and not said.err


def test_ablation_and_unfinished_runs(tmp_path, capsys):
    base = tmp_path / "runs"
    for beta, end in ((0.1, 0.2), (1.0, 0.8)):
        for seed in (1, 2):
            folder = write_run(base, "ipl_iql", "drawer-open-v2", 500, seed, [0.0, 0.5, end], beta=beta)
    lines = (folder / "eval.csv").read_text().splitlines(keepends=True)
    (folder / "eval.csv").write_text("".join(lines[:-1]) + "20,20,80")  # cut in its last row
    report.main(ReportArgs((base,), tmp_path / "out"))
    said = capsys.readouterr().out
    assert "| drawer-open-v2 | 500 | ipl_iql beta=1 | 2 | 10 to 20 (unfinished) |" in said
    shutil.copytree(base, base / "copy")
    report.main(ReportArgs((base,), tmp_path / "out"))
    again = capsys.readouterr()
    assert again.out == said and again.err.count("same seed and arguments") == 4
    assert "| beta | 0.1 | 1 | 2 | 20.0 |" in said and "| beta | 1.0 | 1 | 2 | 65.0 |" in said
    write_run(base, "ipl_iql", "sweep-into-v2", 500, 1, [0.0, 0.1, 0.4], beta=1.0)
    report.main(ReportArgs((base,), tmp_path / "out"))
    assert "| ipl_iql beta=1 | 500 | success, % | 2 | the first 1 | 10 to 20 (unfinished) |" in capsys.readouterr().out


def test_ablations_compare_what_is_alike(tmp_path):
    """One argument changed at a time: a row's mean does not take in what another argument does."""
    base = tmp_path / "runs"
    for alpha, beta, end in ((1.0, 10.0, 0.5), (2.0, 10.0, 0.6), (1.0, 9.0, 0.1), (1.0, 100.0, 0.7)):
        write_run(base, "ipl_xql", "drawer-open-v2", 500, 1, [0.0, end], alpha=alpha, beta=beta)
    write_run(base, "iql", "drawer-open-v2", 500, 1, [0.0, 1.0], tau=0.1)  # has no alpha
    report.main(ReportArgs((base,), tmp_path / "out"))
    found = [row for row in rows_of((tmp_path / "out/tables.md").read_text()) if row[0] in ("alpha", "beta", "tau")]
    assert found == [["alpha", "1.0", "1", "1", "50.0"], ["alpha", "2.0", "1", "1", "60.0"],
                     ["beta", "9.0", "1", "1", "10.0"], ["beta", "10.0", "1", "1", "50.0"],
                     ["beta", "100.0", "1", "1", "70.0"]]  # fmt: skip


def test_ablations_leave_out_settings_without_every_value(tmp_path, capsys):
    """A hard task on which one value is missing must not make that value look good; nor may a task with more seeds."""
    base = tmp_path / "runs"
    for env, end, betas in (("drawer-open-v2", 0.9, (1.0, 2.0, 3.0)), ("sweep-into-v2", 0.1, (1.0, 2.0))):
        for beta in betas:
            write_run(base, "ipl_iql", env, 500, 1, [0.0, end], beta=beta)
    for env in ("drawer-open-v2", "plate-slide-v2"):
        write_run(base, "mr_iql", env, 500, 1, [0.0, 0.9])
    report.main(ReportArgs((base,), tmp_path / "out"))
    said = capsys.readouterr()
    assert [row for row in rows_of(said.out) if row[0] == "beta"] == [["beta", b, "1", "1", "90.0"] for b in
                                                                      ("1.0", "2.0", "3.0")]  # fmt: skip
    assert "1 of 2 settings lack" in said.err and "means of different tasks" in said.err
    assert "| mr_iql | 500 | success, % | 2: drawer-open-v2, plate-slide-v2 | 1 | 10 | 90.0 |" in said.out
    write_run(base, "ipl_iql", "sweep-into-v2", 500, 1, [0.0, 0.1], beta=3.0)
    write_run(base, "ipl_iql", "sweep-into-v2", 500, 2, [0.0, 0.1], beta=3.0)
    report.main(ReportArgs((base,), tmp_path / "out"))
    assert [row[2:] for row in rows_of(capsys.readouterr().out) if row[0] == "beta"] == [
        ["2", "2", "50.0"], ["2", "2", "50.0"], ["2", "3", "50.0"]]  # fmt: skip


def test_other_data_twins_and_seeds_that_lack_something(tmp_path, capsys):
    base = tmp_path / "runs"
    for k, end in enumerate((0.2, 0.4)):
        folder = write_run(base / str(k), "ipl_iql", "drawer-open-v2", 500, 1, [0.0, end])
        config = json.loads((folder / "config.json").read_text())
        config["dataset_fingerprint"] = {"preferences": f"data{k}"}
        (folder / "config.json").write_text(json.dumps(config))
    write_run(base, "ipl_iql", "sweep-into-v2", 500, 1, [0.0, 0.3])
    for k, values in (("a", [0.0]), ("b", [0.0, 0.3, 0.9])):  # the same run, copied early and late
        folder = write_run(base / k, "mr_iql", "sweep-into-v2", 500, 1, values, total_steps=20)
    (folder / "time.csv").unlink()
    report.main(ReportArgs((base,), tmp_path / "out", x="wall-clock"))
    said = capsys.readouterr()
    assert "| drawer-open-v2 | 500 | ipl_iql preferences=data0 | 1 | 10 | success, % | 20.0 |" in said.out
    assert "| drawer-open-v2 | 500 | ipl_iql preferences=data1 | 1 | 10 | success, % | 40.0 |" in said.out
    assert "| sweep-into-v2 | 500 | mr_iql | 1 | 20 | success, % | 90.0 |" in said.out
    assert f"{base}/a/sweep-into-v2/mr_iql-500-20/seed-1: skipped" in said.err and "no time.csv" in said.err
    for seed in range(2, 5):  # a fifth method, and legends that must not be cut
        write_run(base, "a_method_with_a_long_name", "sweep-into-v2", 500, seed, [0.0], total_steps=20, lr=0.1 * seed)
    report.main(ReportArgs((base,), tmp_path / "more"))
    picture = imageio.imread(tmp_path / "more/curves.png")[..., :3].min(-1)
    assert all((edge > 250).all() for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]))


def test_seeds_with_answers_of_their_own_are_one_method(tmp_path, capsys):
    """As sweeps/few_labels.sh has them: a file in a folder of the seed's name."""
    for seed in (1, 2):
        folder = write_run(tmp_path, "ipl_iql", "drawer-open-v2", 50, seed, [0.0, 0.2 * seed])
        config = json.loads((folder / "config.json").read_text())
        config["args"]["preferences"] = [f"labels/few/seed-{seed}/drawer-open-v2.npz"]
        config["dataset_fingerprint"] = {"preferences": f"data{seed}"}
        (folder / "config.json").write_text(json.dumps(config))
    report.main(ReportArgs((tmp_path,), tmp_path / "out"))
    assert "| drawer-open-v2 | 50 | ipl_iql | 2 |" in capsys.readouterr().out
    for seed in (1, 2):  # answers of another kind are another method
        folder = write_run(tmp_path / "more", "ipl_iql", "drawer-open-v2", 50, seed, [0.0, 0.9])
        config = json.loads((folder / "config.json").read_text())
        config["args"]["preferences"] = [f"labels/other/seed-{seed}/drawer-open-v2.npz"]
        config["dataset_fingerprint"] = {"preferences": f"other{seed}"}
        (folder / "config.json").write_text(json.dumps(config))
    report.main(ReportArgs((tmp_path,), tmp_path / "out"))
    said = capsys.readouterr()
    for what, success in (("few", "30.0"), ("other", "90.0")):
        name = f"ipl_iql preferences=labels/{what}/seed-*/drawer-open-v2.npz"
        assert f"| drawer-open-v2 | 50 | {name} | 2 | 10 | success, % | {success}" in said.out
    assert "skipped" not in said.err


def test_bad_folders_are_named_and_nothing_is_status_2(runs, tmp_path, capsys):
    bad = {name: runs / "drawer-open-v2/x" / name for name in ("no-config", "no-eval", "bad-json", "empty-eval")}
    good = next(runs.glob("drawer-open-v2/ipl_iql-500-/seed-1"))
    for folder in bad.values():
        shutil.copytree(good, folder)
    (bad["no-config"] / "config.json").unlink()
    (bad["no-eval"] / "eval.csv").unlink()
    (bad["bad-json"] / "config.json").write_text("{")
    (bad["empty-eval"] / "eval.csv").write_text("")
    config = json.loads((good / "config.json").read_text())
    wrong = ({"seed": None}, {"env": None}, {"total_steps": "10"}, {"num_preferences": "500"}, {"seed": 0.5})
    for i, change in enumerate(wrong):
        bad[f"type-{i}"] = runs / f"drawer-open-v2/x/type-{i}"
        shutil.copytree(good, bad[f"type-{i}"])
        (bad[f"type-{i}"] / "config.json").write_text(json.dumps({**config, "args": {**config["args"], **change}}))
    report.main(ReportArgs((runs, tmp_path / "nowhere"), tmp_path / "out"))
    errors = capsys.readouterr().err
    assert all(f"{folder}: skipped" in errors for folder in bad.values()) and "nowhere: no such folder" in errors
    assert f"{bad['no-eval']}: skipped: no eval.csv yet" in errors and "FileNotFoundError" not in errors
    nowhere = ReportArgs((tmp_path / "nowhere",))
    wrong = {
        "no run is left": {"filter": (("env=none",),)},
        "must be ARG": {"filter": (("env",),)},
        "argument bta": {"filter": (("bta=0.5",),)},
        "--metric m": {"metric": "m"},
        "--x y": {"x": "y"},
        "one number of pairs": {"x": "pairs", "filter": (("env=hopper*",),)},
        "no such file": {"into": "no.md"},
    }
    for file in runs.rglob("time.csv"):
        file.unlink()
    wrong["no run has a time.csv"] = {"x": "wall-clock"}
    for said, args in {
        "no run to": nowhere,
        "name a folder that holds runs": ReportArgs(()),
        **{k: ReportArgs((runs,), **v) for k, v in wrong.items()},
    }.items():
        with pytest.raises(InputError, match=said):
            report.main(args)
    call = [sys.executable, "-m", "tools.report", str(tmp_path / "nowhere")]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
