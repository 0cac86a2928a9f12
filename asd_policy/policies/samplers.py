"""The samplers a policy can be run with, by name, behind one call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from asd_policy.core import (
    DRAFTS,
    AsdSampler,
    Denoiser,
    Draws,
    Noise,
    OnRound,
    Schedule,
    ddim_sampler,
    ddpm_sampler,
)
from asd_policy.core.capture import CAPTURES
from asd_policy.core.draws import Drawn
from asd_policy.errors import ConfigError, UnknownNameError


class ChunkSampler(Protocol):
    """Whatever draws chunks: an AsdSampler or a PlainSampler."""

    @property
    def num_steps(self) -> int:
        """The steps of a sample."""
        ...

    def rows(self, due: int, batch_size: int) -> int:
        """How many chunks to draw where `due` of a batch are wanted; see AsdSampler.rows."""
        ...

    def launch(
        self,
        batch_size: int,
        cond: Tensor | None,
        generator: Noise,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Drawn:
        """As `draw`, without reading what is drawn; see AsdSampler.launch."""
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
    "ddim": ("num_steps", "eta", "capture", "use_clipped_model_output", "set_alpha_to_one"),
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
    if name == "ddpm":
        return ddpm_sampler(denoiser, schedule, event_shape, **options)
    return ddim_sampler(denoiser, schedule, event_shape, **options)


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler as command lines write it: `ddpm`, `ddim:10:compile`, `asd:reuse:24`, `asd:path:auto`."""

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
            return SamplerSpec(text, name, _named(rest, ("capture",)))
        if name == "ddim" and len(rest) <= 2 and all(map(_is_count, rest[:1])):
            steps = {"num_steps": int(rest[0])} if rest else {}
            return SamplerSpec(text, name, steps | _named(rest[1:], ("capture",)))
        if name == "asd" and len(rest) <= 3 and all(map(_is_window, rest[1:2])):
            options = _named(rest, ("draft", "window", "capture"))
            if "window" in options:
                window = options["window"]
                options["window"] = int(window) if _is_count(window) else {"all": None, "auto": "auto"}[window]
            return SamplerSpec(text, name, options)
        raise ConfigError(
            f"Unknown sampler {text!r}; expected ddpm[:CAPTURE], ddim[:STEPS[:CAPTURE]] or "
            "asd[:DRAFT[:WINDOW[:CAPTURE]]], STEPS a positive number, WINDOW a positive number, 'all' or 'auto'."
        )


def _named(values: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """A sampler's options in the order of `names`, with drafts and captures that exist."""
    options: dict[str, Any] = dict(zip(names, values, strict=False))
    for option, available in (("draft", DRAFTS), ("capture", CAPTURES)):
        if option in options and options[option] not in available:
            raise UnknownNameError(option, options[option], available)
    return options


def _is_window(text: str) -> bool:
    return _is_count(text) or text in ("all", "auto")


def _is_count(text: str) -> bool:
    """A positive number in ASCII digits; `str.isdigit` and `int` take superscripts, underscores and spaces too."""
    return re.fullmatch("[1-9][0-9]{0,8}", text) is not None
