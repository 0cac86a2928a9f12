"""The training loop, resumable bit for bit.

The random numbers of each step come from a generator
seeded by (seed, step). So a checkpoint holds no random state, and a resumed run repeats the uninterrupted one exactly.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from asd_policy.core import Schedule
from asd_policy.data.windows import TrainingWindows
from asd_policy.errors import CheckpointError, ConfigError, NumericalError, UnknownNameError
from asd_policy.interrupt import stop_requests
from asd_policy.nets import HasCompiledLayout
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.network import build_encoders, build_network
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.training.ema import make_ema
from asd_policy.training.files import write_checkpoint
from asd_policy.training.loss import TARGETS, noise_prediction_loss
from asd_policy.training.processes import Processes
from asd_policy.training.settings import TrainSettings, learning_rate

HELD_OUT_BATCHES = 16

DrawBatch = Callable[[torch.Generator, slice], tuple[Any, Tensor]]
"""Draws the random choices of a whole batch. Returns a part of it: the condition and the clean samples (b, *E)."""
Log = Callable[[int, float, float | None], None]
"""Called with a step, the mean loss since the last call, and the held-out loss if it was measured."""


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of one update. SeedSequence mixes seed and step, because the CPU generator uses only 32 bits."""
    mixed = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0]))


class Trainer:
    """The state of a run (network, EMA, optimizer, step) and the update that advances it.

    Args:
        net: the network, on the device to train on.
        settings: steps, batch size, learning rate and so on.
        draw: draws a training batch.
        schedule: the diffusion schedule.
        write: writes a snapshot; called with the averaged network and the path without a suffix.
        forward: calls a network: (network, sample, timestep, condition) -> prediction.
        prediction_type: what the network predicts, a key of `TARGETS`.
        held_out: draws a validation batch; None if there are no validation data.
        processes: the processes that train together.
        accumulate: number of parts in which each process computes its share of a batch, one after another.

    Raises:
        UnknownNameError: on an unknown prediction type.
        ConfigError: if the batch does not divide into equal parts, or the network normalises over the batch (BatchNorm)
            and the batch is divided.
    """

    def __init__(
        self,
        net: nn.Module,
        settings: TrainSettings,
        draw: DrawBatch,
        schedule: Schedule,
        write: Callable[[nn.Module, Path], None],
        forward: Callable[[Any, Tensor, Tensor, Any], Tensor],
        prediction_type: str,
        held_out: DrawBatch | None = None,
        processes: Processes | None = None,
        accumulate: int = 1,
    ):
        if prediction_type not in TARGETS:
            raise UnknownNameError("prediction type", prediction_type, TARGETS)
        self.processes = Processes() if processes is None else processes
        self._parts = self.processes.shares(settings.batch_size, accumulate)
        check_divisible(net, self.processes.count * accumulate)
        self.net, self.settings, self._prediction_type = net, settings, prediction_type
        self.device = next(net.parameters()).device
        self._draw, self._write, self._forward, self._held_out = draw, write, forward, held_out
        self.ema = make_ema(self.net)
        self.ema.eval()  # measuring its loss must not update running statistics
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), betas=(0.95, 0.999), weight_decay=settings.weight_decay, fused=True
        )
        self._predict = self.processes.wrap(_Called(net, forward))
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=settings.float16)
        self.alphas_cumprod = schedule.alphas_cumprod.float().to(self.device)
        self.step = 0

    def update(self) -> Tensor:
        """One optimizer step. Returns this process's mean loss, a tensor (), without waiting for the device."""
        settings, losses = self.settings, []
        self.optimizer.zero_grad()
        for part in self._parts:
            with self.processes.keeping_gradients(self._predict, keep=part is not self._parts[-1]):
                generator = step_generator(settings.seed, self.step, self.device)
                with torch.autocast(self.device.type, settings.precision, enabled=settings.precision != torch.float32):
                    loss = self._loss(self._predict, self._draw, generator, part)
                self._scaler.scale(loss / len(self._parts)).backward()
            losses.append(loss.detach())
        self._scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.net.parameters(), settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, settings)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.ema.update_parameters(self.net)
        self.step += 1
        return torch.stack(losses).mean()

    def _loss(
        self, predict: Callable[[Tensor, Tensor, Any], Tensor], draw: DrawBatch, generator: torch.Generator, part: slice
    ) -> Tensor:
        condition, clean = draw(generator, part)
        return noise_prediction_loss(
            predict, condition, clean, self.alphas_cumprod, generator, self._prediction_type,
            self.settings.batch_size, part,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write all that is needed to resume, atomically. Raises CheckpointError if that fails."""
        state = {
            "step": self.step,
            "model": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        write_checkpoint(path, lambda target: torch.save(state, target))

    def load(self, path: Path) -> None:
        """Resume from a file of `save`. Raises CheckpointError if it cannot be read."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            step = int(state["step"])
            self.net.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._scaler.load_state_dict(state.get("scaler", {}))  # runs of earlier versions have none
        except Exception as error:  # torch raises many types on damage
            raise CheckpointError(f"Cannot resume from {path}: {type(error).__name__}: {error}") from error
        # The fused optimizer reads raw memory, so its moments need the weights' memory layout, whatever wrote the file.
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter).copy_(value)
        self.step = step

    def check_finite(self) -> None:
        """Raise NumericalError if a weight is NaN or infinite: even a finite loss can have an infinite gradient."""
        named = [*self.net.named_parameters(), *self.ema.named_parameters()]
        finite = torch.stack([tensor.isfinite().all() for _, tensor in named])
        if not bool(finite.all()):
            name = named[int((~finite).nonzero()[0])][0]
            raise NumericalError(
                f"At step {self.step} training has made weights that are not finite, {name} the first. The last "
                "snapshot is unchanged. Start again with a lower learning rate."
            )

    def snapshot(self, path: Path) -> None:
        """Write the averaged network to `path`; `write` adds a suffix."""
        self._write(self.ema.module, path)

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """The averaged network's loss on fixed validation batches; None without validation data."""
        if self._held_out is None:
            return None
        generator = torch.Generator(self.device).manual_seed(self.settings.seed)
        predict = partial(self._forward, self.ema.module)
        losses = [self._loss(predict, self._held_out, generator, slice(None)) for _ in range(HELD_OUT_BATCHES)]
        return torch.stack(losses).mean().item()


class _Called(nn.Module):
    """A network and the way it is called, as one module: gradients are averaged where a module is called."""

    def __init__(self, net: nn.Module, forward: Callable[[Any, Tensor, Tensor, Any], Tensor]):
        super().__init__()
        self.net, self._forward = net, forward

    def forward(self, sample: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        return self._forward(self.net, sample, timestep, condition)


def check_divisible(net: nn.Module, parts: int) -> None:
    """Raise ConfigError if batches are divided, but the network normalises over the batch."""
    found = [name for name, module in net.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if parts > 1 and found:
        raise ConfigError(
            f"The network normalises over the batch ({found[0]} is a BatchNorm), and {parts} parts of a batch would be "
            "another training. Train in one process with --accumulate 1, or an encoder with group norm."
        )


class Observed(NamedTuple):
    """The observations of a training batch of B chunks."""

    obs: dict[str, Tensor]  # (B, To, ...) per key
    corners: dict[str, Tensor]  # (B, To, 2) int64 per image: top and left of its crop


def policy_trainer(
    config: PolicyConfig,
    settings: TrainSettings,
    windows: TrainingWindows,
    normalizer: LinearNormalizer,
    compile_net: bool = False,
    network: nn.Module | None = None,
    encoders: nn.ModuleDict | None = None,
    held_out: TrainingWindows | None = None,
    processes: Processes | None = None,
    accumulate: int = 1,
) -> Trainer:
    """The trainer of a policy's network and image encoders. Images are cropped at random.

    Snapshots are safetensors files with `model.*` and `encoders.*` (the averaged weights) and `normalizer.*`.

    Args:
        config: the policy to train.
        settings: steps, batch size, learning rate and so on.
        windows: training windows, on the device to train on.
        normalizer: normalises the observations and has normalised the windows' actions. Saved with each snapshot.
        compile_net: compile the network in place.
        network, encoders: the initial networks; if None, fresh ones from the settings' seed.
        held_out: validation windows, on the same device.
        processes, accumulate: see `Trainer`.
    """
    device, normalizer = windows.actions.device, normalizer.to(windows.actions.device)
    network = build_network(config, settings.seed) if network is None else network
    encoders = build_encoders(config, settings.seed) if encoders is None else encoders
    net = nn.ModuleDict({"model": network, "encoders": encoders}).train().to(device)
    if compile_net:
        if device.type == "cpu" and isinstance(network, HasCompiledLayout):
            network.store_for_compiled_cpu()
        network.compile()

    def draw(source: TrainingWindows, generator: torch.Generator, part: slice) -> tuple[Observed, Tensor]:
        indices = torch.randint(len(source), (settings.batch_size,), generator=generator, device=device)
        obs, actions = source.gather(indices[part])
        corners = random_corners(config, settings.batch_size, generator)
        return Observed(obs, {key: values[part] for key, values in corners.items()}), actions

    def forward(net: nn.ModuleDict, sample: Tensor, timestep: Tensor, seen: Observed) -> Tensor:
        encoders: Any = net["encoders"]
        encode = {key: partial(encoders[key], corners=seen.corners.get(key)) for key in encoders}
        condition = normalizer.global_condition(seen.obs, config.obs_keys, encode, config.octaves)
        prediction: Tensor = net["model"](sample, timestep, condition)
        return prediction

    def write(averaged: nn.Module, path: Path) -> None:
        tensors = averaged.state_dict() | {f"normalizer.{name}": x for name, x in normalizer.state_dict().items()}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        write_checkpoint(path.with_suffix(".safetensors"), lambda target: save_file(tensors, target))

    schedule = Schedule.from_diffusers(asdict(config.scheduler))
    unseen = None if held_out is None else partial(draw, held_out)
    predicted = config.scheduler.prediction_type
    return Trainer(
        net, settings, partial(draw, windows), schedule, write, forward, predicted, unseen, processes, accumulate
    )


def random_corners(config: PolicyConfig, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A random crop corner (top, left) for each cropped image of a batch of B chunks: (B, To, 2) int64."""
    corners = {}
    for image in config.images:
        if image.crop:
            shape, device = (batch, config.n_obs_steps, 2), generator.device
            places = torch.tensor(image.crop_places, device=device)
            corners[image.key] = (torch.rand(shape, generator=generator, device=device) * places).long()
    return corners


def train(trainer: Trainer, out: Path, log: Log = lambda step, loss, held_out: None) -> bool:
    """Train until the last step or a stop request, in the run's directory `out`.

    Writes `last.pt` (to resume from) and the snapshot `ema_<step>` every `snapshot_every` updates and at the end. Calls
    `log` every `log_every` updates and with each snapshot. The held-out loss is measured with each snapshot. Of several
    processes only the first one writes and logs, and a stop request of one stops all at the same step.

    Returns:
        Whether all steps are done.

    Raises:
        NumericalError: if the loss or a weight is no longer finite. The last checkpoint is unchanged.
        CheckpointError: if a file cannot be written.
        WorkerError: if another process of the training is lost.
    """
    settings, processes = trainer.settings, trainer.processes
    total, count = torch.zeros((), device=trainer.device), 0
    with stop_requests() as stop_requested, processes.watched():
        while trainer.step < settings.steps:
            total, count = total + trainer.update(), count + 1
            step, over, stopping = trainer.step, trainer.step == settings.steps, processes.any(stop_requested())
            snapshot = over or step % settings.snapshot_every == 0
            if not (snapshot or stopping or step % settings.log_every == 0):
                continue
            mean = processes.mean(total).item() / count
            if not math.isfinite(mean):
                raise NumericalError(
                    f"The mean loss of steps {step - count} to {step} is {mean}; expected a finite number. "
                    "Start again with a lower learning rate."
                )
            if snapshot or stopping:
                trainer.check_finite()
            held_out = trainer.held_out_loss() if snapshot else None
            total, count = torch.zeros_like(total), 0
            if processes.is_first:
                log(step, mean, held_out)
                if snapshot:  # before last.pt: a run killed between the two writes it again
                    trainer.snapshot(out / f"ema_{step:06d}")
                if snapshot or stopping:
                    trainer.save(out / "last.pt")
            if stopping:
                break
        processes.wait()  # for the files of the first one
    return trainer.step == settings.steps
