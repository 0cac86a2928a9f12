"""The MNIST digits, from an .npz file or from torchvision's folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asd_policy.errors import DataError

CLASSES = 10
PADDING = 2  # pads to 32 x 32, which a U-Net can halve three times


@dataclass(frozen=True)
class Digits:
    """Images of digits and their labels."""

    images: Tensor  # (N, 28, 28) uint8
    labels: Tensor  # (N,) int64, 0 to 9

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def read(cls, path: str | Path) -> "Digits":
        """Read an .npz file with `images` (N, 28, 28) uint8 and `labels` (N,), or torchvision's root folder of MNIST.

        Raises:
            DataError: if it is neither, or is damaged.
        """
        return cls._from_root(Path(path)) if Path(path).is_dir() else cls._from_npz(Path(path))

    def padded(self) -> Tensor:
        """The images as network inputs: (N, 1, 32, 32) float32 from -1 (background) to 1."""
        images = self.images.unsqueeze(1).float() / 127.5 - 1
        return torch.nn.functional.pad(images, (PADDING,) * 4, value=-1.0)

    @classmethod
    def _from_npz(cls, path: Path) -> "Digits":
        try:
            with np.load(path) as arrays:
                images, labels = arrays["images"], arrays["labels"]
        except Exception as error:  # numpy and zlib raise many types on damage
            raise DataError(f"Cannot read {path} as an .npz file with `images` and `labels`: {error}") from error
        fits = images.shape == (labels.size, 28, 28) and labels.shape == (labels.size,) and labels.size > 0
        if not fits or images.dtype != np.uint8 or labels.dtype.kind not in "iu":
            raise DataError(
                f"{path} has images {images.shape} {images.dtype} and labels {labels.shape} {labels.dtype}; "
                "expected (N, 28, 28) uint8 and (N,) integers."
            )
        if labels.min() < 0 or labels.max() >= CLASSES:
            raise DataError(f"{path} has labels from {labels.min()} to {labels.max()}; expected 0 to {CLASSES - 1}.")
        return cls(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))

    @classmethod
    def _from_root(cls, root: Path) -> "Digits":
        from torchvision.datasets import MNIST  # takes a second to import

        try:
            data = MNIST(root, train=True)
        except Exception as error:  # torchvision raises many types on damage
            raise DataError(
                f"{root} holds no MNIST: {error} To get it: torchvision.datasets.MNIST({str(root)!r}, download=True)."
            ) from error
        return cls(data.data, data.targets)
