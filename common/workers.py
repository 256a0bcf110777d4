"""Worker processes: a pool that survives a crash of one of them, and ends with its parent. No torch."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool

from common.errors import SHARED_MEMORY, Interrupted, WorkersError, remedy

EPISODE_TIMEOUT = 600
"""seconds of waiting without a finished episode after which the workers count as hung"""
FAULTS = (BrokenProcessPool, MemoryError, ImportError, OSError)
"""what a pool that breaks, or hangs (TimeoutError is an OSError), raises"""


def available_cpus() -> int:
    """Cores this process may use: its affinity and its container's quota, bounded by SLURM_CPUS_PER_TASK."""
    from loky import cpu_count

    cores = cpu_count()
    return max(1, min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK") or cores)))


def _follow_parent(parent: int) -> None:
    """In a worker: leave signals to the parent, and end when it is gone, even by kill -9."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """A pool of processes, started at the first use, that runs jobs and hands back their results in order.

    Args:
        count: processes. Each computes on one thread: the pool is what uses the cores.
        stop: asked twice a second; when it returns true the wait ends with `Interrupted`.
    """

    def __init__(self, count: int, stop: Callable[[], bool] = lambda: False):
        self.count, self.stop, self.pool = count, stop, None

    def run(self, function, jobs: list[tuple], progress=lambda result: None) -> list:
        """[function(*job) for job in jobs], computed in parallel; `progress(result)` is called as each job ends.

        A pool that breaks (a worker was killed, is out of memory, or hung for EPISODE_TIMEOUT) is replaced once.

        Raises:
            WorkersError: it broke again.  Interrupted: `stop()` became true.
        """
        return Jobs(self, function, jobs).result(progress)

    def submit(self, function, job: tuple) -> Future:
        """Hand a job to the pool, which starts where there is none."""
        if self.pool is None:
            from loky import ProcessPoolExecutor  # its workers do not import the main script, hence not torch

            # a simulator that is kept looks like a leak: loky then starts the worker anew, which does no harm
            warnings.filterwarnings("ignore", message="A worker (stopped|was restarted)", category=UserWarning)
            one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
            try:
                self.pool = ProcessPoolExecutor(
                    self.count, env=one, initializer=_follow_parent, initargs=(os.getpid(),)
                )
            except OSError as error:  # of its semaphores
                raise WorkersError(f"no worker processes can start ({error}); {SHARED_MEMORY}") from error
        return self.pool.submit(function, *job)

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, kill_workers=True)
            self.pool = None


class Jobs:
    """[function(*job) for job in jobs], beside whatever its caller does until it needs the `result`.

    Args:
        at_once: jobs at work until then, where the caller asks now and then whether all are `done`.
        combine: makes of the list what `result` returns.
    """

    def __init__(self, workers: Workers, function, jobs: list[tuple], at_once: int = 0, combine=lambda found: found):
        self.workers, self.function, self.jobs, self.at_once, self.combine = workers, function, jobs, at_once, combine
        self.todo, self.pending, self.results = [*range(len(jobs))], {}, {}
        self.done()

    def done(self) -> bool:
        """Whether `result` need not wait. The next jobs take the place of those that ended."""
        busy = sum(not future.done() for future in self.pending)
        try:
            self._submit(self.at_once - busy)
        except FAULTS:  # `result` meets it too, and replaces the pool
            return True
        return not self.todo and all(future.done() for future in self.pending)

    def _submit(self, count: int) -> None:
        for i in self.todo[:count]:
            self.pending[self.workers.submit(self.function, self.jobs[i])] = i
            self.todo.remove(i)

    def result(self, progress=lambda result: None):
        """Wait, on all workers; raises what `Workers.run` does."""
        for attempt in (1, 2):
            try:
                self._submit(len(self.todo))
                self._wait(progress)
                break
            except FAULTS as error:
                self.workers.close()
                self.todo, self.pending = [i for i in range(len(self.jobs)) if i not in self.results], {}
                if attempt == 2:
                    if isinstance(error, OSError) and error.errno and not remedy(error):
                        raise  # the code's own: its traceback says where
                    reason = f"{type(error).__name__}: {str(error).split('. ')[0]}"
                    way = remedy(error)
                    raise WorkersError(f"worker processes failed twice ({reason}){way and '; ' + way}") from error
        return self.combine([self.results[i] for i in range(len(self.jobs))])

    def _wait(self, progress) -> None:
        last = time.monotonic()
        while self.pending:
            done, _ = wait(self.pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                self.results[self.pending.pop(future)] = future.result()
                last = time.monotonic()
                progress(future.result())
            if self.pending and self.workers.stop():
                self.workers.close()
                raise Interrupted
            if time.monotonic() - last > EPISODE_TIMEOUT:
                raise TimeoutError(f"no episode finished within {EPISODE_TIMEOUT} s")
