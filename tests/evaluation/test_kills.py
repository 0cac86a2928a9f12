"""Sweeps of the toy task in processes of their own, killed in every way. `pytest -s` prints what it costs."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from asd_policy.evaluation.backends import Serial
from asd_policy.evaluation.results import ResultsFile, read_records
from asd_policy.evaluation.sweep import sweep
from tests.evaluation.toy import Toy, toy_plan

ROOT = Path(__file__).parents[2]
EPISODES = len(toy_plan().keys)
BACKENDS = ["processes", *(pytest.param(name, marks=pytest.mark.slow) for name in ("serial", "ray"))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with ResultsFile(tmp_path_factory.mktemp("undisturbed") / "sweep.jsonl") as file:
        list(sweep(toy_plan(), file, Serial(), Toy()))
        return without_timings(file.records)


def without_timings(records):
    return [replace(record, latency=[]) for record in records]


def start(folder, backend):
    """The sweep, in a process group of its own, as a shell would."""
    command = [sys.executable, "-m", "tests.evaluation.toy", str(folder), backend]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **output)


def wait_for(condition, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "this took too long"
        time.sleep(0.01)


def finished(folder):
    """The episodes on file."""
    path = folder / "sweep.jsonl"
    return read_records([path]) if path.exists() else []


def started(folder):
    """How often each episode was begun, by sampler and noise."""
    return Counter((folder / "started").read_text().splitlines())


def workers(folder):
    path = folder / "workers"
    return list(map(int, path.read_text().split())) if path.exists() else []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def names(records):
    return {f"{record.sampler} {record.noise_seed}" for record in records}


def check_resumed(folder, backend, undisturbed, what, at_most):
    """Run the sweep to its end: what was on file is not run again, nothing is lost, at most so many are repeated."""
    before, begun = names(finished(folder)), started(folder)
    process = start(folder, backend)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    after = started(folder)
    assert all(after[name] == begun[name] for name in before)
    assert without_timings(finished(folder)) == undisturbed
    repeated = sum(after.values()) - EPISODES
    assert repeated <= at_most
    print(f"\n| {what}, {backend} | {len(before)} of {EPISODES} | {repeated} | {EPISODES - len(finished(folder))} |")


@pytest.mark.parametrize("backend", BACKENDS)
def test_driver_is_killed(backend, undisturbed, tmp_path):
    process = start(tmp_path, backend)
    wait_for(lambda: len(finished(tmp_path)) >= 5, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for(lambda: not any(map(alive, workers(tmp_path))))  # no orphan goes on
    assert 5 <= len(finished(tmp_path)) < EPISODES
    check_resumed(tmp_path, backend, undisturbed, "SIGKILL of the driver", at_most=2)


@pytest.mark.parametrize("backend", BACKENDS[::2])
def test_worker_is_killed(backend, undisturbed, tmp_path):
    process = start(tmp_path, backend)
    wait_for(lambda: len(finished(tmp_path)) >= 5, process)
    os.kill(workers(tmp_path)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert len(workers(tmp_path)) == 3  # it was replaced
    assert without_timings(finished(tmp_path)) == undisturbed
    check_resumed(tmp_path, backend, undisturbed, "SIGKILL of a worker", at_most=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_interrupt_finishes_what_has_begun(backend, undisturbed, tmp_path):
    process = start(tmp_path, backend)
    wait_for(lambda: len(finished(tmp_path)) >= 5, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert 5 <= len(finished(tmp_path)) < EPISODES
    check_resumed(tmp_path, backend, undisturbed, "Ctrl-C", at_most=0)


@pytest.mark.slow
def test_second_interrupt_quits_at_once(undisturbed, tmp_path):
    process = start(tmp_path, "processes")
    wait_for(lambda: len(finished(tmp_path)) >= 5, process)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait_for(lambda: not any(map(alive, workers(tmp_path))))
    check_resumed(tmp_path, "processes", undisturbed, "Ctrl-C twice", at_most=2)


def test_full_disk(undisturbed, tmp_path):
    process = start(tmp_path, "processes")
    wait_for(lambda: len(finished(tmp_path)) >= 5, process)
    room = (tmp_path / "sweep.jsonl").stat().st_size + 1000  # not for two more
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, room))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "DataError: Cannot write" in errors
    assert 5 <= len(finished(tmp_path)) < EPISODES
    check_resumed(tmp_path, "processes", undisturbed, "Disk full", at_most=2)


@pytest.mark.slow
def test_torn_last_line(undisturbed, tmp_path):
    process = start(tmp_path, "serial")
    wait_for(lambda: len(finished(tmp_path)) >= 5, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    with (tmp_path / "sweep.jsonl").open("rb+") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 20)
    check_resumed(tmp_path, "serial", undisturbed, "SIGKILL within a write", at_most=2)
