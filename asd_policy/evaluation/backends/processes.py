"""Worker processes on this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from asd_policy.errors import AsdPolicyError, WorkerError
from asd_policy.evaluation.backends import ATTEMPTS, MakeWorker, Worker, check_counts
from asd_policy.evaluation.results import Record
from asd_policy.evaluation.vector import thread_count
from asd_policy.evaluation.worker import Wave

POLL = 5.0  # seconds; a worker's death is seen at once unless a child of its keeps its pipes open
PATIENCE = 10.0  # seconds a worker has to leave by itself

log = logging.getLogger(__name__)


class Processes:
    """Workers with a pipe each, so that the death of one is nobody else's. A lost worker is replaced.

    Args:
        workers: how many.
        threads: of each, for numerical libraries.

    Raises:
        ConfigError: unless both are positive.
    """

    def __init__(self, workers: int, threads: int = 1):
        check_counts(workers, threads)
        self.workers, self.threads = workers, threads

    def run(self, waves: Iterable[Wave], make_worker: MakeWorker) -> Generator[list[Record], None, None]:
        todo = _Todo(waves, patience=2 * ATTEMPTS * self.workers)
        crew: list[_Member] = []
        try:
            while True:
                self._assign(todo, crew, make_worker)
                busy = [member for member in crew if member.wave]
                if not busy:
                    break
                for member in _heard_of(busy):
                    wave, answer = member.wave, member.answer()
                    member.wave = ()
                    if answer is None:
                        member.process.join(1)  # a worker that stops by itself has hung up before its end
                        crew.remove(member)
                        todo.lost(wave, member.end())
                    elif isinstance(answer, Exception):
                        raise answer
                    else:
                        todo.finished()
                        yield answer
            for member in crew:
                member.pipe.close()  # which sends it home
            for member in crew:
                member.process.join(PATIENCE)
        finally:
            for member in crew:
                member.end()

    def _assign(self, todo: _Todo, crew: list[_Member], make_worker: MakeWorker) -> None:
        """Give waves to idle workers and to new ones, as long as there are both."""
        idle = deque(member for member in crew if not member.wave)
        while (idle or len(crew) < self.workers) and (wave := todo.next()):
            if not idle:
                idle.append(_hire(make_worker, self.threads))
                crew.append(idle[0])
            member = idle.popleft()
            member.wave = wave
            with suppress(OSError):  # it is dead, which the next look at it finds out
                member.pipe.send(wave)


class _Todo:
    """The waves that are left, and what became of the others.

    Args:
        patience: how many workers may be lost in a row.
    """

    def __init__(self, waves: Iterable[Wave], patience: int):
        self._waves, self._again = iter(waves), deque[Wave]()
        self._losses: Counter[Wave] = Counter()
        self._lost_in_a_row, self._patience = 0, patience

    def next(self) -> Wave:
        """The next wave, or an empty one."""
        return self._again.popleft() if self._again else next(self._waves, ())

    def finished(self) -> None:
        self._lost_in_a_row = 0

    def lost(self, wave: Wave, exitcode: int | None) -> None:
        """Take back the wave of a worker that died, or give it up."""
        self._losses[wave] += 1
        self._lost_in_a_row += 1
        how = f"killed by signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"exit code {exitcode}"
        if self._lost_in_a_row >= self._patience:
            raise WorkerError(
                f"{self._lost_in_a_row} workers were lost and nothing was finished, the last one {how} (9 is what the "
                "kernel sends when memory runs out: try fewer workers). Start again to continue."
            )
        again = self._losses[wave] < ATTEMPTS
        if again:
            self._again.append(wave)
        log.warning("A worker was lost (%s) in %s; %s.", how, wave[0], "beginning again" if again else "given up")


@dataclass(eq=False)
class _Member:
    """A worker process, seen from outside."""

    process: SpawnProcess
    pipe: Connection
    wave: Wave = ()  # what it is doing

    def answer(self) -> list[Record] | Exception | None:
        """What it has sent; None if it died without an answer."""
        try:
            answer: list[Record] | Exception | None = self.pipe.recv() if self.pipe.poll() else None
            return answer
        except (EOFError, OSError):
            return None

    def end(self) -> int | None:
        """Make sure that it is gone, and tell its exit code."""
        self.process.kill()
        self.process.join(PATIENCE)
        self.pipe.close()
        return self.process.exitcode


def _heard_of(busy: Sequence[_Member]) -> list[_Member]:
    """Wait; those that have answered or died."""
    by_handle = {handle: member for member in busy for handle in (member.pipe, member.process.sentinel)}
    heard = {by_handle[handle] for handle in wait(list(by_handle), POLL)}  # type: ignore[index]
    return [member for member in busy if member in heard or not member.process.is_alive()]


def _hire(make_worker: MakeWorker, threads: int) -> _Member:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # No daemon: those may not have the children that a vector of environments is made of.
    process = context.Process(target=_work, args=(theirs, make_worker), daemon=False)
    with thread_count(threads):
        process.start()
    theirs.close()
    return _Member(process, ours)


def _work(pipe: Connection, make_worker: MakeWorker) -> None:
    """A worker process: until the pipe is closed, or its parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, and is the parent's to answer
    threading.Thread(target=_die_with_parent, daemon=True).start()
    worker: Worker | None = None
    with suppress(EOFError):
        while True:
            wave: Wave = pipe.recv()
            answer: list[Record] | Exception
            try:
                worker = worker or make_worker()
                answer = worker(wave)
            except MemoryError:
                raise  # as good as killed
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
