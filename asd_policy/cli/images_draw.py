"""Draw a grid of images from a DDPM that diffusers can load.

    asd-policy images draw --model digits --labels 0 1 2 3 4 --out digits.png
    asd-policy images draw --model google/ddpm-cifar10-32 --count 16 --out cifar.png
    asd-policy images draw --model digits --labels 0 1 2 --scheduler euler_ancestral --steps 30 --out digits.png

Image i is drawn from a generator with seed --seed + i, whatever the sampler and batch size. `ddpm` and `asd` get the
same noise at the start and at each step. Seeds have 32 bits, like those of torch's CPU generator.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler
from diffusers.utils import make_image_grid
from PIL import Image
from rich.console import Console

from asd_policy.cli import COMPLETE
from asd_policy.cli.progress import Progress, progress
from asd_policy.errors import ConfigError
from asd_policy.images import AsdImagePipeline
from asd_policy.images.arguments import check_name, finite, whole
from asd_policy.importers.shipped import shipped_checkpoints
from asd_policy.threads import check_threads

OWN = "own"
SCHEDULERS = {OWN: None, "euler_ancestral": EulerAncestralDiscreteScheduler, "ddim": DDIMScheduler}
"""Name -> diffusers' class of schedulers; None leaves the model's own."""


@dataclass(frozen=True)
class Arguments:
    """The images to draw, and how."""

    model: str
    """A DDPMPipeline: a folder, a name on the Hugging Face hub, or the shipped digits."""
    out: Path
    """PNG file to write."""
    sampler: str = "asd:path:64"
    """ddpm, ddim[:STEPS] or asd[:DRAFT[:WINDOW]]; WINDOW is a number or "all"."""
    count: int = 10
    """Images to draw."""
    labels: tuple[int, ...] = ()
    """Classes for a class-conditional model, repeated cyclically over the images."""
    guidance: float = 1.0
    """Scale of classifier-free guidance. Above 1 it needs --negative-label."""
    negative_label: int | None = None
    """Class to move away from, trained as "no class"; 10 for the digits."""
    steps: int | None = None
    """Denoising steps of ddpm and asd. By default as many as in training; 50 with another --scheduler."""
    scheduler: str = OWN
    """The chain that ddpm and asd sample: own (the model's), euler_ancestral or ddim, with the
    model's noise levels."""
    eta: float = 0.0
    """Noise of --scheduler ddim, above 0 and at most 1."""
    seed: int = 0
    """Seed of the first image."""
    columns: int = 10
    """Images in each row of the grid."""
    batch_size: int = 10
    """Images drawn together."""
    max_states: int | None = None
    """Most rows in one call of the network, which limits the memory of a wide window."""
    device: str = "cpu"
    """Device to sample on, such as cpu or cuda."""
    threads: int = 1
    """CPU threads of torch. Two threads on a busy core wait for each other, which is far slower than one."""


def check(arguments: Arguments) -> None:
    """Raise ConfigError on arguments that would fail, or be meaningless, after images were drawn."""
    for name in ("count", "columns", "batch_size", "threads"):
        whole(name, getattr(arguments, name))
    if not 0 <= arguments.seed <= 2**32 - arguments.count:
        raise ConfigError(f"seed is {arguments.seed}; expected 0 to 2**32 - count: torch would repeat smaller seeds.")
    check_name("scheduler", arguments.scheduler, SCHEDULERS)
    if (arguments.scheduler == "ddim") != (finite("eta", arguments.eta, 0, 1) > 0):
        raise ConfigError(f"eta is {arguments.eta} with --scheduler {arguments.scheduler}; ddim needs one above 0.")
    check_name("ending of --out", arguments.out.suffix.lower(), sorted(Image.registered_extensions()))


def main(arguments: Arguments) -> int:
    """Draw the images and write the grid."""
    check(arguments)
    console = Console()
    check_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    pipeline = AsdImagePipeline.from_pretrained(
        shipped_checkpoints().get(arguments.model, arguments.model),
        arguments.device,
        arguments.sampler,
        arguments.max_states,
    )
    scheduler = SCHEDULERS[arguments.scheduler]
    if scheduler is not None:
        pipeline.pipe.scheduler = scheduler.from_config(pipeline.pipe.scheduler.config)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with progress(console) as shown:
        rounds = draw(pipeline, arguments, shown)
    console.print(f"Wrote {arguments.out}; sequential network calls of an image: {sum(rounds) / len(rounds):.1f}")
    return COMPLETE


def draw(pipeline: AsdImagePipeline, arguments: Arguments, shown: Progress) -> list[int]:
    """Draw the images in batches, and write the grid after each batch. Returns the rounds of each image."""
    labels = [arguments.labels[i % len(arguments.labels)] for i in range(arguments.count)] if arguments.labels else None
    images: list[Image.Image] = []
    rounds: list[int] = []
    row = shown.add(f"drawing with {arguments.sampler}", arguments.count)
    while len(images) < arguments.count:
        rows = range(len(images), min(len(images) + arguments.batch_size, arguments.count))
        images += pipeline(
            len(rows),
            class_labels=labels and [labels[row] for row in rows],
            guidance_scale=arguments.guidance,
            negative_label=arguments.negative_label,
            generator=[torch.Generator().manual_seed(arguments.seed + row) for row in rows],
            num_inference_steps=arguments.steps,
            eta=arguments.eta,
        ).images
        assert pipeline.stats is not None
        rounds += pipeline.stats.rounds.tolist()
        save_grid(images, arguments.columns, arguments.out)  # an interruption keeps the finished images
        shown.update(row, len(images))
    return rounds


def save_grid(images: list[Image.Image], columns: int, path: Path) -> None:
    """Write the images in rows. The last row is padded with black images."""
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    empty = Image.new(images[0].mode, images[0].size)
    make_image_grid(images + [empty] * (rows * columns - len(images)), rows, columns).save(path)
