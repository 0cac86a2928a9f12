"""PolicyModel: the networks of a policy and the steps around them, from observations to actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asd_policy.core import DENOISERS, Schedule
from asd_policy.core.checks import as_device
from asd_policy.core.denoiser import AffineDenoiser
from asd_policy.core.transfer import to_device
from asd_policy.errors import ConfigError, NumericalError, ObservationError
from asd_policy.policies.actions import to_env_actions
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.network import evaluating, for_inference, kinds_of_tensors
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.policies.observations import Observation, checked
from asd_policy.policies.quaternions import with_steady_signs


class PolicyModel:
    """Networks and normalizer on a device, with the configuration that they were trained with.

    Each chunk uses the present weights of `network`, `normalizer` and `encoders`: a training step or `load_state_dict`
    takes effect at once, in every dtype and capture. They run in evaluation mode, and are then put back into their own.

    Args:
        network: (sample (N, H, A), timestep (N,), global_cond (N, global_cond_dim)) -> prediction (N, H, A).
        normalizer: with a field for each observation key and "action".
        config: the configuration that they were trained with.
        device: the device to run on.
        dtype: of the weights used in every network call. torch.bfloat16 is for hardware with bfloat16 units. It makes
            another network; the sampler still computes in float32 and is exact for that network.
        encoders: image encoders by observation key; see `asd_policy.nets.vision.ImageEncoder`.

    Raises:
        ConfigError: on a device that this machine lacks.
    """

    def __init__(
        self,
        network: nn.Module,
        normalizer: LinearNormalizer,
        config: PolicyConfig,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        encoders: nn.ModuleDict | None = None,
    ):
        self.config, self.dtype, self.device = config, dtype, as_device(device)
        self.network = network.to(self.device).eval()
        self.normalizer = normalizer.to(self.device)
        self.encoders = (nn.ModuleDict() if encoders is None else encoders).to(self.device).eval()
        self.schedule = Schedule.from_diffusers(asdict(config.scheduler))
        self._kinds = self._kinds_now()

    @property
    def event_shape(self) -> tuple[int, int]:
        """(H, A), the shape of a chunk."""
        return self.config.horizon, self.config.action_dim

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All modules with weights."""
        return self.network, self.normalizer, self.encoders

    def denoiser(self, compiled: bool) -> AffineDenoiser:
        """The denoiser that samplers run.

        Args:
            compiled: whether its code will be compiled. On a CPU its convolutions then use another memory layout.

        Raises:
            ConfigError: if the network cannot be run in `dtype`.
        """
        scheduler = self.config.scheduler
        clip = scheduler.clip_sample_range if scheduler.clip_sample else None
        run = for_inference(self.network, self.dtype, compiled and self.device.type == "cpu")
        return DENOISERS[scheduler.prediction_type](run, self.schedule, clip).to(self.device)

    def evaluating(self) -> AbstractContextManager[None]:
        """A context in which the network is in evaluation mode."""
        return evaluating(self.network)

    def tensors(self, obs: Observation, batch: tuple[int, ...], images: str = "uint8_hwc") -> dict[str, Tensor]:
        """The policy's keys of an observation, checked, on the CPU: (B, D), or (B, H, W, C) for images.

        Args:
            batch: (B,), or () for the observation of one environment, which gives B = 1.
            images: the format of images, one of `asd_policy.policies.observations.IMAGES`.

        Raises:
            ObservationError: naming the key that is missing, has a wrong shape or format, or is not finite.
        """
        shapes = self.config.obs_shapes
        values = {
            key: checked(obs, key, (*batch, *shape), images if key in self.encoders else None)
            for key, shape in shapes.items()
        }
        tensors = {key: value.reshape(-1, *shapes[key]) for key, value in values.items()}
        return with_steady_signs(tensors, self.config.quaternions)

    def history(
        self, observations: Sequence[Observation], batch: tuple[int, ...], images: str = "uint8_hwc"
    ) -> list[dict[str, Tensor]]:
        """The last n_obs_steps observations, oldest first, each as `tensors` returns it.

        Args:
            observations: the same, or fewer at the start of an episode: the first one then repeats.

        Raises:
            ObservationError: as `tensors`, and unless there are 1 to n_obs_steps observations.
        """
        if not 1 <= len(observations) <= self.config.n_obs_steps:
            raise ObservationError(f"Got {len(observations)} observations; expected 1 to {self.config.n_obs_steps}.")
        tensors = [self.tensors(obs, batch, images) for obs in observations]
        return tensors[:1] * (self.config.n_obs_steps - len(tensors)) + tensors

    def blank(self, batch_size: int) -> dict[str, Tensor]:
        """Observations of zeros, as `tensors` returns them."""
        return {
            key: torch.zeros(
                batch_size, *shape, dtype=torch.uint8 if key in self.encoders else torch.float32, device="cpu"
            )
            for key, shape in self.config.obs_shapes.items()
        }

    def condition_of(self, history: Sequence[Observation]) -> Tensor:
        """The network's condition for one environment, (1, global_cond_dim).

        Args:
            history: its last observations, oldest first: n_obs_steps, or fewer at the start of an episode.

        Raises:
            ObservationError: as `tensors`, and unless there are 1 to n_obs_steps observations.
            ConfigError: as `condition`.
        """
        return self.condition(self.history(history, ()))

    @torch.no_grad()
    def condition(self, history: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """The network's condition (B, global_cond_dim) from the last To observations, oldest first.

        Raises:
            ConfigError: if the weights' type, size or device has changed since the policy was made.
        """
        self._check_weights()
        keys = self.config.obs_keys
        steps = to_device([torch.stack([obs[key] for obs in history], dim=1) for key in keys], self.device)
        with evaluating(self.encoders):
            return self.normalizer.global_condition(
                dict(zip(keys, steps, strict=True)), keys, self.encoders, self.config.octaves
            )

    @torch.no_grad()
    def actions(self, chunk: Tensor, whole_horizon: bool = False) -> Tensor:
        """The executed part of chunks (N, H, A), or all of them, unnormalised: (N, Ta, A), or (N, H, A)."""
        first = self.config.n_obs_steps - 1
        part = slice(None) if whole_horizon else slice(first, first + self.config.n_action_steps)
        return self.normalizer.unnormalize("action", chunk[:, part])

    def env_actions(self, actions: Tensor) -> NDArray[np.float32]:
        """Convert actions (N, T, A), on the CPU, to the environment's (N, T, A_env).

        Raises:
            NumericalError: if an action is not finite.
        """
        config = self.config
        actions = to_env_actions(actions, config.action_parts)
        if not bool(actions.isfinite().all()):
            bad = actions[~actions.isfinite()][:4].tolist()
            raise NumericalError(
                f"The actions are not finite ({bad}), though the network's chunk is. Check the normalizer's statistics "
                "of actions."
            )
        if config.action_bound is not None:
            actions = actions.clamp(-config.action_bound, config.action_bound)
        array: NDArray[np.float32] = actions.numpy()
        return array

    def _kinds_now(self) -> frozenset[tuple[torch.device, torch.dtype]]:
        return kinds_of_tensors(*self.modules)

    def _check_weights(self) -> None:
        """Raise ConfigError if weights were moved or converted, or the normalizer has other sizes than the config."""
        now = self._kinds_now()
        if not now <= self._kinds:
            got, expected = (", ".join(sorted(f"{d} on {w}" for w, d in kinds)) for kinds in (now, self._kinds))
            raise ConfigError(
                f"The weights are {got}; when the policy was made they were {expected}. Move them back, or make "
                "another policy (device=, dtype=)."
            )
        sizes = {key: shape[-1] for key, shape in self.config.obs_shapes.items()}
        self.normalizer.check_sizes({**sizes, "action": self.config.action_dim})
