"""A run of image training on disk: killed before its first snapshot, and resumed on other data."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asd_policy.cli import images_train
from asd_policy.errors import CheckpointError, DataError
from asd_policy.training.images import ImageRun, UnetSizes
from asd_policy.training.run import Machine
from asd_policy.training.settings import TrainSettings


def write_digits(path: Path, seed: int) -> Path:
    images = np.random.default_rng(seed).integers(0, 256, (40, 28, 28)).astype(np.uint8)
    np.savez(path, images=images, labels=np.arange(40).astype(np.uint8) % 10)
    return path


def test_a_run_without_a_checkpoint_begins_anew_and_only_on_its_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_train, "draw_grid", lambda pipe, folder: None)
    data, out, machine = write_digits(tmp_path / "digits.npz", 0), tmp_path / "run", Machine("cpu", threads=1)
    settings = TrainSettings(steps=2, batch_size=4, warmup_steps=1)
    assert images_train.main(images_train.New(data, out, settings, UnetSizes((8, 16)), machine)) == 0
    weights = out / "ema_000002/unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    (out / "last.pt").unlink()
    weights.unlink()
    assert images_train.main(images_train.Resume(out, machine)) == 0
    assert weights.read_bytes() == whole
    write_digits(data, 1)
    with pytest.raises(DataError, match="has changed since the run began"):
        images_train.main(images_train.Resume(out, machine))


def test_settings_of_older_runs_are_read_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    run = ImageRun("mnist.npz", TrainSettings(steps=5, learning_rate=1), UnetSizes((8, 16)), "abc")
    run.save(path)
    assert ImageRun.load(path) == run
    values = json.loads(path.read_text())
    del values["fingerprint"]
    path.write_text(json.dumps(values))
    assert ImageRun.load(path) == replace(run, fingerprint=None)
    for changes, message in (
        ({"sizes": {"channels": ["8"], "layers": 1}}, "sizes.channels.0"),
        ({"settings": {"steps": 0}}, "steps is 0"),
        ({"settings": {}}, "settings.steps is missing"),
        ({"date": "today"}, "date is an unknown field"),
    ):
        path.write_text(json.dumps(values | changes))
        with pytest.raises(CheckpointError, match=rf"training settings .*train\.json.*{message}"):
            ImageRun.load(path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"Cannot read the training settings .*train\.json"):
        ImageRun.load(path)
