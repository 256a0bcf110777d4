"""A command's seeds, and what a training loop needs beside the method. The same for every algorithm."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from common import data, suites
from common.actors import Actor, Policy
from common.cli import Signals, compiled, setup_device
from common.errors import Interrupted, NotFinite
from common.rollouts import evaluate, require_rendering
from common.seed_folder import SeedFolder, headline
from common.trees import leaves, save, tree_map, unstack
from common.workers import Jobs, Workers, available_cpus

CHECKPOINT_EVERY = 60
"""seconds without a checkpoint after which one is due"""


class Experiment:
    """A command: the seeds that it asks for, their folders and their data. Nothing here knows the method.

    Attributes:
        args: the arguments; task: the environment; device: where training runs; workers: for evaluation and data.
        path: RUN_DIR; folders: one a seed.
    """

    def __init__(self, algorithm: str, args, stop: Signals):
        self.algorithm, self.stop = algorithm, stop
        self.task = suites.resolve(args.env, args.max_episode_steps, args.dataset)
        self.args = dataclasses.replace(args, env=self.task.env)
        self.device = setup_device(args)
        self.workers = Workers(available_cpus(), stop=lambda: bool(stop))
        self.path = Path(args.run_dir or f"runs/{re.sub('[:/]', '-', self.task.env)}/{algorithm}")
        self.folders: list[SeedFolder] = []

    @classmethod
    @contextlib.contextmanager
    def open(cls, algorithm: str, args) -> Iterator[Experiment]:
        """Hold the folders of all seeds and catch signals. SystemExit with the signal's status, once it has ended."""
        with Signals() as stop:
            self = cls(algorithm, args, stop)
            try:
                for seed in range(args.seed, args.seed + args.num_seeds):
                    own = dataclasses.replace(self.args, seed=seed)
                    self.folders.append(SeedFolder(self.path / f"seed-{seed}", own, algorithm))
                yield self
            except Interrupted:
                same = "the same command" + " without --overwrite" * args.overwrite
                print(f"stopped; {same} resumes from the last checkpoint in {self.path}", file=sys.stderr)
                raise SystemExit(stop.exit_status) from None
            finally:
                self.workers.close()
                for folder in self.folders:
                    folder.close()

    def batches(self, check: Callable = lambda pairs, replay: None, pairs: bool = True) -> Iterator[tuple]:
        """(Training, PreferenceBuffer, ReplayBuffer or None): the seeds that are not finished as one batch, and the
        data on the device. Seeds that were stopped at different steps come one after the other.

        Args:
            check: raises InputError for data that a method cannot learn from, before anything is written.
            pairs: whether the method learns from pairs; else they are not read, and None takes their place.
        """
        todo = [folder for folder in self.folders if not folder.finished]
        renamed = [folder for folder in self.folders if folder.finished and folder.may_have_other_data]
        if not todo + renamed:
            return self._say_finished()
        if todo and self.args.capture_video:
            require_rendering(self.workers, self.task)
        began = time.perf_counter()
        *buffers, fingerprints = data.load_buffers(self.args, self.task, self.workers, self.device, pairs)
        check(*buffers)
        for folder in renamed:
            folder.require_data(fingerprints)
        if not todo:
            return self._say_finished()
        for folder in todo:
            folder.time["data"] += time.perf_counter() - began
            folder.begin(fingerprints, self.device, self.args.track)
        together = len({folder.step for folder in todo}) == 1
        for group in [todo] if together else [[folder] for folder in todo]:
            yield Training(self, group), *buffers

    def _say_finished(self) -> None:
        code = ", with other code than today's" if any(folder.has_other_code for folder in self.folders) else ""
        print(f"{self.path}: finished already{code}; --overwrite starts from scratch")

    def summary(self) -> dict:
        """Print the closing table. Returns {seed: `SeedFolder.summary`}."""
        results = {folder.seed: folder.summary() for folder in self.folders}
        names = {headline(result["last"])[0] for result in results.values()}
        name = next(name for name in ("score", "success", "return_mean") if name in names)  # one for all seeds
        head = "  ".join(f"{when + ': step':>10} {name:>8} {'return':>9}" for when in ("last", "best"))
        print(f"\nseed  {head}")
        for (seed, result), of in product(results.items(), ("", "average_")):
            rows = (result["last"], result[of + "best"])
            if all(row.get(of + "return_mean") is not None for row in rows):
                cells = (f"{int(row['step']):>10} {row[of + name] or 0.0:>8.2f} {row[of + 'return_mean']:>9.1f}"
                         for row in rows)  # fmt: skip
                print(f"{seed:>4}  {'  '.join(cells)}{of and '  averaged'}")
        longest = max(results.values(), key=lambda r: sum(r["time"].values()))["time"]
        spent = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in longest.items())
        print(f"wall-clock: {spent}  ({self.path})")
        return results


class Training:
    """Seeds that are trained as one batch.

    Attributes:
        folders: one a seed; seeds: their seeds; step: the updates that they have behind them.
        average: of the actor's weights, with --actor-average: leaves (S, ...); else empty.
    """

    def __init__(self, experiment: Experiment, folders: list[SeedFolder]):
        self.args, self.task, self.device = experiment.args, experiment.task, experiment.device
        self.workers, self.stop, self.path = experiment.workers, experiment.stop, experiment.path
        self.folders, self.seeds, self.step = folders, [folder.seed for folder in folders], folders[0].step
        self.metrics: dict = {}
        self.average: dict = {}
        self.rate = getattr(self.args, "actor_average", 0.0)  # a script of one's own may be older than this flag
        self.saved = self.since = time.perf_counter()
        self.free = max(0, self.workers.count - (torch.get_num_threads() if self.device.type == "cpu" else 1))
        self.pending: tuple[int, list[dict], Jobs] | None = None  # an evaluation: its step, actors and episodes
        self.bar: tqdm | None = None

    def restore(self, fresh: list[dict]) -> dict:
        """The seeds' checkpoints, or the `fresh` states, stacked: every leaf (S, ...), on the device."""
        if self.rate:
            fresh = [state | {"actor_average": state["actor"]} for state in fresh]
        states = [folder.restore(state) for folder, state in zip(self.folders, fresh, strict=True)]
        what = f"{self.folders[0].algorithm} {self.task.env}"
        self.bar = tqdm(total=self.args.total_steps, initial=self.step, desc=what, unit="step", disable=None)
        self.saved = self.since = time.perf_counter()
        state = tree_map(lambda *leaves: torch.stack(leaves).to(self.device), *states)
        self.average = state.pop("actor_average", {})
        return state

    def compile(self, update):
        """The update as one compiled graph, unless --no-compile."""
        return compiled(update, self.device) if self.args.compile else update

    def check_stop(self) -> None:
        """Raises Interrupted after a signal."""
        if self.stop:
            raise Interrupted

    def evaluation_due(self, step: int) -> bool:
        return step % self.args.eval_every == 0 or step == self.args.total_steps

    def due(self, step: int) -> bool:
        """Whether to write a checkpoint: an evaluation is due, a minute has passed, or a signal came."""
        if self.pending and self.pending[-1].done():
            self._log_evaluation()
        waited = not self.pending and time.perf_counter() - self.saved > CHECKPOINT_EVERY
        return self.evaluation_due(step) or waited or bool(self.stop)

    def checkpoint(self, step: int, state: dict) -> None:
        """Write every seed's checkpoint. Raises NotFinite for a number that is not, Interrupted after a signal."""
        for folder in self.folders:
            folder.time["train"] += time.perf_counter() - self.since
        self._check_finite(step, self.metrics, state)
        self._save(step, state)
        self.check_stop()

    def _check_finite(self, *what) -> None:
        try:
            check_finite(self.path, self.seeds, *what)
        except NotFinite:
            self._log_evaluation()
            raise

    def _save(self, step: int, state: dict) -> None:
        # No checkpoint is later than an evaluation that eval.csv lacks: it waits for the pending one. So whatever ends
        # the process meanwhile, the same command begins at that evaluation's checkpoint, and with it.
        self._log_evaluation()
        if self.average:
            state = state | {"actor_average": self.average}
        for folder, own in zip(self.folders, unstack(state, len(self.folders)), strict=True):
            folder.save_checkpoint(step, own)
        self.saved = self.since = time.perf_counter()

    def evaluate(self, step: int, actor: dict, policy: Policy) -> None:
        """Where an evaluation is due: episodes of `policy` with a copy of every seed's actor, and of its average from
        the same starts; beside the updates that follow or, with one core, ahead of them.
        """
        if not self.evaluation_due(step) or all(folder.evaluated(step) for folder in self.folders):
            return
        began, count = time.perf_counter(), len(self.folders)
        actors = unstack(actor, count) + (unstack(self.average, count) if self.average else [])
        actors = [tree_map(lambda p: p.detach().cpu().clone(), own) for own in actors]
        acting = [Actor(policy, tree_map(lambda p: p.float().numpy(), own)) for own in actors]
        videos = [folder.path / "videos" / f"step-{step:07d}.mp4" for folder in self.folders] + count * [None]
        compiling = self.args.compile and step == self.step and self.workers.count > 1  # on one core, mostly
        beside = len(actors) * self.args.eval_episodes if compiling else self.free
        jobs = evaluate(self.workers, self.task, acting, self.seeds * (len(actors) // count), step,
                        self.args.eval_episodes, videos if self.args.capture_video else None, beside)  # fmt: skip
        self.pending = step, actors, jobs
        self._count_evaluation(began)
        if not beside:
            self._log_evaluation()

    def _log_evaluation(self) -> None:
        """Wait for the pending evaluation, if any, and log it; best.pt and best-average.pt for the best."""
        if self.pending is None:
            return
        began, count, (step, actors, jobs) = time.perf_counter(), len(self.folders), self.pending
        self.pending = None
        rows = jobs.result()
        self._count_evaluation(began)
        for k, folder in enumerate(self.folders):
            (row, own), *average = zip(rows[k::count], actors[k::count], strict=True)
            folder.log_eval(step, row, own, *average)
        shown = "  ".join(f"seed {folder.seed}: {folder.describe_eval()}" for folder in self.folders)
        self.bar.write(f"step {step:>7}  {shown}")

    def _count_evaluation(self, began: float) -> None:
        """What training waited for an evaluation is the evaluation's time."""
        waited = time.perf_counter() - began
        self.since += waited
        self.saved += waited
        for folder in self.folders:
            folder.time["eval"] += waited

    def log(self, step: int, metrics: dict, state: dict, batch: dict) -> None:
        """Every --log-every updates a row of train.csv: `metrics`, (S,) each, of update `step`. NotFinite: one is not.
        After every update the averaged actor moves towards the actor.

        On a GPU the metrics are looked at with the rows alone: a look at every step would wait for the device.
        """
        self.metrics = metrics
        self.bar.update()
        due = step % self.args.log_every == 0 or step == self.args.total_steps
        if due or self.device.type == "cpu":
            self._check_finite(step, metrics, state, batch)
        for name, average in self.average.items():
            average.lerp_(state["actor"][name], max(self.rate, 1 / (step + 1)))  # at first the mean of all so far
        if not due:
            return
        columns = {name: m.tolist() for name, m in metrics.items()}
        for k, folder in enumerate(self.folders):
            folder.log.row("train", step, {name: column[k] for name, column in columns.items()})
        losses = {name.removeprefix("losses/"): c[0] for name, c in columns.items() if name.startswith("losses/")}
        self.bar.set_postfix({k: f"{loss:.3g}" for k, loss in losses.items()}, last=self.folders[0].describe_eval())

    def finish(self, state: dict) -> None:
        """Write the last checkpoints, final-average.pt and final.pt, which makes a run a finished one."""
        self._log_evaluation()
        self.bar.close()
        self._save(self.args.total_steps, state)
        for name, actor in (("final-average.pt", self.average), ("final.pt", state["actor"])):
            for folder, own in zip(self.folders, unstack(actor, len(self.folders)), strict=True):
                if own:
                    folder.save_actor(name, self.args.total_steps, own)


def check_finite(folder: Path, seeds: list[int], step: int, metrics: dict, state: dict, batch: dict | None = None):
    """Raises NotFinite where a metric (S,) of update `step` is NaN or infinite, and saves what made it for a look.

    FOLDER/not-finite.pt: metrics, state (after that update) and batch, of all seeds of this process. Without `batch`,
    ahead of a checkpoint, the state's numbers are looked at too.
    """
    if batch is not None and math.isfinite(sum(sum(m.tolist()) for m in metrics.values())):  # in 20 microseconds
        return
    bad, of = {}, set()  # names, in their order; seeds
    for name, leaf in leaves(metrics if batch is not None else {**metrics, **state}):
        if not leaf.isfinite().all():
            bad[name.split(".")[0]] = True
            finite = leaf.isfinite().reshape(len(seeds), -1).all(1)
            of.update(seed for seed, fine in zip(seeds, finite.tolist(), strict=True) if not fine)
    if bad:
        path = folder / "not-finite.pt"
        parts = {"metrics": metrics, "state": state, "batch": batch or {}}
        save(path, {"step": step, **tree_map(lambda t: t.detach().cpu(), parts)})
        what = f"{', '.join(bad)} not finite (seed {', '.join(map(str, sorted(of)))})"
        raise NotFinite(f"update {step}: {what}; see {path}; the checkpoint before it is intact")
