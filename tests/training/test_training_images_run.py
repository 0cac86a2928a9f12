"""A run of image training on disk: killed before its first snapshot, and resumed on other data."""

from pathlib import Path

import numpy as np
import pytest

from asd_policy.training.images import UnetSizes
from asd_policy.training.loop import TrainSettings
from asd_policy.training.run import Machine
from scripts import train_images


def write_digits(path: Path, seed: int) -> Path:
    images = np.random.default_rng(seed).integers(0, 256, (40, 28, 28)).astype(np.uint8)
    np.savez(path, images=images, labels=np.arange(40).astype(np.uint8) % 10)
    return path


def test_a_run_without_a_checkpoint_begins_anew_and_only_on_its_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_images, "draw_grid", lambda pipe, folder: None)
    data, out, machine = write_digits(tmp_path / "digits.npz", 0), tmp_path / "run", Machine("cpu", threads=1)
    settings = TrainSettings(steps=2, batch_size=4, warmup_steps=1)
    assert train_images.main(train_images.New(data, out, settings, UnetSizes((8, 16)), machine)) == 0
    weights = out / "ema_000002/unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    (out / "last.pt").unlink()
    weights.unlink()
    assert train_images.main(train_images.Resume(out, machine)) == 0
    assert weights.read_bytes() == whole
    write_digits(data, 1)
    capsys.readouterr()
    assert train_images.main(train_images.Resume(out, machine)) == 1
    assert "has changed since the run began" in " ".join(capsys.readouterr().out.split())
