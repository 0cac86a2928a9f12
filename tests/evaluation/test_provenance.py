"""The commit that a result names: that of a checkout of this package, and of nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = "from asd_policy.evaluation.provenance import __file__ as file, software; print(file); print(software()['git'])"


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=True).stdout.strip()


def repository(folder):
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    (folder / "mine.txt").write_text("mine")
    git(folder, "add", "mine.txt")
    git(folder, "commit", "--quiet", "-m", "mine")
    return folder


def package(folder):
    """The modules that provenance needs, as installed in the folder."""
    for name in ("asd_policy/__init__.py", "asd_policy/evaluation/__init__.py", "asd_policy/evaluation/provenance.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def recorded(folder, **environ):
    command = [sys.executable, "-c", CODE]
    run = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)} | environ, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    file, answer = run.stdout.splitlines()
    assert Path(file).is_relative_to(folder)
    return answer


def test_checkout(tmp_path):
    checkout = package(repository(tmp_path / "checkout"))
    git(checkout, "add", "asd_policy")
    git(checkout, "commit", "--quiet", "-m", "package")
    head = git(checkout, "rev-parse", "--short=12", "HEAD")
    assert recorded(checkout) == head
    other = repository(tmp_path / "other")
    assert recorded(checkout, GIT_DIR=str(other / ".git"), GIT_WORK_TREE=str(other)) == head  # as within a hook
    (checkout / "asd_policy" / "__init__.py").write_text("changed = 1")
    assert recorded(checkout) == f"{head}-dirty"


@pytest.mark.parametrize("place", ["venv/lib/site-packages", "."])
def test_installed_within_another_repository(place, tmp_path):
    assert recorded(package(repository(tmp_path / "theirs") / place)) == "not a checkout"


def test_copied_into_another_repository(tmp_path):
    theirs = repository(tmp_path / "theirs")
    vendored = package(theirs / "vendored")
    git(theirs, "add", "vendored")
    git(theirs, "commit", "--quiet", "-m", "vendored")
    assert recorded(vendored) == "not a checkout"


def test_no_repository(tmp_path):
    assert recorded(package(tmp_path / "plain")) == "not a checkout"


def test_no_git(tmp_path):
    (tmp_path / "bin").mkdir()
    assert recorded(package(tmp_path / "plain"), PATH=str(tmp_path / "bin")) == "unknown: git is not installed"


def test_git_that_refuses(tmp_path):
    """As git does for a folder of another owner."""
    checkout = package(repository(tmp_path / "checkout"))
    git(checkout, "add", "asd_policy")
    (checkout / ".git" / "config").write_text("[nonsense")
    assert recorded(checkout).startswith("unknown: fatal: bad config")
