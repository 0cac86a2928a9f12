"""save_pretrained, from_pretrained and push_to_hub, without a network."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects

from asd_policy.errors import CheckpointError
from asd_policy.importers import Checkpoint, load_policy, read_checkpoint
from asd_policy.importers.hub import PretrainedPolicy
from tests.importers.originals import GOLDEN_LEROBOT
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


def pretend_hub(monkeypatch: pytest.MonkeyPatch, cache: Path, files: dict[str, bytes]) -> None:
    """A repository with these files: a download takes those that are asked for, as links into a cache."""

    def download(repo_id: str, allow_patterns: list[str], ignore_patterns: list[str] = [], **_: object) -> str:  # noqa: B006
        for name in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            blob, link = cache / "blobs" / name.replace("/", "-"), cache / "snapshot" / name
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
            blob.write_bytes(files[name])
            link.symlink_to(blob)
        return str(cache / "snapshot")

    def download_one(repo_id: str, filename: str, **_: object) -> str:
        return str(Path(download(repo_id, [filename])) / filename)

    monkeypatch.setattr("asd_policy.importers.hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download_one)


def test_a_repository_of_lerobots_is_loaded_with_all_its_files(monkeypatch, tmp_path):
    files = {file.name: file.read_bytes() for file in GOLDEN_LEROBOT.iterdir() if file.name != "golden.safetensors"}
    averaged = {f"pretrained_model_ema/{name}": data for name, data in files.items()}
    others = {"training_state/optimizer_state.safetensors": b"", "README.md": b"", "videos/a.mp4": b""}
    pretend_hub(monkeypatch, tmp_path, files | averaged | others)
    loaded = PretrainedPolicy.from_pretrained("them/diffusion_real").checkpoint
    assert same(loaded, read_checkpoint(GOLDEN_LEROBOT))
    assert any("averaged weights lie in" in note for note in loaded.notes)
    assert same(read_checkpoint(tmp_path / "snapshot" / "pretrained_model_ema"), loaded)
    got = {str(path.relative_to(tmp_path / "snapshot")) for path in (tmp_path / "snapshot").rglob("*.*")}
    assert got == files.keys() | averaged.keys()


@pytest.mark.parametrize("text", ["{", "[]", "[" * 10**5])
def test_a_damaged_config_is_of_the_error_family(checkpoint, tmp_path, text):
    PretrainedPolicy(checkpoint).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        PretrainedPolicy.from_pretrained(tmp_path / "saved")


def test_push_uploads_the_folder(checkpoint, monkeypatch, tmp_path):
    pushed = {}

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, **_: object) -> str:
        pushed.update({file.name: file.read_bytes() for file in Path(folder_path).iterdir()})
        return repo_id

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert PretrainedPolicy(checkpoint).push_to_hub("me/tiny", model_card_kwargs={"repo_id": "me/tiny"}) == "me/tiny"
    assert b'from_pretrained("me/tiny")' in pushed["README.md"]

    pretend_hub(monkeypatch, tmp_path / "cache", pushed)
    assert same(PretrainedPolicy.from_pretrained("me/tiny").checkpoint, checkpoint)


def test_a_damaged_download_is_named(checkpoint, tmp_path):
    PretrainedPolicy(checkpoint).save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Is the file complete"):
        PretrainedPolicy.from_pretrained(tmp_path / "saved")
