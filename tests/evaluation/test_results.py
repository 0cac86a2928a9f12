"""The file of results: what it takes, what it refuses, and what a kill or a full disk leaves of it."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from asd_policy.errors import ConfigError, DataError
from asd_policy.evaluation.results import EpisodeKey, Record, ResultsFile, check_same_settings, read_records

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
    assert RECORD.key == EpisodeKey("asd/Square-v0", "asd:path:16", 100000, 0)
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
        (lambda line: "3", "line 2 is not a JSON object: it is 3"),
        (lambda line: line[:-30], "line 2 is not a JSON object"),
        (
            lambda line: line.replace('"repeat": 0', '"again": 0'),
            "record: repeat is missing; again is an unknown field",
        ),
        (lambda line: line.replace('"success": true', '"success": 1'), "success is 1; expected a valid boolean"),
        (lambda line: line.replace('"length": 12', '"length": true'), "length is True; expected a valid integer"),
        (
            lambda line: line.replace('"latency": [0.25, 0.125]', '"latency": 0.1'),
            "latency is 0.1; expected a valid array",
        ),
        (lambda line: line.replace("[9, 8]", "[9, 8.5]"), "rounds.1 is 8.5; expected a valid integer"),
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
        with pytest.raises(DataError, match=r"No space left on device\. It keeps the 1 entries .*: EpisodeKey"):
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


@pytest.mark.parametrize("most", [1, 7, 100])
def test_short_writes_are_completed(path, monkeypatch, most):
    """A write may take less than it is given, more than once: signals, quotas, network file systems."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:most]))
    with ResultsFile(path) as file:
        for record in numbered(3):
            file.append(record)
    assert read_records([path]) == numbered(3)


@pytest.mark.parametrize("after", [0, 1, 50])
def test_write_that_takes_nothing_is_reported_with_its_episode(path, monkeypatch, after):
    write, left = os.write, [after]

    def stuck(file, data):
        written = write(file, data[: left[0]]) if left[0] else 0
        left[0] -= written
        return written

    with ResultsFile(path) as file:
        file.append(numbered(1)[0])
        monkeypatch.setattr(os, "write", stuck)
        with pytest.raises(DataError, match=r"the 1 entries before .*EpisodeKey\(task='asd/Square-v0'.*=100000"):
            file.append(RECORD)
        monkeypatch.undo()
    with ResultsFile(path) as file:  # which a sweep does to continue
        file.append(RECORD)
    assert read_records([path]) == [*numbered(1), RECORD]


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
def test_nothing_follows_a_line_that_is_torn_for_good(path, monkeypatch, error):
    def torn(file, data):
        write(file, data[:10])
        raise error

    def broken(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write, file = os.write, ResultsFile(path)
    file.append(numbered(1)[0])
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", torn)
        patched.setattr(os, "ftruncate", broken)
        with pytest.raises((DataError, KeyboardInterrupt)):
            file.append(RECORD)
    with pytest.raises(DataError, match="it was closed"):
        file.append(RECORD)
    with ResultsFile(path) as file:
        assert file.records == numbered(1)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts a file system")
def test_full_file_system(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(mounted.stderr.decode())
    try:
        path = tmp_path / "results.jsonl"
        records = numbered(100)
        with ResultsFile(path) as file, pytest.raises(DataError, match="No space left on device") as caught:
            list(map(file.append, records))
        kept = len(read_records([path]))
        assert 10 < kept < 100
        assert f"keeps the {kept} entries before" in str(caught.value)
        assert f"EpisodeKey(task='asd/Square-v0', sampler='asd:path:16', env_seed={kept}," in str(caught.value)
        subprocess.run(["mount", "-o", "remount,size=1m", tmp_path], check=True)
        with ResultsFile(path) as file:
            for record in records[len(file.records) :]:
                file.append(record)
        assert read_records([path]) == records
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_file_system_without_locks_is_not_another_process(path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(DataError, match=r"Cannot lock .*No locks available"):
        ResultsFile(path)


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "results.jsonl"):
        with pytest.raises(DataError, match="Cannot write to"):
            ResultsFile(path)


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"9" * 5000, b"NaN", b"\x00"])
def test_lines_of_other_formats(path, line):
    path.parent.mkdir()
    path.write_bytes(line + b"\n")
    with pytest.raises(DataError, match=r"square.jsonl, line 1 is not (a JSON object|an episode's record)"):
        read_records([path])


@pytest.mark.parametrize("module", ["fcntl", "resource", "pwd", "grp", "termios"])
def test_modules_of_posix_are_imported_where_they_are_used(module, tmp_path):
    """As on Windows: everything imports, and what needs the module says so."""
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "import asd_policy.evaluation.sweep, asd_policy.evaluation.backends.processes, asd_policy.interrupt\n"
        "from asd_policy.evaluation.results import ResultsFile\n"
        "from asd_policy.errors import ConfigError\n"
        "try:\n    ResultsFile(sys.argv[1]); print('written')\n"
        "except ConfigError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "results.jsonl")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert ("files can be locked" if module == "fcntl" else "written") in run.stdout
