"""Worker processes on this machine."""

# Not pebble.ProcessPool (5.2). Its workers share one pipe and its locks, so a worker that is killed while it holds them
# stops the others. The loss of one worker breaks an idle pool. A task whose worker exits with code 0 never ends. Here
# each worker has its own pipe.

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic

from asd_policy.errors import AsdPolicyError, WorkerError
from asd_policy.evaluation.backends import ATTEMPTS, R, T, Worker, check_counts, made_worker
from asd_policy.threads import thread_count

POLL = 5.0  # seconds; a worker's death is seen at once unless one of its children keeps its pipe open
PATIENCE = 10.0  # seconds that a worker has to exit by itself

log = logging.getLogger(__name__)


class Processes:
    """Worker processes with a pipe each, so that losing one does not disturb the others. A lost worker is replaced.

    Args:
        workers: how many.
        threads: of each, for numerical libraries.

    Raises:
        ConfigError: unless both are positive.
    """

    def __init__(self, workers: int, threads: int = 1):
        check_counts(workers, threads)
        self.workers, self.threads = workers, threads

    def run(self, tasks: Iterable[T], make_worker: Callable[[], Worker[T, R]]) -> Generator[R, None, None]:
        todo = _Todo(tasks, patience=2 * ATTEMPTS * self.workers)
        crew: list[_Member[T, R]] = []
        try:
            while True:
                self._assign(todo, crew, make_worker)
                busy = [member for member in crew if member.job]
                if not busy:
                    break
                for member in _heard_of(busy):
                    job, answer = member.job, member.answer()
                    assert job is not None
                    member.job = None
                    if answer is None:
                        member.process.join(1)  # a worker that stops by itself closes its pipe before it exits
                        crew.remove(member)
                        todo.lost(job, member.end())
                    elif isinstance(answer, Exception):
                        raise answer
                    else:
                        todo.finished()
                        yield answer.result
            for member in crew:
                member.pipe.close()  # the worker then exits
            for member in crew:
                member.process.join(PATIENCE)
        finally:
            for member in crew:
                member.end()

    def _assign(self, todo: _Todo[T], crew: list[_Member[T, R]], make_worker: Callable[[], Worker[T, R]]) -> None:
        """Give tasks to idle workers and to new ones until either run out."""
        idle = deque(member for member in crew if not member.job)
        while (idle or len(crew) < self.workers) and (job := todo.next()):
            if not idle:
                idle.append(_hire(make_worker, self.threads))
                crew.append(idle[0])
            member = idle.popleft()
            member.job = job
            with suppress(OSError):  # a dead worker, which `_heard_of` reports next
                member.pipe.send(job.task)


@dataclass(eq=False)
class _Job(Generic[T]):
    """A task, and how many workers it has lost."""

    task: T
    losses: int = 0


@dataclass(frozen=True)
class _Done(Generic[R]):
    """A worker's message about a finished task."""

    result: R


class _Todo(Generic[T]):
    """The remaining tasks, and the losses so far.

    Args:
        patience: how many workers may be lost in a row.
    """

    def __init__(self, tasks: Iterable[T], patience: int):
        self._tasks, self._again = iter(tasks), deque[_Job[T]]()
        self._lost_in_a_row, self._patience = 0, patience

    def next(self) -> _Job[T] | None:
        if self._again:
            return self._again.popleft()
        return next(map(_Job, self._tasks), None)

    def finished(self) -> None:
        self._lost_in_a_row = 0

    def lost(self, job: _Job[T], exitcode: int | None) -> None:
        """Take back the task of a worker that died, or give it up."""
        job.losses += 1
        self._lost_in_a_row += 1
        how = f"killed by signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"exit code {exitcode}"
        if self._lost_in_a_row >= self._patience:
            raise WorkerError(
                f"{self._lost_in_a_row} workers were lost and nothing was finished, the last one {how} (the "
                "kernel sends 9 when memory runs out: try fewer workers). Start again to continue."
            )
        again = job.losses < ATTEMPTS
        if again:
            self._again.append(job)
        log.warning("A worker was lost (%s) in %.200s; %s.", how, job.task, "beginning again" if again else "given up")


@dataclass(eq=False)
class _Member(Generic[T, R]):
    """A worker process, as its parent holds it."""

    process: SpawnProcess
    pipe: Connection
    job: _Job[T] | None = None  # its present task

    def answer(self) -> _Done[R] | Exception | None:
        """Receive its answer; None if it died without one."""
        try:
            answer: _Done[R] | Exception | None = self.pipe.recv() if self.pipe.poll() else None
            return answer
        except (EOFError, OSError):
            return None

    def end(self) -> int | None:
        """Kill it if it is alive; return its exit code."""
        self.process.kill()
        self.process.join(PATIENCE)
        self.pipe.close()
        return self.process.exitcode


def _heard_of(busy: Sequence[_Member[T, R]]) -> list[_Member[T, R]]:
    """Wait until workers have answered or died, and return them."""
    by_handle: dict[Any, _Member[T, R]] = {
        handle: member for member in busy for handle in (member.pipe, member.process.sentinel)
    }
    heard = {by_handle[handle] for handle in wait(list(by_handle), POLL)}
    return [member for member in busy if member in heard or not member.process.is_alive()]


def _hire(make_worker: Callable[[], Worker[T, R]], threads: int) -> _Member[T, R]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # Not daemonic: daemons may not have children, and vector environments are child processes.
    process = context.Process(target=_work, args=(theirs, make_worker), daemon=False)
    with thread_count(threads):
        process.start()
    theirs.close()
    return _Member(process, ours)


def _work(pipe: Connection, make_worker: Callable[[], Worker[Any, Any]]) -> None:
    """The main loop of a worker process. It ends when the pipe closes or the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches workers too; the parent handles it
    threading.Thread(target=_die_with_parent, daemon=True).start()
    worker: Worker[Any, Any] | None = None
    with suppress(EOFError):
        while True:
            task = pipe.recv()
            answer: _Done[Any] | Exception
            try:
                if worker is None:
                    worker = made_worker(make_worker)
                answer = _Done(worker(task))
            except MemoryError:
                raise  # counts as a lost worker
            except AsdPolicyError as error:
                answer = error
            except Exception:
                answer = RuntimeError(f"in a worker:\n{traceback.format_exc()}")
            pipe.send(answer)
    if worker is not None:
        worker.close()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
