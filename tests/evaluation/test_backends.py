"""Backends run any tasks: here numbers, whose worker can be made to leave or to break."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from asd_policy.errors import ConfigError, UnknownNameError, WorkerError
from asd_policy.evaluation.backends import Serial
from asd_policy.evaluation.backends.processes import Processes
from asd_policy.evaluation.backends.ray_cluster import Ray
from asd_policy.evaluation.backends.registry import BACKENDS, Resources, make_backend
from asd_policy.evaluation.rollout import Policy
from asd_policy.evaluation.sweep import sweep
from asd_policy.plugins import check_members
from tests.evaluation.toy import toy_plan


class Faulty:
    """Squares numbers. The first time that it is given `fault[0]`, `fault[1]` happens.

    Args:
        folder: gets a line for each task that is begun.
    """

    def __init__(self, folder, fault=(None, None)):
        self.folder, self.fault = folder, fault

    def __call__(self, number):
        with (self.folder / "begun").open("a") as file:
            file.write(f"{number} {os.getpid()}\n")
        mark = self.folder / "mark"
        if number == self.fault[0] and not mark.exists():
            mark.touch()
            self.fault[1]()
        return [number, number**2]  # a list is as good as any other result

    def close(self):
        (self.folder / f"closed {os.getpid()}").touch()


def begun(folder):
    return Counter(line.split()[0] for line in (folder / "begun").read_text().splitlines())


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def no_memory():
    raise MemoryError


@pytest.mark.parametrize("make", [Serial, partial(Processes, 2)])
def test_any_tasks_and_results(make, tmp_path):
    results = list(make().run(range(5), partial(Faulty, tmp_path)))
    assert sorted(results) == [[number, number**2] for number in range(5)]
    assert set(begun(tmp_path).values()) == {1}


@pytest.mark.parametrize("fault", [partial(os._exit, 0), partial(os._exit, 3), kill, no_memory])
def test_only_the_task_of_a_lost_worker_is_repeated(fault, tmp_path, caplog):
    results = list(Processes(2).run(range(8), partial(Faulty, tmp_path, (3, fault))))
    assert sorted(results) == [[number, number**2] for number in range(8)]
    assert begun(tmp_path) == {str(number): 2 if number == 3 else 1 for number in range(8)}
    assert "in 3; beginning again" in caplog.text


def test_worker_that_is_killed_while_it_waits_for_work_is_replaced(tmp_path):
    results = []
    for result in Processes(1).run(range(4), partial(Faulty, tmp_path)):
        results.append(result)
        if len(results) == 1:
            [line] = (tmp_path / "begun").read_text().splitlines()
            os.kill(int(line.split()[1]), signal.SIGKILL)
    assert sorted(results) == [[number, number**2] for number in range(4)]


@dataclass
class Unstartable:
    """Leaves while it is made."""

    folder: Path

    def __post_init__(self):
        os._exit(1)


def test_workers_that_cannot_start(tmp_path):
    with pytest.raises(WorkerError, match="6 workers were lost and nothing was finished, the last one exit code 1"):
        list(Processes(1).run(range(5), partial(Unstartable, tmp_path)))


def test_tasks_are_taken_as_workers_are_free(tmp_path):
    taken = []

    def tasks():
        for number in range(20):
            taken.append(number)
            yield number

    running = Processes(2).run(tasks(), partial(Faulty, tmp_path))
    for finished in range(1, 5):
        next(running)
        assert len(taken) <= finished + 2
    running.close()
    assert len(taken) <= 6


SLEEPER = """
import os, subprocess, sys, time
from functools import partial
from pathlib import Path
from asd_policy.evaluation.backends.processes import Processes
from tests.evaluation.test_backends import Parent

running = Processes(1).run(range(2), partial(Parent, Path(sys.argv[1])))
next(running)
"""


class Parent:
    """Has a child process of its own, as a worker with a vector of environments has."""

    def __init__(self, folder):
        import multiprocessing

        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        self.child = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
        self.child.start()
        theirs.close()
        self.pipe, self.folder = ours, folder

    def __call__(self, task):
        self.pipe.send(task)
        assert self.pipe.recv() == task
        (self.folder / "pids").write_text(f"{os.getpid()} {self.child.pid}")
        if task == 1:
            time.sleep(600)
        return task

    def close(self):
        self.child.kill()


def _serve(pipe):
    try:
        while True:
            pipe.send(pipe.recv())
    except EOFError:
        pass


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(folder):
    deadline = time.monotonic() + 60
    while any(map(alive, map(int, (folder / "pids").read_text().split()))):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.02)


def test_closing_ends_workers_and_their_children_at_once(tmp_path):
    running = Processes(1).run(range(2), partial(Parent, tmp_path))
    assert next(running) == 0
    started = time.monotonic()
    running.close()
    assert time.monotonic() - started < 10  # the worker would sleep on
    wait_until_gone(tmp_path)


def test_children_of_workers_end_with_a_killed_driver(tmp_path):
    code = SLEEPER + "os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until_gone(tmp_path)


def threads_of_a_worker():
    return Environment()


class Environment:
    def __call__(self, name):
        return os.environ.get(name)

    def close(self):
        pass


def test_workers_have_their_thread_count():
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
    before = dict(os.environ)
    assert list(Processes(1, threads=3).run(names, threads_of_a_worker)) == ["3", "3", "3"]
    assert dict(os.environ) == before


def no_close():
    return lambda task: task


@pytest.mark.parametrize("make", [Serial, partial(Processes, 1)])
def test_worker_without_a_member_is_refused(make):
    with pytest.raises(ConfigError, match=r"worker is a .*, which lacks close of the protocol Worker"):
        list(make().run([1], no_close))


def test_backend_without_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="backend is a object, which lacks run of the protocol Backend"):
        list(sweep(toy_plan(), FakeFile(), object(), None))


class FakeFile:
    records = ()


def test_all_missing_members_are_named():
    with pytest.raises(ConfigError, match="policy is a int, which lacks act, reset, stats of the protocol Policy"):
        check_members("policy", 3, Policy)


def test_backends_by_name(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert isinstance(make_backend("serial", Resources()), Serial)
    assert make_backend("processes", Resources(threads=3)).workers == 2
    assert make_backend("processes", Resources(threads=16)).workers == 1
    assert make_backend("processes", Resources(5)).workers == 5
    with pytest.raises(UnknownNameError, match="Did you mean 'processes'"):
        make_backend("proceses", Resources())
    assert set(BACKENDS) == {"serial", "processes", "ray"}
    with pytest.raises(ConfigError, match="Got 0 workers"):
        make_backend("ray", Resources(0))
    assert callable(Ray.run)
