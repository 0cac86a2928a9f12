"""JSON-lines files: what is appended, what a kill or a full disk leaves, and what is refused."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from asd_policy.errors import ConfigError, DataError
from asd_policy.jsonl import JsonLines, read_json_lines


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "lines.jsonl"


def entries(count):
    return [{"number": number, "text": "ä\n" * number} for number in range(count)]


def filled(path, count):
    with JsonLines(path) as file:
        for entry in entries(count):
            file.append(entry)
    return path


def test_appended_objects_are_read_and_continued(path):
    filled(path, 3)
    assert read_json_lines(path) == entries(3)
    with JsonLines(path) as file:
        assert file.entries == entries(3)
        file.append({"number": 3})
        assert file.entries[3:] == [{"number": 3}]
    assert path.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("cut", range(1, 30, 3))
def test_unfinished_last_line_is_left_out_and_then_removed(path, cut):
    content = filled(path, 2).read_bytes()
    path.write_bytes(content[:-cut])
    assert read_json_lines(path) == entries(1)
    with JsonLines(path) as file:
        file.append({"number": 7})
    assert read_json_lines(path) == [*entries(1), {"number": 7}]


@pytest.mark.parametrize("room", [0, 1, 10])
@pytest.mark.parametrize("answer", ["full", "nothing written"])
def test_full_disk_keeps_the_entries_before(path, monkeypatch, room, answer):
    write, left = os.write, [room]

    def full(file, data):
        if left[0] == 0:
            if answer == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return 0
        written = write(file, data[: left[0]])
        left[0] -= written
        return written

    with JsonLines(path) as file:
        file.append(entries(1)[0])
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            with pytest.raises(DataError, match=r"Cannot write to .*It keeps the 1 entries before this one"):
                file.append({"number": 1})
        assert file.entries == read_json_lines(path) == entries(1)
        file.append({"number": 2})  # there is room again
    assert read_json_lines(path) == [*entries(1), {"number": 2}]


def test_no_line_follows_one_that_cannot_be_removed(path, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def torn(file, data):
        write(file, data[:5])
        broken()

    write, file = os.write, JsonLines(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", torn)
        patched.setattr(os, "ftruncate", broken)
        with pytest.raises(DataError, match="Input/output error"):
            file.append({"number": 0})
    with pytest.raises(DataError, match="it was closed"):
        file.append({"number": 0})
    with JsonLines(path) as file:
        assert file.entries == []


APPEND = """
import sys
from asd_policy.jsonl import JsonLines
with JsonLines(sys.argv[1]) as file:
    for number in range(len(file.entries), 10**6):
        file.append({"number": number, "text": "x" * (number % 5000)})
        if number % 50 == 49 and len(sys.argv) > 2:
            file.replace(file.entries)
            file = JsonLines(sys.argv[1])
"""


@pytest.mark.parametrize("replacing", [(), ("replacing",)])
def test_killed_at_random_points(path, replacing):
    """What is on file is always a whole beginning of what was appended, and the next writer continues it."""
    rng, before = random.Random(0), 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", APPEND, path, *replacing], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not (path.exists() and path.read_bytes().count(b"\n") > before) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = read_json_lines(path)
        assert [entry["number"] for entry in found] == list(range(len(found)))
        assert all(len(entry["text"]) == entry["number"] % 5000 for entry in found)
        assert len(found) > before
        before = len(found)


def test_a_second_process_is_refused_until_the_first_closes(path):
    code = "import sys; from asd_policy.jsonl import JsonLines; JsonLines(sys.argv[1]).append({'number': 1})"

    def other():
        return subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)

    with JsonLines(path) as file:
        file.append({"number": 0})
        refused = other()
        assert refused.returncode == 1
        assert "ConfigError: Another process is writing" in refused.stderr
        with pytest.raises(ConfigError, match="Another process is writing"):  # as does this one
            JsonLines(path)
    assert other().returncode == 0
    assert read_json_lines(path) == [{"number": 0}, {"number": 1}]


def test_closed_file_takes_nothing(path):
    file = JsonLines(filled(path, 2))
    file.close()
    file.close()
    for change in (lambda: file.append({}), lambda: file.replace([])):
        with pytest.raises(DataError, match="it was closed"):
            change()
    assert read_json_lines(path) == entries(2)


@pytest.mark.parametrize("damage", [b"", b"{", b"3", b"[]", b"null", b"\xff", b"[" * 100_000, b"{} {}", b"9" * 5000])
def test_damaged_line_is_named(path, damage):
    path.parent.mkdir()
    path.write_bytes(b'{"a": 1}\n' + damage + b'\n{"a": 2}\n')
    content = path.read_bytes()
    for read in (read_json_lines, JsonLines):
        with pytest.raises(DataError, match=r"lines\.jsonl, line 2 is not a JSON object"):
            read(path)
    assert path.read_bytes() == content
    path.write_bytes(b"")
    JsonLines(path).close()  # nothing was left locked


def test_an_entry_that_is_no_json_changes_nothing(path):
    with JsonLines(path) as file:
        with pytest.raises(TypeError):
            file.append({"number": object()})
        file.append({"number": 1})
    assert read_json_lines(path) == [{"number": 1}]


def test_replacing_ends_appending(path):
    with JsonLines(filled(path, 3)) as file:
        file.replace(file.entries[::-1])
        assert file.entries == read_json_lines(path) == entries(3)[::-1]
        with pytest.raises(DataError, match="it was closed"):
            file.append({})
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_replacing_that_fails_leaves_the_file(path, monkeypatch, error):
    def fail(*arguments):
        raise error

    with JsonLines(filled(path, 2)) as file:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fail)
            with pytest.raises((DataError, KeyboardInterrupt)):
                file.replace([])
        assert file.entries == read_json_lines(path) == entries(2)
        file.append({"number": 2})
    assert os.listdir(path.parent) == [path.name]


def test_only_regular_files_are_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "file" / "lines.jsonl"):
        with pytest.raises(DataError, match="Cannot write to"):
            JsonLines(path)


def test_missing_file_is_not_read(path):
    with pytest.raises(DataError, match="No such file"):
        read_json_lines(path)


def test_each_line_is_json_by_itself(path):
    lines = filled(path, 4).read_text().split("\n")[:-1]
    assert [json.loads(line) for line in lines] == entries(4)
