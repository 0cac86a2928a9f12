"""Policies on the hub: by their ids, save_pretrained, from_pretrained and push_to_hub. The hub is on this machine."""

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi

from asd_policy.errors import CheckpointError, ConfigError, UnknownNameError, UnsafeFileError
from asd_policy.importers import Checkpoint, load_policy, read_checkpoint
from asd_policy.importers.hub import PretrainedPolicy
from tests.fake_hub import FakeHub, going_online, serving
from tests.importers.originals import GOLDEN_LEROBOT, real_stanford_original
from tests.tiny import tiny_checkpoint

OBS_KEYS = {"object": 5, "robot0_eef_pos": 3}


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    return Checkpoint.of(load_policy(tiny_checkpoint(tmp_path / "tiny", OBS_KEYS, action_dim=2)))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[FakeHub]:
    with serving(tmp_path / "cache", monkeypatch) as hub:
        yield hub


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("true",)


def evil_file() -> bytes:
    """A robomimic file whose pickle calls os.system."""
    data = io.BytesIO()
    torch.save({"algo_name": RunsCode(), "shape_metadata": {}, "env_metadata": {}}, data)
    return data.getvalue()


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return one.config == other.config and all(torch.equal(one.tensors[k], v) for k, v in other.tensors.items())


def test_round_trip_through_a_folder(checkpoint, tmp_path):
    PretrainedPolicy(checkpoint).save_pretrained(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "library_name: asd-policy" in card
    assert "`object` (5), `robot0_eef_pos` (3)" in card
    loaded = PretrainedPolicy.from_pretrained(tmp_path / "saved")
    assert same(loaded.checkpoint, checkpoint)
    assert same(read_checkpoint(tmp_path / "saved"), checkpoint)
    assert loaded.policy("ddpm").config.action_dim == 2


def files_of(folder: Path, below: str = "") -> dict[str, bytes]:
    return {
        below + file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "golden.safetensors"
    }


def downloaded(cache: Path) -> set[str]:
    """The files in the cache's snapshots."""
    return {path.relative_to(snap).as_posix() for snap in cache.glob("*/snapshots/*") for path in snap.rglob("*.*")}


OTHERS = {
    "training_state/optimizer_state.safetensors": b"",
    "optimizer.safetensors": b"",
    "step_100/model.safetensors": b"",
    "README.md": b"",
    "videos/a.mp4": b"",
    "old.ckpt": b"",
}
"""Files of a repository that a policy does not need."""


def test_a_repository_of_lerobots_is_loaded_with_all_its_files(hub, tmp_path):
    files = files_of(GOLDEN_LEROBOT)
    averaged = files_of(GOLDEN_LEROBOT, "pretrained_model_ema/")
    hub.commit("them/diffusion_real", files | averaged | OTHERS)
    loaded = PretrainedPolicy.from_pretrained("them/diffusion_real").checkpoint
    assert same(loaded, read_checkpoint(GOLDEN_LEROBOT))
    assert same(loaded, read_checkpoint("them/diffusion_real"))
    assert any("averaged weights lie in" in note for note in loaded.notes)
    assert same(read_checkpoint(loaded.source / "pretrained_model_ema"), loaded)
    assert downloaded(tmp_path / "cache") == files.keys() | averaged.keys()


def test_a_policy_is_loaded_by_its_id_at_a_revision_and_offline(hub, checkpoint, tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "one")
    replace(checkpoint, config=replace(checkpoint.config, env_id="asd/ToolHang-v0")).save(tmp_path / "two")
    first = hub.commit("me/tiny", files_of(tmp_path / "one") | OTHERS)
    hub.commit("me/tiny", files_of(tmp_path / "two"), branch="hang")

    def read() -> list[str]:
        given = [("me/tiny", None), (Path("me/tiny@hang"), None), ("me/tiny", "hang"), ("me/tiny", first)]
        return [load_policy(name, "ddpm", revision=revision).config.env_id for name, revision in given]

    expected = ["asd/Square-v0", "asd/ToolHang-v0", "asd/ToolHang-v0", "asd/Square-v0"]
    assert read() == expected
    assert downloaded(tmp_path / "cache") == {"config.json", "model.safetensors"}
    with going_online(monkeypatch, online=False):
        assert read() == expected
        with pytest.raises(UnknownNameError, match=r"me/big.*no such file or folder.*me/big is not in the cache.*copy"):
            load_policy("me/big")


def test_a_folder_here_comes_before_the_hub(hub, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "me" / "tiny")
    hub.commit("me/tiny", {"config.json": b"another"})
    assert same(read_checkpoint("me/tiny"), checkpoint)
    assert hub.requests == []
    with pytest.raises(ConfigError, match=r"me/tiny@main is a revision of a repository.*also a folder here"):
        read_checkpoint("me/tiny@main")
    with pytest.raises(ConfigError, match=r"me/tiny is on this machine, and has no revision 'main'"):
        read_checkpoint("me/tiny", revision="main")
    with pytest.raises(ConfigError, match=r"square is on this machine, and has no revision 'main'"):
        read_checkpoint("square", revision="main")


def test_the_one_pickled_file_is_taken_if_there_is_nothing_safer(hub, tmp_path):
    original = real_stanford_original("unet")
    name = "epoch=0100-test_mean_score=0.9.ckpt"
    hub.commit("them/pusht", {name: original.path.read_bytes(), "logs.json": b"{}", "media/a.mp4": b""})
    read = read_checkpoint("them/pusht")
    assert same(read, read_checkpoint(original.path))
    assert read.source.name == name
    assert downloaded(tmp_path / "cache") == {name}

    hub.commit("them/evil", {"model.pth": evil_file()})
    with pytest.raises(UnsafeFileError, match="os"):
        read_checkpoint("them/evil")
    hub.commit("them/two", {"a.ckpt": b"", "b/c.pth": b""})
    with pytest.raises(
        CheckpointError, match=r"them/two holds the files a\.ckpt, b/c\.pth; expected .*hf download them/two"
    ):
        read_checkpoint("them/two")
    hub.commit("them/none", {"pytorch_model.bin": b""})
    with pytest.raises(CheckpointError, match=r"them/none holds pytorch_model\.bin; expected config\.json"):
        read_checkpoint("them/none")


def test_a_run_of_lerobots_that_was_uploaded_whole(hub, tmp_path):
    run = files_of(GOLDEN_LEROBOT, "checkpoints/020000/pretrained_model/")
    last = files_of(GOLDEN_LEROBOT, "checkpoints/100000/pretrained_model/")
    hub.commit("them/run", run | last | {"checkpoints/100000/training_state/optimizer_state.safetensors": b""})
    with pytest.warns(UserWarning, match=r"them/run is a training run .*step 100000 is read; other steps: 020000"):
        loaded = read_checkpoint("them/run")
    assert same(loaded, read_checkpoint(GOLDEN_LEROBOT))
    assert downloaded(tmp_path / "cache") == last.keys()


def test_what_is_not_to_be_had_is_said_in_one_error(hub):
    hub.commit("me/huge", {"config.json": b"{}", "model.safetensors": b""})
    hub.sizes["model.safetensors"] = 2**40
    with pytest.raises(UnknownNameError, match=r"Available: .*square.*no such file or folder.*1099511627778 bytes"):
        load_policy("me/huge")
    with pytest.raises(UnknownNameError, match=r"Available: .*square.*The hub has no model me/missing"):
        load_policy("me/missing")
    with pytest.raises(
        UnknownNameError, match=r"'sqare'. Did you mean 'square'.*it is no repository of the Hugging Face"
    ):
        load_policy("sqare")
    assert hub.requests == []


@pytest.mark.parametrize("text", ["{", "[]", "[" * 10**5])
def test_a_damaged_config_is_of_the_error_family(checkpoint, tmp_path, text):
    PretrainedPolicy(checkpoint).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        PretrainedPolicy.from_pretrained(tmp_path / "saved")


def test_push_uploads_the_folder(hub, checkpoint, monkeypatch):
    pushed = {}

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, **_: object) -> str:
        pushed.update({file.name: file.read_bytes() for file in Path(folder_path).iterdir()})
        return repo_id

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert PretrainedPolicy(checkpoint).push_to_hub("me/tiny", model_card_kwargs={"repo_id": "me/tiny"}) == "me/tiny"
    assert b'from_pretrained("me/tiny")' in pushed["README.md"]

    hub.commit("me/tiny", pushed)
    assert same(PretrainedPolicy.from_pretrained("me/tiny").checkpoint, checkpoint)


def test_a_damaged_download_is_named(checkpoint, tmp_path):
    PretrainedPolicy(checkpoint).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Is the file complete"):
        PretrainedPolicy.from_pretrained(tmp_path / "saved")
