"""Train a class-conditional DDPM on MNIST, or continue a stopped run.

Examples:

    asd-policy images train new --data mnist.npz --out runs/digits --steps 20000
    asd-policy images train resume --out runs/digits

Each snapshot is a folder that diffusers loads (`DDPMPipeline.from_pretrained`), with a grid of samples beside it.
Class 10 means "no class".
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.utils import make_image_grid
from rich.console import Console

from asd_policy.cli import COMPLETE, INCOMPLETE
from asd_policy.cli.training_progress import train_with_progress
from asd_policy.data.digits import CLASSES, Digits
from asd_policy.images import AsdImagePipeline
from asd_policy.threads import check_threads
from asd_policy.training.demonstrations import fingerprint
from asd_policy.training.images import ImageRun, UnetSizes, build_unet, image_trainer
from asd_policy.training.loop import Trainer, step_generator
from asd_policy.training.processes import Processes
from asd_policy.training.run import Machine, check_new, check_same_data, make_run
from asd_policy.training.settings import TrainSettings

GRID_ROWS = 2
GRID_STEPS = 50  # DDIM steps, enough for a preview
SCHEDULER = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


@dataclass(frozen=True)
class New:
    """Start a run in a new directory."""

    data: Path
    """An .npz file with images (N, 28, 28) uint8 and labels (N,), or torchvision's root folder of MNIST."""
    out: Path
    """Run directory to make."""
    settings: Annotated[TrainSettings, tyro.conf.arg(name="")]
    sizes: Annotated[UnetSizes, tyro.conf.arg(name="")] = field(default_factory=UnetSizes)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


@dataclass(frozen=True)
class Resume:
    """Continue a run from its last checkpoint."""

    out: Path
    """Run directory."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


Arguments: Any = New | Resume


def prepare(command: New | Resume, processes: Processes | None = None) -> Trainer:
    """Make the trainer of a new or resumed run, and the files of a new run."""
    processes = Processes() if processes is None else processes
    out, device = command.out, processes.device(command.machine.device)
    if isinstance(command, New):
        check_new(out)
        run = ImageRun(str(command.data), command.settings, command.sizes)
    else:
        run = ImageRun.load(out / "train.json")
    digits = Digits.read(run.data)
    found = fingerprint({"images": digits.images, "labels": digits.labels})
    check_same_data(run.data, run.fingerprint, found)
    images = digits.padded().to(device)
    unet = build_unet(run.sizes, images.shape[-1], images.shape[1], CLASSES, run.settings.seed).to(device)
    labels = digits.labels.to(device)
    scheduler, compile_net = DDPMScheduler(**SCHEDULER), command.machine.compile
    trainer = image_trainer(
        unet,
        scheduler,
        run.settings,
        images,
        labels,
        compile_net=compile_net,
        on_snapshot=draw_grid,
        processes=processes,
        accumulate=command.machine.accumulate,
    )
    if isinstance(command, New):
        processes.wait()  # every process has seen that the directory does not exist
        if processes.is_first:
            make_run(out, lambda folder: replace(run, fingerprint=found).save(folder / "train.json"))
    elif (out / "last.pt").exists():  # otherwise the run was killed before its first snapshot, and starts anew
        trainer.load(out / "last.pt")
    return trainer


def draw_grid(pipe: DDPMPipeline, folder: Path) -> None:
    """Write two samples of each digit beside a snapshot, always from the same noise."""
    pipe.set_progress_bar_config(disable=True)
    count = GRID_ROWS * CLASSES
    generators = [step_generator(0, row, pipe.device) for row in range(count)]
    pipeline = AsdImagePipeline(pipe, "ddim", num_steps=GRID_STEPS)
    images = pipeline(count, class_labels=[*range(CLASSES)] * GRID_ROWS, generator=generators).images
    make_image_grid(images, GRID_ROWS, CLASSES).save(folder.with_suffix(".png"))


def main(command: New | Resume) -> int:
    """Run the command. Returns 0 if the run is complete, 1 if it was stopped."""
    check_threads(command.machine.threads or 1)
    command.machine.set_threads()
    processes = Processes.join(command.machine.device)
    console = Console(quiet=not processes.is_first)
    with processes.watched():
        trainer = prepare(command, processes)
    parameters = sum(p.numel() for p in trainer.net.parameters())
    console.print(f"{parameters / 1e6:.2f}M parameters, from step {trainer.step} to {trainer.settings.steps}")
    finished = train_with_progress(trainer, command.out, console, command.machine.track)
    resume = f"asd-policy images train resume --out {command.out}"
    console.print("finished" if finished else f"stopped; continue with: {resume}", soft_wrap=True)
    return COMPLETE if finished else INCOMPLETE
