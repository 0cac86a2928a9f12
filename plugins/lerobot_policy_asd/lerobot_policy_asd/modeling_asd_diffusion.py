"""The policy of `--policy.type=asd_diffusion`: lerobot's diffusion policy, sampled by asd-policy."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict

import torch
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.utils import populate_queues
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_IMAGES, OBS_STATE
from torch import Tensor

from asd_policy import accelerate
from asd_policy.errors import ObservationError
from lerobot_policy_asd.configuration_asd_diffusion import AsdDiffusionConfig
from lerobot_policy_asd.options import POLICY_TYPE

Batch = dict[str, Tensor]


class AsdDiffusionPolicy(DiffusionPolicy):  # type: ignore[misc]  # lerobot brings no types
    """lerobot's DiffusionPolicy whose chunks come from the same law in few sequential network calls.

    Weights, training, normalisation and devices are lerobot's. `asd.stats` tells the cost of the last chunk.
    """

    config_class = AsdDiffusionConfig
    name = POLICY_TYPE
    _queues: dict[str, deque[Tensor]]

    @torch.no_grad()
    def select_action(self, batch: Batch, noise: Tensor | None = None) -> Tensor:
        """The next action (B, A). The observations are of one step: state (B, D), images (B, C, H, W).

        Raises:
            ObservationError: on a missing feature, a whole history, or a batch of another size than the history's.
        """
        if self._accelerate():
            return self.select_action(batch, noise=noise)  # which is another function now
        if not self._one_step(batch):
            raise ObservationError(f"{OBS_STATE} has shape {tuple(batch[OBS_STATE].shape)}; expected one step, (B, D).")
        observed = self._remember(batch)
        if not self._queues[ACTION]:
            actions = super().predict_action_chunk(observed, noise=noise)
            self._queues[ACTION].extend(actions.transpose(0, 1))
        return self._queues[ACTION].popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: Batch, noise: Tensor | None = None) -> Tensor:
        """A chunk of actions (B, n_action_steps, A), the first one for the latest observation.

        Observations of one step, state (B, D) and images (B, C, H, W), join the history, as in `select_action`; `reset`
        forgets it. Whole histories, state (B, n_obs_steps, D) and images (B, n_obs_steps, C, H, W), stand for
        themselves and leave the history alone.

        Raises:
            ObservationError: on a missing feature, a history of another length, or a batch of another size than the
                history's.
        """
        self._accelerate()
        if self._one_step(batch):
            actions: Tensor = super().predict_action_chunk(self._remember(batch), noise=noise)
        else:
            actions = self.diffusion.generate_actions(self._joined(batch), noise=noise)
        return actions

    def _accelerate(self) -> bool:
        """Replace the sampling loop unless that is done. Returns whether it was replaced now.

        This happens before the first chunk, because the weights are loaded and on their device only then.
        """
        if getattr(self, "asd", None) is not None:
            return False
        accelerate(self, **asdict(self.config.sampler_fields()))
        return True

    def _one_step(self, batch: Batch) -> bool:
        """Whether the observations are of one step. Raises ObservationError if they are no history of full length."""
        self._check_present(batch)
        shape, steps = tuple(batch[OBS_STATE].shape), self.config.n_obs_steps
        if len(shape) == 2:
            return True
        if len(shape) == 3 and shape[1] == steps:
            return False
        raise ObservationError(f"{OBS_STATE} has shape {shape}; expected (B, D) or a history (B, {steps}, D).")

    def _remember(self, batch: Batch) -> Batch:
        """Add the observations of one step to the history. Returns them, with the cameras joined."""
        observed = self._joined(batch)
        for key, value in observed.items():
            held = self._queues[key][-1] if self._queues[key] else value
            if held.shape != value.shape:
                raise ObservationError(
                    f"{key} has shape {tuple(value.shape)}; expected {tuple(held.shape)}, as in the history. Call "
                    "reset() before another batch of episodes."
                )
        self._queues = populate_queues(self._queues, observed)
        return observed

    def _joined(self, batch: Batch) -> Batch:
        """The observations that the network uses, with the images of all cameras in one tensor (..., N, C, H, W)."""
        observed = {key: batch[key] for key in (OBS_STATE, OBS_ENV_STATE) if key in self._queues}
        if self.config.image_features:
            observed[OBS_IMAGES] = torch.stack([batch[key] for key in self.config.image_features], dim=-4)
        return observed

    def _check_present(self, batch: Batch) -> None:
        environment = [OBS_ENV_STATE] if self.config.env_state_feature else []
        expected = [OBS_STATE, *self.config.image_features, *environment]
        missing = [key for key in expected if key not in batch]
        if missing:
            raise ObservationError(
                f"Observations lack {', '.join(missing)}; expected {', '.join(expected)}, got "
                f"{', '.join(batch) or 'none'}."
            )
