"""The settings of a collection of demonstrations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from asd_policy.collection.lead import Lead
from asd_policy.errors import ConfigError, UnknownNameError
from envs.spec import ACTIONS, Exploration, TaskSpec
from envs.tasks import TASKS

FIRST_EVALUATION_SEED = 100_000
"""Evaluation uses the seeds from here on, demonstrations use those below."""


@dataclass(frozen=True)
class Collection:
    """The settings that determine the content of a store of demonstrations, except their number.

    Attributes:
        task: the task, demonstrated by its expert.
        exploration: the disturbances of the expert.
        actions: kind of the stored actions, a key of `envs.tasks.ACTIONS`.
        lead: the policy that acts first; None lets the expert act from the start.
        seed_start: first seed to try.

    Raises:
        ConfigError: on invalid values, or values that do not fit the task.
        CheckpointError: if the policy that acts first cannot be read.
    """

    task: TaskSpec
    exploration: Exploration
    actions: str = "delta"
    lead: Lead | None = None
    seed_start: int = 0

    def __post_init__(self) -> None:
        if self.actions not in ACTIONS:
            raise UnknownNameError("kind of actions", self.actions, ACTIONS)
        if self.task.expert is None:
            have = ", ".join(name for name, task in TASKS.items() if task.expert)
            raise ConfigError(f"Task {self.task.name!r} has no expert that could demonstrate it; these have: {have}.")
        if not 0 <= self.seed_start < FIRST_EVALUATION_SEED:
            raise ConfigError(
                f"--seed-start {self.seed_start} is outside 0..{FIRST_EVALUATION_SEED - 1}: "
                f"the seeds from {FIRST_EVALUATION_SEED} on are kept for evaluation."
            )
        check_exploration(self.exploration, self.task)
        if self.lead is not None:
            self.lead.check(self.task)
            if self.actions != "delta":
                raise ConfigError("A policy's actions are stored as it gives them: leave --actions out.")

    @property
    def env_id(self) -> str:
        """The gymnasium id of the environment that takes the stored actions."""
        return self.task.variant(self.actions)

    @property
    def attributes(self) -> dict[str, Any]:
        """These settings as a store's attributes."""
        attributes = {"env_id": self.env_id, **asdict(self.exploration), "seed_start": self.seed_start}
        if self.lead is not None:
            attributes |= {"policy": str(self.lead.policy), "takeover": list(self.lead.takeover)}
        return attributes


def check_exploration(exploration: Exploration, task: TaskSpec) -> None:
    """Raise ConfigError unless the task's expert can be disturbed with these settings."""
    values = asdict(exploration)
    probabilities = [value for name, value in values.items() if name != "noise"]
    if not (0.0 <= exploration.noise < np.inf and all(0.0 <= p <= 1.0 for p in probabilities)):
        got = ", ".join(f"--{name} {value}" for name, value in values.items())
        raise ConfigError(f"Got {got}; expected a noise of at least 0, and probabilities for the others.")
    if exploration.misses and task.misses is None:
        have = ", ".join(name for name, other in TASKS.items() if other.misses)
        raise ConfigError(f"--misses: {task.name} cannot be led past its goal; {have} can.")
