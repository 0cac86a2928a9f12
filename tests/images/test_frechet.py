"""Distances from digits: nothing between equals, more the more they differ, and the same from the file."""

import pytest
import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.images.frechet import DigitClassifier, accuracy, frechet_distance, load_reference, save_reference
from tests.images.tiny_models import seeded


def images(n: int, seed: int, level: float = 0.0) -> Tensor:
    return (torch.randn(n, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) / 2 + level).clamp(-1, 1)


def test_distances(tmp_path):
    metric = frechet_distance(seeded(DigitClassifier))
    metric.update(images(400, 0), real=True)
    save_reference(tmp_path / "features.safetensors", metric)
    loaded = load_reference(tmp_path / "features.safetensors")

    def distance(metric, some: Tensor) -> float:
        metric.reset()
        metric.update(some, real=False)
        return float(metric.compute())

    with torch.inference_mode():
        same, like, brighter, white = (
            distance(loaded, some)
            for some in (images(400, 0), images(400, 1), images(400, 1, 0.2), images(400, 1, 0.8))
        )
        assert distance(metric, images(400, 1)) == pytest.approx(like)
    assert same == pytest.approx(0, abs=1e-5)
    assert same < like < brighter < white


def test_files_that_are_none(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        load_reference(tmp_path / "missing")
    (tmp_path / "text").write_text("no safetensors")
    with pytest.raises(CheckpointError, match="train_digit_classifier"):
        load_reference(tmp_path / "text")


def test_accuracy_counts():
    classifier, some = seeded(DigitClassifier), images(7, 2)
    truth = classifier.logits(some).argmax(dim=1)
    assert accuracy(classifier, some, truth, batch_size=3) == 1
    assert accuracy(classifier, some, (truth + 1) % 10, batch_size=3) == 0
