"""The way out that an error names fits its cause, and is one of the command that runs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from algorithms import ipl_iql
from common import suites
from common.arrays import read_arrays
from common.cli import default_args, onednn_is_faster, parse_args, user_errors
from common.data import read_preferences
from common.errors import InputError, remedy, simulator_remedy
from common.locks import atomic, locked
from common.suites import d4rl, robomimic
from common.suites.base import Task
from common.trees import read_saved
from common.workers import Workers
from tests.conftest import REPOSITORY, environment
from tests.test_suites import write_robomimic
from tools import dataset, reward
from tools.label import __main__ as label

OWN = Task("gym", "Own-v0", 3, 2, 0, (0.0, 0.0), (1.0, 1.0))


def one_line(capsys) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


# ---------------------------------------------------------------- faults of the machine
def test_a_fault_of_the_code_shows_its_traceback_and_a_full_disk_its_way_out(capsys, tmp_path):
    args = parse_args(ipl_iql.Args(), ["--run-dir", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data")])
    with pytest.raises(FileNotFoundError), user_errors():
        (tmp_path / "forgotten.txt").read_text()
    assert not capsys.readouterr().err
    cases = (
        (errno.ENOSPC, args.run_dir, "the disk is full: make room there, or choose another --run-dir"),
        (errno.EDQUOT, args.data_dir, "quota -s`): remove files of yours, or choose another --data-dir"),
        (errno.EROFS, args.data_dir, "choose another --data-dir that can be written to"),
        (errno.EACCES, args.run_dir, "change its permissions, or choose another --run-dir that is yours"),
        (errno.ENOLCK, args.run_dir, "its file system has no locks: choose another --run-dir on a local disk"),
        (errno.EOPNOTSUPP, args.data_dir, "its file system has no locks: choose another --data-dir on a local disk"),
        (errno.EMFILE, "/elsewhere", "ulimit -n 4096"),
        (errno.EAGAIN, "/elsewhere", "another process has it open"),
        (errno.ENOSPC, "/dev/shm", "--shm-size=1g"),
    )
    for number, folder, way in cases:
        with pytest.raises(SystemExit, match="1"), user_errors():
            raise OSError(number, os.strerror(number), f"{folder}/file")
        said = one_line(capsys)
        assert os.strerror(number) in said and way in said, said


def test_a_fault_of_the_code_in_a_worker_shows_its_traceback_too(tmp_path):
    workers = Workers(1)
    try:
        with pytest.raises(FileNotFoundError):
            workers.run(Path.read_text, [(tmp_path / "forgotten.txt",)])
    finally:
        workers.close()


def test_a_tool_advises_its_own_flags(capsys):
    parse_args(reward.RewardArgs((Path("runs"),), out=Path("/proc/none")), [])
    with pytest.raises(SystemExit), user_errors():
        raise OSError(errno.EROFS, "Read-only file system", "reward/table.md")
    assert "choose another --out that can be written to" in one_line(capsys)
    with pytest.raises(SystemExit), user_errors():
        Path("/proc/none").mkdir()
    assert "/proc/none'; choose another --out" in one_line(capsys)


def test_a_write_says_where_it_failed(tmp_path):
    with pytest.raises(OSError) as error, atomic(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == str(tmp_path / "file")


def test_locks_name_the_writer_or_what_switches_them_off(tmp_path):
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        file["a"] = np.zeros(3)
    with h5py.File(path, "r+"):  # in another process it would be the same lock
        code = f"from pathlib import Path; from common.arrays import read_arrays; read_arrays(Path({str(path)!r}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert "unable to lock file" in said and "delete" not in said
    assert f"process {os.getpid()} writes it" in said and "HDF5_USE_FILE_LOCKING=FALSE" in said
    for number in (errno.ENOLCK, errno.EOPNOTSUPP):
        told = OSError(number, f"Unable to open file (unable to lock file, errno = {number}, error message = 'none')")
        assert remedy(told, path) == "its file system has no locks: set HDF5_USE_FILE_LOCKING=FALSE"


def test_delete_is_said_of_damaged_content_alone(tmp_path, monkeypatch):
    for name in ("cut.hdf5", "cut.npz"):
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
        with pytest.raises(InputError, match="built it by itself, delete it"):
            read_arrays(tmp_path / name)
    (tmp_path / "cut.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="delete it"):
        read_saved(tmp_path / "cut.pt", ())

    def fails(*_, **__):
        raise error

    for error in (OSError(errno.EIO, "Input/output error"), OSError(errno.EMFILE, "Too many"), MemoryError("2 TiB")):
        for module, name, read in (("h5py", "File", lambda: read_arrays(tmp_path / "cut.hdf5")),
                                   ("numpy", "load", lambda: read_arrays(tmp_path / "cut.npz")),
                                   ("zipfile", "ZipFile", lambda: read_saved(tmp_path / "cut.pt", ()))):  # fmt: skip
            with monkeypatch.context() as patch:
                patch.setattr(f"{module}.{name}", fails)
                with pytest.raises(InputError) as refused:
                    read()
            assert "; delete" not in str(refused.value) and remedy(error) in str(refused.value)


def test_a_folder_that_cannot_be_written_to_names_its_flag(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for flag in ("--data-dir", "MINARI_DATASETS_PATH"):
        with (
            pytest.raises(InputError, match=f"{flag} .*choose another {flag}"),
            locked(tmp_path / "file/below/data", flag=flag),
        ):
            pass

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(InputError, match="no locks: choose another --data-dir on a local disk"), locked(tmp_path / "x"):
        pass


@pytest.mark.skipif(not shutil.which("unshare") or os.getuid() != 0, reason="needs the right to mount")
def test_shared_memory_that_is_too_small_is_named():
    code = ("import sys; from common.errors import WorkersError\nfrom common.workers import Workers\n"
            "try: Workers(1).run(abs, [(1,)])\nexcept WorkersError as error: print(error)")  # fmt: skip
    mount = 'mount -t tmpfs -o nr_inodes=1 tmpfs /dev/shm && exec "$@"'
    line = ["unshare", "-m", "bash", "-c", mount, "_", sys.executable, "-c", code]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True)
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(done.stderr)
    assert "--shm-size=1g" in done.stdout and done.stdout.count("\n") == 1, (done.stdout, done.stderr)


# ---------------------------------------------------------------- the command line
def test_home_is_expanded_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [f"--{name}=~/x" for name in ("run-dir", "data-dir", "dataset", "preferences")]
    args = parse_args(default_args(ipl_iql.Args, {}, words), words)
    found = [args.run_dir, str(args.data_dir), *args.dataset, *args.preferences]
    assert found == [str(tmp_path / "x")] * 4 and isinstance(args.data_dir, Path)
    args = parse_args(reward.RewardArgs((Path("a"),)), ["~/a", "b", "--out=~/x", "--film=~/f.gif"])
    assert args.runs == (tmp_path / "a", Path("b")) and args.out == tmp_path / "x" and args.film == f"{tmp_path}/f.gif"
    assert parse_args(dataset.DatasetArgs(), ["--out=~/p.npz"]).out == f"{tmp_path}/p.npz"
    assert parse_args(label.LabelArgs(), ["--labels-dir=~"]).labels_dir == tmp_path
    monkeypatch.setenv("IPL_DATA_DIR", "~/data")
    assert default_args(ipl_iql.Args, {}, []).data_dir == tmp_path / "data"


def test_labelling_advises_its_own_flags(tmp_path, monkeypatch):
    """Of a dataset that cannot be had."""
    monkeypatch.setattr(d4rl, "HOSTS", ("http://127.0.0.1:9",))
    monkeypatch.setattr(label, "require_rendering", lambda *_: None)
    for env in ("hopper-medium-v2", "Pendulum-v1"):
        with pytest.raises(InputError, match=r"name one with --dataset FILE\.hdf5") as error:
            label.main(label.LabelArgs(env=env, data_dir=tmp_path, labels_dir=tmp_path))
        flags = {word.strip(";,:.") for word in str(error.value).split() if word.startswith("--")}
        assert flags <= {"--env", "--dataset"}


def test_products_keep_their_digits_whenever_onednn_began():
    """Also where it has multiplied before; there, and where somebody types, its limit is not relied upon."""
    code = ("import sys, torch\nfrom algorithms.ipl_iql import Args\nfrom common.cli import setup_device\n{}\n"
            "setup_device(Args(device='cpu'))\n"
            "for shape in ((480, 256), (2, 480, 256)):\n"
            "    a, b = torch.rand(shape), torch.rand(*shape[:-2], 256, 256)\n"
            "    assert ((a @ b).double() / (a.double() @ b.double()) - 1).abs().max() < 2e-6\n"
            "print(torch.get_float32_matmul_precision())")  # fmt: skip
    began = "torch.rand(480, 256).bfloat16() @ torch.rand(256, 256).bfloat16()"
    for before, expected in (
        ("", "medium" if onednn_is_faster() else "highest"),
        (began, ""),
        ("sys.ps1 = ''", "highest"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(before)], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert expected in done.stdout and done.returncode == 0, done.stderr


# ---------------------------------------------------------------- pictures
@pytest.mark.parametrize(("said", "way"), [
    ("The MUJOCO_EGL_DEVICE_ID environment variable must be an integer between 0 and 0 (inclusive), got 1.",
     "set MUJOCO_EGL_DEVICE_ID=0"),
    ("ValueError: invalid literal for int() with base 10: 'GPU-1a2b'", "set MUJOCO_EGL_DEVICE_ID=0"),
    ("AttributeError: 'NoneType' object has no attribute 'eglQueryString'", "install libegl1"),
    ("ArgumentError: argument 1: AttributeError: 'NoneType' object has no attribute 'glGetError'", "libopengl0"),
    ("ImportError: Cannot initialize a EGL device display. This likely means", "install libegl1"),
    ("an OpenGL platform library has not been loaded into this process", "install libegl1"),
    ("invalid value for environment variable MUJOCO_GL: foo", "unset MUJOCO_GL"),
    ("DependencyNotInstalled: pygame is not installed, run `pip install", "pip install pygame"),
    ("ModuleNotFoundError: No module named 'pygame.font'", "pip install pygame"),
    ("TypeError: __init__() got an unexpected keyword argument 'render_mode'", 'take render_mode="rgb_array"'),
    ("cannot cache function 'mat2quat': no locator available for file 'transform_utils.py'", "set NUMBA_CACHE_DIR"),
    ("Mon wrapper does not inherit from `gymnasium.utils.RecordConstructorArgs`, therefore", "record without it"),
    ("it renders nothing", 'take render_mode="rgb_array"'),
    ("ValueError: shapes differ", ""),
])  # fmt: skip
def test_the_way_out_of_an_error_of_a_simulator(monkeypatch, said, way):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    found = simulator_remedy(said)
    assert way in found and bool(way) == bool(found)


def test_a_device_that_cuda_does_not_name_matters_to_nobody_who_renders_nothing():
    """robosuite would refuse to be imported. Where OpenGL is missing that is said."""
    code = ("from common import suites\nfrom common.arrays import InputError\n"
            "for env in ('lift-ph', 'drawer-open-v2'):\n"
            "    try:\n        sim = suites.make(suites.resolve(env)); sim.reset(seed=0); print(env, 'runs')\n"
            "    except InputError as error: print(error)")  # fmt: skip
    for env, said in (({"MUJOCO_GL": "glx", "MUJOCO_EGL_DEVICE_ID": "0", "CUDA_VISIBLE_DEVICES": "1"}, "runs"),
                      ({"MUJOCO_GL": "foo"}, "unset MUJOCO_GL")):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True,
                              env={**os.environ, **env})  # fmt: skip
        assert done.stdout.count(said) == 2 and done.stdout.count("\n") == 2, (done.stdout, done.stderr)


# ---------------------------------------------------------------- pairs and datasets
def own_pairs(path: Path, **changes) -> Path:
    draw = np.random.default_rng(0)
    arrays = {
        f"{name}_{k}": draw.uniform(0, 1, (4, 6, size)) for k in (1, 2) for name, size in (("obs", 3), ("action", 2))
    }
    np.savez(path, **(arrays | {"label": np.array([0, 1, 0.5, 1])} | changes))
    return path


@pytest.mark.parametrize(("label", "said"), [
    (np.eye(2)[[0, 1, 1, 0]], r"shape \(4, 2\); one number a pair is wanted, \(4,\): label\[:, 1\]"),
    (np.ones((4, 1)), r"shape \(4, 1\); one number a pair is wanted, \(4,\): label\[:, 0\]"),
    (np.array([1, 2, 2, 1]), r"holds 1, 2; .*: label - 1$"),
    (np.array([-1, 1, 1, -1]), r"holds -1, 1; .*: \(label \+ 1\) / 2$"),
    (np.array([-1, 0, 1, 1]), r"np.where\(label < 0, 0.5, label\)"),
    (np.array(["a", "b", "a", "b"]), "not numbers"),
])  # fmt: skip
def test_other_labels_are_told_how_to_become_ours(tmp_path, label, said):
    with pytest.raises(InputError, match=said) as error:
        read_preferences(own_pairs(tmp_path / "p.npz", label=label), OWN)
    assert "\n" not in str(error.value) and "environment" not in str(error.value)


def test_segments_of_unequal_length_are_told_how_to_become_one_array(tmp_path):
    ragged = np.empty(4, object)
    ragged[:] = [np.zeros((n, 3)) for n in (4, 5, 6, 6)]
    with pytest.raises(InputError, match=r"'obs_1' holds Python objects.*np.stack\(\[segment\[:L\]"):
        read_preferences(own_pairs(tmp_path / "p.npz", obs_1=ragged), OWN)
    with pytest.raises(InputError, match=r"'obs_2' has shape \(4, 5, 3\), not 4 x 6 x 3; docs/data.md"):
        read_preferences(own_pairs(tmp_path / "p.npz", obs_2=np.zeros((4, 5, 3))), OWN)


def test_actions_in_the_environments_own_units_are_named(tmp_path, capsys):
    path = own_pairs(tmp_path / "p.npz")
    for _ in range(2):
        read_preferences(path, OWN)
    assert "within the environment's own bounds, [0.0, 0.0] to [1.0, 1.0]" in one_line(capsys)  # once
    read_preferences(path, Task("gym", "Wide-v0", 3, 2, 0, (-2.0, -2.0), (2.0, 2.0)))
    rescaled = {f"action_{k}": 2 * np.load(path)[f"action_{k}"] - 1 for k in (1, 2)}
    read_preferences(own_pairs(tmp_path / "q.npz", **rescaled), OWN)
    assert not capsys.readouterr().err
    assert suites.resolve("Pendulum-v1").low == (-2.0,)


def test_own_segments_may_not_cross_an_episodes_end(tmp_path):
    def write(start) -> Path:
        with h5py.File(tmp_path / "own.hdf5", "w") as file:
            file["obs"], file["action"], file["reward"] = np.zeros((123, 3)), -np.ones((123, 2)), np.zeros(123)
            file["episodes/row"], file["episodes/length"] = np.array([41, 0, 82]), np.array([40, 40, 40])
            file["preferences/start"], file["preferences/label"] = np.array(start), np.ones(len(start))
        return tmp_path / "own.hdf5"

    assert len(read_preferences(write([[0, 15], [41, 56], [82, 97]]), OWN).label) == 3
    with pytest.raises(InputError, match=r"3 segments of 25 steps .* cross an episode's end"):
        read_preferences(write([[0, 30], [16, 56], [82, 98]]), OWN)


def test_other_simulators_are_named_once(tmp_path, capsys):
    path, task = tmp_path / "lift.hdf5", suites.resolve("lift-ph")
    obs = np.zeros((60, 49))
    write_robomimic(path, [{"obs": obs, "next_obs": obs, "action": np.zeros((60, 7)), "reward": np.zeros(60)}])
    kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": {"type": "OSC_POSE"}}
    for changes, said in (({"env_version": "1.4.0"}, ""), ({"env_version": "1.5.1"}, "robosuite 1.5.1, not 1.4.1"),
                          ({"env_kwargs": kwargs | {"robots": "Sawyer", "control_freq": 10}},
                           "robot Sawyer, not Panda, Hz 10, not 20"), ({"env_kwargs": []}, "")):  # fmt: skip
        with h5py.File(path, "r+") as file:
            file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": kwargs} | changes)
        for _ in range(2):
            suites.SUITES["robomimic"].read_transitions(path, task)
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == bool(said)


def test_the_range_of_returns_leaves_out_the_episode_within_which_the_file_ends(tmp_path):
    """As D4RL's readers: [D] none. Finished episodes return 1 and 3, the last one would 10."""
    end = np.zeros(250, bool)
    end[[99, 199]] = True
    reward = np.repeat([0.01, 0.03, 0.2], (100, 100, 50))
    with h5py.File(tmp_path / "h.hdf5", "w") as file:
        file["observations"], file["actions"] = np.zeros((250, 11)), np.zeros((250, 3))
        file["rewards"], file["terminals"], file["timeouts"] = reward, np.zeros(250, bool), end
    found = d4rl.read_raw(tmp_path / "h.hdf5", suites.resolve("hopper-medium-v2"))[2]
    np.testing.assert_allclose(found, reward * 1000 / (3 - 1), rtol=1e-5)


def test_a_script_of_ones_own_shows_its_traceback(data_dir, tmp_path):
    """As a real process, from a copy that opens a file that is not there."""
    text = (REPOSITORY / "algorithms/ipl_iql.py").read_text()
    script = tmp_path / "mine.py"
    script.write_text(
        text.replace("def train(args", 'def train(args):\n    open("forgotten.txt")\n\n\ndef unused(args')
    )
    done = subprocess.run([sys.executable, script], **environment(data_dir, tmp_path))
    assert done.returncode == 1 and "Traceback" in done.stderr and "forgotten.txt" in done.stderr


def test_episodes_are_as_long_as_asked_for_or_a_word_says_not(capsys):
    """A limit of the simulator's own that lies within would end them earlier, in silence."""
    for env, steps in (("halfcheetah-medium-v2", 1010), ("Pendulum-v1", 210)):
        sim = suites.make(suites.resolve(env, steps))
        sim.reset(seed=0)
        ends = [any(sim.step(sim.action_space.sample())[2:4]) for _ in range(steps)]
        assert ends[-1] and not any(ends[:-1])
    for env, longest in (("drawer-open-v2", 500), ("lift-ph", 400), ("can-mh", 500)):
        suites.resolve(env, longest)
        assert not capsys.readouterr().err
        suites.resolve(env, longest + 1)
        assert f"{env} ends after {longest} steps" in one_line(capsys)
    registry = pytest.importorskip("robomimic").DATASET_REGISTRY
    for name in robomimic.SIMS:
        assert all(registry[name][kind]["low_dim"]["horizon"] == n for kind, n in robomimic.HORIZON.items())
