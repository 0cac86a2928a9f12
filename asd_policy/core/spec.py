"""The `Sampler` protocol, and `SamplerSpec`: a sampler's options before there is a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, Self, TypedDict

import torch
from torch import Tensor

from asd_policy.core.capture.protocol import Capture
from asd_policy.core.chain import Chain
from asd_policy.core.denoiser import Denoiser
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.draws import Drawn, Draws
from asd_policy.core.noise import Noise
from asd_policy.core.sequential import OnRound
from asd_policy.core.window import Window
from asd_policy.errors import ConfigError


class Sampler(Protocol):
    """Draws samples: an AsdSampler or a PlainSampler."""

    @property
    def num_steps(self) -> int:
        """K, the number of steps of a sample."""
        ...

    def rows(self, due: int, batch_size: int) -> int:
        """How many samples to draw when `due` of a batch are wanted; see `AsdSampler.rows`."""
        ...

    def launch(
        self,
        batch_size: int,
        cond: Tensor | None,
        generator: Noise,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Drawn:
        """As `draw`, without waiting for the result; see `AsdSampler.launch`."""
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
    """A sampler's options: a frozen dataclass, one field for each option."""

    name: ClassVar[str]
    """The name in SAMPLERS."""

    form: ClassVar[str]
    """The command-line form, such as "ddim[:STEPS[:CAPTURE]]"."""

    @property
    def capture(self) -> str | Capture:
        """The sampler's capture: a name in CAPTURES, or a capture."""
        ...

    @property
    def label(self) -> str:
        """The spec as command-line text."""
        ...

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """Read the spec from the colon-separated words after the name.

        Raises:
            ConfigError: on words that do not fit `form`.
        """
        ...

    def build(
        self,
        denoiser: Denoiser,
        schedule: Chain,
        event_shape: Sequence[int],
        device: torch.device | str | None = None,
    ) -> Sampler:
        """Make the sampler for a denoiser of samples of shape `event_shape`; `device` as in `AsdSampler`.

        Raises:
            ConfigError: on options that do not fit the schedule.
        """
        ...


class SamplerOptions(TypedDict, total=False):
    """The keyword options of this package's samplers. Each sampler takes those that are fields of its spec."""

    draft: str | Draft
    window: Window
    capture: str | Capture
    num_steps: int | None
    eta: float | None
    use_clipped_model_output: bool | None
    set_alpha_to_one: bool | None


def read_words(words: Sequence[str], **readers: Callable[[str], Any]) -> dict[str, Any]:
    """Read the options from the words, in the order of `readers`; trailing words may be missing.

    Raises:
        ConfigError: if there are more words than readers.
    """
    if len(words) > len(readers):
        raise ConfigError(f"got {len(words)} words after the name, {', '.join(map(repr, words))}")
    return {name: read(word) for (name, read), word in zip(readers.items(), words, strict=False)}


def read_count(word: str) -> int:
    """A positive number in ASCII digits. (`str.isdigit` and `int` also accept superscripts, underscores and spaces.)

    Raises:
        ConfigError: on anything else.
    """
    if re.fullmatch("[1-9][0-9]{0,8}", word) is None:
        raise ConfigError(f"got {word!r:.80} in place of a positive number")
    return int(word)


def read_window(word: str) -> Window:
    """A positive number, "all" for every step, or "auto" for calibrated windows.

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
    """The window as command-line text; "table" for a table of windows, which has no such form."""
    if window is None:
        return "all"
    return str(window) if isinstance(window, int | str) else "table"


def object_word(value: str | object) -> str:
    """The name of a draft or capture, or the class name of an object passed in its place."""
    return value if isinstance(value, str) else type(value).__name__


def label_of(spec: SamplerSpec, *words: str) -> str:
    """The name, the words and the capture unless it is "eager", joined by colons."""
    capture = object_word(spec.capture)
    return ":".join([spec.name, *words, *([] if capture == "eager" else [capture])])


def options_word(**options: object) -> str:
    """The options that are not None and have no form on the command line, as ",name=value" each."""
    return "".join(f",{name}={value}" for name, value in options.items() if value is not None)
