"""Statistics of a LeRobotDataset's features, as lerobot stores them: for vectors per entry, for images per channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
LEVELS = 256  # values of a pixel

Statistics = dict[str, list[Any]]
"""min, max, mean, std, count and quantiles, each as nested lists."""


def vector_statistics(values: NDArray[Any]) -> Statistics:
    """Statistics of steps (N, D)."""
    numbers = values.astype(np.float64)
    found = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": numbers.mean(axis=0),
        "std": numbers.std(axis=0),
    }
    quantiles = np.quantile(numbers, list(QUANTILES.values()), axis=0)
    found |= dict(zip(QUANTILES, quantiles, strict=True))
    return {name: value.tolist() for name, value in found.items()} | {"count": [len(values)]}


class PixelCounts:
    """Counts how often each value of a pixel occurs in each channel. From the counts follow all statistics exactly."""

    def __init__(self, channels: int):
        self.counts = np.zeros((channels, LEVELS), np.int64)
        self.images = 0

    def add(self, images: NDArray[np.uint8]) -> None:
        """Count images (n, H, W, C)."""
        for channel, counts in enumerate(self.counts):
            counts += np.bincount(images[..., channel].ravel(), minlength=LEVELS)
        self.images += len(images)

    def merge(self, other: PixelCounts) -> None:
        """Add the counts of other images."""
        self.counts += other.counts
        self.images += other.images

    def statistics(self) -> Statistics:
        """Statistics of pixels from 0 to 1, each (C, 1, 1)."""
        levels, total = np.arange(LEVELS) / (LEVELS - 1), self.counts.sum(axis=1)
        mean = self.counts @ levels / total
        variance = (self.counts * (levels - mean[:, None]) ** 2).sum(axis=1) / total
        below = self.counts.cumsum(axis=1) / total[:, None]
        found = {
            "min": levels[(self.counts > 0).argmax(axis=1)],
            "max": levels[LEVELS - 1 - (self.counts[:, ::-1] > 0).argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt(variance),
        }
        found |= {name: levels[(below >= share).argmax(axis=1)] for name, share in QUANTILES.items()}
        return {name: value[:, None, None].tolist() for name, value in found.items()} | {"count": [self.images]}
