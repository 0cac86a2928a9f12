"""Images among a policy's observations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from asd_policy.errors import ConfigError
from asd_policy.records import LATER

NORMS = ("group", "batch")
POOLS = ("keypoints", "average")
MAX_SIDE = 2**13  # pixels; a limit on memory
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@dataclass(frozen=True)
class ImageKey:
    """An observation that is an image (H, W, C), uint8, and its encoder's settings; see `asd_policy.nets.vision`.

    Attributes:
        key: the observation key. Its size in `PolicyConfig.obs_keys` is the encoder's number of features.
        shape: H, W and C, as the environment returns it.
        crop: top, left, height and width of the encoder's crop; empty for the whole image.
        resize: height and width to resize to before the crop; empty for none.
        backbone: torchvision's name of a ResNet.
        norm: the ResNet's normalisation layers, "group" or "batch".
        num_keypoints: number of keypoints of the spatial softmax.
        pool: "keypoints" (spatial softmax and linear layer), or "average" of each channel.
        antialias: filter the image before it is made smaller.
    """

    key: str
    shape: tuple[int, ...]
    crop: tuple[int, ...] = ()
    resize: tuple[int, ...] = ()
    backbone: str = "resnet18"
    norm: str = "group"
    num_keypoints: int = 32
    pool: str = field(default="keypoints", metadata=LATER)
    antialias: bool = field(default=True, metadata=LATER)

    def __post_init__(self) -> None:
        for name in ("shape", "crop", "resize"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._expect(_are_sizes(self.shape, 3), "shape", self.shape, "a height, width and number of channels")
        self._expect(not self.resize or _are_sizes(self.resize, 2), "resize", self.resize, "a height and a width")
        sides = max((*self.shape, *self.resize))
        self._expect(sides <= MAX_SIDE, "shape or resize", sides, f"at most {MAX_SIDE}")
        seen = self.resize or self.shape[:2]
        self._expect(not self.crop or self._crop_fits(seen), "crop", self.crop, f"(top, left, height, width) in {seen}")
        self._expect(self.backbone in BACKBONES, "backbone", self.backbone, f"one of {', '.join(BACKBONES)}")
        self._expect(self.norm in NORMS, "norm", self.norm, " or ".join(NORMS))
        self._expect(self.pool in POOLS, "pool", self.pool, " or ".join(POOLS))
        self._expect(_are_sizes((self.num_keypoints,), 1), "num_keypoints", self.num_keypoints, "a positive integer")

    def to_dict(self) -> dict[str, Any]:
        """JSON values. Fields of later versions are left out if they have their defaults: earlier versions read it."""
        later = {f.name: f.default for f in fields(self) if f.metadata.get("later")}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}

    @property
    def channels(self) -> int:
        return self.shape[2]

    @property
    def crop_places(self) -> tuple[int, ...]:
        """Number of rows and of columns at which a crop of this size can begin."""
        seen = self.resize or self.shape[:2]
        return tuple(n - c + 1 for n, c in zip(seen, self.crop[2:], strict=True))

    def _crop_fits(self, seen: tuple[int, ...]) -> bool:
        if len(self.crop) != 4 or not all(isinstance(value, int) for value in self.crop):
            return False
        corner, size = self.crop[:2], self.crop[2:]
        return _are_sizes(size, 2) and all(0 <= c <= n - s for c, s, n in zip(corner, size, seen, strict=True))

    def _expect(self, condition: bool, name: str, got: Any, expected: str) -> None:
        if not condition:
            raise ConfigError(f"Image {self.key!r}: {name} is {got!r}; expected {expected}.")


def central_crop(
    size: Sequence[int], crop: Sequence[int], corner: Callable[[float], int] = math.floor
) -> tuple[int, ...]:
    """(top, left, height, width) of the central crop of an image.

    Args:
        size: height and width of the image.
        crop: height and width of the crop.
        corner: rounds the crop's corner: down as in robomimic, or to the nearest even as in torchvision (`round`).
    """
    return (*(corner((n - c) / 2) for n, c in zip(size, crop, strict=True)), *crop)


def _are_sizes(values: tuple[Any, ...], count: int) -> bool:
    return len(values) == count and all(type(value) is int and value > 0 for value in values)
