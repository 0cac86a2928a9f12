"""AsdSampler: exact draws of a Gaussian chain in few sequential network calls."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from asd_policy.core.calibration import Calibration, calibrate
from asd_policy.core.capture import make_capture
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.chain import Chain, as_chain
from asd_policy.core.chains.ddim import as_schedule, check_noisy, check_switches, ddim_chain, unclipped_ddim
from asd_policy.core.checks import as_device, as_event_shape, check_condition
from asd_policy.core.denoiser import Denoiser, check_timesteps, device_of, prepare
from asd_policy.core.drafts import make_draft
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.draws import Drawn, Draws, SampleStats
from asd_policy.core.noise import Noise, NoiseTape
from asd_policy.core.sequential import OnRound
from asd_policy.core.spec import label_of, object_word, options_word, read_window, read_words, window_word
from asd_policy.core.speculative import Batch, begin
from asd_policy.core.transfer import moved
from asd_policy.core.window import Window, WindowTable, as_windows, shortened
from asd_policy.errors import ConfigError


class AsdSampler:
    """Draws exactly from the law of `sample_chain`, for any draft and window.

    Args:
        denoiser: (x (N, *E), t (N,) timesteps of the chain, cond (N, ...) | None) -> clean sample (N, *E).
        schedule: the chain: a DDPM's Schedule, or a GaussianChain.
        event_shape: E, the shape of one sample.
        draft: "frozen" (the paper's), "reuse", "path", another name in DRAFTS, or a `Draft`; see docs/algorithm.md.
        window: how many steps a round speculates (the paper's theta); None for all K (its ASD-infinity); a tuple with
            a window for each frontier; or "auto". A sampler with "auto" cannot draw: `calibrate` measures the windows,
            and `with_windows` returns a sampler that uses them.
        capture: how the loop of rounds is run: "eager" (a Python loop), "compile" (the same with compiled parts),
            "cuda_graph" (CUDA graphs of compiled parts), another name in CAPTURES, or a `Capture`.
        device: the device for a denoiser that is a plain function; a module is sampled on its own device.

    Raises:
        ConfigError: on a window below 1, an unknown name (the message lists the known ones), a draft or capture that
            lacks members of its protocol (the message names them), timesteps that the denoiser does not take, or a
            device that this machine lacks.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Chain,
        event_shape: Sequence[int],
        draft: str | Draft = "path",
        window: Window = 24,
        capture: str | Capture = "eager",
        device: torch.device | str | None = None,
    ):
        self.denoiser = denoiser
        self._schedule = schedule
        self.event_shape = as_event_shape(event_shape)
        self._device = None if device is None else as_device(device)
        chain = as_chain(schedule)
        check_timesteps(denoiser, chain.timesteps)
        self._constants: tuple[Tensor, ...] = (chain.a.float(), chain.b.float(), chain.s.float(), chain.timesteps)
        self._start_std = chain.start_std
        self.draft = make_draft(draft)
        self.windows = _table(window, chain.num_steps)
        self.capture = make_capture(capture)

    @property
    def schedule(self) -> Chain:
        """The chain. Read-only: another one needs another sampler."""
        return self._schedule

    @property
    def num_steps(self) -> int:
        """K, the number of steps of a sample."""
        return self.schedule.num_steps

    def rows(self, due: int, batch_size: int) -> int:
        """How many samples to draw when `due` of a batch are wanted, so that nothing is captured or compiled anew."""
        return self.capture.rows(due, batch_size)

    def __call__(
        self,
        batch_size: int = 1,
        cond: Tensor | None = None,
        generator: Noise = None,
    ) -> tuple[Tensor, SampleStats]:
        """Draw `batch_size` samples.

        Args:
            cond: (B, ...) or None, passed to the denoiser.
            generator: one for the batch or one per sample. `sample_chain` draws the same tape from the same generator.

        Returns:
            x (B, *event_shape), float32, on the sampler's device; and its cost.

        Raises:
            ConfigError: on a batch, condition or denoiser output of the wrong shape.
            NumericalError: if the network returned NaN or infinity.
        """
        draws = self.draw(batch_size, cond, generator)
        return draws.x, draws.stats

    def draw(
        self,
        batch_size: int = 1,
        cond: Tensor | None = None,
        generator: Noise = None,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Draws:
        """Draw as `__call__` does, with optional guesses from an earlier, related draw.

        Args:
            warm: (B, K, *event_shape) or None, a guess of the clean sample for each step: the predictions of an earlier
                draw, shifted to this draw. Bad guesses raise the cost; the law stays the same.
            on_round: called after each round. capture="cuda_graph" cannot call it.

        Returns and raises as `__call__`. ConfigError also if the capture cannot call `on_round`.
        """
        return self.launch(batch_size, cond, generator, warm, on_round).read()[0]

    @torch.no_grad()
    def launch(
        self,
        batch_size: int = 1,
        cond: Tensor | None = None,
        generator: Noise = None,
        warm: Tensor | None = None,
        on_round: OnRound | None = None,
    ) -> Drawn:
        """Begin a draw as `draw` does, without waiting for it. `Drawn.read` raises the NumericalError."""
        check_condition(cond, batch_size)
        expected = (batch_size, self.num_steps, *self.event_shape)
        if warm is not None and (not isinstance(warm, Tensor) or warm.shape != expected):
            got = f"shape {tuple(warm.shape)}" if isinstance(warm, Tensor) else f"type {type(warm).__name__}"
            raise ConfigError(f"warm has {got}; expected a tensor of shape {expected}, or None.")
        batch = self.batch(batch_size, cond, generator)
        state = begin(batch, self.draft, warm)
        state = self.capture.run_rounds(batch, self.draft, state, self.windows_run(), on_round)
        record = state.since, state.accepted, state.evaluations
        return Drawn(state.x, record, self.draft.calls, self.draft.predictions(state.memory))

    def batch(self, batch_size: int, cond: Tensor | None, generator: Noise) -> Batch:
        """The constants of a batch; takes its noise from `generator`."""
        device, num_steps = device_of(self.denoiser, self._device), self.num_steps
        self._constants = moved(self._constants, device)
        a, b, s, timesteps = self._constants
        return Batch(
            denoiser=self.denoiser,
            context=prepare(self.denoiser, timesteps, cond),
            tape=NoiseTape.draw(batch_size, num_steps, self.event_shape, generator, device),
            a=a,
            b=b,
            s=s,
            clip=getattr(self.denoiser, "clip", None),
            start_std=self._start_std,
        )

    def windows_run(self) -> WindowTable:
        """The window of each frontier, shortened near the end if the capture allows it."""
        if self.windows is None:
            raise ConfigError(
                "window='auto' has not been calibrated: draw with "
                "sampler.with_windows(sampler.calibrate(cond).windows), or choose a window."
            )
        return shortened(self.windows, self.capture.least_window)

    def calibrate(self, cond: Tensor | None, batch_size: int = 1, seed: int = 0) -> Calibration:
        """Measure the fastest windows; see `asd_policy.core.calibration.calibrate`. This sampler is not changed."""
        return calibrate(self, cond, batch_size, seed)

    def with_windows(self, window: Window) -> AsdSampler:
        """This sampler with another window. Both share compiled code and captured graphs.

        Raises:
            ConfigError: as the constructor.
        """
        sampler = copy.copy(self)
        sampler.windows = _table(window, self.num_steps)
        return sampler

    def with_capture(self, capture: str | Capture) -> AsdSampler:
        """This sampler with another capture.

        Raises:
            ConfigError: as the constructor.
        """
        sampler = copy.copy(self)
        sampler.capture = make_capture(capture)
        return sampler


def _table(window: Window, num_steps: int) -> WindowTable | None:
    """The window of each frontier (K,), or None for "auto"."""
    return None if isinstance(window, str) and window == "auto" else as_windows(window, num_steps)


@dataclass(frozen=True)
class Asd:
    """The spec of an `AsdSampler`: exact, in few rounds.

    Attributes:
        eta: None for the law of the DDPM; a positive number for that of the DDIM with this eta, and with the other
            options. Sampler "ddim" draws with eta = 0.
        num_steps: of that DDIM; None takes the schedule's own.
        use_clipped_model_output, set_alpha_to_one: as in `Ddim`; they matter with eta alone.
    """

    draft: str | Draft = "path"
    window: Window = 24
    capture: str | Capture = "eager"
    num_steps: int | None = None
    eta: float | None = None
    use_clipped_model_output: bool | None = None
    set_alpha_to_one: bool | None = None

    name: ClassVar[str] = "asd"
    form: ClassVar[str] = "asd[:DRAFT[:WINDOW[:CAPTURE]]]"

    def __post_init__(self) -> None:
        make_draft(self.draft)  # both raise ConfigError if they cannot be made
        make_capture(self.capture)
        check_switches(self.use_clipped_model_output, self.set_alpha_to_one)
        if self.eta is not None:
            check_noisy(self.eta)
        elif self.num_steps is not None:
            raise ConfigError(
                f"num_steps is {self.num_steps!r} without eta: the DDPM has as many steps as its schedule. Expected "
                "eta too, for the law of a DDIM of that many steps."
            )

    @property
    def label(self) -> str:
        """As `SamplerSpec.label`. Options without a form on the command line follow after commas."""
        return label_of(self, object_word(self.draft), window_word(self.window)) + self.ddim_word

    @property
    def ddim_word(self) -> str:
        """The options of the DDIM as text; empty for the DDPM."""
        if self.eta is None:
            return ""
        return options_word(
            num_steps=self.num_steps,
            eta=self.eta,
            use_clipped_model_output=self.use_clipped_model_output,
            set_alpha_to_one=self.set_alpha_to_one,
        )

    @property
    def is_automatic(self) -> bool:
        """Whether the windows are "auto", to be calibrated."""
        return isinstance(self.window, str)

    @classmethod
    def parse(cls, words: Sequence[str]) -> Self:
        """As `SamplerSpec.parse`."""
        return cls(**read_words(words, draft=str, window=read_window, capture=str))

    def build(
        self,
        denoiser: Denoiser,
        schedule: Chain,
        event_shape: Sequence[int],
        device: torch.device | str | None = None,
    ) -> AsdSampler:
        """As `SamplerSpec.build`."""
        if self.eta is not None:
            num_steps = schedule.num_steps if self.num_steps is None else self.num_steps
            ddim = as_schedule(schedule), num_steps, self.eta, self.set_alpha_to_one is not False
            denoiser = unclipped_ddim(denoiser, *ddim) if self.use_clipped_model_output is False else denoiser
            schedule = ddim_chain(*ddim)
        return AsdSampler(denoiser, schedule, event_shape, self.draft, self.window, self.capture, device)
