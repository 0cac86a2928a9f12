"""The training loop, resumable bit for bit: of networks that predict the noise, the clean sample or the velocity.

Loss: Ho et al. 2020, eq. 14 (https://arxiv.org/abs/2006.11239). Every random number of a step comes from a generator
seeded by (seed, step), so a checkpoint holds no random state and a resumed run repeats the uninterrupted one exactly.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from asd_policy.core import Schedule
from asd_policy.data.windows import Windows
from asd_policy.errors import CheckpointError, NumericalError, UnknownNameError
from asd_policy.interrupt import stop_requests
from asd_policy.nets import ConditionalUnet1D
from asd_policy.nets.unet1d_channels_last import store_channels_last
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.network import build_encoders, build_network
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.training.ema import make_ema
from asd_policy.training.settings import TrainSettings, learning_rate

HELD_OUT_BATCHES = 16

TARGETS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda clean, noise, abar: noise,
    "sample": lambda clean, noise, abar: clean,
    "v_prediction": lambda clean, noise, abar: abar.sqrt() * noise - (1 - abar).sqrt() * clean,
}
"""What a network learns to return, by diffusers' `prediction_type`: the inverses of `asd_policy.core.DENOISERS`."""

Draw = Callable[[torch.Generator], tuple[Any, Tensor]]
"""What is learned from at once: the condition of B samples, and the clean samples (B, *E)."""


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of one update. SeedSequence mixes the pair: the CPU generator reads 32 bits of its seed alone."""
    mixed = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0]))


def noise_prediction_loss(
    net: Callable[[Tensor, Tensor, Any], Tensor],
    condition: Any,
    clean: Tensor,
    alphas_cumprod: Tensor,
    generator: torch.Generator,
    prediction_type: str = "epsilon",
) -> Tensor:
    """Mean squared error of the network's prediction, of the noise unless `prediction_type` says otherwise.

    Args:
        net: (sample (B, *E), timestep (B,), condition) -> prediction (B, *E).
        condition: what `net` is told of the B samples.
        clean: (B, *E) clean samples, of a policy chunks (B, H, A).
        alphas_cumprod: (T,) float32.
        generator: of the timesteps and the noise.
        prediction_type: what `net` predicts, a key of `TARGETS`.
    """
    batch, total = len(clean), len(alphas_cumprod)
    # One timestep from each of B equal slices of the schedule: less variance than independent draws.
    slices = torch.arange(batch, device=clean.device)
    jitter = torch.rand(batch, generator=generator, device=clean.device)
    timestep = ((slices + jitter) * (total / batch)).long().clamp(max=total - 1)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    abar = alphas_cumprod[timestep].view((-1,) + (1,) * (clean.ndim - 1))
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    target = TARGETS[prediction_type](clean, noise, abar)
    return nn.functional.mse_loss(net(noisy, timestep, condition).float(), target)


class Trainer:
    """The state of a run (network, EMA, optimizer, step) and the update that advances it.

    Args:
        net: the network, on the device to train on.
        settings: how.
        draw: what an update learns from.
        schedule: the diffusion.
        write: writes a snapshot: (averaged network, path without a suffix).
        forward: runs a network of `net`'s form: (network, sample, timestep, condition) -> prediction.
        prediction_type: what the network predicts, a key of `TARGETS`.
        held_out: as `draw`, from data that is not learned from; None if there are no such data.

    Raises:
        UnknownNameError: on another prediction type.
    """

    def __init__(
        self,
        net: nn.Module,
        settings: TrainSettings,
        draw: Draw,
        schedule: Schedule,
        write: Callable[[nn.Module, Path], None],
        forward: Callable[[Any, Tensor, Tensor, Any], Tensor],
        prediction_type: str,
        held_out: Draw | None = None,
    ):
        if prediction_type not in TARGETS:
            raise UnknownNameError("prediction type", prediction_type, TARGETS)
        self.net, self.settings, self._prediction_type = net, settings, prediction_type
        self.device = next(net.parameters()).device
        self._draw, self._write, self._forward, self._held_out = draw, write, forward, held_out
        self.ema = make_ema(self.net)
        self.ema.eval()  # it is never trained: measuring its loss must not move running statistics
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), betas=(0.95, 0.999), weight_decay=settings.weight_decay, fused=True
        )
        self.alphas_cumprod = schedule.alphas_cumprod.float().to(self.device)
        self.step = 0

    def update(self) -> Tensor:
        """One optimizer step; returns its loss () without waiting for the device."""
        settings = self.settings
        generator = step_generator(settings.seed, self.step, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.bfloat16):
            loss = self._loss(self.net, self._draw, generator)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, settings)
        self.optimizer.step()
        self.ema.update_parameters(self.net)
        self.step += 1
        return loss.detach()

    def _loss(self, net: nn.Module, draw: Draw, generator: torch.Generator) -> Tensor:
        condition, clean = draw(generator)
        predict = partial(self._forward, net)
        return noise_prediction_loss(predict, condition, clean, self.alphas_cumprod, generator, self._prediction_type)

    def save(self, path: Path) -> None:
        """Write everything needed to go on, atomically."""
        state = {
            "step": self.step,
            "model": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_atomically(path, lambda target: torch.save(state, target))

    def load(self, path: Path) -> None:
        """Go on from `save`'s file."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            step = int(state["step"])
            self.net.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # torch's readers raise whatever the damage leads them to
            raise CheckpointError(f"Cannot resume from {path}: {type(error).__name__}: {error}") from error
        # The fused optimizer walks raw memory: its moments must lie as the weights do, whatever wrote the file.
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter).copy_(value)
        self.step = step

    def check_finite(self) -> None:
        """Raise NumericalError if a weight is NaN or infinite: a finite loss can have had an infinite gradient."""
        named = [*self.net.named_parameters(), *self.ema.named_parameters()]
        finite = torch.stack([tensor.isfinite().all() for _, tensor in named])
        if not bool(finite.all()):
            name = named[int((~finite).nonzero()[0])][0]
            raise NumericalError(
                f"By step {self.step} training has made weights that are not finite, {name} the first. The last "
                "snapshot is as it was. Start again with a lower learning rate."
            )

    def snapshot(self, path: Path) -> None:
        """Write the averaged network to `path`, to which the kind of run adds a suffix."""
        self._write(self.ema.module, path)

    @torch.no_grad()
    def held_out_loss(self) -> float | None:
        """The averaged network's loss on the same batches, none of them learned from, if there are such data."""
        if self._held_out is None:
            return None
        generator = torch.Generator(self.device).manual_seed(self.settings.seed)
        losses = [self._loss(self.ema.module, self._held_out, generator) for _ in range(HELD_OUT_BATCHES)]
        return torch.stack(losses).mean().item()


class Observed(NamedTuple):
    """What a batch of B chunks is learned from."""

    obs: dict[str, Tensor]  # (B, To, ...) per key
    corners: dict[str, Tensor]  # (B, To, 2) int64 per image, where it is cropped


def policy_trainer(
    config: PolicyConfig,
    settings: TrainSettings,
    windows: Windows,
    normalizer: LinearNormalizer,
    compile_net: bool = False,
    network: nn.Module | None = None,
    encoders: nn.ModuleDict | None = None,
    held_out: Windows | None = None,
) -> Trainer:
    """The trainer of a policy: of its network, and of the encoders of its images, which are cropped at random.

    Its snapshots are safetensors with `model.*`, `encoders.*` (the EMA) and `normalizer.*`.

    Args:
        config: the policy to train.
        settings: how.
        windows: training windows, on the device to train on.
        normalizer: of the observations, and what has normalised the actions; saved with every snapshot.
        compile_net: compile the network in place, on a CPU in its channels-last form.
        network, encoders: what to start from; fresh weights, made from the settings' seed, if None.
        held_out: windows of other demonstrations, on the same device, to measure the loss on.
    """
    device, normalizer = windows.actions.device, normalizer.to(windows.actions.device)
    network = build_network(config, settings.seed) if network is None else network
    encoders = build_encoders(config, settings.seed) if encoders is None else encoders
    net = nn.ModuleDict({"model": network, "encoders": encoders}).train().to(device)
    if compile_net:
        if device.type == "cpu" and isinstance(network, ConditionalUnet1D):
            store_channels_last(network)
        network.compile()

    def draw(source: Windows, generator: torch.Generator) -> tuple[Observed, Tensor]:
        indices = torch.randint(len(source), (settings.batch_size,), generator=generator, device=device)
        obs, actions = source.gather(indices)
        return Observed(obs, random_corners(config, obs, generator)), actions

    def forward(net: nn.ModuleDict, sample: Tensor, timestep: Tensor, seen: Observed) -> Tensor:
        encoders: Any = net["encoders"]
        encode = {key: partial(encoders[key], corners=seen.corners.get(key)) for key in encoders}
        condition = normalizer.global_condition(seen.obs, config.obs_keys, encode, config.octaves)
        return net["model"](sample, timestep, condition)

    def write(averaged: nn.Module, path: Path) -> None:
        tensors = averaged.state_dict() | {f"normalizer.{name}": x for name, x in normalizer.state_dict().items()}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        write_atomically(path.with_suffix(".safetensors"), lambda target: save_file(tensors, target))

    schedule = Schedule.from_diffusers(asdict(config.scheduler))
    unseen = None if held_out is None else partial(draw, held_out)
    predicted = config.scheduler.prediction_type
    return Trainer(net, settings, partial(draw, windows), schedule, write, forward, predicted, unseen)


def random_corners(config: PolicyConfig, obs: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Where to crop each image of the observations (B, To, H, W, C), if it is cropped: (B, To, 2) int64."""
    corners = {}
    for image in config.images:
        if image.crop:
            shape, device = (*obs[image.key].shape[:2], 2), generator.device
            places = torch.tensor(image.crop_places, device=device)
            corners[image.key] = (torch.rand(shape, generator=generator, device=device) * places).long()
    return corners


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """A reader sees the old file or the new one, never a half, even after a power cut.

    Raises:
        CheckpointError: if it cannot be written, as on a full disk; the old file stays.
    """
    partial = path.with_name(path.name + ".tmp")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's writer raises RuntimeError
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"Cannot write {path}: {error}") from error


def train(
    trainer: Trainer, out: Path, log: Callable[[int, float, float | None], None] = lambda step, loss, held_out: None
) -> bool:
    """Update until the run is over or a stop is asked for, saving to the run directory `out`.

    Writes `last.pt` (to resume from) and the snapshot `ema_<step>` every `snapshot_every` updates and at the end.
    Calls `log(step, mean loss, held-out loss)` every `log_every` updates; the latter is measured with each snapshot,
    and None otherwise or if no data are held out.

    Returns:
        Whether the run is over.

    Raises:
        NumericalError: when the loss or a weight is no longer finite; the last checkpoint stays as it was.
        CheckpointError: when a file cannot be written.
    """
    settings = trainer.settings
    total, count = torch.zeros((), device=trainer.device), 0
    with stop_requests() as stop_requested:
        while trainer.step < settings.steps:
            total, count = total + trainer.update(), count + 1
            step, over, stopping = trainer.step, trainer.step == settings.steps, stop_requested()
            snapshot = over or step % settings.snapshot_every == 0
            if not (snapshot or stopping or step % settings.log_every == 0):
                continue
            mean = total.item() / count
            if not math.isfinite(mean):
                raise NumericalError(
                    f"The mean loss of steps {step - count} to {step} is {mean}; expected a finite number. "
                    "Start again with a lower learning rate."
                )
            if snapshot or stopping:
                trainer.check_finite()
            log(step, mean, trainer.held_out_loss() if snapshot else None)
            total, count = torch.zeros_like(total), 0
            if snapshot:  # before last.pt, or a run killed between the two would go on without it
                trainer.snapshot(out / f"ema_{step:06d}")
            if snapshot or stopping:
                trainer.save(out / "last.pt")
            if stopping:
                break
    return trainer.step == settings.steps
