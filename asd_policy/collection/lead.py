"""A policy that acts first in a demonstration until the expert takes over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from asd_policy.errors import ConfigError
from envs.spec import TaskSpec

TAKEOVER_STREAM = 3
"""The episode's random stream that draws the step of the takeover."""


class LeadPolicy(Protocol):
    """The methods used of the policy; `asd_policy.DiffusionPolicy` has them."""

    def reset(self, *, seed: int) -> None: ...

    def act(self, obs: dict[str, Any]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Lead:
    """The policy that acts first, and the first and last step at which the expert may take over.

    As in HG-DAgger (Kelly et al. 2019, https://arxiv.org/abs/1810.02890), the expert demonstrates from the states that
    the policy reaches. Here the step of the takeover is drawn uniformly.
    """

    policy: Path
    takeover: tuple[int, int]

    def check(self, task: TaskSpec) -> None:
        """Raise ConfigError unless the policy is for this task, and CheckpointError if it cannot be read."""
        from asd_policy.importers.registry import read_checkpoint  # here: it loads torch, which takes seconds

        check_takeover(self.takeover, task)
        env_id = read_checkpoint(self.policy).config.env_id
        if env_id != task.env_id:
            raise ConfigError(f"{self.policy} is a policy for {env_id}; expected one for {task.env_id}.")

    def load(self) -> LeadPolicy:
        """Load the policy with the fastest sampler, because only the states that it reaches matter here."""
        import torch

        from asd_policy.importers import load_policy

        torch.set_num_threads(1)
        policy: LeadPolicy = load_policy(self.policy, sampler="ddim")
        return policy

    def act(
        self, policy: LeadPolicy, observe: Callable[[], dict[str, Any]], seed: int
    ) -> Iterator[NDArray[np.float32]]:
        """The policy's actions until the expert takes over.

        Args:
            policy: from `load`.
            observe: returns the environment's present observation.
            seed: the episode's seed. It determines the policy's noise and the step of the takeover.
        """
        policy.reset(seed=seed)
        for _ in range(np.random.default_rng([seed, TAKEOVER_STREAM]).integers(*self.takeover, endpoint=True)):
            yield policy.act(observe())


def check_takeover(takeover: tuple[int, int], task: TaskSpec) -> None:
    """Raise ConfigError unless these are steps of the task's episodes, in order."""
    first, last = takeover
    if not 0 <= first <= last < task.horizon:
        raise ConfigError(
            f"Got --takeover {first} {last}; expected two steps of an episode (0 to {task.horizon - 1}), in order."
        )
