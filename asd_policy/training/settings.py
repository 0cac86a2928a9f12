"""The settings of a training run."""

import math
from dataclasses import dataclass

from asd_policy.errors import ConfigError


@dataclass(frozen=True)
class TrainSettings:
    """What decides the weights of a run, apart from the data and the policy's configuration.

    Attributes:
        steps: updates in the whole run; the learning rate follows a cosine down to zero over them.
        batch_size: windows per update.
        learning_rate: the peak, reached after `warmup_steps`.
        bfloat16: compute the network in bfloat16 (weights, optimizer and EMA stay float32).
        snapshot_every: updates between snapshots of the EMA.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 5e-4
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    max_grad_norm: float = 1.0
    bfloat16: bool = False
    snapshot_every: int = 5000
    log_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "snapshot_every", "log_every"):
            self._expect(name, is_count(getattr(self, name)), "at least 1")
        self._expect("warmup_steps", is_count(self.warmup_steps, least=0), "at least 0")
        self._expect("seed", is_count(self.seed, least=0), "at least 0")
        for name in ("learning_rate", "weight_decay"):
            self._expect(name, math.isfinite(getattr(self, name)) and getattr(self, name) >= 0, "a number, 0 or more")
        self._expect("max_grad_norm", self.max_grad_norm > 0, "above 0")

    def _expect(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected {expected}.")


def is_count(value: object, least: int = 1) -> bool:
    """Whether a value is an integer, `least` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2
