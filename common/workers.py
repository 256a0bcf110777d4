"""Worker processes: a pool that survives a crash of one of them, and ends with its parent. No torch."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool

from common.errors import SHARED_MEMORY, Interrupted, WorkersError, remedy

EPISODE_TIMEOUT = 600
"""seconds without a finished episode after which the workers count as hung"""


def available_cpus() -> int:
    """Cores this process may use: its affinity, bounded by SLURM_CPUS_PER_TASK."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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
        results: dict[int, object] = {}
        for attempt in (1, 2):
            try:
                self._run(function, jobs, results, progress)
                break
            except (BrokenProcessPool, MemoryError, ImportError, OSError) as error:  # TimeoutError is an OSError
                self.close()
                if attempt == 2:
                    if isinstance(error, OSError) and error.errno and not remedy(error):
                        raise  # the code's own: its traceback says where
                    reason = f"{type(error).__name__}: {str(error).split('. ')[0]}"
                    way = remedy(error)
                    raise WorkersError(f"worker processes failed twice ({reason}){way and '; ' + way}") from error
        return [results[i] for i in range(len(jobs))]

    def _run(self, function, jobs, results, progress) -> None:
        if self.pool is None:
            from loky import ProcessPoolExecutor  # its workers do not import the main script, hence not torch

            one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
            try:
                self.pool = ProcessPoolExecutor(
                    self.count, env=one, initializer=_follow_parent, initargs=(os.getpid(),)
                )
            except OSError as error:  # of its semaphores
                raise WorkersError(f"no worker processes can start ({error}); {SHARED_MEMORY}") from error
        pending = {self.pool.submit(function, *job): i for i, job in enumerate(jobs) if i not in results}
        last = time.monotonic()
        while pending:
            done, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                results[pending.pop(future)] = future.result()
                last = time.monotonic()
                progress(future.result())
            if pending and self.stop():
                self.close()
                raise Interrupted
            if time.monotonic() - last > EPISODE_TIMEOUT:
                raise TimeoutError(f"no episode finished within {EPISODE_TIMEOUT} s")

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, kill_workers=True)
            self.pool = None
