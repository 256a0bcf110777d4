"""Scripts as real processes: run folders, resuming, kills, several seeds, wrong input."""

from __future__ import annotations

import csv
import gc
import importlib
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithms import ipl_iql
from common.cli import default_args, parse_args, user_errors
from tests.conftest import REPOSITORY, SHIPPED, SMALL, SMALL_OF, command, environment, few_of

FILES = {"config.json", "train.csv", "eval.csv", "time.csv", "checkpoint.pt", "best.pt", "final.pt"}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["actor"]


def assert_same_run(a: Path, b: Path) -> None:
    """Bitwise the same actor and the same rows."""
    for name in ("final.pt", "best.pt"):
        first, second = tensors(a / name), tensors(b / name)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    for name in ("train.csv", "eval.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


@pytest.fixture
def reference(whole) -> Path:
    """The folder of an uninterrupted small run of seed 1."""
    return whole("ipl_iql")


def test_run_folder(reference):
    present = {path.name for path in reference.iterdir()}
    assert present >= FILES and any(name.startswith("events.out.tfevents") for name in present)
    evaluations = rows(reference / "eval.csv")
    assert list(evaluations[0]) == ["step", "episodes", "return_mean", "return_std", "success", "score", "length"]
    assert [row["step"] for row in evaluations] == ["0", "20", "40"]
    assert {(row["episodes"], row["length"], row["score"]) for row in evaluations} == {("1", "500.0", "")}
    logged = rows(reference / "train.csv")
    assert [row["step"] for row in logged] == ["10", "20", "30", "40"]
    assert all(math.isfinite(float(value)) for row in logged for value in row.values())
    config = json.loads((reference / "config.json").read_text())
    assert config["args"]["seed"] == 1 and config["args"]["hidden_sizes"] == [16, 16]
    assert config["versions"]["torch"] == torch.__version__ and len(config["dataset_fingerprint"]["preferences"]) == 16
    checkpoint = torch.load(reference / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 40 and checkpoint["schema"] == 1
    assert checkpoint["state"].keys() == {"actor", "critic", "value", "critic_target", "adam", "step"}
    best = torch.load(reference / "best.pt", weights_only=True)
    returns = {int(row["step"]): (float(row["success"]), float(row["return_mean"])) for row in evaluations[1:]}
    assert returns[best["step"]] == max(returns.values())  # never the untrained actor, of step 0


def test_tensorboard_events_can_be_read(reference):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(reference))
    events.Reload()
    assert [event.step for event in events.Scalars("losses/preference")] == [10, 20, 30, 40]
    assert [event.step for event in events.Scalars("eval/success")] == [0, 20, 40]


def test_finished_run_says_so_and_other_arguments_are_refused(run, reference):
    base = reference.parent
    again = run("ipl_iql", *SMALL, "--run-dir", base)
    assert again.returncode == 0 and "finished already" in again.stdout
    other = run("ipl_iql", *SMALL, "--run-dir", base, "--beta", 0.5)
    assert other.returncode == 2 and other.stderr.count("\n") == 1
    assert "--beta 0.333" in other.stderr and "0.5" in other.stderr


@pytest.mark.parametrize("script", ["ipl_iql", "pt_iql"])  # the latter with its reward.pt
def test_a_finished_run_without_its_checkpoint_is_not_erased(run, whole, tmp_path, script):
    shutil.copytree(whole(script), tmp_path / "copy/seed-1")
    (tmp_path / "copy/seed-1/checkpoint.pt").unlink()
    refused = run(script, *SMALL, *SMALL_OF.get(script, []), "--run-dir", tmp_path / "copy")
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    assert_same_run(tmp_path / "copy/seed-1", whole(script))


def test_overwrite_starts_from_scratch(run, reference, tmp_path):
    folder = tmp_path / "copy/seed-1"
    shutil.copytree(reference, folder)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/mine").touch()
    (folder / "videos").symlink_to(tmp_path / "scratch")
    again = run("ipl_iql", *SMALL, "--run-dir", folder.parent, "--lr", 0.1, "--overwrite")
    assert again.returncode == 0, again.stderr
    assert [row["step"] for row in rows(folder / "eval.csv")] == ["0", "20", "40"]
    assert json.loads((folder / "config.json").read_text())["args"]["lr"] == 0.1
    assert (folder / "train.csv").read_bytes() != (reference / "train.csv").read_bytes()
    assert (folder / "videos").is_symlink() and (tmp_path / "scratch/mine").exists()  # neither is of the run


def test_overwrite_erases_nothing_where_the_input_is_wrong(run, reference, tmp_path):
    base = tmp_path / "copy"
    shutil.copytree(reference, base / "seed-1")
    wrong = run("ipl_iql", *SMALL, "--run-dir", base, "--overwrite", "--num-preferences", 61)
    assert wrong.returncode == 2
    assert_same_run(base / "seed-1", reference)


def test_corrected_command_starts(run, data_dir, tmp_path, reference):
    """A refused command, and one killed before its first update, do not stand in the way of the right one."""
    assert run("ipl_iql", *SMALL, "--segment-length", 26).returncode == 2
    wrong = [*SMALL, "--beta", 5]
    process = start_until(data_dir, tmp_path, lambda seed: (seed / "checkpoint.pt").exists(), *wrong)
    process.kill()
    process.wait()
    right = run("ipl_iql", *SMALL)
    assert right.returncode == 0, right.stderr
    assert_same_run(tmp_path / "runs/drawer-open-v2/ipl_iql/seed-1", reference)


@pytest.mark.thorough
@pytest.mark.parametrize("script", ["ipl_iql", "pt_iql"])
def test_seeds_at_different_steps_resume_together(run, data_dir, tmp_path, whole, script):
    """Seed 1 finished, seed 2 killed midway, seed 3 not begun: one command ends all, as single runs would have."""
    arguments = [*SMALL, *SMALL_OF.get(script, [])]
    folder = tmp_path / "runs/drawer-open-v2" / script
    shutil.copytree(whole(script), folder / "seed-1")

    def ready(_seed) -> bool:
        path = folder / "seed-2/eval.csv"
        return path.exists() and path.read_text().count("\n") == 3  # evaluated at step 20

    process = start_until(data_dir, tmp_path, ready, *arguments, "--seed", 2, script=script)
    process.kill()
    process.wait()
    done = run(script, *arguments, "--num-seeds", 3)
    assert done.returncode == 0, done.stderr
    for seed in (2, 3):
        alone = run(script, *arguments, "--seed", seed, "--run-dir", tmp_path / "alone")
        assert alone.returncode == 0, alone.stderr
        assert_same_run(folder / f"seed-{seed}", tmp_path / f"alone/seed-{seed}")


def test_several_seeds_are_single_runs(run, reference, tmp_path):
    done = run("ipl_iql", *SMALL, "--num-seeds", 3)
    assert done.returncode == 0, done.stderr
    base = tmp_path / "runs/drawer-open-v2/ipl_iql"
    assert sorted(path.name for path in base.iterdir()) == ["seed-1", "seed-2", "seed-3"]
    alone = run("ipl_iql", *SMALL, "--seed", 3, "--run-dir", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    for seed, single in ((1, reference), (3, tmp_path / "alone/seed-3")):
        together = tensors(base / f"seed-{seed}/final.pt")
        for name, tensor in tensors(single / "final.pt").items():
            torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-5)
    # seed 2, trained with two others, is what a single run would resume from
    again = run("ipl_iql", *SMALL, "--seed", 2)
    assert again.returncode == 0 and "finished already" in again.stdout


def start_until(data_dir, folder: Path, ready, *arguments, script: str = "ipl_iql", cores=1) -> subprocess.Popen:
    """Start a small run and return when `ready(its seed folder)` holds, while it still works."""
    options = {k: v for k, v in environment(data_dir, folder, cores).items() if k in ("cwd", "env")}
    process = subprocess.Popen(command(script, *(arguments or SMALL)), **options, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    seed, end = folder / "runs/drawer-open-v2/ipl_iql/seed-1", time.monotonic() + 120
    while not ready(seed):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    return process


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def step(seed: Path) -> int:
    """The step of a seed's checkpoint; -1 where there is none."""
    path = seed / "checkpoint.pt"
    return torch.load(path, weights_only=True)["step"] if path.exists() else -1


MOMENTS = ["first checkpoint", "first evaluation", "training", "second checkpoint"]


@pytest.mark.parametrize("moment", few_of(MOMENTS, "second checkpoint"))
def test_kill_9_and_start_again_equals_uninterrupted(run, data_dir, tmp_path, reference, moment):
    def writing(seed: Path) -> bool:
        return any(seed.glob(".checkpoint.pt.*.partial"))

    ready = {
        "first checkpoint": lambda seed: writing(seed) or step(seed) == 0,
        "first evaluation": lambda seed: step(seed) == 0,
        "training": lambda seed: (seed / "train.csv").exists() and (seed / "train.csv").stat().st_size > 0,
        "second checkpoint": lambda seed: step(seed) == 20 or (writing(seed) and step(seed) == 0),
    }[moment]
    process = start_until(data_dir, tmp_path, ready)
    workers = children(process.pid)
    process.kill()
    process.wait()
    seed = tmp_path / "runs/drawer-open-v2/ipl_iql/seed-1"
    assert not (seed / "final.pt").exists()
    again = run("ipl_iql", *SMALL)
    assert again.returncode == 0, again.stderr
    assert_same_run(seed, reference)
    left = [Path(f"/proc/{pid}/cmdline") for pid in workers]
    assert not [path for path in left if path.exists() and b"loky" in path.read_bytes()]


SIGNALS = [(signal.SIGTERM, 143, 20), (signal.SIGUSR1, 0, 0), (signal.SIGINT, 130, 20)]


@pytest.mark.parametrize(("signum", "status", "at"), few_of(SIGNALS, SIGNALS[1]))  # SIGTERM: in an odd folder
def test_signal_in_an_evaluation_leaves_a_checkpoint(run, data_dir, tmp_path, reference, signum, status, at):
    process = start_until(data_dir, tmp_path, lambda seed: step(seed) >= at)
    process.send_signal(signum)
    assert process.wait(timeout=20) == status
    seed = tmp_path / "runs/drawer-open-v2/ipl_iql/seed-1"
    assert at <= step(seed) and not (seed / "final.pt").exists()
    again = run("ipl_iql", *SMALL)
    assert again.returncode == 0, again.stderr
    assert_same_run(seed, reference)
    assert ("step       0 " in again.stdout + again.stderr) == (at == 0)  # it went on, or did not begin yet


def test_a_folder_in_use_is_refused(run, data_dir, tmp_path):
    long = [*SMALL, "--total-steps", 1_000_000]
    process = start_until(data_dir, tmp_path, lambda seed: (seed / "checkpoint.pt").exists(), *long)
    busy = run("ipl_iql", *long)
    assert busy.returncode == 2 and f"pid {process.pid}" in busy.stderr and busy.stderr.count("\n") == 1
    process.kill()
    process.wait()


OTHERS = [name for name in SHIPPED if name != "ipl_iql"]


TABLES = [*((script, "train.csv") for script in OTHERS), ("pt_iql", "reward.csv")]


@pytest.mark.parametrize(("script", "table"), few_of(TABLES, TABLES[-1]))
def test_every_script_resumes_after_kill_9(run, data_dir, tmp_path, whole, script, table):
    """Killed once, when `table` has its first rows; then the same rows and bytes as a run that was not."""
    arguments = [*SMALL, *SMALL_OF.get(script, [])]
    expected = whole(script)
    folder = tmp_path / "runs/drawer-open-v2" / script / "seed-1"

    def ready(_seed) -> bool:
        return (folder / table).exists() and (folder / table).stat().st_size > 0

    process = start_until(data_dir, tmp_path, ready, *arguments, script=script)
    process.kill()
    process.wait()
    assert not (folder / "final.pt").exists()
    again = run(script, *arguments)
    assert again.returncode == 0, again.stderr
    assert_same_run(folder, expected)
    if script == "pt_iql":
        assert (folder / "reward.csv").read_bytes() == (expected / "reward.csv").read_bytes()


@pytest.mark.parametrize("script", few_of(OTHERS, "bc", "ipl_awac", "ipl_xql", "iql", "pt_iql"))  # and on D4RL
def test_every_script_trains_on_the_offline_dataset(run, tmp_path, script):
    arguments = [*SMALL, *SMALL_OF.get(script, [])]
    done = run(script, *arguments, "--use-replay", "--dropout", 0.1, "--num-seeds", 2)
    assert done.returncode == 0, done.stderr
    for seed in (1, 2):
        folder = tmp_path / f"runs/drawer-open-v2/{script}/seed-{seed}"
        assert "dataset" in json.loads((folder / "config.json").read_text())["dataset_fingerprint"]
        assert [row["step"] for row in rows(folder / "eval.csv")] == ["0", "20", "40"]
        assert all(p.isfinite().all() for p in tensors(folder / "final.pt").values())


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("cpl", ["--bc-steps", "40"], "--bc-steps 40"),
        ("cpl", ["--contrastive-bias", "1.5"], "--contrastive-bias"),
        ("cpl", ["--reference", "--bc-steps", "0"], "--bc-steps 0"),
        ("cpl", ["--bc-data", "preferred", "--use-replay"], "no labels"),
        ("bc", ["--bc-data", "preferred", "--use-replay"], "no labels"),
        ("bc", ["--bc-data", "preferred", "--bc-steps", "80000"], "--bc-steps 80000"),
    ],
)
def test_cloning_without_what_it_needs_is_one_line_and_status_2(monkeypatch, capsys, tmp_path, script, arguments, said):
    module = importlib.import_module(f"algorithms.{script}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module.__file__, *SMALL, *SMALL_OF.get(script, []), *arguments])
    with pytest.raises(SystemExit) as end, user_errors():
        module.train(parse_args(default_args(module.Args, module.DEFAULTS)))
    errors = capsys.readouterr().err
    assert end.value.code == 2 and said in errors and errors.count("\n") == 1 and not list(tmp_path.iterdir())


def cloned(folder: Path) -> tuple[int, int]:
    """--bc-steps and --warmup-steps of a seed, as both of its files hold them."""
    args = json.loads((folder / "config.json").read_text())["args"]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["args"] == args
    return args["bc_steps"], args["warmup_steps"]


@pytest.mark.parametrize("script", ["bc", "cpl"])
def test_steps_of_cloning_that_are_not_given_are_a_share(script):
    """At the default number of updates, what the defaults were as numbers."""
    module = importlib.import_module(f"algorithms.{script}")
    args = module.fill_in(module.Args())
    assert args.bc_steps == 80_000 and getattr(args, "warmup_steps", 4_000) == 4_000


@pytest.mark.thorough
def test_a_share_of_cloning_stays_what_it_was_when_a_run_is_resumed(run, tmp_path):
    line = ["cpl", *SMALL, "--run-dir", "runs"]
    for steps in (20, 20):
        done = run(*line, "--total-steps", steps)
        assert done.returncode == 0, done.stderr
        assert cloned(tmp_path / "runs/seed-1") == (8, 1)
    longer = run(*line, "--total-steps", 50)
    assert longer.returncode == 2 and "--bc-steps 8 -> 20" in longer.stderr and longer.stderr.count("\n") == 1
    longer = run(*line, "--total-steps", 50, "--bc-steps", 8, "--warmup-steps", 1)
    assert longer.returncode == 0, longer.stderr


def test_cloning_of_the_preferred_fits_any_number_of_updates(run, tmp_path):
    done = run("bc", *SMALL, "--bc-data", "preferred")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "runs/drawer-open-v2/bc/seed-1/config.json").read_text())
    assert config["args"]["bc_steps"] == 16


def test_oracle_needs_rewards(run, tmp_path):
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(2, 60, 25, 39)), rng.uniform(-1, 1, (2, 60, 25, 4))
    obs[..., -3:] = 0  # the goal, which the environment hides
    np.savez(tmp_path / "p.npz", obs_1=obs[0], obs_2=obs[1], action_1=action[0], action_2=action[1], label=np.ones(60))
    done = run("iql", *SMALL, "--preferences", "p.npz")
    assert done.returncode == 2 and "rewards" in done.stderr and done.stderr.count("\n") == 1


def test_wandb_offline(run, tmp_path):
    done = run("ipl_iql", *SMALL, "--track")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs/drawer-open-v2/ipl_iql/seed-1/wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--env", "drawr-open-v2"], "drawer-open-v2"),
        (["--gamma", 1.5], "--gamma"),
        (["--expectile", 1], "--expectile"),
        (["--num-seeds", 0], "--num-seeds"),
        (["--total-steps", -3], "--total-steps"),
        (["--eval-every", 0], "--eval-every"),
        (["--lr", "nan"], "--lr"),
        (["--hidden-sizes", 0], "--hidden-sizes"),
        (["--num-critics", 0], "--num-critics"),
        (["--seed", 10**20], "--seed"),
        (["--threads", 10**10], "--threads"),
        (["--device", "cuda:99"], "--device"),
        (["--device", "abacus"], "--device"),
        (["--num-preferences", 61], "60 pairs"),
        (["--segment-length", 26], "--segment-length"),
        (["--preference-batch-size", 51], "--preference-batch-size"),
        (["--preferences", "nowhere.npz"], "nowhere.npz"),
        (["--dataset", "nowhere.hdf5"], "nowhere.hdf5"),
        (["--run-dir", "/proc/nowhere"], "--run-dir"),
        (["--data-dir", "/proc/nowhere"], "--data-dir"),
    ],
    ids=lambda value: "_".join(map(str, value)) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line_and_status_2(data_dir, tmp_path, monkeypatch, capsys, arguments, said):
    """Of the script's last two lines, in this process; the next test runs some as real ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPL_DATA_DIR", str(data_dir))
    monkeypatch.setattr(sys, "argv", [ipl_iql.__file__, *map(str, (*SMALL, *arguments))])
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as end, user_errors():
        ipl_iql.train(parse_args(default_args(ipl_iql.Args, ipl_iql.DEFAULTS)))
    torch.set_num_threads(threads)
    errors = capsys.readouterr().err
    assert end.value.code == 2 and said in errors and errors.count("\n") == 1
    del end
    gc.collect()  # and with it the folder's lock


@pytest.mark.parametrize(("words", "said"), [
    ("--seed one", "--seed"), ("--num-sedes 3", "--num-seeds"), ("--matmul-precision low", "highest"),
])  # fmt: skip
def test_a_flag_that_cannot_be_parsed_is_said_in_tyros_words(capsys, words, said):
    with pytest.raises(SystemExit) as end:
        parse_args(importlib.import_module("algorithms.ipl_iql").Args(), words.split())
    assert end.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["--env drawr-open-v2", "--num-preferences 61", "--run-dir /proc/nowhere"])
def test_a_wrong_command_is_one_line_and_status_2(run, wrong):
    done = run("ipl_iql", *SMALL, *wrong.split())
    assert done.returncode == 2, done.stderr
    assert wrong.split()[1] in done.stderr and done.stderr.count("\n") == 1


def test_help_shows_every_flag_of_the_contract(run):
    shown = run("ipl_iql", "--help").stdout
    for flag in (
        "env seed num-seeds total-steps eval-every eval-episodes log-every num-preferences preferences dataset "
        "data-dir run-dir overwrite track wandb-project wandb-entity capture-video device compile matmul-precision "
        "threads gamma tau lr beta expectile chi2-coeff target-clipping clip-score use-replay replay-weight "
        "hidden-sizes num-critics dropout preference-batch-size segment-length replay-batch-size actor-average"
    ).split():
        assert f"--{flag} " in shown or f"--{flag}," in shown, flag


def test_script_runs_from_any_folder_with_the_offline_dataset(run, tmp_path):
    (tmp_path / "else where").mkdir()
    done = run("ipl_iql", *SMALL, "--use-replay", "--dropout", 0.1, "--target-clipping", "--run-dir", "a run",
               cwd=tmp_path / "else where")  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "else where/a run/seed-1/config.json").read_text())
    assert set(config["dataset_fingerprint"]) == {"preferences", "dataset"}


def test_videos_are_refused_at_once_where_nothing_renders(run, tmp_path):
    without = run(
        "ipl_iql", *SMALL, "--capture-video", env={**environment(tmp_path, tmp_path)["env"], "MUJOCO_GL": "glx"}
    )
    assert without.returncode == 2 and "libosmesa6" in without.stderr and without.stderr.count("\n") == 1


def test_nohup_is_respected(data_dir, tmp_path):
    """A run started to survive its terminal does."""
    options = environment(data_dir, tmp_path)
    script = subprocess.list2cmdline(command("ipl_iql", *SMALL, "--total-steps", 1_000_000))
    process = subprocess.Popen(["bash", "-c", f"trap '' HUP; exec {script}"], cwd=options["cwd"], env=options["env"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        train = tmp_path / "runs/drawer-open-v2/ipl_iql/seed-1/train.csv"
        end = time.monotonic() + 120
        while not (train.exists() and train.stat().st_size):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        size = train.stat().st_size
        while train.stat().st_size < size + 200:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


def test_no_thread_slows_down_for_denormal_numbers():
    code = ("import torch\nfrom algorithms.ipl_iql import Args\nfrom common.cli import setup_device\n"
            "setup_device(Args(device='cpu', threads=2))\n"
            "small = torch.full((4_000_000,), 1e-30) * 1e-10\n"
            "print(torch.get_num_threads(), small.count_nonzero().item())")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "0"], done.stderr


def test_products_are_float32_on_whatever_library():
    """bfloat16 would be off by 1e-2."""
    code = ("import torch\nfrom algorithms.ipl_iql import Args\nfrom common.cli import setup_device\n"
            "setup_device(Args(device='cpu'))\n"
            "a, b = torch.rand(2, 480, 256), torch.rand(2, 256, 256)\n"
            "print(((a @ b).double() / (a.double() @ b.double()) - 1).abs().max().item())")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert float(done.stdout) < 2e-6, done.stderr
