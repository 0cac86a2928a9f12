"""Downloads through huggingface_hub's own code, from a hub on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asd_policy.errors import ConfigError, HubError
from asd_policy.hub import HubId, fetch, open_snapshot, pinned
from tests.fake_hub import FakeHub, going_online, serving

FILES = {"meta/info.json": b"{}", "data/a.parquet": b"abc", "data/b.parquet": b"defg", "videos/a.mp4": b"film"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path / "cache", monkeypatch) as hub:
        yield hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user/name", HubId("user/name")),
        ("user/name@main", HubId("user/name", "main")),
        ("user/name@refs/pr/1", HubId("user/name", "refs/pr/1")),
        (Path("user/na.me-2"), HubId("user/na.me-2")),
        ("square", None),
        ("a/b/c", None),
        ("./user/name", None),
        ("/user/name", None),
        ("../name", None),
        ("user/", None),
        ("runs/latest.ckpt", None),
        ("user/name@", None),
        ("user/na me", None),
    ],
)
def test_hub_ids(text, expected):
    assert HubId.parse(text) == expected
    assert expected is None or str(expected) == str(text)


def test_a_revision_is_named_once():
    assert HubId.parse("user/name", "v1") == HubId.parse("user/name@v1", "v1") == HubId("user/name", "v1")
    with pytest.raises(ConfigError, match=r"names the revision 'v2', but revision is 'v1'"):
        HubId.parse("user/name@v2", "v1")


def test_only_the_files_that_match_are_downloaded_and_only_once(hub: FakeHub):
    commit = hub.commit("them/pusht", FILES, kind="datasets")
    folder = fetch("them/pusht", ["meta/*", "*.parquet"], repo_type="dataset", ignored=["*/b.parquet"])
    got = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert got == {name: FILES[name] for name in ("meta/info.json", "data/a.parquet")}
    assert folder.name == commit
    assert sorted(hub.requests) == ["datasets/them/pusht/data/a.parquet", "datasets/them/pusht/meta/info.json"]
    assert fetch("them/pusht", ["meta/*", "data/a.*"], repo_type="dataset") == folder
    assert len(hub.requests) == 2
    fetch("them/pusht", ["videos/*"], repo_type="dataset")
    assert len(hub.requests) == 3


def test_a_revision_is_a_branch_or_a_commit(hub: FakeHub):
    first = hub.commit("me/it", {"a.json": b"1"})
    second = hub.commit("me/it", {"a.json": b"2"})
    other = hub.commit("me/it", {"a.json": b"3"}, branch="v3")
    read = {rev: (fetch("me/it", ["*"], rev) / "a.json").read_bytes() for rev in (None, "v3", first, second, other)}
    assert read == {None: b"2", "v3": b"3", first: b"1", second: b"2", other: b"3"}
    assert fetch("me/it@v3", ["*"]) == fetch("me/it", ["*"], "v3")
    assert pinned("me/it") == f"me/it@{second}"
    assert pinned("me/it@v3") == f"me/it@{other}"
    with pytest.raises(HubError, match=r"The model me/it has no revision 'v4'"):
        fetch("me/it", ["*"], "v4")


def test_what_names_no_repository_stays_as_it_is(hub: FakeHub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "it").mkdir(parents=True)
    for text in ("me/it", "me/missing", "square", "/a/b", "x.ckpt"):
        assert pinned(text) == text


def test_without_a_network_the_cache_is_read(hub: FakeHub, monkeypatch):
    commit = hub.commit("me/it", {"a.json": b"1", "b.json": b"2"})
    folder = fetch("me/it", ["a.json"])
    with going_online(monkeypatch, online=False):
        assert fetch("me/it", ["*.json"]) == fetch("me/it", ["a.json"], "main") == folder
        assert fetch("me/it", ["a.json"], commit) == folder
        assert open_snapshot(HubId("me/it")).sizes == {"a.json": 1}
        with pytest.raises(HubError, match=r"has no file that matches b\.json; it has a\.json"):
            fetch("me/it", ["b.json"])
        with pytest.raises(HubError, match=r"offline.*me/other@v1 is not in the cache .*hf download \S+ --revision v1"):
            fetch("me/other@v1", ["*"])


def test_a_hub_that_is_down_is_said(hub: FakeHub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"The hub was not reached .*me/it is not in the cache"):
        fetch("me/it", ["*"])


def test_repositories_that_cannot_be_read(hub: FakeHub):
    hub.commit("me/locked", FILES)
    hub.gated.add("me/locked")
    with pytest.raises(HubError, match=r"The model me/locked is gated: accept its terms"):
        fetch("me/locked", ["*"])
    with pytest.raises(HubError, match=r"The hub has no dataset me/locked that you may read"):
        fetch("me/locked", ["*"], repo_type="dataset")
    with pytest.raises(HubError, match=r"no valid name"):
        fetch("me/it--s", ["*"])
    with pytest.raises(ConfigError, match=r"'square' is no repository of the hub"):
        fetch("square", ["*"])


def test_the_size_is_bounded_before_anything_is_downloaded(hub: FakeHub):
    hub.commit("me/it", FILES)
    hub.sizes["videos/a.mp4"] = 10**15
    with pytest.raises(HubError, match=r"4 files to download have 10{12}\d+ bytes, more than"):
        fetch("me/it", ["*"])
    with pytest.raises(HubError, match=r"2 files to download have 7 bytes, more than the 6 allowed"):
        fetch("me/it", ["*.parquet"], max_bytes=6)
    assert hub.requests == []
    assert fetch("me/it", ["*.parquet"], max_bytes=7).is_dir()


def test_names_that_leave_the_cache_are_refused(hub: FakeHub, tmp_path):
    hub.commit("me/evil", {"../../../../escaped.json": b"{}", "a.json": b"{}"})
    with pytest.raises(HubError, match="The download of me/evil failed"):
        fetch("me/evil", ["*.json"])
    assert not list(tmp_path.rglob("escaped.json"))


def test_a_process_of_its_own_with_the_hubs_environment_variables(hub: FakeHub, tmp_path):
    """The variables as a user sets them; nothing is patched in that process."""
    from huggingface_hub import constants

    hub.commit("me/it", {"a.json": b"1"})
    code = "import sys; from asd_policy.hub import fetch; print((fetch('me/it', ['*']) / 'a.json').read_text())"
    env = {**os.environ, "HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout == "1\n"
    offline = env | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert subprocess.run(run, env=offline, capture_output=True, text=True, check=True).stdout == "1\n"
    empty = offline | {"HF_HOME": str(tmp_path / "empty")}
    failed = subprocess.run(run, env=empty, capture_output=True, text=True, check=False)
    assert "HubError" in failed.stderr
    assert "not in the cache" in failed.stderr


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"pip install 'asd-policy\[hub\]'"):
        fetch("me/it", ["*"])
