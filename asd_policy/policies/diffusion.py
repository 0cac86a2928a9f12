"""DiffusionPolicy: observations in, actions out, a chunk at a time (Chi et al. 2023, https://arxiv.org/abs/2303.04137)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asd_policy.core import DENOISERS, AsdSampler, Calibration, Schedule
from asd_policy.errors import ConfigError, ObservationError
from asd_policy.policies.actions import to_env_actions
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.network import for_inference
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.policies.quaternions import with_steady_signs
from asd_policy.policies.samplers import make_sampler
from asd_policy.policies.windows import CalibratedWindows

Observation = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ChunkStats:
    """What the last chunk cost; B environments, K denoising steps."""

    latency: float  # seconds from observation to actions
    rounds: Tensor  # (B,) int64, sequential network calls
    evaluations: Tensor  # (B,) int64, states that the network was asked about
    acceptance: Tensor  # (K,) float32, share of drafts kept at each step; 0 for a sampler without drafts


class DiffusionPolicy:
    """Acts in one environment, or in a batch of them in lock-step.

    It samples a chunk of `horizon` actions given the last `n_obs_steps` observations, executes `n_action_steps` of it,
    and samples again. Each environment has a generator of its own, so the noise it is given does not depend on how many
    run together.

    Args:
        network: (sample (N, H, A), timestep (N,), global_cond (N, global_cond_dim)) -> prediction (N, H, A).
        normalizer: with a field per observation key and "action".
        config: what the two were trained with.
        sampler: "asd", "ddpm" or "ddim".
        device: where to sample.
        dtype: of the weights that run at every evaluation. torch.bfloat16 is for hardware made for it, and makes
            another network: the sampler, which computes in float32 all the same, is exact for that one.
        windows_file: where `calibrate` keeps its windows, and `window="auto"` finds them.
        encoders: of the images among the observations, by key; see `asd_policy.nets.vision.ImageEncoder`.
        sampler_options: asd: `draft`, `window`, `capture`; ddpm: `capture`; ddim: `num_steps`, `eta`.

    Raises:
        ConfigError: on an unknown sampler or option.
    """

    def __init__(
        self,
        network: nn.Module,
        normalizer: LinearNormalizer,
        config: PolicyConfig,
        sampler: str = "asd",
        device: torch.device | str = "cpu",
        windows_file: Path | None = None,
        dtype: torch.dtype = torch.float32,
        encoders: nn.ModuleDict | None = None,
        **sampler_options: Any,
    ):
        self.config = config
        self._dtype = dtype
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self._windows = CalibratedWindows(windows_file, self.device, dtype, sampler_options)
        self.normalizer = normalizer.to(self.device)
        self.encoders = (nn.ModuleDict() if encoders is None else encoders).to(self.device).eval()
        scheduler = config.scheduler
        self.schedule = Schedule.from_diffusers(asdict(scheduler))
        clip = scheduler.clip_sample_range if scheduler.clip_sample else None
        compiled_on_cpu = self.device.type == "cpu" and sampler_options.get("capture") == "compile"
        run = for_inference(self.network, dtype, compiled_on_cpu)
        denoiser = DENOISERS[scheduler.prediction_type](run, self.schedule, clip).to(self.device)
        event_shape = (config.horizon, config.action_dim)
        options = self._windows.filled_in(sampler_options)
        self.sampler = make_sampler(sampler, denoiser, self.schedule, event_shape, **options)
        self._generators: list[torch.Generator] = []
        self._batched = False
        self._history: deque[dict[str, Tensor]] = deque(maxlen=config.n_obs_steps)
        self._queue: deque[NDArray[np.float32]] = deque()
        self._warm: Tensor | None = None  # (B, K, H, A), from where the next chunk's drafts start
        self._stats: ChunkStats | None = None

    @property
    def stats(self) -> ChunkStats | None:
        """What the last chunk cost; a new object for each chunk, None before the first."""
        return self._stats

    def with_sampler(self, sampler: str, **sampler_options: Any) -> DiffusionPolicy:
        """A policy of its own that shares this one's weights and is run by another sampler."""
        return DiffusionPolicy(
            self.network,
            self.normalizer,
            self.config,
            sampler,
            self.device,
            self._windows.file,
            self._dtype,
            self.encoders,
            **sampler_options,
        )

    def calibrate(self, observations: Sequence[Observation], batch_size: int = 1) -> Calibration:
        """Choose the windows of `window="auto"` for this network, draft, capture and device; takes seconds to minutes.

        They are kept beside the checkpoint and found there by the next `load_policy`: timings differ from run to run,
        and other windows give other samples, of the same law, from the same seed.

        Args:
            observations: for one environment each, like those to come; some tens of them.
            batch_size: how many environments will run together.

        Raises:
            ConfigError: if the sampler is not "asd", or there are fewer observations than `batch_size`.
            ObservationError: as `act`.
        """
        if not isinstance(self.sampler, AsdSampler):
            raise ConfigError("Only sampler='asd' has windows to calibrate; make the policy with it.")
        if not 1 <= batch_size <= len(observations):
            raise ConfigError(
                f"batch_size is {batch_size} for {len(observations)} observations; expected 1 or more each."
            )
        conds = torch.cat([self.condition([obs]) for obs in observations])
        calibration = self.sampler.calibrate(conds, batch_size)
        self._windows.keep(calibration)
        return calibration

    def reset(self, seed: int | None = None, seeds: Sequence[int] | None = None) -> None:
        """Begin an episode: forget observations and actions, seed the noise.

        Args:
            seed: for one environment; None takes a fresh seed from the operating system.
            seeds: for a batch of environments, one each.

        Raises:
            ConfigError: if both are given, or `seeds` is empty.
        """
        if seeds is not None and (seed is not None or len(seeds) == 0):
            raise ConfigError(f"Got seed={seed} and seeds={seeds}; expected one of them, and at least one seed.")
        self._batched = seeds is not None
        self._generators = [_generator(value) for value in (seeds if seeds is not None else [seed])]
        self._history.clear()
        self._queue.clear()
        self._warm = None
        self._stats = None

    def act(self, obs: Observation) -> NDArray[np.float32]:
        """The next action.

        Args:
            obs: for each of the policy's keys an array (D,), of an image (H, W, C) uint8, and (B, ...) after
                `reset(seeds=...)`; others are ignored.

        Returns:
            (A,), or (B, A) for a batch: float32, the environment's actions, within the config's `action_bound`.

        Raises:
            ObservationError: naming the key that is missing, has a wrong shape, or is not finite.
            ConfigError: if `reset` was not called.
            NumericalError: if the network returned NaN or infinity.
        """
        if not self._generators:
            raise ConfigError("act() was called before reset(). Call reset(seed=...) at the start of each episode.")
        started = time.perf_counter()
        self._remember(obs)
        if not self._queue:
            self._plan(started)
        action = self._queue.popleft()
        return action if self._batched else action[0]

    def condition(self, history: Sequence[Observation]) -> Tensor:
        """What the network is told of one environment, (1, global_cond_dim).

        Args:
            history: its last observations, oldest first: n_obs_steps of them, or fewer at the start of an episode.

        Raises:
            ObservationError: as `act`.
        """
        tensors = [self._tensors(obs, ()) for obs in history]
        return self._condition(tensors[:1] * (self.config.n_obs_steps - len(tensors)) + tensors)

    def _remember(self, obs: Observation) -> None:
        """Add the observation to the history; the first one fills it."""
        tensors = self._tensors(obs, (len(self._generators),) if self._batched else ())
        missing = self.config.n_obs_steps - len(self._history) if not self._history else 1
        self._history.extend([tensors] * missing)

    def _tensors(self, obs: Observation, batch: tuple[int, ...]) -> dict[str, Tensor]:
        """The policy's keys of an observation, (B, D) or (B, H, W, C) each; `batch` is (B,), or () for one."""
        shapes = self.config.obs_shapes
        checked = {key: _checked(obs, key, (*batch, *shape), key in self.encoders) for key, shape in shapes.items()}
        tensors = {key: value.view(-1, *shapes[key]).to(self.device) for key, value in checked.items()}
        return with_steady_signs(tensors, self.config.quaternions)

    @torch.no_grad()
    def _condition(self, history: Sequence[dict[str, Tensor]]) -> Tensor:
        """The network's condition (B, global_cond_dim) of the last To observations, oldest first."""
        keys = self.config.obs_keys
        steps = {key: torch.stack([obs[key] for obs in history], dim=1) for key in keys}
        return self.normalizer.global_condition(steps, keys, self.encoders, self.config.octaves)

    def _plan(self, started: float) -> None:
        """Sample a chunk and queue the part of it that is executed."""
        config = self.config
        cond = self._condition(self._history)
        chunk, cost, predictions = self.sampler.draw(len(cond), cond, self._generators, self._warm)
        self._warm = None if predictions is None else _shifted(predictions, config.n_action_steps)
        first = config.n_obs_steps - 1
        executed = chunk[:, first : first + config.n_action_steps]
        actions = to_env_actions(self.normalizer.unnormalize("action", executed), config.action_parts)
        if config.action_bound is not None:
            actions = actions.clamp(-config.action_bound, config.action_bound)
        self._queue.extend(actions.cpu().numpy().transpose(1, 0, 2))
        self._stats = ChunkStats(time.perf_counter() - started, cost.rounds, cost.evaluations, cost.acceptance)


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _shifted(predictions: Tensor, steps: int) -> Tensor:
    """A chunk's predictions (B, K, H, A) as guesses of the chunk `steps` later; its last action repeats."""
    return torch.cat([predictions[:, :, steps:], predictions[:, :, -1:].expand(-1, -1, steps, -1)], dim=2)


def _checked(obs: Observation, key: str, shape: tuple[int, ...], image: bool) -> Tensor:
    """The observation `key` as a tensor of the given shape, float32 or of an image uint8, or ObservationError."""
    if key not in obs:
        raise ObservationError(f"The observation lacks {key!r}; it has {', '.join(map(repr, obs)) or 'nothing'}.")
    kind = getattr(obs[key], "dtype", None)
    if image and kind != np.uint8:
        raise ObservationError(f"Observation {key!r} is of {kind}; expected an image of uint8, pixels from 0 to 255.")
    try:
        value = torch.from_numpy(np.array(obs[key], dtype=np.uint8 if image else np.float32))
    except (TypeError, ValueError) as error:
        raise ObservationError(f"Observation {key!r} is no array of numbers: {error}") from error
    if tuple(value.shape) != shape:
        raise ObservationError(f"Observation {key!r} has shape {tuple(value.shape)}; expected {shape}.")
    if not bool(value.isfinite().all()):
        raise ObservationError(f"Observation {key!r} has values that are not finite: {obs[key]}.")
    return value
