"""Environment id -> offline transitions and preferences: build, read, check.

    python -m common.datasets --env drawer-open-v2 --episodes 100 --noise 1.0 --seed 0

builds a MetaWorld dataset by hand, or downloads a robomimic or D4RL one and its human preferences (--env lift-ph); a
training run does that itself where they are missing.

MetaWorld follows the protocol of IPL (Hejna & Sadigh 2023, appendix): `episodes` each of four kinds, all in the target
environment with hidden goal: *expert* (scripted policy of the task and its goal), *within* (the same policy, acting for
another goal), *random* (uniform actions) and *cross* (scripted policy of a random other task); the policies
act in their own simulator and their noisy actions are applied to the target's. Pairs of segments are labelled by
discounted return.

Robomimic and D4RL: their own HDF5 files, and the human preferences of Preference Transformer (Kim et al. 2023) in the
form that IPL's authors released.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from common.envs import (
    METAWORLD_TASKS,
    ROBOMIMIC_OBS,
    ROBOMIMIC_TASKS,
    InputError,
    Interrupted,
    Workers,
    available_cpus,
    make,
    reset_env,
    resolve,
    seed_of,
    simulator,
    sizes,
)

KINDS = ("expert", "within", "random", "cross")
ACTION_LIMIT = 1 - 1e-5  # actions are clipped to +-ACTION_LIMIT, as in the original
SUCCESS_STEPS = 25  # an episode ends after so many steps with success, consecutive or not
HORIZON = 500
SEGMENT, PAIRS, GAMMA = 25, 10_000, 0.99  # length, number and label discount of the preference segments
SCHEMA = 1
USERBLOCK = 512  # bytes ahead of the HDF5 data, which HDF5 leaves to us: they begin with the SHA-256 of what follows
HUMAN_URL = (
    "https://raw.githubusercontent.com/jhejna/inverse-preference-learning/8037b84c57c10383cc7b628a39c4f66b7e16358b/"
    "datasets/preference_transformer"
)
HUMAN_FILES = {  # environment: file of human preferences, its git blob id
    "can-mh": ("Can/num500_q100_human_train.npz", "8460c3f3a6a8bc04f88e410730f95678fe868fb1"),
    "can-ph": ("Can/num100_q50_human_train.npz", "b4e0fb73c3bbc602d58279cfb6350405cef6b0e5"),
    "lift-mh": ("Lift/num500_q100_human_train.npz", "ebbc9ff12abe455ff506aad9a2e5c5c31bfbde8d"),
    "lift-ph": ("Lift/num100_q50_human_train.npz", "192c5cc5c91801aaf07d48bdbcaa17a2ad344161"),
    "square-mh": ("Square/num500_q100_human_train.npz", "35250b0b7e0f9cf4ad8aad284a05544c89389b24"),
    "square-ph": ("Square/num100_q50_human_train.npz", "d3ac922577d4467ca981b36e8c1eefd8994aed96"),
    "hopper-medium-expert-v2": (
        "hopper-medium-expert-v2/num100_human_train.npz", "e8104fff8d0a7c548e0850d07459296ac9b7335b"),
    "hopper-medium-replay-v2": (
        "hopper-medium-replay-v2/num500_human_train.npz", "a2fab7441f40ea9c37afc52734ebd29d722c3284"),
    "walker2d-medium-expert-v2": (
        "walker2d-medium-expert-v2/num100_human_train.npz", "ee5205bb6ef318e65d23da12a7300b65099112f2"),
    "walker2d-medium-replay-v2": (
        "walker2d-medium-replay-v2/num500_human_train.npz", "b0074f35a77c0afd9c28b45784f47ce976537d9f"),
}  # fmt: skip
D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2"


@dataclass
class Preferences:
    """Labelled pairs of segments as rows of trajectories; see `common.buffers.PreferenceBuffer` for the shapes."""

    obs: np.ndarray  # (T, O)
    action: np.ndarray  # (T, A)
    start: np.ndarray  # (P, 2)
    label: np.ndarray  # (P,)
    length: int
    reward: np.ndarray | None = None  # (T,), where the file holds it


@dataclass
class Transitions:
    """An offline dataset; see `common.buffers.ReplayBuffer` for the shapes."""

    obs: np.ndarray  # (T, O)
    action: np.ndarray  # (T, A)
    reward: np.ndarray  # (T,)
    next_obs: np.ndarray  # (T, O)
    terminal: np.ndarray  # (T,)


# ---------------------------------------------------------------- collection, inside a worker
def collect(env: str, seed: int, noise: float, kind: str, task: str, numbers: list[int]) -> list[tuple]:
    """Collect episodes in `env`.

    Args:
        kind: one of KINDS.  task: whose scripted policy acts; `env`, but for "cross".
        numbers: one an episode; its random numbers depend on (seed, number) alone.

    Returns:
        For each: obs (n + 1, O), action (n, A), reward (n,), success (n,).
    """
    from metaworld.policies import ENV_POLICY_MAP

    warnings.filterwarnings("ignore", message="Constant.s. may be too high")  # scripted policies overshoot by design
    target = simulator(env)
    guide = make(task, goal_visible=True) if kind == "cross" else simulator(env, goal_visible=True)
    episodes = []
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        obs = reset_env(target, seed_of(seed, number, 0))
        if kind == "random":
            actions = rng.uniform(-1, 1, (HORIZON, target.action_space.shape[0]))
        else:
            goal = target._last_rand_vec if kind == "expert" else None
            guide_obs = reset_env(guide, seed_of(seed, number, 1), goal)
            policy = ENV_POLICY_MAP[task.replace("-v2", "-v3")]()
            bump = rng.normal(0.0, noise, (HORIZON, target.action_space.shape[0]))
        rows: list[list] = [[obs], [], [], []]
        successes = 0
        for t in range(HORIZON):
            action = actions[t] if kind == "random" else policy.get_action(guide_obs) + bump[t]
            action = action.clip(-ACTION_LIMIT, ACTION_LIMIT).astype(np.float32)
            obs, reward, _, _, info = target.step(action)
            successes += info["success"] > 0
            for column, item in zip(rows, (obs, action, reward, info["success"]), strict=True):
                column.append(item)
            if successes >= SUCCESS_STEPS:
                break
            if kind != "random":
                guide_obs = guide.step(action)[0]
        episodes.append(tuple(np.asarray(column, dtype=np.float32) for column in rows))
    return episodes


# ---------------------------------------------------------------- building
def plan(env: str, episodes: int, seed: int) -> list[tuple[str, str, list[int]]]:
    """The episodes of a dataset as jobs for `collect`: (kind, task, numbers). Those of one other task share a job."""
    others = [f"{task}-v2" for task in METAWORLD_TASKS if f"{task}-v2" != env]
    drawn = np.random.default_rng([seed, 4 * episodes]).integers(0, len(others), episodes)
    jobs = [(kind, env, [k * episodes + i]) for k, kind in enumerate(KINDS[:3]) for i in range(episodes)]
    for index in np.unique(drawn):
        jobs.append(("cross", others[index], [int(3 * episodes + i) for i in np.flatnonzero(drawn == index)]))
    return jobs


def draw_pairs(length: np.ndarray, row: np.ndarray, reward: np.ndarray, pairs: int, seed: int, segment=SEGMENT,
               gamma=GAMMA):  # fmt: skip
    """Preference pairs: `2 * pairs` windows, uniform over all that do not cross an episode's end.

    Args:
        length: (E,) steps of each episode; row: (E,) its first row in `reward` (T,).
        segment: steps of a window.

    Returns:
        start (P, 2) rows; label (P,): 1 where sum_t gamma^t r_t is larger in the second, 0 in the first, 0.5 if equal.
    """
    windows = np.maximum(length - segment + 1, 0)
    ends = np.cumsum(windows)
    draw = np.random.default_rng([seed, len(length) + 1]).integers(0, ends[-1], (pairs, 2))
    episode = np.searchsorted(ends, draw, side="right")
    start = row[episode] + draw - (ends - windows)[episode]
    rewards = reward[start[..., None] + np.arange(segment)].astype(np.float64)
    returns = (rewards * gamma ** np.arange(segment)).sum(-1)
    return start, (0.5 + 0.5 * np.sign(returns[:, 1] - returns[:, 0])).astype(np.float32)


def build(path: Path, env: str, episodes: int, noise: float, seed: int, pairs: int, workers: Workers) -> None:
    """Collect a MetaWorld dataset and write it as HDF5, atomically.

    The file's first 64 bytes are the SHA-256, in hexadecimal digits, of all from byte 512 on, where HDF5 begins.

    Rows: an episode of n steps has n + 1 rows; the last one holds the final observation and zeros. Arrays: obs (T, O),
    action (T, A), reward, success (T,); episodes/{row, length, kind}; preferences/{start (P, 2), label (P,)}.
    """
    jobs = plan(env, episodes, seed)
    with tqdm(total=4 * episodes, desc=f"building {path.name}", unit="episode", disable=None) as bar:
        done = workers.run(collect, [(env, seed, noise, *job) for job in jobs], lambda part: bar.update(len(part)))
    collected = {number: episode for (*_, numbers), part in zip(jobs, done, strict=True)
                 for number, episode in zip(numbers, part, strict=True)}  # fmt: skip
    parts = [collected[i] for i in range(4 * episodes)]
    length = np.array([len(p[1]) for p in parts])
    row = np.concatenate([[0], np.cumsum(length + 1)[:-1]])
    # one row more than steps: zeros stand beside the final observation
    action, reward, success = (
        np.concatenate([np.concatenate([p[k], np.zeros_like(p[k][:1])]) for p in parts]) for k in (1, 2, 3)
    )
    start, label = draw_pairs(length, row, reward, pairs, seed)
    protocol = {"schema": SCHEMA, "env": env, "episodes": episodes, "noise": noise, "seed": seed, "pairs": pairs,
                "segment": SEGMENT, "gamma": GAMMA, "horizon": HORIZON, "success_steps": SUCCESS_STEPS,
                "reward": "metaworld v2", "kinds": KINDS,
                "versions": {name: version(name) for name in ("metaworld", "mujoco", "numpy")}}  # fmt: skip
    arrays = {"obs": np.concatenate([p[0] for p in parts]), "action": action, "reward": reward, "success": success,
              "episodes/row": row, "episodes/length": length, "episodes/kind": np.repeat(np.arange(4), episodes),
              "preferences/start": start, "preferences/label": label}  # fmt: skip
    memory = io.BytesIO()  # written directly, a full disk would end the process within the HDF5 library
    with h5py.File(memory, "w", userblock_size=USERBLOCK) as file:
        file.attrs["protocol"] = json.dumps(protocol)
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    content = memory.getbuffer()
    content[:64] = hashlib.sha256(content[USERBLOCK:]).hexdigest().encode()
    with atomic(path) as partial:
        partial.write_bytes(content)


@contextmanager
def atomic(path: Path):
    """A temporary path beside `path`, moved there when the block ends well: no reader ever sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def only_one(path: Path, stop: Callable[[], bool] = lambda: False):
    """Hold `path`.lock; others wait. The lock is the kernel's: it goes with its process, however that ends."""
    with open(path.with_name(path.name + ".lock"), "a") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    print(f"waiting for another process that builds {path}", file=sys.stderr)
                told = True
                if stop():
                    raise Interrupted from None
                time.sleep(0.5)
        yield


def once(path: Path, write: Callable[[], None], stop: Callable[[], bool] = lambda: False) -> Path:
    """`path`, written now by `write` if it is not there; two processes at once write it once.

    Raises:
        InputError: its folder cannot be written to.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_one(path, stop):
            for partial in path.parent.glob(f".{path.name}.*.partial"):
                partial.unlink()  # left by a kill in the middle of a write
            if not path.exists():
                write()
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"--data-dir: {path.parent}: {error.strerror}; choose a folder you can write to") from None
    return path


def ensure(env: str, data_dir: Path, workers: Workers, episodes=100, noise=1.0, seed=0, pairs=PAIRS) -> Path:
    """The path of an environment's offline dataset; a MetaWorld one is built now if it is not there, others downloaded.

    Raises:
        InputError: it cannot be had.
    """
    suite, env = resolve(env)
    advice = "give a copy with --dataset, or train on the preference segments alone with --no-use-replay"
    if suite == "robomimic":
        from robomimic import DATASET_REGISTRY

        task, kind = env.split("-")
        path = data_dir / "robomimic" / task / kind / "low_dim_v141.hdf5"
        url = DATASET_REGISTRY[task][kind]["low_dim"]["url"]
        return once(path, lambda: download(url, path, advice, workers.stop), workers.stop)
    if suite == "d4rl":
        path = data_dir / "d4rl" / f"{env.removesuffix('-v2').replace('-', '_')}-v2.hdf5"
        return once(path, lambda: download(f"{D4RL_URL}/{path.name}", path, advice, workers.stop), workers.stop)
    path = data_dir / "metaworld" / f"{env}_episodes-{episodes}_noise-{noise:g}_pairs-{pairs}_seed-{seed}.hdf5"
    return once(path, lambda: build(path, env, episodes, noise, seed, pairs, workers), workers.stop)


def ensure_human(env: str, data_dir: Path, stop: Callable[[], bool] = lambda: False) -> Path:
    """The path of the human preferences of an environment: in `data_dir` or IPL_DATA_DIR, else downloaded.

    Raises:
        InputError: there are none, or they cannot be had.
    """
    _, env = resolve(env)
    if env not in HUMAN_FILES:
        raise InputError(f"--preference-labels human: nobody has labelled {env}; take script, or --preferences FILE")
    name, blob = HUMAN_FILES[env]
    for folder in (data_dir, Path(os.environ.get("IPL_DATA_DIR") or data_dir)):
        for path in (folder / "preference_transformer" / name, folder / name):
            if path.exists():
                return path
    path, advice = data_dir / "preference_transformer" / name, "give a copy with --preferences"
    return once(path, lambda: download(f"{HUMAN_URL}/{name}", path, advice, stop, blob), stop)


def download(url: str, path: Path, advice: str, stop: Callable[[], bool] = lambda: False, blob: str = "") -> None:
    """Write the file at `url` to `path`, with a progress bar; nothing is left of one that is cut or wrong.

    Args:
        advice: what the user can do without it.  blob: git's id of the right content, where known.

    Raises:
        InputError: it cannot be had, or is not what it should be.  Interrupted: `stop()` became true.
    """
    from pooch import HTTPDownloader

    class Bar(tqdm):
        def update(self, n=1):
            if stop():
                raise Interrupted
            return super().update(n)

    with atomic(path) as partial, Bar(desc=path.name, total=1, unit="B", unit_scale=True, disable=None) as bar:
        try:
            HTTPDownloader(progressbar=bar, chunk_size=1 << 16)(url, str(partial), None)
        except OSError as error:  # all of requests' errors are
            reason = (str(error).split("Caused by ")[-1].splitlines() or [type(error).__name__])[0]
            raise InputError(f"{url}: cannot be downloaded ({reason}); {advice}") from None
        content = partial.read_bytes() if blob else b""
        if blob and hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != blob:
            raise InputError(f"{url}: is not the file that was released (its git blob id differs); {advice}")


# ---------------------------------------------------------------- reading and checking
def fingerprint(path: Path) -> str:
    """SHA-256 of a file, first 16 digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def check(path: Path, name: str, array: np.ndarray, shape: tuple, low=-np.inf, high=np.inf,
          kind: type = np.number) -> np.ndarray:  # fmt: skip
    """Return `array` if it is as it should be. `shape`: None stands for any size; `kind`: np.integer for indices.

    Raises:
        InputError: names the file, the key and what is wrong.
    """
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        want = " x ".join("any" if n is None else str(n) for n in shape)
        raise InputError(
            f"{path}: '{name}' has shape {array.shape}, expected {want}; is it a file of this environment?"
        )
    if not (np.issubdtype(array.dtype, kind) or (array.dtype == bool and kind is np.number)):
        what = "numbers" if kind is np.number else "whole numbers"
        raise InputError(f"{path}: '{name}' holds {array.dtype}, not {what}; make the file again")
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32)).all()  # what training will see
    if not finite:
        raise InputError(f"{path}: '{name}' holds NaN or infinity; make the file again")
    if array.size and (array.min() < low or array.max() > high):
        raise InputError(f"{path}: '{name}' holds values outside [{low:g}, {high:g}]; make the file again")
    return array


def read(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """The arrays of an HDF5 or NPZ file whose name is `wanted`, in the file's order; nothing is unpickled.

    Raises:
        InputError: no such file, or not readable as one.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: you may not read it")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                if damaged := file.zip.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
                return {name: file[name] for name in file.files if wanted(name)}
        with open(path, "rb") as raw:
            first, _, begin = raw.read(64), raw.seek(USERBLOCK), raw.read(4)
            raw.seek(USERBLOCK)
            # `build` wrote it if HDF5 begins here. The library may loop for ever over a damaged file: checked before.
            if begin == b"\x89HDF" and first != hashlib.file_digest(raw, "sha256").hexdigest().encode():
                raise ValueError("its checksum is wrong: damaged, or changed by hand")
        arrays: dict[str, np.ndarray] = {}
        with h5py.File(path, "r") as file:

            def take(name: str | bytes, item) -> None:  # bytes: a damaged name
                if isinstance(item, h5py.Dataset) and isinstance(name, str) and wanted(name):
                    arrays[name] = item[()]

            file.visititems(take)
            arrays["protocol"] = json.loads(file.attrs.get("protocol", "{}"))
            if "data" in file and "env_args" in file["data"].attrs:  # robomimic's
                arrays["env_args"] = json.loads(file["data"].attrs["env_args"])
        return arrays
    except Exception as error:  # damaged files raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be read ({reason}); delete it and start again") from error


def require(path: Path, arrays: dict, names: tuple[str, ...]) -> None:
    """Raises InputError naming the first of `names` that `arrays` lacks."""
    for name in names:
        if name not in arrays:
            found = (
                ", ".join(sorted(n for n in arrays if n not in ("protocol", "env_args"))[:5]) or "nothing of its kind"
            )
            raise InputError(f"{path}: has no '{name}' (it has {found}); is it a file of this environment?")


def check_actions(path: Path, name: str, action: np.ndarray, shape: tuple) -> np.ndarray:
    """Actions, checked and clipped to +-ACTION_LIMIT."""
    action = check(path, name, action, shape, -1 - 1e-3, 1 + 1e-3).astype(np.float32)
    return np.clip(action, -ACTION_LIMIT, ACTION_LIMIT)


def read_rows(path: Path, env: str) -> dict[str, np.ndarray]:
    """The checked rows of a dataset that `build` wrote: obs, action, reward, row, length and the preferences."""
    arrays = read(path)
    require(
        path,
        arrays,
        ("obs", "action", "reward", "episodes/row", "episodes/length", "preferences/start", "preferences/label"),
    )
    made_for = arrays["protocol"].get("env", env)
    if made_for != env:
        raise InputError(f"{path}: was built for {made_for}, not for {env}; choose another --dataset or --env")
    if arrays["protocol"].get("schema", SCHEMA) != SCHEMA:
        raise InputError(
            f"{path}: has schema {arrays['protocol']['schema']}, expected {SCHEMA}; delete it and start again"
        )
    obs_dim, act_dim = sizes(env)
    rows = len(check(path, "obs", arrays["obs"], (None, obs_dim)))
    arrays["action"] = check_actions(path, "action", arrays["action"], (rows, act_dim))
    check(path, "reward", arrays["reward"], (rows,))
    number = len(check(path, "episodes/row", arrays["episodes/row"], (None,), 0, rows - 1, np.integer))
    check(path, "episodes/length", arrays["episodes/length"], (number,), 1, rows, np.integer)
    if not number:
        raise InputError(f"{path}: 'episodes/row' is empty; there is nothing to learn from")
    if (arrays["episodes/row"] + arrays["episodes/length"]).max() >= rows:
        raise InputError(f"{path}: 'episodes/length' points past the last row; delete it and start again")
    return arrays


def read_preferences(path: Path, env: str) -> Preferences:
    """Preferences from an NPZ with obs_1, obs_2, action_1, action_2, label, or from an environment's offline dataset.

    A MetaWorld dataset holds its pairs. From a robomimic or D4RL one, PAIRS are drawn and labelled by the sum of the
    rewards: windows of 50 steps (ph) or 100, as long as the human preferences'.

    Raises:
        InputError: a key is missing, a shape, number or label is wrong, or the file is another environment's.
    """
    suite, env = resolve(env)
    obs_dim, act_dim = sizes(env)
    if path.suffix == ".npz":
        arrays = read(path)
        require(path, arrays, ("obs_1", "obs_2", "action_1", "action_2", "label"))
        pairs, length, _ = check(path, "obs_1", arrays["obs_1"], (None, None, obs_dim)).shape
        check(path, "obs_2", arrays["obs_2"], (pairs, length, obs_dim))
        action = np.stack([check_actions(path, f"action_{k}", arrays[f"action_{k}"], (pairs, length, act_dim))
                           for k in (1, 2)]).reshape(-1, act_dim)  # fmt: skip
        obs = np.stack([arrays["obs_1"], arrays["obs_2"]]).astype(np.float32).reshape(-1, obs_dim)
        start, reward = np.arange(2 * pairs).reshape(2, pairs).T * length, None
    elif suite == "metaworld":
        arrays = read_rows(path, env)
        obs, action, length = arrays["obs"], arrays["action"], int(arrays["protocol"].get("segment", SEGMENT))
        start = check(path, "preferences/start", arrays["preferences/start"], (None, 2), 0, len(obs) - length,
                      np.integer)  # fmt: skip
        pairs, arrays["label"], reward = len(start), arrays["preferences/label"], arrays["reward"]
    else:
        t, length = read_transitions(path, env), 50 if env.endswith("-ph") else 100
        follows = (t.next_obs[:-1] == t.obs[1:]).all(-1) & (t.terminal[:-1] == 0)
        row = np.flatnonzero(np.concatenate([[True], ~follows]))
        steps = np.diff(np.append(row, len(t.obs)))
        if steps.max() < length:
            raise InputError(f"{path}: no episode is as long as a segment, {length} steps; take --preferences FILE")
        start, label = draw_pairs(steps, row, t.reward, PAIRS, 0, length, 1.0)
        return Preferences(t.obs, t.action, start, label, length, t.reward)
    label = check(path, "label", arrays["label"], (pairs,))
    if not np.isin(label, (0.0, 0.5, 1.0)).all():
        raise InputError(f"{path}: 'label' holds values other than 0 (first), 0.5 (tie) and 1 (second preferred)")
    if not pairs:
        raise InputError(f"{path}: 'label' is empty; there is nothing to learn from")
    return Preferences(obs, action, start, label, length, reward)


def read_transitions(path: Path, env: str) -> Transitions:
    """Every step of every episode as a transition; only D4RL and robomimic have terminal states.

    Raises:
        InputError: as `read_preferences`.
    """
    suite, env = resolve(env)
    if suite != "metaworld":
        return read_robomimic(path, env) if suite == "robomimic" else read_d4rl(path, env)
    arrays = read_rows(path, env)
    step = np.concatenate([row + np.arange(n) for row, n in
                           zip(arrays["episodes/row"], arrays["episodes/length"], strict=True)])  # fmt: skip
    obs, reward = arrays["obs"], arrays["reward"][step]
    return Transitions(obs[step], arrays["action"][step], reward, obs[step + 1], np.zeros_like(reward))


def read_robomimic(path: Path, env: str) -> Transitions:
    """Robomimic's low-dimensional HDF5. Demonstrations in the file's order; rewards as they are, 1 for success.

    As in IPL's code: a step marked done (it reaches success) or the last of its demonstration is terminal, and a step
    that begins where one marked done has ended is left out.
    """
    obs_dim, act_dim = sizes(env)
    names = ["object" if name == "object-state" else name for name in ROBOMIMIC_OBS]
    wanted = {"actions", "rewards", "dones"} | {f"{group}/{name}" for group in ("obs", "next_obs") for name in names}
    arrays = read(path, lambda name: name.startswith("data/") and name.split("/", 2)[-1] in wanted)
    made_for = arrays.get("env_args", {}).get("env_name")
    if made_for not in (None, ROBOMIMIC_TASKS[env.split("-")[0]]):
        raise InputError(f"{path}: holds the task {made_for}, not that of {env}; choose another --dataset or --env")
    demos = list(dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith("data/")))
    if not demos:
        require(path, arrays, ("data/demo_0/actions",))
    parts = []
    for demo in demos:
        require(path, arrays, tuple(f"data/{demo}/{name}" for name in sorted(wanted)))
        steps = len(arrays[f"data/{demo}/actions"])
        if not steps:
            raise InputError(f"{path}: 'data/{demo}/actions' is empty; make the file again")

        def flat(group: str, demo=demo, steps=steps) -> np.ndarray:
            columns = [check(path, key, arrays[key], (steps, None))
                       for key in (f"data/{demo}/{group}/{name}" for name in names)]  # fmt: skip
            return check(path, f"data/{demo}/{group}", np.concatenate(columns, -1), (steps, obs_dim)).astype(np.float32)

        action = check_actions(path, f"data/{demo}/actions", arrays[f"data/{demo}/actions"], (steps, act_dim))
        reward = check(path, f"data/{demo}/rewards", arrays[f"data/{demo}/rewards"], (steps,)).astype(np.float32)
        done = check(path, f"data/{demo}/dones", arrays[f"data/{demo}/dones"], (steps,), 0, 1).astype(bool)
        keep, terminal = np.append(True, ~done[:-1]), np.append(done[:-1], True).astype(np.float32)
        parts.append([column[keep] for column in (flat("obs"), action, reward, flat("next_obs"), terminal)])
    return Transitions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def read_d4rl(path: Path, env: str) -> Transitions:
    """D4RL's HDF5 as its `qlearning_dataset`: a time limit ends an episode without a terminal state, and that step,
    whose next observation is another episode's, is left out, as is the file's last one. (In IPL's reader that step
    leads to its own observation, and an episode within which the file ends is left out.)

    Rewards are scaled by 1000 / (largest - smallest return), as IQL and IPL do for locomotion.
    """
    names, (obs_dim, act_dim) = ("observations", "actions", "rewards", "terminals", "timeouts"), sizes(env)
    arrays = read(path, lambda name: name in names)
    require(path, arrays, names)
    rows = len(check(path, "observations", arrays["observations"], (None, obs_dim)))
    if not rows:
        raise InputError(f"{path}: 'observations' is empty; make the file again")
    action = check_actions(path, "actions", arrays["actions"], (rows, act_dim))
    reward = check(path, "rewards", arrays["rewards"], (rows,)).astype(np.float32)
    terminal = check(path, "terminals", arrays["terminals"], (rows,), 0, 1).astype(bool)
    timeout = check(path, "timeouts", arrays["timeouts"], (rows,), 0, 1).astype(bool)
    first = np.flatnonzero(np.append(True, (terminal | timeout)[:-1]))
    returns = np.add.reduceat(reward.astype(np.float64), first)
    obs = arrays["observations"].astype(np.float32)
    keep = np.flatnonzero(terminal | ~timeout)
    keep = keep[(keep < rows - 1) | terminal[keep]]
    scale = 1000 / max(returns.max() - returns.min(), 1e-6)
    # nothing follows a terminal state: the row itself stands in, and its value is multiplied by zero
    follows = np.where(terminal[keep], keep, keep + 1)
    return Transitions(obs[keep], action[keep], (reward * scale).astype(np.float32)[keep], obs[follows],
                       terminal[keep].astype(np.float32))  # fmt: skip


# ---------------------------------------------------------------- command line
@dataclass
class BuildArgs:
    """Build a MetaWorld dataset, or download another's with its human preferences, and print what is in them."""

    env: str = "drawer-open-v2"
    """environment; what follows, but for the folder, is of MetaWorld"""
    episodes: int = 100
    """episodes of each kind: expert, within (another goal), random, cross (another task)"""
    noise: float = 1.0
    """standard deviation of the noise on scripted actions"""
    seed: int = 0
    """seed of goals, noise and pairs"""
    pairs: int = PAIRS
    """preference pairs"""
    data_dir: Path = Path("data")
    """folder of the datasets (IPL_DATA_DIR, if set, is the default)"""
    workers: int = 0
    """processes; 0: one a core"""


def main(args: BuildArgs) -> Path:
    """Build or download what is missing; print success rate, length and return of each kind of MetaWorld episode."""
    from common.runs import check_args  # here, since it imports this module

    check_args(args)
    suite, env = resolve(args.env)
    if env in HUMAN_FILES:
        path = ensure_human(env, args.data_dir)
        print(f"{path}: {len(read_preferences(path, env).label)} pairs")
    workers = Workers(args.workers or available_cpus())
    try:
        path = ensure(env, args.data_dir, workers, args.episodes, args.noise, args.seed, args.pairs)
    finally:
        workers.close()
    if suite != "metaworld":
        print(f"{path}: {len(read_transitions(path, env).obs)} transitions")
        return path
    arrays = read_rows(path, env)
    print(f"{path}\n{'kind':8} episodes  success  length   return")
    for k, kind in enumerate(KINDS):
        chosen = np.flatnonzero(arrays["episodes/kind"] == k)
        spans = [
            slice(arrays["episodes/row"][e], arrays["episodes/row"][e] + arrays["episodes/length"][e]) for e in chosen
        ]
        success = np.mean([arrays["success"][span].max() for span in spans])
        returns = np.mean([arrays["reward"][span].sum() for span in spans])
        print(f"{kind:8} {len(chosen):8} {success:8.2f} {arrays['episodes/length'][chosen].mean():7.1f} {returns:8.1f}")
    ties = float((arrays["preferences/label"] == 0.5).mean())
    print(f"{len(arrays['preferences/label'])} pairs of {SEGMENT} steps, ties: {ties:.4f}")
    return path


if __name__ == "__main__":
    from common.runs import default_data_dir, parse_args, user_errors

    with user_errors():
        main(parse_args(BuildArgs(data_dir=default_data_dir())))
