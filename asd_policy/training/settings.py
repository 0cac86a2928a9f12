"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from asd_policy.checks import expect, is_count


@dataclass(frozen=True)
class TrainSettings:
    """Hyperparameters of a run. With the code, data and policy configuration they determine the weights.

    Attributes:
        steps: number of updates. The learning rate falls along a cosine to zero at the last one.
        batch_size: windows in a batch.
        learning_rate: the peak, reached after `warmup_steps`.
        weight_decay: AdamW's weight decay.
        warmup_steps: number of updates with a linearly rising learning rate.
        max_grad_norm: gradients are clipped to this norm.
        bfloat16: compute the network in bfloat16 (weights, optimizer and EMA stay float32).
        float16: compute the network in float16, with a scaled loss. For GPUs that have no bfloat16.
        snapshot_every: updates between snapshots of the EMA.
        log_every: updates between lines of log.jsonl.
        seed: the seed of the initial weights, the batches and the noise.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 5e-4
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    max_grad_norm: float = 1.0
    bfloat16: bool = False
    float16: bool = False
    snapshot_every: int = 5000
    log_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "snapshot_every", "log_every"):
            expect(is_count(getattr(self, name)), name, getattr(self, name), "at least 1")
        for name in ("warmup_steps", "seed"):
            expect(is_count(getattr(self, name), least=0), name, getattr(self, name), "at least 0")
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            expect(math.isfinite(value) and value >= 0, name, value, "a number, 0 or more")
        expect(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "above 0")
        expect(not (self.bfloat16 and self.float16), "float16", True, "one of bfloat16 and float16")

    def to_dict(self) -> dict[str, Any]:
        """JSON values. `float16` is left out if it is false, because earlier versions do not know it."""
        return {name: value for name, value in asdict(self).items() if value or name != "float16"}

    @property
    def precision(self) -> torch.dtype:
        """The type that the network is computed in."""
        return torch.bfloat16 if self.bfloat16 else torch.float16 if self.float16 else torch.float32


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2
