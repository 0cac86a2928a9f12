"""Fits a run's first guess to its demonstrations, once its weights are final."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asd_policy.data.windows import TrainingWindows
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.guess import fit_guess
from asd_policy.policies.guess_file import save_guess
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.training.loop import Trainer

FILE = "guess.safetensors"
MAX_WINDOWS = 30_000
"""Most windows of a run that its guess is fitted to."""
ENCODED = 256
"""Windows whose condition is computed at a time."""


def keep_first_guess(
    trainer: Trainer, config: PolicyConfig, windows: TrainingWindows, normalizer: LinearNormalizer, out: Path
) -> Path:
    """Fit the first guess of the averaged network to the demonstrations, and write it to the run's directory `out`.

    The weights, the demonstrations and the settings' seed determine it, so a resumed run writes the same one.

    Args:
        windows: the training windows, on the trainer's device.
        normalizer: as for `policy_trainer`.

    Returns:
        The file.

    Raises:
        ConfigError: if there are too few windows.
        CheckpointError: if the file cannot be written.
    """
    averaged: Any = trainer.ema.module
    cond, chunks = conditions(config, windows, normalizer, averaged["encoders"], MAX_WINDOWS)
    guess = fit_guess(cond, chunks, trainer.settings.seed)
    save_guess(out / FILE, guess, averaged["model"], len(cond))
    return out / FILE


@torch.no_grad()
def conditions(
    config: PolicyConfig,
    windows: TrainingWindows,
    normalizer: LinearNormalizer,
    encoders: torch.nn.ModuleDict,
    most: int,
) -> tuple[Tensor, Tensor]:
    """The conditions (N, D) and normalised chunks (N, H, A) of at most `most` windows, evenly spaced.

    Args:
        encoders: image encoders in evaluation mode: images are cropped as they are when the policy acts.
    """
    count = min(len(windows), most)
    chosen = torch.linspace(0, len(windows) - 1, count, dtype=torch.float64).round().long().to(windows.starts.device)
    conds, chunks = [], []
    for indices in chosen.split(ENCODED):
        obs, actions = windows.gather(indices)
        conds.append(normalizer.global_condition(obs, config.obs_keys, encoders, config.octaves))
        chunks.append(actions)
    return torch.cat(conds), torch.cat(chunks)
