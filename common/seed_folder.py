"""A seed's folder: what is there from an earlier start, its logs, its checkpoints. The same for every algorithm.

config.json, train.csv, eval.csv, time.csv, checkpoint.pt, best.pt, final.pt, TensorBoard events, videos/; with
--actor-average also best-average.pt and final-average.pt; of pt_iql reward.csv and reward.pt.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import os
import secrets
import shutil
import socket
import sys
from pathlib import Path

import torch

from common.arrays import fingerprint
from common.errors import InputError, remedy
from common.locks import atomic, try_lock
from common.provenance import code_mark, describe, git_state, versions
from common.run_log import RunLog
from common.suites import several
from common.trees import check_alike, read_saved, save, tree_map

WRITTEN = (
    ".lock", "config.json", "train.csv", "eval.csv", "time.csv", "reward.csv", "checkpoint.pt", "reward.pt", "best.pt",
    "final.pt", "best-average.pt", "final-average.pt", "events.out.tfevents.*", "videos/step-*.mp4",
    "videos/.step-*.mp4", "wandb/*run-*", "wandb/latest-run", "wandb/debug*.log",
)  # fmt: skip
"""all that a run writes into a seed's folder; nothing else is ever removed from there"""
RESULTS = ("train.csv", "eval.csv", "final.pt", "best.pt", "final-average.pt", "best-average.pt")
"""what is lost when a folder without a checkpoint starts from scratch"""
DATA = ("dataset", "preferences")
INCIDENTAL = (
    "num_seeds", "data_dir", "run_dir", "overwrite", "track", "wandb_project", "wandb_entity", "capture_video",
    "log_every", "device", "compile", "threads", *DATA,
)  # fmt: skip
"""arguments that a resumed run may change: none changes the method (device, compile, threads and num_seeds change the
last bits of numbers, another kind of device also dropout masks and noise; files are compared by content)"""


def stored(args) -> dict:
    """A seed's arguments as config.json and checkpoint.pt hold them."""
    return json.loads(json.dumps(dataclasses.asdict(args) | {"num_seeds": 1}, default=str))


class SeedFolder:
    """The folder of one seed: what is there from an earlier start, and all that is written.

    Args:
        path: RUN_DIR/seed-K.  args: the arguments, `seed` K among them.  algorithm: the script's name.

    Raises:
        InputError: another process is at work in the folder, or it holds a run with other arguments.
    """

    def __init__(self, path: Path, args, algorithm: str):
        self.path, self.algorithm, self.seed = Path(path), algorithm, args.seed
        self.args, self.defaults, self.code = stored(args), stored(type(args)()), code_mark(type(args))
        self._require_own(args.overwrite)  # ahead of the lock: what is refused is left as it is
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
        except OSError as error:
            way = remedy(error, flag="--run-dir") or "choose another --run-dir"
            raise InputError(f"--run-dir {self.path.parent}: {error.strerror}; {way}") from None
        for name in WRITTEN:
            for partial in self.path.glob(f".{name}.*.partial"):
                partial.unlink()  # left by a kill in the middle of a write
        self.config, self.checkpoint = (None, None) if args.overwrite else self._find()
        self.step = self.checkpoint["step"] if self.checkpoint else 0
        self.finished = self.step >= args.total_steps and self.checkpoint is not None and self._final() == self.step
        self.time = dict(self.checkpoint["time"]) if self.checkpoint else {"data": 0.0, "train": 0.0, "eval": 0.0}
        self.log = RunLog(self.path)

    def _final(self) -> int | None:
        """The update that final.pt is of: of an earlier end, where a longer run was stopped ahead of its own."""
        path = self.path / "final.pt"
        return read_saved(path, ("step",))["step"] if path.exists() else None

    def _lock(self) -> None:
        self.lock = open(self.path / ".lock", "a+")  # noqa: SIM115 (held for the life of the run)
        if not try_lock(self.lock):
            self.lock.seek(0)
            owner = self.lock.read().strip() or "another process"
            raise InputError(f"{self.path}: in use by {owner}; wait for it or choose another --run-dir") from None
        self.lock.truncate(0)
        self.lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
        self.lock.flush()

    def _require_own(self, overwrite: bool) -> None:
        """Raises InputError where the folder is none for a run, or holds what no checkpoint of a run accounts for."""
        never = (Path("/"), Path(os.path.expanduser("~")).resolve())
        if (self.path / ".git").exists() or self.path.resolve() in never:
            raise InputError(f"{self.path}: is a home, a root or a repository; choose another --run-dir")
        if overwrite or (self.path / "checkpoint.pt").exists() or not self.path.is_dir():
            return
        kept = {path.name for path in self.path.iterdir() if not path.name.startswith(".")}
        if (self.path / ".lock").exists():  # of a run that was killed ahead of its first checkpoint, or in phase 1
            own = {path.relative_to(self.path).parts[0] for name in WRITTEN for path in self.path.glob(name)}
            kept -= {name for name in own if name not in RESULTS or not (self.path / name).stat().st_size}
        if kept:
            shown = ", ".join(sorted(kept)[:3]) + (", ..." if len(kept) > 3 else "")
            raise InputError(f"{self.path}: holds {shown} and no checkpoint of a run; choose another --run-dir, or "
                             "--overwrite what a run would write there")  # fmt: skip

    def _find(self) -> tuple[dict | None, dict | None]:
        """The config of an earlier start that has begun to train, and its checkpoint if any; None and None where there
        is nothing to resume. Changes nothing.

        Raises:
            InputError: they are damaged, or of other arguments.
        """
        path = self.path / "config.json"
        try:
            config = dict(json.loads(path.read_text())) if path.exists() else {}
        except (TypeError, ValueError):
            raise InputError(f"{path}: not a run's configuration; start from scratch with --overwrite") from None
        path = self.path / "checkpoint.pt"
        checkpoint = read_saved(path, ("step", "state", "args", "time")) if path.exists() else None
        if not ((checkpoint and checkpoint["step"]) or (self.path / "reward.pt").exists()):
            return None, None
        self._compare(config.get("args", {}), config.get("algorithm", self.algorithm))
        if checkpoint:
            self._compare(checkpoint["args"], self.algorithm, checkpoint["step"])
        return config, checkpoint

    def _compare(self, before: dict, algorithm: str, step: int = 0) -> None:
        """Raises InputError where a run of `before` cannot be resumed with today's arguments."""
        if algorithm != self.algorithm:
            raise InputError(f"{self.path}: holds a run of {algorithm}; choose another --run-dir, or --overwrite it")
        if before:  # a flag that there was not yet had its default; an average may begin late
            before = {**self.defaults, "actor_average": self.args.get("actor_average"), **before}
        may = set(INCIDENTAL)
        if not self.args.get("actor_cosine") and step <= self.args["total_steps"]:  # else the schedule would change
            may.add("total_steps")
        changed = [f"--{name.replace('_', '-')} {before[name]} -> {now}" for name, now in self.args.items()
                   if name in before and name not in may and before[name] != now]  # fmt: skip
        if changed:
            raise InputError(f"{self.path}: was started with other arguments ({', '.join(changed)}); give the same, "
                             "choose another --run-dir, or start from scratch with --overwrite")  # fmt: skip

    def read(self, name: str, names: tuple[str, ...]) -> dict:
        """A file that `save` wrote into this folder, with `names` in it. InputError: it is of other arguments."""
        saved = read_saved(self.path / name, names)
        self._compare(saved.get("args", {}), self.algorithm)
        return saved

    def restore(self, fresh: dict) -> dict:
        """The checkpoint's state or, where there is none, `fresh`. InputError: it holds other tensors than `fresh`.
        An average of the actor that it does not hold begins at its actor.
        """
        if self.checkpoint is None:
            return fresh
        state = {"step": torch.tensor(float(self.step)), **self.checkpoint["state"]}  # older ones do not hold it
        if "actor_average" in fresh:
            state.setdefault("actor_average", state["actor"])
        check_alike(self.path / "checkpoint.pt", state, fresh)
        return state

    @property
    def may_have_other_data(self) -> bool:
        """Whether --preferences or --dataset name other files than at the start, or those have another content now."""
        old = self.config or {}
        before, marks = old.get("args", self.args), old.get("dataset_fingerprint", {})
        for name in DATA:
            now = several(self.args.get(name) or ())
            files = [Path(file) for file in now if Path(file).is_file()]
            if several(before.get(name) or ()) != now or (files and marks.get(name, "") != fingerprint(*files)):
                return True
        return False

    @property
    def has_other_code(self) -> bool:
        """Whether the script or common/ were changed since the start; older runs do not tell."""
        old = self.config or {}
        return old.get("code", self.code) != self.code

    def require_data(self, fingerprints: dict[str, str]) -> None:
        """Raises InputError where what was found was trained on other files than those of `fingerprints`."""
        before = (self.config or {}).get("dataset_fingerprint", fingerprints)
        if {name: before.get(name) for name in fingerprints} != fingerprints:  # older runs read pairs without need
            changed = f"{before} -> {fingerprints}"
            raise InputError(f"{self.path}: was started on other data, or on its files in another order ({changed}); "
                             "choose another --run-dir, or start from scratch with --overwrite")  # fmt: skip

    def begin(self, fingerprints: dict[str, str], device: torch.device, track: bool) -> None:
        """Resume what was found, or erase the folder; write config.json and open the logs.

        Args:
            fingerprints: of the files trained on, in order; refused if they are not those of the checkpoint.
        """
        old = self.config or {}
        self.require_data(fingerprints)
        if self.config is None:
            self._erase()
        code = git_state()
        if self.has_other_code:
            at = f" at commit {old['git_commit']}" if old.get("git_commit") != code["git_commit"] else ""
            print(f"{self.path}: was started{at} with other code than today's", file=sys.stderr)
        if self.has_other_code or old.get("git_dirty"):
            code["git_dirty"] = True
        code["code"] = self.code
        config = {"algorithm": self.algorithm, "args": self.args, **code, "versions": versions(),
                  "device": describe(device), "threads": torch.get_num_threads(), "dataset_fingerprint": fingerprints,
                  "wandb_id": old.get("wandb_id") or secrets.token_hex(4)}  # fmt: skip
        with atomic(self.path / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=2, default=str) + "\n")
        for name in ("train", "eval", "time"):
            self.log.open_table(name, self.step if self.checkpoint else -1)
        self._best_of(self.log.rows["eval"])
        self.log.open_boards(config, self.step + 1 if self.checkpoint else None, track)

    def _erase(self) -> None:
        """Remove what an earlier run wrote."""
        for name in WRITTEN[1:]:  # all but the lock
            for path in self.path.glob(name):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name in ("videos", "wandb"):
            with contextlib.suppress(OSError):  # there is none, or it holds something else
                (self.path / name).rmdir()

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation of this step is in eval.csv."""
        return any(int(row["step"]) == step for row in self.log.rows["eval"])

    def log_eval(self, step: int, row: dict, actor: dict, average: tuple[dict, dict] | None = None) -> None:
        """Log an evaluation; write best.pt first if it is the best so far, so that no kill separates the two.

        Args:
            row: of `rollouts.evaluate`; actor: its parameters; average: both of the averaged actor.
        """
        rows, row, actors = self.log.rows["eval"], dict(row), {"": actor}
        faults = row.pop("faults")
        if average:
            row |= {f"average_{name}": average[0][name] for name in ("return_mean", "success", "score")}
            faults, actors["average_"] = faults + average[0]["faults"], average[1]
        if faults and not any("nan" in (old["return_mean"], old.get("average_return_mean")) for old in rows):
            print(f"{self.path}: step {step}, {faults[0]}; such an evaluation is never the best", file=sys.stderr)
        for of, own in actors.items():
            self._fill_in_success(row, of)
            if quality(row | {"step": step}, of) > max((quality(old, of) for old in rows), default=(-math.inf,)):
                self.save_actor("best-average.pt" if of else "best.pt", step, own)
        self.log.row("time", step, {f"time/{phase}": seconds for phase, seconds in self.time.items()})
        self.log.row("eval", step, row)

    def _fill_in_success(self, row: dict, of: str) -> None:
        """Once an episode of the run has shown a success, one that has not had none, in earlier rows too."""
        name, rows = f"{of}success", [old for old in self.log.rows["eval"] if old.get(f"{of}return_mean")]
        shown = [old[name] != "" for old in rows]
        if row[name] is not None and not all(shown):
            for old in rows:
                old[name] = old[name] or "0.0"
            self.log.write_table("eval")
        elif row[name] is None and any(shown):
            row[name] = 0.0

    def describe_eval(self) -> str:
        """The last evaluation in a few words."""
        if not self.log.rows["eval"]:
            return "-"
        row = self.log.rows["eval"][-1]
        (name, value), words = headline(row), ""
        digits = 2 if name == "success" else 1
        if row.get("average_return_mean"):
            words = f", averaged {float(row[f'average_{name}'] or 0):.{digits}f}"
        return f"{name} {value:.{digits}f}{words}"

    def save_actor(self, name: str, step: int, actor: dict[str, torch.Tensor]) -> None:
        """Write best.pt, final.pt or one of its average: the actor, and what is needed to run it."""
        what = {"algorithm": self.algorithm, "env": self.args["env"], "step": step}
        if self.args.get("max_episode_steps"):
            what["max_episode_steps"] = self.args["max_episode_steps"]
        save(self.path / name, {**what, "actor": {k: v.detach().cpu().clone() for k, v in actor.items()}})

    def save_checkpoint(self, step: int, state: dict) -> None:
        """Write checkpoint.pt. `state`: nested dicts of this seed's tensors."""
        self.log.sync()
        state = tree_map(lambda t: t.detach().cpu().clone(), state)  # clone: a slice would save all seeds' storage
        content = {"step": step, "state": state, "args": self.args, "time": self.time}
        save(self.path / "checkpoint.pt", content)

    def summary(self) -> dict:
        """Rows of eval.csv: the last, the best, the averaged actor's best (empty if there is none); and the seconds."""
        path = self.path / "eval.csv"
        try:
            rows = list(csv.DictReader(path.read_text().splitlines()))
        except (OSError, ValueError, csv.Error) as error:
            raise InputError(f"{path}: cannot be read ({error}); start from scratch with --overwrite") from None
        best = self._best_of(rows)
        if not best:
            raise InputError(f"{path}: is empty; start from scratch with --overwrite")
        averaged = self._best_of([row for row in rows if row.get("average_return_mean")], "average_")
        found = {"last": rows[-1], "best": best, "average_best": averaged}
        numbers = {name: {k: float(v) if v else None for k, v in row.items()} for name, row in found.items()}
        return {**numbers, "time": self.time}

    def _best_of(self, rows: list[dict], of: str = "") -> dict:
        """The best of eval.csv's rows; empty where there is none. InputError: one of them is damaged."""
        try:
            for row in rows:
                quality(row, "average_")
                if None in row.values():
                    raise ValueError  # cut
                list(map(float, filter(None, row.values())))
            return max(rows, key=lambda row: quality(row, of), default={})
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self.path / 'eval.csv'}: has a damaged row; fix it, or start from scratch with "
                             "--overwrite") from None  # fmt: skip

    def close(self) -> None:
        """Close the logs and give up the folder."""
        self.log.close()
        self.lock.close()


def headline(row: dict, of: str = "") -> tuple[str, float]:
    """The number that an evaluation is judged by: D4RL score, else success, else the return. `of`: what its columns
    begin with, "average_" for those of the averaged actor.
    """
    name = next((name for name in ("score", "success") if row[of + name] not in (None, "")), "return_mean")
    return name, float(row[of + name])


def quality(row: dict, of: str = "") -> tuple[float, ...]:
    """What makes an evaluation better: its headline, the return, a later step; that of step 0, of the untrained actor,
    counts where there is no other, and one that is not finite, or did not take place, never does.
    """
    if row.get(f"{of}return_mean") in (None, ""):
        return (-math.inf,)
    step, numbers = int(float(row["step"])), (headline(row, of)[1], float(row[f"{of}return_mean"]))
    return (float(step > 0), *numbers, float(step)) if all(map(math.isfinite, numbers)) else (-math.inf,)
