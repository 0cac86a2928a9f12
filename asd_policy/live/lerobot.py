"""lerobot's DiffusionPolicy (https://github.com/huggingface/lerobot): `DiffusionModel.conditional_sample`."""

from __future__ import annotations

from typing import Any, Self

from torch import Generator, Tensor

from asd_policy.errors import ConfigError
from asd_policy.live.protocol import Replacement, has, parameters_of
from asd_policy.live.sampling import LiveSampler, Request

ACTION = "action"  # the queue of planned actions


class LeRobotLoop:
    """The loop of a lerobot DiffusionPolicy.

    `select_action` asks for a chunk when its queue of actions is empty: `n_action_steps` steps after the chunk before,
    which warm-starts it. A chunk that the user asks for with `predict_action_chunk` starts cold: how many steps of the
    one before were executed is unknown.
    """

    def __init__(self, policy: Any, sampler: LiveSampler):
        self._policy, self._sampler = policy, sampler
        self._select_action = policy.select_action
        self._selecting = False
        self._episode: object = None  # the queues of the last chunk's episode; `reset` makes new ones

    @classmethod
    def find(cls, policy: Any, sampler: LiveSampler) -> Self | None:
        """As `Loop.find`."""
        if not has(policy, "diffusion", "select_action", "predict_action_chunk", "_queues", "config"):
            return None
        model = policy.diffusion
        if not has(model, "unet", "noise_scheduler", "num_inference_steps", "conditional_sample"):
            return None
        wanted = {"batch_size", "global_cond", "generator"}
        found = parameters_of(model.conditional_sample) >= wanted and "global_cond" in parameters_of(model.unet)
        return cls(policy, sampler) if found else None

    def owners(self) -> list[Any]:
        """As `Loop.owners`."""
        return [self._policy]

    def replacements(self) -> list[Replacement]:
        """As `Loop.replacements`."""
        return [
            Replacement(self._policy.diffusion, "conditional_sample", self.conditional_sample),
            Replacement(self._policy, "select_action", self.select_action),
        ]

    def check_ready(self) -> None:
        """As `Loop.check_ready`."""
        if self._policy.training:
            raise ConfigError("The policy is in training mode: call its eval() first.")
        planned = len((self._policy._queues or {}).get(ACTION, ()))
        if planned:
            raise ConfigError(f"The policy is within a chunk, with {planned} actions left: call its reset() first.")

    def prepare(self) -> None:
        """As `Loop.prepare`."""
        model = self._policy.diffusion
        self._sampler.check(model.unet, model.noise_scheduler, model.num_inference_steps)

    def select_action(self, *args: Any, **kwargs: Any) -> Tensor:
        """lerobot's own `select_action`; tells `conditional_sample` that it is the caller."""
        self._selecting = True
        try:
            action: Tensor = self._select_action(*args, **kwargs)
        finally:
            self._selecting = False
        return action

    def conditional_sample(
        self,
        batch_size: int,
        global_cond: Tensor | None = None,
        generator: Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """In place of lerobot's: chunks (B, horizon, A). `noise` (B, horizon, A) is where the chain starts."""
        policy, model = self._policy, self._policy.diffusion
        if policy.training:
            raise ConfigError("The policy is in training mode: call its eval() before it acts.")
        shape = (batch_size, policy.config.horizon, policy.config.action_feature.shape[0])
        if noise is not None and noise.shape != shape:
            raise ConfigError(f"noise has shape {tuple(noise.shape)}; expected {shape}.")
        conditions = {} if global_cond is None else {"global_cond": global_cond}
        request = Request(
            net=model.unet,
            scheduler=model.noise_scheduler,
            num_steps=model.num_inference_steps,
            shape=shape,
            conditions=conditions,
            start=noise,
            generator=generator,
        )
        if not self._selecting:
            return self._sampler.draw(request, keep=False)
        follows = self._episode is policy._queues
        chunks = self._sampler.draw(request, policy.config.n_action_steps if follows else None)
        self._episode = policy._queues
        return chunks
