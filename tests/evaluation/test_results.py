"""The file of results: what it takes, what it refuses, and what a kill or a full disk leaves of it."""

import errno
import json
import os
from dataclasses import replace

import pytest

from asd_policy.errors import ConfigError, DataError
from asd_policy.evaluation.results import Job, Record, ResultsFile, check_same_settings, read_records

RECORD = Record(
    task="asd/Square-v0",
    sampler="asd:path:16",
    env_seed=100000,
    repeat=0,
    noise_seed=7,
    success=True,
    length=12,
    latency=[0.25, 0.125],
    rounds=[9, 8],
    evaluations=[90, 80],
    acceptance=[1.0, 0.5],
    action_sha256="ab" * 32,
    error=None,
    checkpoint_sha256="cd" * 32,
    settings={"device": "cpu", "threads": 1, "batch": 1},
    software={"python": "3.11"},
)


def numbered(count):
    return [replace(RECORD, env_seed=seed) for seed in range(count)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "square.jsonl"


def test_what_was_appended_is_read(path):
    broken = replace(RECORD, env_seed=1, success=False, error="SimulationError: diverged", latency=[], acceptance=[])
    with ResultsFile(path) as file:
        file.append(RECORD)
        file.append(broken)
    assert read_records([path]) == [RECORD, broken]
    assert RECORD.job == Job("asd/Square-v0", "asd:path:16", 100000, 0)
    with ResultsFile(path) as file:
        assert file.records == [RECORD, broken]


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_torn_last_line_is_ignored_and_then_cut_off(path, cut):
    with ResultsFile(path) as file:
        for record in numbered(2):
            file.append(record)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_records([path]) == numbered(1)
    with ResultsFile(path) as file:
        file.append(RECORD)
    assert read_records([path]) == [*numbered(1), RECORD]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: "", "Expecting value"),
        (lambda line: "3", "got the fields 3"),
        (lambda line: line[:-30], "line 2 is no episode's record"),
        (lambda line: line.replace('"repeat": 0', '"again": 0'), "expected task, sampler"),
        (lambda line: line.replace('"success": true', '"success": 1'), "success is 1; expected bool"),
        (lambda line: line.replace('"length": 12', '"length": true'), "length is True; expected int"),
        (lambda line: line.replace('"latency": [0.25, 0.125]', '"latency": 0.1'), "latency is 0.1; expected list"),
    ],
)
def test_unreadable_line_is_named(path, change, message):
    line = json.dumps(RECORD.to_json())
    path.parent.mkdir()
    path.write_text("\n".join([line, change(line), line, ""]))
    with pytest.raises(DataError, match=r"square.jsonl, line 2") as caught:
        read_records([path])
    assert message in str(caught.value)
    with pytest.raises(DataError, match="line 2"):
        ResultsFile(path)


def test_missing_file(path):
    with pytest.raises(DataError, match="No such file"):
        read_records([path])


@pytest.mark.parametrize("room", [0, 100])
def test_full_disk_leaves_whole_lines(path, monkeypatch, room):
    write, left = os.write, [room]

    def full(file, data):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(file, data[: left[0]])
        left[0] -= written
        return written

    with ResultsFile(path) as file:
        file.append(numbered(1)[0])
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(DataError, match=r"No space left on device\. It holds 1 episodes"):
            file.append(RECORD)
        monkeypatch.undo()
    assert path.read_bytes().count(b"\n") == 1
    assert path.read_bytes().endswith(b"\n")
    assert read_records([path]) == numbered(1)


def test_ordering_replaces_the_file(path):
    with ResultsFile(path) as file:
        for record in numbered(4):
            file.append(record)
        file.order(lambda record: -record.env_seed)
    assert read_records([path]) == numbered(4)[::-1]
    assert [entry.name for entry in path.parent.iterdir()] == ["square.jsonl"]


def test_kill_while_ordering_leaves_the_old_file(path, monkeypatch):
    def killed(*paths):
        raise KeyboardInterrupt

    with ResultsFile(path) as file:
        for record in numbered(3):
            file.append(record)
        monkeypatch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            file.order(lambda record: -record.env_seed)
    monkeypatch.undo()
    assert read_records([path]) == numbered(3)


def test_one_writer_at_a_time(path):
    with ResultsFile(path), pytest.raises(ConfigError, match="Another process is writing"):
        ResultsFile(path)
    ResultsFile(path).close()


def test_another_checkpoint_or_setting_does_not_mix():
    checkpoints = {RECORD.task: RECORD.checkpoint_sha256}
    check_same_settings([RECORD], checkpoints, RECORD.settings)
    check_same_settings([RECORD], {"another task": "ef" * 32}, RECORD.settings)
    with pytest.raises(ConfigError, match="another checkpoint for asd/Square-v0: SHA-256 cdcdcdcdcdcd, now efef"):
        check_same_settings([RECORD], {RECORD.task: "ef" * 32}, RECORD.settings)
    with pytest.raises(ConfigError, match=r"'threads': 1.*now.*'threads': 2"):
        check_same_settings([RECORD], checkpoints, {**RECORD.settings, "threads": 2})
