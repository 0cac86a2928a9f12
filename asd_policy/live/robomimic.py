"""robomimic's DiffusionPolicyUNet (https://github.com/ARISE-Initiative/robomimic), and the RolloutPolicy around it.

Its loop is in the middle of `_get_action_trajectory`, which encodes the observations before it and cuts the chunk after
it. That method runs as it is, with a network whose one call draws a whole chunk, and a scheduler of one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self

from torch import Tensor, nn

from asd_policy.errors import ConfigError
from asd_policy.live.protocol import Replacement, has, parameters_of
from asd_policy.live.sampling import LiveSampler, Request

NETWORK = "noise_pred_net"


class RobomimicLoop:
    """The loop of a robomimic DiffusionPolicyUNet.

    `get_action` asks for a chunk when its queue of actions is empty: `action_horizon` steps after the chunk before,
    which warm-starts it.
    """

    def __init__(self, policy: Any, around: list[Any], sampler: LiveSampler):
        self._policy, self._around, self._sampler = policy, around, sampler
        self._trajectory = policy._get_action_trajectory
        self._episode: object = None  # the action queue of the last chunk's episode; `reset` makes a new one

    @classmethod
    def find(cls, policy: Any, sampler: LiveSampler) -> Self | None:
        """As `Loop.find`; `policy` may be a RolloutPolicy."""
        around = []
        if has(policy, "policy", "start_episode"):
            around, policy = [policy], policy.policy
        if not has(policy, "_get_action_trajectory", "nets", "noise_scheduler", "algo_config", "action_queue"):
            return None
        networks = networks_of(policy)
        known = networks and all(parameters_of(net) >= {"sample", "timestep", "global_cond"} for _, net in networks)
        return cls(policy, around, sampler) if known else None

    def owners(self) -> list[Any]:
        """As `Loop.owners`."""
        return [self._policy, *self._around]

    def replacements(self) -> list[Replacement]:
        """As `Loop.replacements`."""
        return [Replacement(self._policy, "_get_action_trajectory", self.get_action_trajectory)]

    def check_ready(self) -> None:
        """As `Loop.check_ready`."""
        if self._policy.nets.training:
            raise ConfigError("The policy is in training mode: call its set_eval() first.")
        planned = len(self._policy.action_queue or ())
        if planned:
            raise ConfigError(f"The policy is within a chunk, with {planned} actions left: call its reset() first.")

    def prepare(self) -> None:
        """As `Loop.prepare`."""
        algo = self._policy.algo_config
        settings = algo.ddpm if algo.ddpm.enabled else algo.ddim
        for _, net in networks_of(self._policy):
            self._sampler.check(net, self._policy.noise_scheduler, settings.num_inference_timesteps)

    def get_action_trajectory(self, *args: Any, **kwargs: Any) -> Tensor:
        """robomimic's own `_get_action_trajectory` with its loop replaced: actions (B, action_horizon, A)."""
        with self._one_step():
            actions: Tensor = self._trajectory(*args, **kwargs)
        return actions

    @contextmanager
    def _one_step(self) -> Iterator[None]:
        """A context in which the networks draw whole chunks and the scheduler has one step."""
        policy, scheduler = self._policy, self._policy.noise_scheduler
        networks = networks_of(policy)
        policy.noise_scheduler = once = _OneStep()
        for nets, net in networks:
            nets[NETWORK] = _WholeChunk(self, net, scheduler, once)
        try:
            yield
        finally:
            policy.noise_scheduler = scheduler
            for nets, net in networks:
                nets[NETWORK] = net

    def draw(self, request: Request) -> Tensor:
        """A whole chunk (B, T, A). `request.start` is the noise that robomimic has drawn."""
        if self._sampler.has_own_generator:
            request = request._replace(start=None)
        queue = self._policy.action_queue
        follows = queue is not None and self._episode is queue
        chunks = self._sampler.draw(request, self._policy.algo_config.horizon.action_horizon if follows else None)
        self._episode = queue
        return chunks


class _OneStep:
    """In place of the scheduler: one step, whose result is the network's output."""

    timesteps = (0,)
    num_steps = 0

    def set_timesteps(self, num_inference_steps: int) -> None:
        self.num_steps = num_inference_steps

    def step(self, model_output: Tensor, timestep: int, sample: Tensor) -> SimpleNamespace:
        return SimpleNamespace(prev_sample=model_output)


class _WholeChunk(nn.Module):
    """In place of the noise predictor `net`: a call with pure noise returns a whole chunk."""

    def __init__(self, loop: RobomimicLoop, net: nn.Module, scheduler: Any, once: _OneStep):
        super().__init__()
        self.net = net
        self._loop, self._scheduler, self._once = loop, scheduler, once

    def forward(self, sample: Tensor, timestep: int, global_cond: Tensor | None = None) -> Tensor:
        batch_size, horizon, action_dim = sample.shape
        request = Request(
            net=self.net,
            scheduler=self._scheduler,
            num_steps=self._once.num_steps,
            shape=(batch_size, horizon, action_dim),
            conditions={} if global_cond is None else {"global_cond": global_cond},
            start=sample,
        )
        return self._loop.draw(request)


def networks_of(policy: Any) -> list[tuple[nn.ModuleDict, nn.Module]]:
    """The noise predictors, each with the dict it lies in: the trained one, and its average if there is one."""
    nets = [policy.nets, *([policy.ema_nets] if getattr(policy, "ema_nets", None) is not None else [])]
    try:
        return [(net["policy"], net["policy"][NETWORK]) for net in nets]
    except (KeyError, TypeError):
        return []
