"""AsdSampler: exact draws of a DDPM in a fraction of its sequential network calls."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from asd_policy.core.capture import make_capture
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.checks import as_count, as_device, as_event_shape, as_seed, check_condition
from asd_policy.core.denoiser import Denoiser, device_of, prepare
from asd_policy.core.drafts import make_draft
from asd_policy.core.draws import Drawn, Draws, SampleStats
from asd_policy.core.noise import Noise, NoiseTape
from asd_policy.core.schedule import Schedule
from asd_policy.core.sequential import OnRound
from asd_policy.core.speculative import Chain, begin
from asd_policy.core.transfer import moved
from asd_policy.core.window import Windows, as_windows, cheapest_windows, shortened
from asd_policy.errors import ConfigError

WINDOW_CHOICES = (4, 8, 16, 24, 32, 48, 64, 96)
CALIBRATION_SAMPLES = 64  # where there are no conditions to draw one for each
TIMED_DRAWS = 8


@dataclass(frozen=True)
class Calibration:
    """The cheapest windows, and what they were chosen from."""

    windows: Windows  # (K,) for each frontier
    seconds: Mapping[int, float]  # window -> time of a round
    acceptance: Sequence[float]  # (K,) the share of samples that kept their draft at each step, at window K


class AsdSampler:
    """Draws exactly from the law of `sample_ddpm`, for any draft and window.

    Args:
        denoiser: (x (N, *E), t (N,) int64 training timesteps, cond (N, ...) | None) -> clean sample (N, *E).
        schedule: the chain's coefficients.
        event_shape: E, the shape of one sample.
        draft: "frozen" (the paper's), "reuse" or "path"; see docs/algorithm.md.
        window: how many steps a round speculates (the paper's theta); None for all K (its ASD-infinity); a tuple with
            a window for each frontier; or "auto", which `calibrate` replaces by the cheapest table for this device.
        capture: how the loop of rounds is run: "eager" (a Python loop), "compile" (the same with compiled parts),
            "cuda_graph" (CUDA graphs of compiled parts), or a capture object.
        device: where to sample if the denoiser is a plain function; a module is sampled where its parameters lie.

    Raises:
        ConfigError: on a window below 1, a name that does not exist (the message lists those that do), or a device
            that this machine lacks.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        event_shape: Sequence[int],
        draft: str = "path",
        window: int | Windows | Literal["auto"] | None = 24,
        capture: str | Capture = "eager",
        device: torch.device | str | None = None,
    ):
        self.denoiser = denoiser
        self._schedule = schedule
        self.event_shape = as_event_shape(event_shape)
        self._device = None if device is None else as_device(device)
        self._constants: tuple[Tensor, ...] = (
            schedule.a.float(),
            schedule.b.float(),
            schedule.s.float(),
            schedule.timesteps,
        )
        self.draft = make_draft(draft)
        self.windows = None if isinstance(window, str) and window == "auto" else as_windows(window, schedule.num_steps)
        self.capture = capture
        self._capture = make_capture(capture)

    @property
    def schedule(self) -> Schedule:
        """The chain's coefficients; for other ones make another sampler."""
        return self._schedule

    @property
    def num_steps(self) -> int:
        """K, the steps of a sample."""
        return self.schedule.num_steps

    def rows(self, due: int, batch_size: int) -> int:
        """How many samples to draw where `due` of a batch are wanted, so that nothing is captured or compiled anew."""
        return self._capture.rows(due, batch_size)

    def __call__(
        self,
        batch_size: int = 1,
        cond: Tensor | None = None,
        generator: Noise = None,
    ) -> tuple[Tensor, SampleStats]:
        """Draw `batch_size` samples.

        Args:
            cond: (B, ...) or None, handed to the denoiser.
            generator: one for the batch or one per sample; the tape drawn is the one `sample_ddpm` draws.

        Returns:
            x (B, *event_shape), float32, on the device sampled on; and what it cost.

        Raises:
            ConfigError: on a batch, condition or denoiser output whose shape does not fit.
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
        """Draw as a call does, beginning with guesses from an earlier, related draw.

        Args:
            warm: (B, K, *event_shape) or None, a guess of the clean sample for each step: the predictions of an earlier
                draw, moved to where this sample is expected. However wrong, it changes the cost alone, never the law.
            on_round: called after each round; capture="cuda_graph" has none, it runs all rounds at once.

        Returns and raises as a call does; ConfigError also if there is nowhere to call `on_round` from.
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
        """Begin a draw as `draw` does, and return without reading it: what is not finite is found when it is read."""
        check_condition(cond, batch_size)
        expected = (batch_size, self.schedule.num_steps, *self.event_shape)
        if warm is not None and (not isinstance(warm, Tensor) or warm.shape != expected):
            got = f"shape {tuple(warm.shape)}" if isinstance(warm, Tensor) else f"type {type(warm).__name__}"
            raise ConfigError(f"warm has {got}; expected a tensor of shape {expected}, or None.")
        chain = self.chain(batch_size, cond, generator)
        state = begin(chain, self.draft, warm)
        state = self._capture.run_rounds(chain, self.draft, state, self.windows_run(), on_round)
        record = state.since, state.accepted, state.evaluations
        return Drawn(state.x, record, self.draft.calls, self.draft.predictions(state.memory))

    def chain(self, batch_size: int, cond: Tensor | None, generator: Noise) -> Chain:
        """What stays fixed while a batch is drawn; takes the batch's noise from `generator`."""
        device, num_steps = device_of(self.denoiser, self._device), self.num_steps
        self._constants = moved(self._constants, device)
        a, b, s, timesteps = self._constants
        return Chain(
            denoiser=self.denoiser,
            context=prepare(self.denoiser, timesteps, cond),
            tape=NoiseTape.draw(batch_size, num_steps, self.event_shape, generator, device),
            a=a,
            b=b,
            s=s,
            clip=getattr(self.denoiser, "clip", None),
        )

    def windows_run(self) -> Windows:
        """The window of each frontier as it is run, which may be cut where fewer steps are left."""
        if self.windows is None:
            raise ConfigError("window='auto' has not been calibrated: call calibrate() first, or choose a window.")
        return shortened(self.windows, self._capture.least_window)

    def calibrate(self, cond: Tensor | None, batch_size: int = 1, seed: int = 0) -> Calibration:
        """Choose the windows that are cheapest for this denoiser, draft, backend and device; takes seconds to minutes.

        Timings differ from run to run, and another table gives other samples (of the same law) from the same seed: for
        the same samples again, keep the result and pass its `windows` to the constructor.

        Args:
            cond: (N, ...) conditions like those to come, or None: drafts are tested on one sample of each.
            batch_size: how many samples will be drawn at a time; at most N where there are conditions.
            seed: of the noise.
        """
        batch_size, num_steps, seed = as_count(batch_size, "batch_size"), self.num_steps, as_seed(seed)
        count = CALIBRATION_SAMPLES if cond is None else len(cond)
        acceptance = self._with_every_step().draw(count, cond, Generator().manual_seed(seed)).stats.acceptance.tolist()
        fixed = {choice: (choice,) * num_steps for choice in WINDOW_CHOICES if choice < num_steps}
        fixed[num_steps] = (num_steps,) * num_steps
        timed = {choice: self._time(windows, cond, batch_size, seed) for choice, windows in fixed.items()}
        seconds = {choice: per_round for choice, (_, per_round) in timed.items()}
        table = cheapest_windows(acceptance, seconds)
        # The table's model takes drafts for independent and equally good at every window: so it has to prove itself.
        per_draw = {fixed[choice]: per_draw for choice, (per_draw, _) in timed.items()}
        per_draw[table] = self._time(table, cond, batch_size, seed)[0]
        self.windows = min(per_draw, key=lambda windows: per_draw[windows])
        return Calibration(self.windows, seconds, acceptance)

    def _with_windows(self, windows: Windows) -> AsdSampler:
        """This sampler with other windows, sharing all that it has captured."""
        sampler = copy.copy(self)
        sampler.windows = windows
        return sampler

    def _with_every_step(self) -> AsdSampler:
        """This sampler, run eagerly with window K."""
        sampler = self._with_windows((self.num_steps,) * self.num_steps)
        sampler._capture = make_capture("eager")
        return sampler

    def _time(self, windows: Windows, cond: Tensor | None, batch_size: int, seed: int) -> tuple[float, float]:
        """Mean seconds of a draw with these windows, and of a round, over several conditions."""
        sampler, rounds, begun = self._with_windows(windows), 0, 0.0
        for turn in range(-1, TIMED_DRAWS):
            if turn == 0:  # the draw before may have compiled
                begun, rounds = time.perf_counter(), 0
            some = None if cond is None else cond.roll(-turn * batch_size, dims=0)[:batch_size]
            rounds += len(sampler.draw(batch_size, some, Generator().manual_seed(seed + turn + 1)).stats.advance)
        taken = time.perf_counter() - begun
        return taken / TIMED_DRAWS, taken / rounds
