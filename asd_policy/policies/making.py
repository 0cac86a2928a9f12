"""Makes policies from networks in memory; `asd_policy.load_policy` makes them from checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from asd_policy.core import SamplerOptions, SamplerSpec, as_spec
from asd_policy.policies.chunk_sampler import ChunkSampler
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.policies.guess import ChunkGuess, fitting
from asd_policy.policies.model import PolicyModel
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.policies.sampling import build_sampler
from asd_policy.policies.windows import WindowsFile


def make_policy(
    network: nn.Module,
    normalizer: LinearNormalizer,
    config: PolicyConfig,
    sampler: str | SamplerSpec = "asd",
    device: torch.device | str = "cpu",
    windows_file: Path | None = None,
    dtype: torch.dtype = torch.float32,
    encoders: nn.ModuleDict | None = None,
    guess: ChunkGuess | None = None,
    **options: Unpack[SamplerOptions],
) -> DiffusionPolicy:
    """Make a policy from networks in memory.

    Args:
        network, normalizer, config, device, dtype, encoders: as `PolicyModel`.
        sampler: a name ("asd", "ddpm", "ddim"), command-line text ("asd:path:16"), or a spec.
        windows_file: the file of calibrated windows, written by `calibrate` and read for `window="auto"`; None keeps
            them in memory.
        guess: a learned first guess for sampler="asd", from `fit_guess` or `load_guess`; None starts without one.
        options: sampler options. asd: `draft`, `window`, `capture`; ddpm: `capture`; ddim: `num_steps`, `eta`,
            `capture`, and `use_clipped_model_output` and `set_alpha_to_one` to override the config's. asd takes
            them too, to draw exactly from the law of DDIM with an `eta` above 0.

    Raises:
        ConfigError: on an unknown sampler or option, a device that this machine lacks, or a guess of other sizes.
    """
    model, spec = PolicyModel(network, normalizer, config, device, dtype, encoders), as_spec(sampler, **options)
    if guess is not None:
        guess = fitting(guess, config.global_cond_dim, model.event_shape).to(model.device)
    return DiffusionPolicy(ChunkSampler(model, build_sampler(model, spec), spec, WindowsFile(windows_file), guess))
