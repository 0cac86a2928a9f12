"""The image encoders of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): a ResNet, and a pooling of its features.

With keypoints and a linear layer it is robomimic's VisualCore, which real-stanford's hybrid policies use too, and
lerobot's DiffusionRgbEncoder. With the average of each channel it is real-stanford's MultiImageObsEncoder.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms.functional import resize

from asd_policy.errors import ConfigError

CHANNELS_PER_GROUP = 16
NORMS: Mapping[str, Callable[[int], nn.Module]] = {
    "group": lambda channels: nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels),
    "batch": nn.BatchNorm2d,
}
"""Normalisation layers of the ResNet. Running statistics ("batch") do not fit averaged weights (EMA)."""


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of K keypoints (Finn et al. 2016, https://arxiv.org/abs/1509.06113)."""

    def __init__(self, channels: int, num_keypoints: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, num_keypoints, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2 K): the expected x and y of each keypoint, from -1 to 1."""
        height, width = features.shape[2:]
        attention = self.conv(features).flatten(2).softmax(dim=-1).unflatten(2, (height, width))
        x = attention.sum(dim=2) @ torch.linspace(-1, 1, width, dtype=features.dtype, device=features.device)
        y = attention.sum(dim=3) @ torch.linspace(-1, 1, height, dtype=features.dtype, device=features.device)
        return torch.stack([x, y], dim=-1).flatten(1)


class ImageEncoder(nn.Module):
    """Features of an image: resize, crop, ResNet, then keypoints and a linear layer with a ReLU, or the average.

    Args:
        channels: C, of the image.
        features: D, the number of features.
        crop: top, left, height and width of the crop; empty for the whole image.
        resize: height and width to resize to before the crop; empty for none.
        backbone: torchvision's name of a ResNet.
        norm: a key of `NORMS`.
        num_keypoints: K.
        pool: "keypoints" for a spatial softmax and a linear layer, or "average" for each channel's mean over the image.
        antialias: filter the image before it is made smaller.

    Raises:
        ConfigError: if the average of the ResNet's channels is not `features` numbers.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        crop: tuple[int, ...] = (),
        resize: tuple[int, ...] = (),
        backbone: str = "resnet18",
        norm: str = "group",
        num_keypoints: int = 32,
        pool: str = "keypoints",
        antialias: bool = True,
    ):
        super().__init__()
        self._crop, self._resize, self._antialias = crop, list(resize), antialias
        resnet: Any = torchvision.models.get_model(backbone, weights=None, norm_layer=NORMS[norm])
        first = resnet.conv1
        if channels != first.in_channels:
            resnet.conv1 = nn.Conv2d(channels, first.out_channels, 7, stride=2, padding=3, bias=False)
        self.backbone = nn.Sequential(*list(resnet.children())[:-2])  # without the classifier
        width = resnet.fc.in_features
        if pool == "average":
            if features != width:
                raise ConfigError(f"The average of {backbone}'s channels is {width} features; expected {features}.")
            self.pool: nn.Module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.out: nn.Module = nn.Identity()
        else:
            self.pool = SpatialSoftmax(width, num_keypoints)
            self.out = nn.Linear(2 * num_keypoints, features)

    def forward(self, images: Tensor, corners: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            images: (..., H, W, C) float, normalised.
            corners: (..., 2) int64, top and left of each image's crop, for training; None for the configured place.

        Returns:
            (..., D).
        """
        leading = images.shape[:-3]
        x = images.flatten(0, -4).movedim(-1, 1)
        if self._resize:
            x = resize(x, self._resize, antialias=self._antialias)
        if self._crop:
            x = self._central(x) if corners is None else self._cropped(x, corners.flatten(0, -2))
        # the average of a ResNet's features is never negative: the ReLU leaves it as it is
        features: Tensor = self.out(self.pool(self.backbone(x))).relu().unflatten(0, leading)
        return features

    def _central(self, x: Tensor) -> Tensor:
        top, left, height, width = self._crop
        return x[:, :, top : top + height, left : left + width]

    def _cropped(self, x: Tensor, corners: Tensor) -> Tensor:
        """(N, C, H, W), each cropped at its own corner, (N, 2)."""
        rows, columns = (
            corners[:, axis, None] + torch.arange(size, device=x.device) for axis, size in enumerate(self._crop[2:])
        )
        images = torch.arange(len(x), device=x.device)[:, None, None]
        return x.movedim(1, -1)[images, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
