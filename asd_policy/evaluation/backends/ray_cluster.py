"""Workers on a Ray cluster, which schedules tasks, repeats lost ones and survives the loss of nodes."""

from __future__ import annotations

import logging
import pickle
import socket
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Any

from asd_policy.errors import ConfigError
from asd_policy.evaluation.backends import ATTEMPTS, R, T, Worker, check_counts, made_worker
from asd_policy.threads import THREAD_COUNTS

log = logging.getLogger(__name__)


class Ray:
    """Ray tasks. Each process of the cluster makes its worker with its first task and keeps it.

    Args:
        workers: how many tasks run at once; None takes as many as the cluster has room for.
        threads: CPUs of each worker.
        address: the address of a running cluster. None uses the Ray already running in this process, or starts one.
        gpu: whether the workers share the cluster's GPUs.

    Raises:
        ConfigError: if Ray is not installed, there is no cluster, no node has this many CPUs, or a count is not
            positive.
    """

    def __init__(self, workers: int | None, threads: int = 1, address: str | None = None, gpu: bool = False):
        try:
            import ray  # imported here because it is an optional dependency
        except ImportError as error:
            raise ConfigError("Ray is not installed. Do: pip install 'asd-policy[ray]'.") from error
        check_counts(1 if workers is None else workers, threads)
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        cpus = None if workers is None else workers * threads
        here: dict[str, Any] = {} if address else {"num_cpus": cpus, "include_dashboard": False}
        if self._started:
            try:
                _check_that_it_listens(address or "local")
                ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **here)
            except (OSError, ValueError) as error:
                raise ConfigError(f"There is no Ray cluster at {address!r}: {error}") from error
        largest = max((node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]), default=0)
        if largest < threads:
            raise ConfigError(f"A worker has {threads} threads; the cluster's largest node has {largest:g} CPUs.")
        room = self._ray.cluster_resources()
        self.workers = workers or int(room["CPU"] // threads)
        environment = {"env_vars": dict.fromkeys(THREAD_COUNTS, str(threads))}
        self._options = {
            "num_cpus": threads,
            "num_gpus": min(1.0, room.get("GPU", 0) / self.workers) if gpu else 0,
            "max_retries": ATTEMPTS - 1,
            "retry_exceptions": [MemoryError],
            "runtime_env": environment,
        }

    def run(self, tasks: Iterable[T], make_worker: Callable[[], Worker[T, R]]) -> Generator[R, None, None]:
        ray, left = self._ray, iter(tasks)
        run = ray.remote(_run).options(**self._options)
        factory = ray.cloudpickle.dumps(make_worker)
        running: dict[Any, T] = {}
        try:
            while True:
                for task in islice(left, self.workers - len(running)):
                    running[run.remote(factory, task)] = task
                if not running:
                    return
                [done], _ = ray.wait(list(running), num_returns=1)
                task = running.pop(done)
                try:
                    result: R = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, MemoryError):
                        log.warning("Memory ran out %d times in %.200s; given up.", ATTEMPTS, task)
                    elif isinstance(error.cause, Exception):
                        raise error.cause from error
                    else:  # the worker's exception could not be unpickled here
                        raise RuntimeError(f"in a worker:\n{error}") from error
                except ray.exceptions.RayError as error:
                    log.warning("Lost %d times: %.200s; given up. %s", ATTEMPTS, task, error)
                else:
                    yield result
        finally:
            if self._started:
                ray.shutdown()
            else:
                for reference in running:
                    ray.cancel(reference, force=True)


def _check_that_it_listens(address: str) -> None:
    """Raise OSError if HOST:PORT does not answer; Ray itself tries for minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _run(factory: bytes, task: Any) -> Any:
    return _worker(factory)(task)


def _worker(factory: bytes) -> Worker[Any, Any]:
    """The process's worker. Processes outlive a sweep, so another sweep makes a new worker."""
    global _latest
    if _latest is None or _latest[0] != factory:
        if _latest is not None:
            _latest[1].close()
        _latest = None
        make_worker: Callable[[], Worker[Any, Any]] = pickle.loads(factory)
        _latest = factory, made_worker(make_worker)
    return _latest[1]


_latest: tuple[bytes, Worker[Any, Any]] | None = None
