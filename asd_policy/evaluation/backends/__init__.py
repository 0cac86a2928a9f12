"""Backends run tasks: in this process, in local processes, or on a Ray cluster. The results are the same."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

from asd_policy.errors import ConfigError
from asd_policy.plugins import check_members

ATTEMPTS = 3
"""How often a task is started if it loses its workers."""

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Worker(Protocol[T_contra, R_co]):
    """Runs tasks one after the other."""

    def __call__(self, task: T_contra, /) -> R_co: ...

    def close(self) -> None: ...


class Backend(Protocol):
    """Runs tasks on workers."""

    def run(self, tasks: Iterable[T], make_worker: Callable[[], Worker[T, R]]) -> Generator[R, None, None]:
        """Yield each task's result when it is finished, in any order.

        A task is taken from `tasks` when a worker is free. If its worker is lost (killed, out of memory), it is started
        again on another worker. A task that has lost ATTEMPTS workers is given up and yields nothing. Closing the
        generator ends the workers at once.

        Args:
            tasks: picklable, for backends with processes.
            make_worker: called once in each process; picklable too.

        Raises:
            WorkerError: if many workers in a row are lost.
            Exception: whatever a worker raises, except MemoryError, which counts as a lost worker.
        """
        ...


def check_backend(backend: object) -> None:
    """Raise ConfigError unless the object can `run`."""
    check_members("backend", backend, Backend)


def made_worker(make_worker: Callable[[], Worker[T, R]]) -> Worker[T, R]:
    """A new worker. Raises ConfigError unless it can be called and closed."""
    worker = make_worker()
    check_members("worker", worker, Worker)
    return worker


def check_counts(workers: int, threads: int) -> None:
    """Raise ConfigError unless both are positive."""
    if workers < 1 or threads < 1:
        raise ConfigError(f"Got {workers} workers with {threads} threads; expected at least one of each.")


class Serial:
    """One worker, in this process. If it is killed or out of memory, so is the caller."""

    def run(self, tasks: Iterable[T], make_worker: Callable[[], Worker[T, R]]) -> Generator[R, None, None]:
        worker = made_worker(make_worker)
        try:
            yield from map(worker, tasks)
        finally:
            worker.close()
