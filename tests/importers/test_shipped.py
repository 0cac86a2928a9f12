"""Finding checkpoints by path and by name, from a clone and from an installed package."""

import shutil
import tomllib
from pathlib import Path

import pytest

from asd_policy import load_policy
from asd_policy.errors import CheckpointError, UnknownNameError
from asd_policy.importers import find_checkpoint, shipped
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The package as a wheel installs it: no clone around it, and `square` in it."""
    packaged = tmp_path / "site-packages" / "asd_policy" / "checkpoints"
    shutil.copytree(tiny_checkpoint(tmp_path / "tiny", {"object": 5}, 2), packaged / "square")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(shipped, "FOLDERS", (tmp_path / "site-packages" / "checkpoints", packaged))
    return packaged


@pytest.mark.parametrize("name", ["square", "digits", "transport", "tool_hang"])
def test_a_clone_has_every_checkpoint(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(name) == find_checkpoint(Path(name)) == ROOT / "checkpoints" / name


def test_an_installed_package_has_its_own(installed):
    assert find_checkpoint("square") == installed / "square"
    assert load_policy("square", sampler="ddpm").config.obs_keys == {"object": 5}


def test_a_clones_folder_comes_before_the_wheels(installed, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDERS", (ROOT / "checkpoints", installed))
    assert find_checkpoint("square") == ROOT / "checkpoints" / "square"


def test_an_existing_path_wins(installed):
    tiny_checkpoint(Path("square"), {"other": 3}, 2)
    assert find_checkpoint("square") == Path("square")
    assert load_policy("square").config.obs_keys == {"other": 3}


@pytest.mark.parametrize("name", shipped.CLONE_ONLY)
def test_what_the_wheel_lacks_is_said_to_be_in_the_repository(installed, name):
    with pytest.raises(CheckpointError, match=rf"not part of the installed.*checkpoints/{name} of .*repository"):
        load_policy(name)
    with pytest.raises(UnknownNameError, match="Available: square"):
        load_policy(f"checkpoints/{name}")


def test_an_unknown_name_lists_what_there_is(installed):
    tiny_checkpoint(Path("mine"), {"object": 5}, 2)
    with pytest.raises(UnknownNameError, match=r"Unknown checkpoint 'sqare'. Did you mean 'square'\? .*: mine, square"):
        find_checkpoint("sqare")
    with pytest.raises(UnknownNameError, match=r"Unknown checkpoint 'a/square'.*Available: square"):
        find_checkpoint("a/square")


def test_a_folder_without_a_checkpoint_says_what_it_lacks(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: there is no such file"):
        load_policy(tmp_path)


def test_the_wheel_carries_checkpoints_that_exist():
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "force-include"
    ]
    assert all((ROOT / source).exists() and target == f"asd_policy/{source}" for source, target in included.items())
    folders = {Path(source).parts[1] for source in included}
    assert folders | {*shipped.CLONE_ONLY} == {folder.name for folder in (ROOT / "checkpoints").iterdir()}
    files = {Path(source).name for source in included if Path(source).parts[1] == "square"}
    assert files >= {"config.json", "model.safetensors"}  # and not windows.json, which calibration writes
    assert "windows.json" not in files
