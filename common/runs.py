"""The command line and a run's folder: arguments, files, locks, signals, resuming. The same for every algorithm.

A run's folder holds one folder a seed, each what a single-seed run would have written: config.json, train.csv,
eval.csv, time.csv, checkpoint.pt, best.pt, final.pt, TensorBoard events, videos/; of pt_iql also reward.csv, reward.pt.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import fcntl
import fnmatch
import io
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import warnings
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import tyro

from common.datasets import atomic
from common.envs import InputError, WorkersError, available_cpus, resolve

SCHEMA = 1
"""version of checkpoint.pt"""
INCIDENTAL = (
    "num_seeds", "data_dir", "run_dir", "overwrite", "track", "wandb_project", "wandb_entity", "capture_video",
    "log_every", "device", "compile", "threads", "dataset", "preferences",
)  # fmt: skip
"""arguments that a resumed run may change: none changes the method (device, compile, threads and num_seeds change the
last bits of numbers, another kind of device also dropout masks and noise; files are compared by content)"""


# ---------------------------------------------------------------- command line
def default_data_dir() -> Path:
    """IPL_DATA_DIR, or `data` in the repository (not in the working folder: a dataset is built once)."""
    return Path(os.environ.get("IPL_DATA_DIR") or Path(__file__).resolve().parent.parent / "data")


@contextlib.contextmanager
def user_errors():
    """One line on stderr, not a traceback: for wrong input (exit status 2), a fault of the machine or a number (1)."""
    try:
        yield
    except (InputError, OSError, WorkersError, NotFinite, torch.OutOfMemoryError, torch.AcceleratorError) as error:
        words = str(error).splitlines()[:1] if isinstance(error, torch.AcceleratorError) else str(error).split()
        reason = " ".join(words) or type(error).__name__
        print(f"{Path(sys.argv[0]).name}: error: {reason}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
    except RuntimeError as error:
        if type(error).__module__.startswith("torch._"):
            print("torch.compile failed; --no-compile runs the update eager", file=sys.stderr)
        raise


def parse_args(defaults, argv: list[str] | None = None):
    """Parse the command line over the values of the dataclass `defaults`. Wrong input: InputError, in one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(type(defaults), default=defaults, args=argv, description=type(defaults).__doc__)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        words = [w for w in said.getvalue().split() if w.strip("─│╭╮╰╯")]
        raise InputError(" ".join(words).replace("─", "")) from None


def default_args(cls, table: dict[str, dict], argv: list[str] | None = None):
    """The defaults for the environment that --env names: those of the dataclass `cls`, then those of every pattern in
    `table` that fits. Wrong --env: InputError.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # --env alone, ahead of tyro
    peek.add_argument("--env", nargs="?", const=cls.env, default=cls.env)
    env, deltas = resolve(peek.parse_known_args(argv)[0].env)[1], {}
    for pattern, values in table.items():
        if fnmatch.fnmatchcase(env, pattern):
            deltas |= values
    return cls(**{"env": env, "data_dir": default_data_dir(), **deltas})


# what an argument must be; the same names mean the same in every script
LIMITS = (
    ("at least 1", lambda x: x >= 1, "num_seeds total_steps eval_every eval_episodes log_every preference_batch_size "
                                     "replay_batch_size num_critics reward_epochs reward_batch_size reward_layers "
                                     "reward_heads reward_width episodes pairs"),
    ("at least 0", lambda x: x >= 0, "num_preferences reward_steps reward_patience video"),
    ("between 0 and 4294967295", lambda x: 0 <= x < 2**32, "seed"),  # what torch and numpy take
    ("between 0 and 1024", lambda x: 0 <= x <= 1024, "threads workers"),
    ("at least 2", lambda x: x >= 2, "segment_length"),
    ("positive and finite", lambda x: 0 < x < float("inf"), "lr beta alpha clip_score clip_exponent"),
    ("at least 0 and finite", lambda x: 0 <= x < float("inf"), "chi2_coeff noise"),
    ("in [0, 1)", lambda x: 0 <= x < 1, "gamma dropout reward_dropout"),
    ("in (0, 1]", lambda x: 0 < x <= 1, "tau"),
    ("in [0, 1]", lambda x: 0 <= x <= 1, "replay_weight"),
    ("between 0 and 1", lambda x: 0 < x < 1, "expectile"),
    ("finite", lambda x: abs(x) < float("inf"), "reward_shift"),
    ("one or more positive sizes", lambda x: len(x) >= 1 and min(x) >= 1, "hidden_sizes"),
    ("human or script", lambda x: x in ("human", "script"), "preference_labels"),
    ("highest, high or medium", lambda x: x in ("highest", "high", "medium"), "matmul_precision"),
)  # fmt: skip


def check_args(args) -> None:
    """Raises InputError for the first argument outside its LIMITS."""
    for what, accepts, names in LIMITS:
        for name in names.split():
            if hasattr(args, name) and not accepts(value := getattr(args, name)):
                value = " ".join(map(str, value)) if isinstance(value, tuple) else value
                raise InputError(f"--{name.replace('_', '-')} {value}: must be {what}")
    if hasattr(args, "reward_heads") and args.reward_width % args.reward_heads:
        raise InputError(f"--reward-width {args.reward_width}: not a multiple of --reward-heads, {args.reward_heads}")


def setup_device(args) -> torch.device:
    """Choose the device, the threads and the matrix precision. Raises InputError where there is no such device."""
    try:
        name = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {args.device}: {str(error).splitlines()[0]}; try --device cpu") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif (args.device == "auto" and torch.version.cuda and Path("/dev/nvidiactl").exists()
          and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")):  # fmt: skip
        print("this torch cannot use the GPU here: training on the CPU (--device cuda says why)", file=sys.stderr)
    # A CPU takes many times as long for numbers below 1e-38, which Adam's moments and the steps of a trained Preference
    # Transformer come to hold. Threads inherit this when they start.
    torch.set_flush_denormal(True)
    # Matrices of a few hundred rows do not feed more than a handful of threads.
    torch.set_num_threads(args.threads or min(4, available_cpus()))
    torch.set_float32_matmul_precision(args.matmul_precision)
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # advice against the default, at each start
    return device


def can_compile(device: torch.device) -> str:
    """Empty, or what torch.compile lacks here: it makes C++, or launchers in C for CUDA; both include Python.h."""
    import sysconfig

    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return "Triton and a GPU of compute capability 7.0"
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            return "a C compiler (Debian: gcc)"
    elif not shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")):
        return "a C++ compiler (Debian: g++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python.h (Debian: python3-dev)"
    return ""


# ---------------------------------------------------------------- signals
class Signals:
    """Remembers SIGTERM, SIGINT, SIGHUP and SIGUSR1, so that the loop ends between two steps with a checkpoint."""

    def __init__(self):
        self.received = 0

    def __enter__(self) -> Signals:
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        # what nohup and the like told us to ignore stays ignored
        self.before = {s: signal.signal(s, self._remember) for s in wanted if signal.getsignal(s) != signal.SIG_IGN}
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def __bool__(self) -> bool:
        return bool(self.received)

    def _remember(self, signum, _frame) -> None:
        self.received = signum

    @property
    def exit_status(self) -> int:
        """0 for SIGUSR1 (a launcher asked for a checkpoint and will start the run again), else 128 + the signal."""
        return 0 if self.received == signal.SIGUSR1 else 128 + self.received


# ---------------------------------------------------------------- nested dicts of tensors
def tree_map(function, *trees):
    """Apply `function` to the corresponding leaves of nested dicts."""
    if isinstance(trees[0], dict):
        return {name: tree_map(function, *(tree[name] for tree in trees)) for name in trees[0]}
    return function(*trees)


class NotFinite(RuntimeError):
    """A loss is NaN or infinite."""


def check_finite(runs: list[Run], step: int, metrics: dict, state: dict, batch: dict | None = None) -> None:
    """Raises NotFinite where a metric (S,) of update `step` is NaN or infinite, and saves what made it for a look.

    RUN_DIR/not-finite.pt: metrics, state (after that update) and batch, of all seeds of this process. Without `batch`,
    ahead of a checkpoint, the state's numbers are looked at too.
    """
    bad, seeds = {}, set()  # names, in their order; seeds

    def look(name: str, leaf: torch.Tensor) -> None:  # (S, ...)
        if not leaf.isfinite().all():
            bad[name] = True
            finite = leaf.isfinite().reshape(len(runs), -1).all(1)
            seeds.update(run.seed for run, fine in zip(runs, finite.tolist(), strict=True) if not fine)

    for name, leaves in (metrics if batch is not None else {**metrics, **state}).items():
        tree_map(lambda leaf, name=name: look(name, leaf), leaves)
    if bad:
        path = runs[0].folder.parent / "not-finite.pt"
        parts = {"metrics": metrics, "state": state, "batch": batch or {}}
        save(path, {"schema": SCHEMA, "step": step, **tree_map(lambda t: t.detach().cpu(), parts)})
        what = f"{', '.join(bad)} not finite (seed {', '.join(map(str, sorted(seeds)))})"
        raise NotFinite(f"update {step}: {what}; see {path}; the checkpoint before it is intact")


# ---------------------------------------------------------------- a seed's folder
def stored(args) -> dict:
    """A seed's arguments as config.json and checkpoint.pt hold them."""
    return json.loads(json.dumps(dataclasses.asdict(args) | {"num_seeds": 1}, default=str))


class Run:
    """The folder of one seed: what is there from an earlier start, and all that is written.

    Args:
        folder: RUN_DIR/seed-K.  args: the arguments, `seed` K among them.  algorithm: the script's name.

    Raises:
        InputError: another process is at work in the folder, or it holds a run with other arguments.
    """

    def __init__(self, folder: Path, args, algorithm: str):
        self.folder, self.algorithm, self.seed = Path(folder), algorithm, args.seed
        self.args, self.usual = stored(args), stored(type(args)())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            raise InputError(f"--run-dir {self.folder.parent}: {error.strerror} ({error.filename})") from None
        for partial in self.folder.glob(".*.partial"):
            partial.unlink()  # left by a kill in the middle of a write
        self.config, self.checkpoint, path = {}, None, self.folder / "checkpoint.pt"
        if not args.overwrite:
            self.config = self._read_config()
            self.checkpoint = read_saved(path, ("step", "state", "args", "time")) if path.exists() else None
        self.step = self.checkpoint["step"] if self.checkpoint else 0
        # `open` empties the folder of a run that is to be overwritten or has not trained yet, once all input is checked
        self.started = not args.overwrite and (self.step > 0 or (self.folder / "reward.pt").exists())
        if not self.started and not args.overwrite and (self.folder / "final.pt").exists():
            raise InputError(f"{self.folder}: holds a finished run without its checkpoint; choose another --run-dir, "
                             "or start anew with --overwrite")  # fmt: skip
        if self.started:
            for source in (self.config, self.checkpoint or {}):
                self._compare(self.args, source.get("args", {}), self.config.get("algorithm", algorithm))
        else:
            self.checkpoint = None
        self.finished = (self.folder / "final.pt").exists() and self.step >= args.total_steps
        self.time = dict(self.checkpoint["time"]) if self.checkpoint else {"data": 0.0, "train": 0.0, "eval": 0.0}
        self.rows: dict[str, list[dict[str, str]]] = {}
        self.board, self.wandb = None, None

    def _lock(self) -> None:
        # The kernel's lock ends with its process, so a killed run blocks nobody.
        self.lock = open(self.folder / ".lock", "a+")  # noqa: SIM115 (held for the life of the run)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.seek(0)
            owner = self.lock.read().strip() or "another process"
            raise InputError(f"{self.folder}: in use by {owner}; wait for it or choose another --run-dir") from None
        self.lock.truncate(0)
        self.lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
        self.lock.flush()

    def _read_config(self) -> dict:
        path = self.folder / "config.json"
        try:
            return dict(json.loads(path.read_text())) if path.exists() else {}
        except (TypeError, ValueError):
            raise InputError(f"{path}: not readable as a run's configuration; start anew with --overwrite") from None

    def _compare(self, now: dict, before: dict, algorithm: str) -> None:
        if algorithm != self.algorithm:
            raise InputError(f"{self.folder}: holds a run of {algorithm}; choose another --run-dir, or --overwrite it")
        before = {**self.usual, **before} if before else {}  # a flag that there was not yet had its default
        changed = [f"--{name.replace('_', '-')} {before[name]} -> {now[name]}" for name in now
                   if name in before and name not in INCIDENTAL and before[name] != now[name]]  # fmt: skip
        if changed:
            raise InputError(f"{self.folder}: was started with other arguments ({', '.join(changed)}); give the same, "
                             "choose another --run-dir, or start anew with --overwrite")  # fmt: skip

    def read(self, name: str, names: tuple[str, ...]) -> dict:
        """A file that `save` wrote into this folder, with `names` in it. InputError: it is of other arguments."""
        saved = read_saved(self.folder / name, names)
        self._compare(self.args, saved.get("args", {}), self.algorithm)
        return saved

    def restore(self, fresh: dict) -> dict:
        """The checkpoint's state or, where there is none, `fresh`. InputError: it holds other tensors than `fresh`."""
        if self.checkpoint is None:
            return fresh
        check_alike(self.folder / "checkpoint.pt", self.checkpoint["state"], fresh)
        return self.checkpoint["state"]

    def open(self, data: dict[str, str], device: torch.device, track: bool) -> None:
        """Write config.json, drop rows that are newer than the checkpoint, open the logs.

        Args:
            data: fingerprints of the files trained on; refused if they are not those of the checkpoint.
        """
        if self.started and self.config.get("dataset_fingerprint", data) != data:
            before = self.config["dataset_fingerprint"]
            raise InputError(f"{self.folder}: was started on other data ({before} -> {data}); take another --run-dir, "
                             "or start anew with --overwrite")  # fmt: skip
        if not self.started:
            for item in self.folder.iterdir():
                if item.name != ".lock":
                    shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        code, old = git_state(), self.config if self.started else {}
        if changed := old.get("git_commit", code["git_commit"]) != code["git_commit"]:
            print(f"{self.folder}: was started at commit {old['git_commit']}, goes on with other code", file=sys.stderr)
        if changed or old.get("git_dirty"):
            code["git_dirty"] = True
        config = {"algorithm": self.algorithm, "args": self.args, **code, "versions": versions(),
                  "device": describe(device), "threads": torch.get_num_threads(),
                  "dataset_fingerprint": data,
                  "wandb_id": self.config.get("wandb_id") or secrets.token_hex(4)}  # fmt: skip
        with atomic(self.folder / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=2, default=str) + "\n")
        for name in ("train", "eval", "time"):
            self.open_table(name, self.step if self.checkpoint else -1)
        with self._optional("board"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder), purge_step=self.step + 1 if self.checkpoint else None)
        if track:
            with self._optional("wandb"):
                import wandb

                logging.raiseExceptions = False  # no tracebacks where wandb cannot write its own log
                name = f"{self.algorithm}_{self.args['env']}_seed-{self.seed}"
                project, entity = self.args["wandb_project"], self.args["wandb_entity"] or None
                self.wandb = wandb.init(project=project, entity=entity, name=name, dir=str(self.folder), config=config,
                                        id=config["wandb_id"], resume="allow", reinit="create_new")  # fmt: skip
                self.wandb.define_metric("*", step_metric="step")

    @contextlib.contextmanager
    def _optional(self, name: str):
        """Training goes on without TensorBoard (`board`) or wandb where they fail; said once."""
        try:
            yield
        except Exception as error:  # each has its own kinds
            setattr(self, name, None)
            shown = {"board": "TensorBoard", "wandb": "Weights & Biases"}[name]
            reason = (str(error).splitlines() or [""])[0]
            print(f"{self.folder}: {shown} failed ({type(error).__name__}: {reason}); training goes on without",
                  file=sys.stderr)  # fmt: skip

    def open_table(self, name: str, step: int) -> None:
        """Go on with NAME.csv after its row of `step`: what was logged later will be computed, and logged, again."""
        path, rows = self.folder / f"{name}.csv", []
        if path.exists():
            with open(path, newline="") as file:
                text = file.read()
            complete = text[: text.rfind("\n") + 1]  # a kill may have cut the last row
            try:
                rows = [row for row in csv.DictReader(io.StringIO(complete)) if int(row["step"]) <= step]
                if any(None in row for row in rows):  # more cells than columns
                    raise ValueError
            except (ValueError, KeyError, TypeError, csv.Error):
                raise InputError(f"{path}: has a damaged row; mend it or start anew with --overwrite") from None
            self._write_table(path, rows)
        self.rows[name] = rows

    def _write_table(self, path: Path, rows: list[dict[str, str]]) -> None:
        with atomic(path) as partial, open(partial, "w", newline="") as file:
            if rows:
                writer = csv.DictWriter(file, rows[0], restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

    def log(self, name: str, step: int, row: dict[str, float | None]) -> None:
        """Append a row to NAME.csv and send it to TensorBoard and wandb. None: an empty cell."""
        if self.rows[name] and int(self.rows[name][-1]["step"]) >= step:
            return  # written just before a kill, now computed again
        cells = {"step": str(step), **{k: "" if v is None else str(v) for k, v in row.items()}}
        path, rows = self.folder / f"{name}.csv", self.rows[name]
        rows.append(cells)
        # a method may begin or stop to report a loss with a phase of it: empty cells in the other rows
        if new := dict.fromkeys((k for k in cells if k not in rows[0]), ""):
            rows[0] |= new
            self._write_table(path, rows)
        else:
            with open(path, "a", newline="") as file:
                writer = csv.DictWriter(file, rows[0], restval="", lineterminator="\n")
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(cells)
        tags = {k if "/" in k else f"{name}/{k}": v for k, v in row.items() if v is not None}
        if self.board:
            with self._optional("board"):
                for tag, value in tags.items():
                    self.board.add_scalar(tag, value, step)
        if self.wandb:
            with self._optional("wandb"):
                self.wandb.log(tags | {"step": step})

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation of this step is in eval.csv."""
        return any(int(row["step"]) == step for row in self.rows["eval"])

    def log_eval(self, step: int, row: dict[str, float | None], actor: dict[str, torch.Tensor]) -> None:
        """Log an evaluation; write best.pt first if it is the best so far, so that no kill separates the two."""
        if all(score(row) > score(old) for old in self.rows["eval"]):
            self.save_actor("best.pt", step, actor)
        self.log("time", step, {f"time/{phase}": seconds for phase, seconds in self.time.items()})
        self.log("eval", step, row)

    def describe_eval(self) -> str:
        """The last evaluation in a few words."""
        if not self.rows["eval"]:
            return "-"
        name, value = headline(self.rows["eval"][-1])
        return f"{name} {value:.{2 if name == 'success' else 1}f}"

    def save_actor(self, name: str, step: int, actor: dict[str, torch.Tensor]) -> None:
        """Write best.pt or final.pt: the actor, and what is needed to run it."""
        save(self.folder / name, {"schema": SCHEMA, "algorithm": self.algorithm, "env": self.args["env"], "step": step,
                                  "actor": {k: v.detach().cpu().clone() for k, v in actor.items()}})  # fmt: skip

    def save_checkpoint(self, step: int, state: dict) -> None:
        """Write checkpoint.pt. `state`: nested dicts of this seed's tensors."""
        if self.board:
            with self._optional("board"):
                self.board.flush()
        for name in self.rows:  # the checkpoint must not outlive, in a power cut, the rows before it
            with contextlib.suppress(FileNotFoundError), open(self.folder / f"{name}.csv") as file:
                os.fsync(file.fileno())
        state = tree_map(lambda t: t.detach().cpu().clone(), state)  # clone: a slice would save all seeds' storage
        save(
            self.folder / "checkpoint.pt",
            {"schema": SCHEMA, "step": step, "state": state, "args": self.args, "time": self.time},
        )

    def summary(self) -> dict:
        """Success, score and return at the last and at the best evaluation, from eval.csv."""
        path = self.folder / "eval.csv"
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        best = max(rows, key=lambda row: (score(row), -int(row["step"])))
        number = {
            name: {k: float(v) if v else None for k, v in row.items()}
            for name, row in (("last", rows[-1]), ("best", best))
        }
        return {**number, "time": self.time}

    def close(self) -> None:
        """Close the logs and give up the folder."""
        if self.board:
            with self._optional("board"):
                self.board.close()
        if self.wandb:
            with self._optional("wandb"):
                self.wandb.finish()
        self.lock.close()


def headline(row: dict) -> tuple[str, float]:
    """The number that an evaluation is judged by: D4RL score, else success, else the return."""
    name = next((name for name in ("score", "success") if row[name] not in (None, "")), "return_mean")
    return name, float(row[name])


def score(row: dict) -> tuple[float, float]:
    """What makes an evaluation better: its headline; then the return."""
    return headline(row)[1], float(row["return_mean"])


def read_saved(path: Path, names: tuple[str, ...], mend: str = "delete it or start anew with --overwrite") -> dict:
    """What `save` wrote, on the CPU; no code in the file is run. `mend`: what the error tells the user to do.

    Raises:
        InputError: the file is damaged, lacks one of `names`, or has another schema.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not look at the checksums
                raise ValueError(damaged)
        with warnings.catch_warnings(action="ignore"):
            saved = torch.load(path, map_location="cpu", weights_only=True)
        schema, _ = saved["schema"], [saved[name] for name in names]
    except PermissionError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file, with advice to load it unsafely
        reason = f"no {error}" if isinstance(error, KeyError) else type(error).__name__
        raise InputError(f"{path}: damaged, or another kind of file ({reason}); {mend}") from None
    if schema != SCHEMA:
        raise InputError(f"{path}: has schema {schema}, this code writes {SCHEMA}; {mend}")
    return saved


def check_alike(path: Path, saved, fresh) -> None:
    """Raises InputError where the nested dicts `saved`, read from `path`, have not the names and shapes of `fresh`."""

    def form(tree):
        return tree_map(lambda leaf: isinstance(leaf, torch.Tensor) and (leaf.shape, leaf.dtype), tree)

    if form(saved) != form(fresh):
        raise InputError(f"{path}: holds other networks; start anew with --overwrite")


def save(path: Path, content: dict) -> None:
    """torch.save, atomically. By way of memory: written directly, a full disk would not be an OSError."""
    memory = io.BytesIO()
    torch.save(content, memory)
    with atomic(path) as partial:
        partial.write_bytes(memory.getbuffer())


def print_summary(runs: list[Run]) -> dict:
    """Print the closing table; returns {seed: summary}."""
    results = {run.seed: run.summary() for run in runs}
    name = headline(next(iter(results.values()))["last"])[0]
    head = "  ".join(f"{when + ': step':>10} {name:>8} {'return':>9}" for when in ("last", "best"))
    print(f"\nseed  {head}")
    for seed, result in results.items():
        cells = []
        for row in (result["last"], result["best"]):
            cells.append(f"{int(row['step']):>10} {headline(row)[1]:>8.2f} {row['return_mean']:>9.1f}")
        print(f"{seed:>4}  {'  '.join(cells)}")
    total = max(results.values(), key=lambda r: sum(r["time"].values()))["time"]
    print(
        "wall-clock: "
        + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in total.items())
        + f"  ({runs[0].folder.parent})"
    )
    return results


# ---------------------------------------------------------------- provenance
def git_state() -> dict[str, str | bool | None]:
    """Commit of the code and whether algorithms/ or common/ differ from it; None outside a git checkout."""

    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        dirty = bool(git("status", "--porcelain", "--", "../algorithms", "."))
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}


def versions() -> dict[str, str]:
    """Versions of what can change a number."""
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "numpy", "gymnasium", "metaworld", "mujoco", "robosuite", "h5py"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def describe(device: torch.device) -> str:
    """The device's name and, for a GPU, its model."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def actor_arrays(actor: dict[str, torch.Tensor], k: int) -> dict[str, np.ndarray]:
    """Seed k's actor as `common.envs.mean_action` takes it: weights (S, 1, in, out) -> (in, out), on the host."""
    return {
        name: t[k].float().cpu().numpy().reshape(t.shape[-2:] if name[0] == "w" else -1) for name, t in actor.items()
    }
