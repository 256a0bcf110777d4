"""tools.record: what it writes is what happened, whoever acts and on however many processes, and nothing is half."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import gymnasium
import imageio
import numpy as np
import pytest
import torch

from common import suites
from common.arrays import read_arrays, write_hdf5
from common.data import read_preferences
from common.errors import InputError
from common.rollouts import require_rendering
from common.seeds import RECORD, seed_of
from common.suites.base import ACTION_LIMIT
from common.suites.suite import read_rows, videos_of
from common.workers import Workers
from tests.conftest import REPOSITORY, command, environment, few_of
from tests.test_faults import small_disk  # noqa: F401
from tools import record
from tools.label.clips import read_source, task_of
from tools.record import RecordArgs

HERE = "tests.odd_environments"
DISC, DRUNK = f"{HERE}:Disc-v0", f"{HERE}:Drunk"
SUITE = suites.SUITES["gym"]


def make(out: Path, *policies: str, env: str = DISC, episodes: int = 3, **flags) -> Path:
    record.main(RecordArgs(env, out, policies or ("random",), episodes, **{"workers": 1, **flags}))
    return out


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """Three episodes each of a random policy, and of one with memory and random numbers of its own."""
    return make(tmp_path_factory.mktemp("mine") / "mine.hdf5", "random", DRUNK, f"{HERE}:dice", workers=2)


def one_line(*arguments, folder: Path, status: int = 2) -> str:
    """What the command says when it fails."""
    options = environment(folder, folder)
    options["env"]["PYTHONPATH"] = str(REPOSITORY)
    done = subprocess.run([sys.executable, "-m", "tools.record", *map(str, arguments)], **options)
    assert done.returncode == status and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_recording_from_before_its_environment_changed_is_named(tmp_path):
    """Other bounds of actions: the same numbers in [-1, 1] are other actions. Of filmed episodes they are not known."""
    path = make(tmp_path / "dot.hdf5", env="tests.dots:Dot-v0", episodes=1)
    arrays = read_arrays(path)
    protocol = arrays.pop("protocol")
    assert protocol["bounds"] == [[0.0, 0.0], [2.0, 2.0]]
    write_hdf5(path, arrays, protocol | {"bounds": [[0.0, 0.0], [3.0, 3.0]]})
    with pytest.raises(InputError, match=r"had the bounds .*3\.0.*; record it again"):
        make(path, env="tests.dots:Dot-v0", append=True)


# ---------------------------------------------------------------- what is written
def test_the_file(mine):
    arrays, protocol = read_arrays(mine), read_arrays(mine)["protocol"]
    assert protocol["env"] == DISC and protocol["policies"] == ["random", DRUNK, f"{HERE}:dice"]
    assert protocol["schema"] == 1 and protocol["noise"] == 0 and protocol["keys"] == ["place", "velocity"]
    starts = [seed_of(RECORD, 0, i, 0) for i in range(3)]
    assert arrays["episodes/seed"].tolist() == 3 * starts and len(set(starts)) == 3
    assert arrays["episodes/policy"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    length, row = arrays["episodes/length"], arrays["episodes/row"]
    assert (row == np.cumsum(length + 1) - length - 1).all() and len(arrays["obs"]) == (length + 1).sum()
    sim = gymnasium.make(DISC)
    for first, n, seed in zip(row, length, arrays["episodes/seed"], strict=True):
        obs, _ = sim.reset(seed=int(seed))
        for t in range(first, first + n):
            assert arrays["obs"][t] == pytest.approx(np.concatenate([obs["place"], obs["velocity"]]), abs=1e-5)
            obs, reward, terminated, truncated, info = sim.step(arrays["action"][t].astype(np.float64) + 1)
            assert arrays["reward"][t] == pytest.approx(reward, abs=1e-5) and arrays["terminal"][t] == terminated
            assert arrays["success"][t] == info.get("success", 0)
        assert (terminated or truncated) and not arrays["action"][first + n].any() and not arrays["reward"][first + n]
    assert np.abs(arrays["action"]).max() <= np.float32(ACTION_LIMIT)
    assert arrays["terminal"].any() and arrays["success"].any() and 0.5 < arrays["action"][: length[0]].std() < 0.65


def test_the_same_bytes_for_any_number_of_workers(mine, tmp_path):
    again = make(tmp_path / "again.hdf5", "random", DRUNK, f"{HERE}:dice", workers=1)
    assert again.read_bytes() == mine.read_bytes()
    turns = [read_arrays(mine)["action"][row] for row in read_arrays(mine)["episodes/row"]]
    assert len(np.unique(turns, axis=0)) == 9  # every episode draws its own numbers


def test_a_recorded_episode_is_replayed_exactly(mine):
    task, sim = suites.resolve(DISC), suites.make(suites.resolve(DISC))
    found = SUITE.read_episodes(mine, task)
    for episode in (found[8], found[0], found[4]):
        replayed = np.stack(list(SUITE.replay(sim, episode, 2)))
        assert len(replayed) > 5 and (replayed.astype(np.float32) == episode.obs[2:]).all()
    assert record.replay_gap(task, found[3]) == pytest.approx(0, abs=1e-6)


def test_observations_are_those_of_their_step(tmp_path):
    """Also where an environment returns an array that it goes on to change; so is what a replay shows."""
    path = make(tmp_path / "own.hdf5", env=f"{HERE}:OwnArray-v0", episodes=1)
    assert read_arrays(path)["obs"][:, 0] == pytest.approx(0.1 * np.arange(8))
    task = suites.resolve(f"{HERE}:OwnArray-v0")
    episode = SUITE.read_episodes(path, task)[0]
    assert np.array_equal(np.float32(list(SUITE.replay(suites.make(task), episode, 0))), episode.obs)


def test_what_a_policy_draws_when_it_is_made_is_the_episodes_own(tmp_path):
    once, again = (make(tmp_path / f"{k}.hdf5", f"{HERE}:BornRandom", workers=k) for k in (1, 2))
    assert np.array_equal(read_arrays(once)["action"], read_arrays(again)["action"])
    assert len(np.unique(read_arrays(once)["action"][:, 0])) == 4  # of three episodes, and zeros in their last rows


def test_what_it_prints(tmp_path, capsys):
    make(tmp_path / "a b.hdf5", f"{HERE}:still", f"{HERE}:far", episodes=2)
    out, err = capsys.readouterr()
    arrays = read_arrays(tmp_path / "a b.hdf5")
    returns = [arrays["reward"][r : r + n].sum() for r, n in zip(arrays["episodes/row"], arrays["episodes/length"],
                                                                 strict=True)]  # fmt: skip
    lines = out.splitlines()
    assert lines[1].split() == ["policy", "episodes", "length", "return"]  # none came near enough to hear of success
    assert lines[2].split() == [f"{HERE}:still", "2", "30.0", f"{np.mean(returns[:2]):.1f}"]
    words = shlex.split(lines[-1])
    assert words[:3] == ["python", "-m", "tools.label"] and words[3:] == ["--env", DISC, "--dataset",
                                                                        str(tmp_path / "a b.hdf5")]  # fmt: skip
    still = arrays["action"][: arrays["episodes/length"][0]]
    assert not still.any() and (arrays["action"][-10:-1] == np.float32([ACTION_LIMIT, 0])).all()
    steps = arrays["episodes/length"][2:].sum()
    assert f"far: {steps} of its actions were outside the environment's own bounds, [0.0, 0.0] to [2.0, 2.0]" in err
    assert "still" not in err and "replay" not in err


def test_noise(mine, tmp_path):
    """On all but the random policy, of the right size, and other numbers in each episode."""
    noisy = make(tmp_path / "noisy.hdf5", "random", f"{HERE}:still", noise=0.2)
    arrays, quiet = read_arrays(noisy), read_arrays(mine)
    assert (arrays["action"][:31] == quiet["action"][:31]).all() and arrays["protocol"]["noise"] == 0.2
    actions = [arrays["action"][r : r + n] for r, n in zip(arrays["episodes/row"], arrays["episodes/length"],
                                                           strict=True)][3:]  # fmt: skip
    assert 0.15 < np.concatenate(actions).std() < 0.25 and not np.array_equal(actions[0][:5], actions[1][:5])


# ---------------------------------------------------------------- more of it
def test_append(mine, tmp_path, capsys):
    path = shutil.copy(mine, tmp_path / "more.hdf5")
    make(path, DRUNK, episodes=2, append=True)
    old, new = read_arrays(mine), read_arrays(path)
    assert all(np.array_equal(new[name][: len(old[name])], old[name]) for name in old if name != "protocol")
    assert new["protocol"] == old["protocol"] and new["episodes/policy"][9:].tolist() == [1, 1]
    starts = [seed_of(RECORD, 0, i, 0) for i in range(5)]
    assert new["episodes/seed"][9:].tolist() == starts[3:]  # those that are in it go on
    make(path, f"{HERE}:still", episodes=4, append=True)
    newest = read_arrays(path)
    assert newest["protocol"]["policies"] == [*old["protocol"]["policies"], f"{HERE}:still"]
    assert newest["episodes/seed"][11:].tolist() == starts[:4] and newest["episodes/policy"][11:].tolist() == [3] * 4
    assert "still" in capsys.readouterr().out
    episode = SUITE.read_episodes(path, suites.resolve(DISC))[9]
    assert record.replay_gap(suites.resolve(DISC), episode) == pytest.approx(0, abs=1e-6)
    before = path.read_bytes()
    other = write_other(path, tmp_path / "other.hdf5")
    for flags, said in (({"noise": 0.1}, "was recorded with noise 0.0, not 0.1"), ({"reward": False}, "reward True"),
                        ({"max_episode_steps": 9}, "max_episode_steps 0, not 9"), ({"env": "Pendulum-v1"}, "built for"),
                        ({"append": False}, "is there already"),
                        ({"out": tmp_path / "none.hdf5"}, "no such file"),
                        ({"out": other}, "was not recorded by this command")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            make(**{"out": path, "append": True, **flags})
    assert path.read_bytes() == before


def test_an_actor_that_was_trained_on_is_another_policy(whole, tmp_path):
    seed = shutil.copytree(whole("ipl_iql"), tmp_path / "run/seed-1")
    line = {"env": "drawer-open-v2", "policies": (str(seed / "final.pt"),), "episodes": 1, "workers": 1}
    record.main(RecordArgs(out=tmp_path / "a.hdf5", **line))
    record.main(RecordArgs(out=tmp_path / "a.hdf5", append=True, **line))
    saved = torch.load(seed / "final.pt", weights_only=True)
    torch.save(saved | {"step": saved["step"] + 1}, seed / "final.pt")
    with pytest.raises(InputError, match=r"final\.pt is another actor now than the one in .*a\.hdf5; copy it"):
        record.main(RecordArgs(out=tmp_path / "a.hdf5", append=True, **line))


def write_other(path: Path, target: Path) -> Path:
    """The same data, as somebody writes them by hand."""
    arrays = read_arrays(path)
    write_hdf5(target, {name: arrays[name] for name in arrays if name not in ("protocol", "episodes/seed")}, {})
    return target


def test_a_file_of_other_observations_is_refused(mine, tmp_path):
    arrays = read_arrays(mine)
    protocol = arrays.pop("protocol")
    write_hdf5(tmp_path / "old.hdf5", arrays, protocol | {"keys": ["velocity", "place"]})
    with pytest.raises(InputError, match=r"its observations are velocity, place, those of .* are place, velocity"):
        read_rows(tmp_path / "old.hdf5", suites.resolve(DISC))


def test_without_seeds_it_says_so(mine, tmp_path):
    task, path = suites.resolve(DISC), write_other(mine, tmp_path / "hand.hdf5")
    with pytest.raises(InputError, match=r"has no 'episodes/seed' .* no videos in .*hand.hdf5.videos; .*--video"):
        SUITE.read_episodes(path, task)
    videos_of(path).mkdir()
    assert [episode.state for episode in SUITE.read_episodes(path, task)] == [{}] * 9


# ---------------------------------------------------------------- training
@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """Without rewards; and labelled pairs of it beside it, pairs.npz."""
    path = make(tmp_path_factory.mktemp("bare") / "bare.hdf5", "random", DRUNK, episodes=8, reward=False)
    episodes = [e for e in SUITE.read_episodes(path, suites.resolve(DISC)) if len(e.action) >= 10]
    assert all(e.reward is None for e in episodes)
    first, second = episodes[:-1], episodes[1:]
    np.savez(path.with_name("pairs.npz"), label=np.arange(len(first)) % 2.0,
             **{f"{name}_{k}": np.stack([getattr(e, name)[:10] for e in part])
                for k, part in ((1, first), (2, second)) for name in ("obs", "action")})  # fmt: skip
    return path


@pytest.mark.parametrize("script", ["ipl_iql", *(pytest.param(s, marks=pytest.mark.slow) for s in ("pt_iql", "bc"))])
def test_a_file_without_rewards_trains(bare, tmp_path, script):
    small = "--total-steps 4 --eval-episodes 1 --hidden-sizes 8 --threads 1 --no-compile --segment-length 5".split()
    small += ["--preference-batch-size", "4"]
    small += "--reward-epochs 1 --reward-batch-size 4".split() if script == "pt_iql" else []
    arguments = ["--env", DISC, "--dataset", bare, "--use-replay", *small]
    arguments += [] if script == "bc" else ["--preferences", bare.with_name("pairs.npz")]  # it needs no pairs
    options = environment(tmp_path, tmp_path)
    options["env"]["PYTHONPATH"] = str(REPOSITORY)
    done = subprocess.run(command(script, *arguments), **options)
    assert done.returncode == 0 and "return" in done.stdout, done.stderr
    if script == "ipl_iql":
        (seed,) = tmp_path.glob("runs/*/ipl_iql/seed-1")
        done = subprocess.run([sys.executable, "-m", "tools.reward", seed, "--relabel", "new.hdf5"], **options)
        assert done.returncode == 0 and np.ptp(read_arrays(tmp_path / "new.hdf5")["reward"]), done.stderr
        done = subprocess.run([sys.executable, "-m", "tools.reward", seed], **options)
        assert done.returncode == 0 and "no correlation: it holds no rewards" in done.stdout, done.stderr


def test_what_needs_rewards_says_so(bare, mine, tmp_path):
    task, options = suites.resolve(DISC), environment(tmp_path, tmp_path)
    options["env"]["PYTHONPATH"] = str(REPOSITORY)
    arguments = ["--env", DISC, "--dataset", bare, "--preferences", bare.with_name("pairs.npz"), "--use-replay"]
    arguments += ["--preference-batch-size", 4, "--segment-length", 5]
    done = subprocess.run(command("iql", *arguments), **options)
    assert done.returncode == 2 and "iql needs rewards and this dataset holds none" in done.stderr
    with pytest.raises(InputError, match=r"holds no rewards to label pairs by; .* tools.label"):
        read_preferences(bare, task)
    assert not any("return" in line for line in SUITE.describe(bare, task))
    assert SUITE.read_transitions(bare, task).reward is None and "reward" not in read_arrays(bare)
    pairs = read_preferences(mine, task)  # with rewards: drawn, and labelled by them
    returns = pairs.reward[pairs.start[..., None] + np.arange(25)].astype(np.float64).sum(-1)
    assert len(pairs.label) == 10_000 and (pairs.label == 0.5 + 0.5 * np.sign(returns[:, 1] - returns[:, 0])).all()


# ---------------------------------------------------------------- other suites
def test_metaworld_by_its_scripted_policy(tmp_path):
    path = make(tmp_path / "m.hdf5", "scripted", env="drawer-open-v2", episodes=1)
    task, suite = suites.resolve("drawer-open-v2"), suites.SUITES["metaworld"]
    arrays = read_rows(path, task)
    assert arrays["success"].max() == 1 and arrays["episodes/length"].tolist() == [500]
    assert not arrays["obs"][:, -3:].any()  # the goal stays hidden
    (episode,) = suite.read_episodes(path, task)
    assert episode.state == {"seed": int(arrays["episodes/seed"][0])}
    replayed = np.stack(list(suite.replay(suites.make(task), episode, 0)))
    assert (replayed.astype(np.float32) == episode.obs).all()
    assert suite.describe(path, task)[1].split()[:3] == ["scripted", "1", "1.00"]


@pytest.mark.parametrize("env", ["lift-ph", "hopper-medium-expert-v2"])
def test_suites_with_other_files_read_this_one_too(tmp_path, env):
    path, task = make(tmp_path / "x.hdf5", env=env, episodes=2, max_episode_steps=12), suites.resolve(env)
    suite, arrays = suites.SUITES[task.suite], read_arrays(path)
    t = suite.read_transitions(path, task)
    assert len(t.obs) == arrays["episodes/length"].sum() and t.obs.shape[1] == task.obs_dim
    assert record.replay_gap(task, suite.read_episodes(path, task)[0]) < 1e-5
    assert suite.describe(path, task)[1].startswith("random ")
    suite.write_rewards(path, task, str(tmp_path / "new.hdf5"), np.arange(len(t.obs)), {"reward": "counted"})
    assert suite.read_transitions(tmp_path / "new.hdf5", task).reward.tolist() == list(range(len(t.obs)))
    with pytest.raises(InputError, match=r"no episode is as long as a segment"):
        suite.read_pairs(path, task)


def test_a_runs_actor_acts(whole, tmp_path):
    best = str(whole() / "best.pt")
    path = make(tmp_path / "a.hdf5", best, env="drawer-open-v2", episodes=1, max_episode_steps=5)
    arrays, act = read_arrays(path), record.read_actor(Path(best))[1]
    assert arrays["protocol"]["policies"] == [best] and len(arrays["action"]) == 6
    assert arrays["action"][:5] == pytest.approx(act(arrays["obs"][:5]), abs=1e-4)
    with pytest.raises(InputError, match=r"best.pt: acts in drawer-open-v2, not in Pendulum-v1"):
        make(tmp_path / "b.hdf5", best, env="Pendulum-v1")


# ---------------------------------------------------------------- videos
@pytest.fixture
def rendering(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    with closing(Workers(1)) as workers:
        try:
            require_rendering(workers, suites.resolve(DISC))
        except InputError as error:
            pytest.skip(str(error))


def test_what_does_not_replay_is_filmed(tmp_path, capsys, rendering):
    env = f"{HERE}:Forgetful-v0"
    path = make(tmp_path / "f.hdf5", env=env, episodes=2)
    assert "does not replay from its seed" in capsys.readouterr().err
    path.unlink()
    make(path, env=env, episodes=2, video=True)
    make(path, f"{HERE}:still", env=env, episodes=1, video=True, append=True)
    assert "replay" not in capsys.readouterr().err
    assert len(read_source([path], task_of("", (str(path),)))[0]) == 3  # tools.label takes it
    arrays = read_arrays(path)
    assert sorted(v.name for v in videos_of(path).iterdir()) == [f"episode-{i}.webm" for i in range(3)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.hdf5", "f.hdf5.lock", "f.hdf5.videos"]
    for i, (row, steps) in enumerate(zip(arrays["episodes/row"], arrays["episodes/length"], strict=True)):
        frames = np.stack([f for f in imageio.get_reader(videos_of(path) / f"episode-{i}.webm")]).astype(int)
        assert len(frames) == steps + 1
        red = frames[..., 0] - frames[..., 1:].max(-1) > 60  # the disc: its column follows the first coordinate
        place = np.array([np.flatnonzero(frame.any(0)).mean() if frame.any() else np.nan for frame in red])
        x = arrays["obs"][row : row + steps + 1, 0]
        seen = ~np.isnan(place)
        line = np.polyval(np.polyfit(x[seen], place[seen], 1), x[seen])
        assert seen.sum() > 5 and np.abs(line - place[seen]).max() < 2  # pixels, of 64
    with pytest.raises(InputError, match="was recorded with video True, not False"):
        make(path, env=env, append=True)
    path.unlink()
    with pytest.raises(InputError, match="holds videos of other episodes"):
        make(path, env=env)


# ---------------------------------------------------------------- wrong input
@pytest.mark.parametrize(("policy", "said"), [
    ("nobody", "no such policy; take random, scripted, module:name"), ("no_module:f", "no_module cannot be imported"),
    (f"{HERE}:nobody", "has no nobody"), (f"{HERE}:number", "cannot call its number"), ("none.pt", "no such file"),
    (f"{HERE}:flat", r"an action of shape \(3,\) in step 0, not \(2,\)"), (f"{HERE}:nan", "step 0 is not finite"),
    (f"{HERE}:broken", r"fails in step 0 \(ZeroDivisionError: division by zero; odd_environments.py:\d+\)"),
    (f"{HERE}:two", r"fails in step 0 \(TypeError: .*'more'\); it takes one argument"),
    (f"{HERE}:Needy", r"cannot be made \(TypeError: .*'path'\).* made without arguments"),
    ("scripted", "Disc-v0 has no scripted policy"),
])  # fmt: skip
def test_wrong_policies(policy, said):
    task, sim = suites.resolve(DISC), suites.make(suites.resolve(DISC))
    with pytest.raises(InputError, match=said) as raised:
        record.policy_of(task, record.find(policy, task), sim, (RECORD, 0, 0, 0), 0.0)(np.zeros(4))
    assert "\n" not in str(raised.value)


def test_wrong_input_is_one_line(tmp_path):
    out = tmp_path / "x.hdf5"
    for arguments, said in (
        (["--env", f"{HERE}:Endless-v0", "--out", out], "has no time limit"),
        (["--env", DISC, "--out", tmp_path / "x.npz"], "must end in .hdf5"),
        (["--env", DISC, "--out", out, "--policies", f"{HERE}:still", f"{HERE}:flat"], "shape (3,) in step 0"),
        (
            ["--env", f"{HERE}:NanObservation-v0", "--out", out],
            "the observation of step 3 is not finite, in the episode",
        ),
    ):
        assert said in one_line(*arguments, "--workers", 1, folder=tmp_path)
    assert not out.exists() and not [*tmp_path.rglob("*partial")]
    with pytest.raises(InputError, match="name at least one, and each once"):
        make(out, "random", "random")
    make(out, env=f"{HERE}:Endless-v0", max_episode_steps=4, episodes=1)
    assert read_arrays(out)["episodes/length"].tolist() == [4]


def test_a_full_disk(small_disk):  # noqa: F811
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 8_000))
    said = one_line("--env", DISC, "--out", small_disk / "x.hdf5", "--episodes", 20, folder=small_disk.parent, status=1)
    assert "the disk is full: make room there, or choose another --out" in said
    assert not (small_disk / "x.hdf5").exists() and not [*small_disk.glob(".*")]


def test_a_full_disk_under_the_videos(small_disk):  # noqa: F811
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 5_000))
    pictures = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    with pytest.raises(InputError, match=r"frames were written to .*; is the disk full\?"):
        record.film(small_disk / "x/episode-0.webm", list(pictures))


# ---------------------------------------------------------------- stopped
@pytest.mark.parametrize("signum", few_of([signal.SIGINT, signal.SIGKILL], signal.SIGINT))
def test_stopped_it_keeps_nothing_and_the_same_command_starts_again(tmp_path, signum):
    """With --append, too, the file is as it was."""
    path = make(tmp_path / "x.hdf5", episodes=1)
    before, options = path.read_bytes(), environment(tmp_path, tmp_path)
    line = [sys.executable, "-m", "tools.record", "--env", DISC, "--out", str(path), "--append", "--workers", "1"]
    env = options["env"] | {"PYTHONPATH": str(REPOSITORY)}
    (tmp_path / "x.hdf5.lock").unlink()
    long = [*line, "--episodes", "100000"]
    process = subprocess.Popen(long, cwd=tmp_path, env=env, text=True, stderr=subprocess.PIPE)
    while not (tmp_path / "x.hdf5.lock").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(4)  # among its episodes
    process.send_signal(signum)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if signum == signal.SIGINT else -9) and path.read_bytes() == before
    if signum == signal.SIGINT:
        assert "interrupted:" in said and "is as it was" in said and "Traceback" not in said
    assert (tmp_path / ".x.hdf5.partial").exists() == (signum == signal.SIGKILL)
    done = subprocess.run([*line, "--episodes", "2"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and len(read_arrays(path)["episodes/row"]) == 3, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.hdf5", "x.hdf5.lock"]
