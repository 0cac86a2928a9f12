"""Trains a class-conditional DDPM on images. Its snapshots are folders that diffusers loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors import SafetensorError
from torch import Tensor, nn

from asd_policy.core import Schedule
from asd_policy.errors import CheckpointError
from asd_policy.records import read_record_file
from asd_policy.training.loop import Trainer
from asd_policy.training.processes import Processes
from asd_policy.training.settings import TrainSettings


@dataclass(frozen=True)
class UnetSizes:
    """Sizes of a U-Net with attention at its lowest resolution.

    Attributes:
        channels: channels at each resolution, from the image's own down. Each next one has half the height and width.
        layers: residual blocks at each resolution.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    layers: int = 1


@dataclass(frozen=True)
class ImageRun:
    """`train.json` of an image run. With the code and the data it determines the weights.

    Attributes:
        data: the path of the digits.
        fingerprint: hash of the images and labels, so that a run is not resumed on others. Older runs lack it.
    """

    data: str
    settings: TrainSettings
    sizes: UnetSizes
    fingerprint: str | None = None

    def save(self, path: Path) -> None:
        """Write the file."""
        values = asdict(self) | {"settings": self.settings.to_dict()}
        path.write_text(json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> ImageRun:
        """Read the file. Raises CheckpointError if it cannot be read."""
        return read_record_file(cls, path, "training settings", CheckpointError)


def build_unet(sizes: UnetSizes, image_size: int, image_channels: int, classes: int, seed: int) -> UNet2DModel:
    """A class-conditional U-Net with new weights drawn from `seed`. The label `classes` means "no class"."""
    plain = len(sizes.channels) - 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # layers have no generator argument
        return UNet2DModel(
            sample_size=image_size,
            in_channels=image_channels,
            out_channels=image_channels,
            block_out_channels=sizes.channels,
            layers_per_block=sizes.layers,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            attention_head_dim=sizes.channels[-1],
            norm_num_groups=max(1, sizes.channels[0] // 4),  # one channel in each group would erase time and class
            num_class_embeds=classes + 1,
        )


def image_trainer(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    settings: TrainSettings,
    images: Tensor,
    labels: Tensor,
    label_dropout: float = 0.1,
    compile_net: bool = False,
    on_snapshot: Callable[[DDPMPipeline, Path], object] = lambda pipe, folder: None,
    processes: Processes | None = None,
    accumulate: int = 1,
) -> Trainer:
    """The trainer of an image DDPM.

    Args:
        unet: class-conditional; its last class means "no class".
        images: (N, C, H, W) from -1 to 1, on the U-Net's device.
        labels: (N,) int64.
        label_dropout: share of labels replaced by "no class", for guidance.
        compile_net: run the U-Net through torch.compile.
        on_snapshot: called with the averaged pipeline and its folder after each snapshot.
        processes, accumulate: see `Trainer`.
    """
    no_class = unet.config.num_class_embeds - 1
    if unet.device.type == "cpu":
        unet.to(memory_format=torch.channels_last)
    if compile_net:
        unet.compile()

    def draw(generator: torch.Generator, part: slice) -> tuple[Tensor, Tensor]:
        shape = (settings.batch_size,)
        indices = torch.randint(len(images), shape, generator=generator, device=images.device)
        dropped = torch.rand(shape, generator=generator, device=images.device) < label_dropout
        return labels[indices[part]].masked_fill(dropped[part], no_class), images[indices[part]]

    def forward(net: UNet2DModel, x: Tensor, timestep: Tensor, classes: Tensor) -> Tensor:
        predicted: Tensor = net(x, timestep, class_labels=classes, return_dict=False)[0]
        return predicted

    def write(averaged: nn.Module, path: Path) -> None:
        assert isinstance(averaged, UNet2DModel)
        pipe = DDPMPipeline(averaged, scheduler)
        replace_folder(path, pipe.save_pretrained)
        on_snapshot(pipe, path)

    schedule, predicted = Schedule.from_diffusers(scheduler), scheduler.config.prediction_type
    unet.train()
    return Trainer(
        unet, settings, draw, schedule, write, forward, predicted, processes=processes, accumulate=accumulate
    )


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Write a folder under another name and move it to `path`, so that `path` never holds half a folder.

    Raises:
        CheckpointError: if it cannot be written, for example on a full disk.
    """
    partial = path.with_name(path.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write {path}: {error}") from error
