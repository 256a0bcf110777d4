"""--actor-average: the averaged actor in a run, its files and columns, by hand."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from algorithms import ipl_iql
from common import seed_folder
from common.cli import default_args, parse_args
from common.errors import InputError
from common.seed_folder import SeedFolder
from common.training import Training
from common.trees import tree_map
from tests.conftest import SHIPPED, SMALL, SMALL_OF, few_of
from tools import evaluate
from tools.evaluate import EvaluateArgs, read_actor

COLUMNS = ["average_return_mean", "average_success", "average_score"]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["actor"]


def assert_equal(a: dict, b: dict) -> None:
    """Bit for bit."""
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def train(data_dir, tmp_path):
    """train(folder, *arguments, script=...) -> the folder of seed 1, after 8 updates with an evaluation every 4."""
    threads = torch.get_num_threads()

    def start(folder: str, *more, script: str = "ipl_iql") -> Path:
        module = importlib.import_module(f"algorithms.{script}")
        words = [*SMALL, *SMALL_OF.get(script, []), "--data-dir", data_dir, "--run-dir", tmp_path / folder,
                 "--total-steps", 8, "--eval-every", 4, "--max-episode-steps", 5, "--log-every", 2, *more]  # fmt: skip
        words = list(map(str, words))
        module.train(parse_args(default_args(module.Args, module.DEFAULTS, words), words))
        return tmp_path / folder / "seed-1"

    yield start
    torch.set_num_threads(threads)


@pytest.fixture
def actors(monkeypatch) -> list[dict]:
    """The actor of the last seed at every start, and after every update ahead of what the run makes of it."""
    seen, restore, log = [], Training.restore, Training.log

    def see(state):
        seen.append({name: p[-1].clone() for name, p in state["actor"].items()})
        return state

    monkeypatch.setattr(Training, "restore", lambda self, fresh: see(restore(self, fresh)))
    monkeypatch.setattr(Training, "log", lambda self, step, metrics, state, batch: log(
        self, step, metrics, see(state), batch))  # fmt: skip
    return seen


def by_hand(actors: list[dict]) -> dict:
    """The average at a rate of 1/4: the mean of the first four actors, then a quarter of the way at each update."""
    average = tree_map(lambda *leaves: torch.stack(leaves).mean(0), *actors[:4])
    for actor in actors[4:]:
        average = {name: 0.75 * p + 0.25 * actor[name] for name, p in average.items()}
    return average


def assert_close(a: dict, b: dict, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("script", few_of(SHIPPED, "cpl"))
def test_the_average_of_a_known_sequence(train, actors, tmp_path, script):
    """Of every script, over its phases: every update once, the untrained actor too; of several seeds each its own."""
    more = ["--bc-steps", 4, "--warmup-steps", 1] if script == "cpl" else []
    train("both", "--actor-average", 0.25, "--num-seeds", 2, "--eval-every", 8, *more, script=script)
    seed = tmp_path / "both/seed-2"
    assert len(actors) == 9 and not torch.equal(actors[0]["w0"], actors[8]["w0"])
    assert_close(weights(seed / "final-average.pt"), by_hand(actors))
    assert_equal(weights(seed / "final.pt"), actors[-1])


def test_a_run_without_it_is_what_it_was_and_one_with_it_trains_the_same(train, tmp_path, capfd):
    off, on = train("off"), train("on", "--actor-average", 0.25)
    assert_equal(weights(off / "final.pt"), weights(on / "final.pt"))
    assert_equal(weights(off / "best.pt"), weights(on / "best.pt"))
    assert (off / "train.csv").read_bytes() == (on / "train.csv").read_bytes()
    plain, both = rows(off / "eval.csv"), rows(on / "eval.csv")
    assert list(both[0]) == [*plain[0], *COLUMNS]
    assert [{name: row[name] for name in plain[0]} for row in both] == plain
    assert both[0]["average_return_mean"] == both[0]["return_mean"]  # untrained: one actor, and the same starts
    assert all(row["average_return_mean"] != row["return_mean"] for row in both[1:])
    assert [row["average_success"] for row in both] == ["0.0"] * 3
    states = [torch.load(seed / "checkpoint.pt", weights_only=True)["state"] for seed in (off, on)]
    assert states[0].keys() == {"actor", "critic", "value", "critic_target", "adam", "step"}
    assert states[1].keys() == {*states[0], "actor_average"}
    assert_equal(states[1]["actor_average"], weights(on / "final-average.pt"))
    said = capfd.readouterr().out
    assert not list(off.glob("*average*")) and "success 0.00, averaged 0.00" in said
    (row,) = [line.split() for line in said.splitlines() if line.endswith("  averaged")]  # of the closing table
    best = max(both[1:], key=lambda row: float(row["average_return_mean"]))
    assert row[:4] == ["1", "8", "0.00", f"{float(both[-1]['average_return_mean']):.1f}"] and row[4] == best["step"]
    # its files are actors like others: evaluated, exported
    saved, _ = read_actor(on / "final-average.pt")
    assert saved["step"] == 8 and saved["max_episode_steps"] == 5
    found = evaluate.main(EvaluateArgs((on / "final.pt", on / "final-average.pt"), episodes=2, workers=1))
    assert found[0]["return"].shape == found[1]["return"].shape == (2,)
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    evaluate.main(EvaluateArgs((on / "best-average.pt",), export=str(tmp_path / "policy.onnx")))
    assert (tmp_path / "policy.onnx").stat().st_size > 1000


@pytest.mark.parametrize("more", [(), ("--compile",)])
def test_evaluations_beside_training_are_those_in_turn(train, monkeypatch, more):
    """Of two seeds and their averages, which training changes meanwhile."""
    monkeypatch.setattr(Training, "compile", lambda self, update: update)
    both = "--actor-average", 0.25, "--num-seeds", 2, "--log-every", 1, *more
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    turn, pending, log = train("turn", *both), [], Training.log
    monkeypatch.setattr(
        Training, "log", lambda self, *what: pending.append(self.pending is not None) or log(self, *what)
    )
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    monkeypatch.setattr("common.training.torch.get_num_threads", lambda: 2 if more else 1)
    beside = train("beside", *both)
    if len(os.sched_getaffinity(0)) > 1:
        assert pending[0] and any(pending[4:]) != bool(more)  # where no core is free, while the update is compiled
    for seed in (1, 2):
        a, b = turn.with_name(f"seed-{seed}"), beside.with_name(f"seed-{seed}")
        for name in ("final.pt", "best.pt", "final-average.pt", "best-average.pt"):
            assert_equal(weights(a / name), weights(b / name))
        assert all((a / name).read_bytes() == (b / name).read_bytes() for name in ("train.csv", "eval.csv"))


def test_a_resumed_average_has_the_same_bits(train):
    whole = train("whole", "--actor-average", 0.25)
    train("stopped", "--actor-average", 0.25, "--total-steps", 4)
    stopped = train("stopped", "--actor-average", 0.25)
    for name in ("final.pt", "final-average.pt", "best-average.pt"):
        assert_equal(weights(whole / name), weights(stopped / name))
    assert (whole / "eval.csv").read_bytes() == (stopped / "eval.csv").read_bytes()
    for rate in (0.5, 0.0):
        with pytest.raises(InputError, match=f"--actor-average 0.25 -> {rate}"):
            train("stopped", "--actor-average", rate)


def test_a_run_from_before_the_flag_resumes_with_and_without_it(train, actors, tmp_path):
    """Its average begins at the actor that it has; rows of eval.csv from before have empty cells."""
    seed = train("old", "--total-steps", 4)
    config, checkpoint = json.loads((seed / "config.json").read_text()), torch.load(seed / "checkpoint.pt")
    del config["args"]["actor_average"], checkpoint["args"]["actor_average"]
    (seed / "config.json").write_text(json.dumps(config))
    torch.save(checkpoint, seed / "checkpoint.pt")
    shutil.copytree(seed.parent, tmp_path / "without")
    train("old", "--actor-average", 0.5)
    average = actors[5]  # at the second start
    for actor in actors[6:]:
        average = {name: 0.5 * p + 0.5 * actor[name] for name, p in average.items()}
    assert_equal(actors[4], actors[5])
    assert_close(weights(seed / "final-average.pt"), average)
    table = rows(seed / "eval.csv")
    assert [row["step"] for row in table if row["average_return_mean"]] == ["8"] and len(table) == 3
    without = train("without")
    assert_equal(weights(without / "final.pt"), weights(seed / "final.pt"))
    assert json.loads((without / "config.json").read_text())["args"]["actor_average"] == 0.0
    with pytest.raises(InputError, match=r"--actor-average 0.0 -> 0.5"):
        train("without", "--actor-average", 0.5)


@pytest.mark.slow
def test_that_of_several_seeds_is_that_of_one(train, tmp_path):
    """As the actor: up to rounding."""
    train("both", "--actor-average", 0.25, "--num-seeds", 2)
    train("alone", "--actor-average", 0.25, "--seed", 2)
    both, alone = (weights(tmp_path / folder / "seed-2/final-average.pt") for folder in ("both", "alone"))
    assert_close(both, alone, rtol=1e-4, atol=1e-5)


def test_it_is_on_where_data_is_ones_own():
    for script in SHIPPED:
        module = importlib.import_module(f"algorithms.{script}")
        rates = [default_args(module.Args, module.DEFAULTS, ["--env", env]).actor_average
                 for env in ("drawer-open-v2", "can-ph", "hopper-medium-replay-v2", "Pendulum-v1")]  # fmt: skip
        assert rates == [0.0, 0.0, 0.0, 0.002], script
        assert module.DEFAULTS["minari:*"]["actor_average"] == 0.002


def test_the_best_average_goes_by_its_own_evaluations(tmp_path):
    """By the rules of best.pt: never the untrained one, ties by return, then to the later step, none not finite."""
    args = default_args(ipl_iql.Args, ipl_iql.DEFAULTS, ["--env", "Pendulum-v1"])
    run = SeedFolder(tmp_path / "seed-1", args, "ipl_iql")
    run.begin({}, torch.device("cpu"), track=False)
    row, best = {"episodes": 2, "return_std": 0.0, "score": None, "length": 7.0, "faults": []}, []
    actor = {"w0": torch.zeros(1)}
    of_actor = ((0, None, 9.0), (10, 0.5, 1.0), (20, 0.1, 0.0), (30, 0.4, 1.0), (40, 0.5, 0.0), (50, 0.2, 0.0))
    of_average = ((None, 9.0), (None, 1.0), (0.0, 1.0), (0.5, float("nan")), (0.1, -5.0), (None, 3.0))
    for (step, success, total), (also, mean) in zip(of_actor, of_average, strict=True):
        own, other = ({**row, "success": s, "return_mean": r} for s, r in ((success, total), (also, mean)))
        run.log_eval(step, own, actor, (other, {"w0": torch.ones(1)}))
        best.append([seed_folder.read_saved(tmp_path / f"seed-1/{name}.pt", ())["step"]
                     for name in ("best", "best-average")])  # fmt: skip
    assert best == [[0, 0], [10, 10], [10, 20], [10, 20], [10, 40], [10, 40]]
    assert [r["average_success"] for r in run.log.rows["eval"]] == ["0.0", "0.0", "0.0", "0.5", "0.1", "0.0"]
    assert run.describe_eval() == "success 0.20, averaged 0.00"
    assert weights(tmp_path / "seed-1/best-average.pt")["w0"].item() == 1.0
    assert run.summary()["last"]["average_return_mean"] == 3.0 and run.summary()["best"]["step"] == 10
    run._erase()
    assert [path.name for path in (tmp_path / "seed-1").iterdir()] == [".lock"]
    run.close()
