"""The samplers a policy can be run with, by name, behind one call."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from asd_policy.core import (
    DRAFTS,
    AsdSampler,
    Denoiser,
    Draws,
    Noise,
    OnRound,
    SampleStats,
    Schedule,
    sample_ddim,
    sample_ddpm,
)
from asd_policy.core.capture import CAPTURES
from asd_policy.core.sequential import check_eta
from asd_policy.errors import ConfigError, UnknownNameError


class ChunkSampler(Protocol):
    """Whatever draws chunks: an AsdSampler, or a plain sampler dressed as one."""

    @property
    def num_steps(self) -> int:
        """The steps of a sample."""
        ...

    @property
    def fixed_batch(self) -> bool:
        """Whether every new batch size costs a capture."""
        ...

    def draw(
        self,
        batch_size: int,
        cond: Tensor | None,
        generator: Noise,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Draws:
        """cond (B, ...) or None, warm (B, K, *E) or None -> chunks (B, *E) and what they cost; see AsdSampler.draw."""
        ...


OPTIONS: Mapping[str, tuple[str, ...]] = {
    "asd": ("draft", "window", "capture"),
    "ddpm": ("capture",),
    "ddim": ("num_steps", "eta", "use_clipped_model_output", "set_alpha_to_one"),
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
        return AsdSampler(denoiser, schedule, event_shape, **options)
    if name == "ddpm" and options.get("capture", "eager") != "eager":
        return CapturedDdpm(AsdSampler(denoiser, schedule, event_shape, draft="reuse", window=1, **options))
    if name == "ddpm":
        return Sequential(partial(sample_ddpm, denoiser, schedule, event_shape), schedule.num_steps)
    options.setdefault("num_steps", 10)
    schedule.with_num_steps(options["num_steps"])  # these refuse now what would fail at the first chunk
    check_eta(options.get("eta", 0.0))
    return Sequential(partial(sample_ddim, denoiser, schedule, event_shape, **options), options["num_steps"])


def _no_drafts(num_steps: int) -> Tensor:
    """(K,) the acceptance of a sampler without drafts; on the CPU, whatever torch's default device."""
    return torch.zeros(num_steps, dtype=torch.float32, device="cpu")


@dataclass(frozen=True)
class Sequential:
    """A plain sampler, telling what it cost as AsdSampler does: one step per round, and no draft to keep."""

    sample: Callable[..., Tensor]
    num_steps: int
    fixed_batch: bool = False

    def draw(
        self,
        batch_size: int,
        cond: Tensor | None,
        generator: Noise,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Draws:
        """As `ChunkSampler.draw`; there is nothing to start warm."""
        x = self.sample(batch_size, cond, generator, on_round=on_round)
        every_step = torch.full((batch_size,), self.num_steps, device="cpu")
        ones = torch.ones(self.num_steps, batch_size, dtype=torch.int64, device="cpu")
        stats = SampleStats(every_step, every_step, advance=ones, acceptance=_no_drafts(self.num_steps))
        return Draws(x, stats, predictions=None)


@dataclass(frozen=True)
class CapturedDdpm:
    """The plain DDPM as a captured loop: with a window of one step every round is one sequential step.

    There is no window to choose and no draft to report.
    """

    loop: AsdSampler

    @property
    def num_steps(self) -> int:
        """The steps of a sample."""
        return self.loop.num_steps

    @property
    def fixed_batch(self) -> bool:
        """Whether every new batch size costs a capture."""
        return self.loop.fixed_batch

    def draw(
        self,
        batch_size: int,
        cond: Tensor | None,
        generator: Noise,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Draws:
        """As `ChunkSampler.draw`; there is nothing to start warm."""
        x, stats, _ = self.loop.draw(batch_size, cond, generator, on_round=on_round)
        return Draws(x, replace(stats, acceptance=_no_drafts(self.num_steps)), predictions=None)


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler as command lines write it: `ddpm`, `ddpm:compile`, `ddim:10`, `asd:reuse:24`, `asd:path:auto`."""

    label: str
    name: str
    options: Mapping[str, Any]

    @staticmethod
    def parse(text: str) -> SamplerSpec:
        """Read a spec.

        Raises:
            ConfigError: with the forms that exist, or the drafts or captures.
        """
        name, *rest = text.split(":")
        if name == "ddpm" and len(rest) <= 1:
            return SamplerSpec(text, name, _named("ddpm", rest))
        if name == "ddim" and len(rest) <= 1 and all(map(_is_count, rest)):
            return SamplerSpec(text, name, {"num_steps": int(rest[0])} if rest else {})
        if name == "asd" and len(rest) <= 3 and all(map(_is_window, rest[1:2])):
            options = _named("asd", rest)
            if "window" in options:
                window = options["window"]
                options["window"] = int(window) if _is_count(window) else {"all": None, "auto": "auto"}[window]
            return SamplerSpec(text, name, options)
        raise ConfigError(
            f"Unknown sampler {text!r}; expected ddpm[:CAPTURE], ddim[:STEPS] or asd[:DRAFT[:WINDOW[:CAPTURE]]], "
            "STEPS a positive number, WINDOW a positive number, 'all' or 'auto'."
        )


def _named(sampler: str, values: Sequence[str]) -> dict[str, Any]:
    """A sampler's options in their order, with drafts and captures that exist."""
    options: dict[str, Any] = dict(zip(OPTIONS[sampler], values, strict=False))
    for option, available in (("draft", DRAFTS), ("capture", CAPTURES)):
        if option in options and options[option] not in available:
            raise UnknownNameError(option, options[option], available)
    return options


def _is_window(text: str) -> bool:
    return _is_count(text) or text in ("all", "auto")


def _is_count(text: str) -> bool:
    """A positive number in ASCII digits; `str.isdigit` and `int` take superscripts, underscores and spaces too."""
    return re.fullmatch("[1-9][0-9]{0,8}", text) is not None
