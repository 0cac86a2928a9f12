"""save_pretrained, from_pretrained and push_to_hub, without a network."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi

from asd_policy.errors import CheckpointError
from asd_policy.importers import Checkpoint, load_policy, read_checkpoint
from asd_policy.importers.hub import PretrainedPolicy
from tests.tiny import tiny_checkpoint

OBS_KEYS = {"object": 5, "robot0_eef_pos": 3}


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    return Checkpoint.of(load_policy(tiny_checkpoint(tmp_path / "tiny", OBS_KEYS, action_dim=2)))


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


def test_push_uploads_the_folder(checkpoint, monkeypatch, tmp_path):
    pushed = {}

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, **_: object) -> str:
        pushed.update({file.name: file.read_bytes() for file in Path(folder_path).iterdir()})
        return repo_id

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert PretrainedPolicy(checkpoint).push_to_hub("me/tiny", model_card_kwargs={"repo_id": "me/tiny"}) == "me/tiny"
    assert b'from_pretrained("me/tiny")' in pushed["README.md"]

    def download(repo_id: str, allow_patterns: list[str], **_: object) -> str:
        assert repo_id == "me/tiny"
        for name in allow_patterns:
            (tmp_path / name).write_bytes(pushed[name])
        return str(tmp_path)

    def download_one(repo_id: str, filename: str, **_: object) -> str:
        return str(Path(download(repo_id, [filename])) / filename)

    monkeypatch.setattr("asd_policy.importers.hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download_one)
    assert same(PretrainedPolicy.from_pretrained("me/tiny").checkpoint, checkpoint)


def test_a_damaged_download_is_named(checkpoint, tmp_path):
    PretrainedPolicy(checkpoint).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Is the file complete"):
        PretrainedPolicy.from_pretrained(tmp_path / "saved")
