"""The samplers a policy can be run with, by name, behind one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from asd_policy.core import AsdSampler, Denoiser, Draws, SampleStats, Schedule, sample_ddim, sample_ddpm
from asd_policy.errors import ConfigError, UnknownNameError

ChunkSampler = Callable[[int, Tensor, Sequence[Generator], Tensor | None], Draws]
"""(batch_size, cond (B, ...), a generator per chunk, warm (B, K, *E) or None) -> chunks (B, *E) and what they cost."""

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "asd": ("draft", "window", "capture"),
    "ddpm": (),
    "ddim": ("num_steps", "eta"),
}
"""Sampler -> the options it takes."""


def make_sampler(
    name: str, denoiser: Denoiser, schedule: Schedule, event_shape: tuple[int, ...], **options: Any
) -> ChunkSampler:
    """The sampler called `name`: "asd" (exact, few rounds), "ddpm" (exact, K rounds) or "ddim" (another law).

    Raises:
        ConfigError: on an unknown name or option; the message lists those that exist.
    """
    if name not in OPTIONS:
        raise UnknownNameError("sampler", name, OPTIONS)
    for option in options:
        if option not in OPTIONS[name]:
            raise UnknownNameError(f"option of sampler {name!r}", option, OPTIONS[name])
    if name == "asd":
        return AsdSampler(denoiser, schedule, event_shape, **options).draw
    if name == "ddpm":
        return _sequential(partial(sample_ddpm, denoiser, schedule, event_shape), schedule.num_steps)
    options.setdefault("num_steps", 10)
    schedule.with_num_steps(options["num_steps"])  # refuses now what would fail at the first chunk
    return _sequential(partial(sample_ddim, denoiser, schedule, event_shape, **options), options["num_steps"])


def _sequential(sample: Callable[[int, Tensor, Sequence[Generator]], Tensor], num_steps: int) -> ChunkSampler:
    """A plain sampler, telling what it cost as AsdSampler does: one step per round, and no draft to keep."""

    def draw(batch_size: int, cond: Tensor, generator: Sequence[Generator], warm: Tensor | None) -> Draws:
        x = sample(batch_size, cond, generator)
        every_step = torch.full((batch_size,), num_steps)
        ones = torch.ones(num_steps, batch_size, dtype=torch.int64)
        stats = SampleStats(every_step, every_step, advance=ones, acceptance=torch.zeros(num_steps))
        return Draws(x, stats, predictions=None)

    return draw


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler as command lines write it: `ddpm`, `ddim:10`, `asd:reuse:24`, `asd:frozen:all`."""

    label: str
    name: str
    options: Mapping[str, Any]

    @staticmethod
    def parse(text: str) -> SamplerSpec:
        """Read a spec.

        Raises:
            ConfigError: with the forms that exist.
        """
        name, *rest = text.split(":")
        match name, rest:
            case (("ddpm" | "asd" | "ddim"), []):
                return SamplerSpec(text, name, {})
            case "ddim", [steps] if steps.isdigit():
                return SamplerSpec(text, name, {"num_steps": int(steps)})
            case "asd", [draft]:
                return SamplerSpec(text, name, {"draft": draft})
            case "asd", [draft, window] if window.isdigit() or window == "all":
                return SamplerSpec(text, name, {"draft": draft, "window": None if window == "all" else int(window)})
        raise ConfigError(
            f"Unknown sampler {text!r}; expected ddpm, ddim[:STEPS] or asd[:DRAFT[:WINDOW]], WINDOW a number or 'all'."
        )
