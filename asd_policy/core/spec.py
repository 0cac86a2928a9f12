"""What a sampler is, and how it is described before there is a network to sample from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, Self, TypedDict

import torch
from torch import Tensor

from asd_policy.core.capture.protocol import Capture
from asd_policy.core.denoiser import Denoiser
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.draws import Drawn, Draws
from asd_policy.core.noise import Noise
from asd_policy.core.schedule import Schedule
from asd_policy.core.sequential import OnRound
from asd_policy.core.window import Window
from asd_policy.errors import ConfigError


class Sampler(Protocol):
    """Draws samples: an AsdSampler or a PlainSampler."""

    @property
    def num_steps(self) -> int:
        """K, the steps of a sample."""
        ...

    def rows(self, due: int, batch_size: int) -> int:
        """How many samples to draw where `due` of a batch are wanted; see `AsdSampler.rows`."""
        ...

    def launch(
        self,
        batch_size: int,
        cond: Tensor | None,
        generator: Noise,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Drawn:
        """As `draw`, without reading what is drawn; see `AsdSampler.launch`."""
        ...

    def draw(
        self,
        batch_size: int,
        cond: Tensor | None,
        generator: Noise,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Draws:
        """cond (B, ...) or None, warm (B, K, *E) or None -> samples (B, *E) and their cost; see `AsdSampler.draw`."""
        ...


class SamplerSpec(Protocol):
    """The description of a sampler: a frozen dataclass, whose fields are the sampler's options."""

    name: ClassVar[str]
    """The name in SAMPLERS."""

    form: ClassVar[str]
    """The form on a command line, such as "ddim[:STEPS[:CAPTURE]]"."""

    @property
    def capture(self) -> str | Capture:
        """How the sampler's loop is run: a name in CAPTURES, or a capture."""
        ...

    @property
    def label(self) -> str:
        """The description as a command line writes it."""
        ...

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """The spec of the words after the name, on a command line that separates them by colons.

        Raises:
            ConfigError: on words that do not fit `form`.
        """
        ...

    def build(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        event_shape: Sequence[int],
        device: torch.device | str | None = None,
    ) -> Sampler:
        """The sampler of a denoiser's samples, of shape `event_shape`; `device` as in `AsdSampler`.

        Raises:
            ConfigError: on options that do not fit the schedule.
        """
        ...


class SamplerOptions(TypedDict, total=False):
    """The options of the samplers of this package, by keyword; each sampler takes those that are fields of its spec."""

    draft: str | Draft
    window: Window
    capture: str | Capture
    num_steps: int
    eta: float
    use_clipped_model_output: bool | None
    set_alpha_to_one: bool | None


def read_words(words: Sequence[str], **readers: Callable[[str], Any]) -> dict[str, Any]:
    """The options that stand in a command line's words, in the order of `readers`; the last ones may be missing.

    Raises:
        ConfigError: if there are more words than readers.
    """
    if len(words) > len(readers):
        raise ConfigError(f"got {len(words)} words after the name, {', '.join(map(repr, words))}")
    return {name: read(word) for (name, read), word in zip(readers.items(), words, strict=False)}


def read_count(word: str) -> int:
    """A positive number in ASCII digits; `str.isdigit` and `int` take superscripts, underscores and spaces too.

    Raises:
        ConfigError: on anything else.
    """
    if re.fullmatch("[1-9][0-9]{0,8}", word) is None:
        raise ConfigError(f"got {word!r:.80} in place of a positive number")
    return int(word)


def read_window(word: str) -> Window:
    """A positive number, "all" for every step, or "auto" for the calibrated windows.

    Raises:
        ConfigError: on anything else.
    """
    if word == "all":
        return None
    if word == "auto":
        return "auto"
    try:
        return read_count(word)
    except ConfigError as error:
        raise ConfigError(f"{error}, 'all' or 'auto'") from None


def window_word(window: Window) -> str:
    """The window as a command line writes it; a table of windows, which has no such form, is "table"."""
    if window is None:
        return "all"
    return str(window) if isinstance(window, int | str) else "table"


def object_word(value: str | object) -> str:
    """The name of a draft or capture, or the name of the class of one that was passed as an object."""
    return value if isinstance(value, str) else type(value).__name__


def label_of(spec: SamplerSpec, *words: str) -> str:
    """The name, the words and the capture, which is left out if it is "eager", separated by colons."""
    capture = object_word(spec.capture)
    return ":".join([spec.name, *words, *([] if capture == "eager" else [capture])])
