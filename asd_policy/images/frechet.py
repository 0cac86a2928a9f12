"""The Frechet distance between images and a data set, in the features of a small digit classifier.

The arithmetic is torchmetrics' FrechetInceptionDistance (Heusel et al. 2017, https://arxiv.org/abs/1706.08500), with
this classifier in place of Inception. So the distances compare with each other, not with published FIDs.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from asd_policy.errors import CheckpointError

REFERENCE = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")


class DigitClassifier(nn.Module):
    """Classifies digits. Called on images (N, 1, 32, 32) from -1 to 1, it returns features (N, 64)."""

    num_features = 64  # torchmetrics reads it

    def __init__(self, classes: int = 10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 16, self.num_features),
            nn.SiLU(),
        )
        self.head = nn.Linear(self.num_features, classes)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(images)
        return features

    def logits(self, images: Tensor) -> Tensor:
        """(N, 1, 32, 32) -> (N, classes)."""
        scores: Tensor = self.head(self.features(images))
        return scores


def frechet_distance(classifier: DigitClassifier) -> FrechetInceptionDistance:
    """A metric without a reference. Set the reference with `update(images, real=True)`."""
    return FrechetInceptionDistance(classifier.eval(), reset_real_features=False, normalize=True)


def save_reference(path: str | Path, metric: FrechetInceptionDistance) -> None:
    """Write a metric's classifier and its statistics of the real images."""
    tensors = {f"classifier.{name}": value for name, value in metric.inception.state_dict().items()}
    tensors |= {f"reference.{name}": getattr(metric, name) for name in REFERENCE}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def load_reference(path: str | Path) -> FrechetInceptionDistance:
    """Read a metric that `save_reference` wrote; use it with `update(images, real=False)`, `compute()`, `reset()`.

    Raises:
        CheckpointError: if the file cannot be read as such a metric.
    """
    try:
        tensors = load_file(path)
        classifier = DigitClassifier()
        prefix = "classifier."
        weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        classifier.load_state_dict(weights)
        metric = frechet_distance(classifier)
        for name in REFERENCE:
            setattr(metric, name, tensors[f"reference.{name}"])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"Cannot read {path} as a classifier and its reference statistics ({error}); "
            "scripts/train_digit_classifier.py makes them."
        ) from error
    return metric


@torch.inference_mode()
def accuracy(classifier: DigitClassifier, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """The share of correctly classified images (N, 1, 32, 32); labels (N,)."""
    pairs = zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
    right = sum(int((classifier.logits(some).argmax(dim=1) == truth).sum()) for some, truth in pairs)
    return right / len(labels)
