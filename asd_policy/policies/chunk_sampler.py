"""Samples the chunks of a policy: histories of observations in, chunks of actions out, without episodes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asd_policy.core import Asd, AsdSampler, Calibration, Noise, Sampler, SamplerSpec, seeded_generator
from asd_policy.errors import ConfigError
from asd_policy.policies.chunk import Chunk, ChunkStats, warm_start
from asd_policy.policies.episodes import filled_up
from asd_policy.policies.guess import ChunkGuess, guessed_start
from asd_policy.policies.model import PolicyModel
from asd_policy.policies.windows import Calibrated, WindowsFile, hash_of, plug_in_name


class ChunkSampler:
    """Samples chunks with a model's networks.

    Args:
        model: the networks.
        sampler: draws normalised chunks; built from `spec`.
        spec: the sampler's spec.
        windows: the file of calibrated windows.
        guess: a learned first guess, or None.

    Attributes:
        sampler: may be replaced by another sampler of chunks of the same shape.

    Raises:
        CheckpointError: if the windows are "auto" and their file cannot be read.
    """

    def __init__(
        self,
        model: PolicyModel,
        sampler: Sampler,
        spec: SamplerSpec,
        windows: WindowsFile,
        guess: ChunkGuess | None = None,
    ):
        self.sampler = sampler
        self.model, self.spec, self.windows, self.guess = model, spec, windows, guess
        self._windows_for: int | None = None  # the batch size whose windows were looked up
        if self.is_automatic:
            windows.read()

    def draw(
        self,
        history: Sequence[Mapping[str, Tensor]],
        noise: Noise,
        left: Tensor | None,
        executed: int | None = None,
        whole_horizon: bool = False,
        padding: int = 0,
    ) -> Chunk:
        """Sample chunks for B histories, as `DiffusionPolicy.predict_chunk` describes them.

        Args:
            noise: of B + `padding` samples.
            left: the earlier chunk's predictions, `predict_chunk`'s `warm`.
            padding: draw so many more samples and drop them: a smaller batch would be captured anew.
        """
        model, started = self.model, time.perf_counter()
        cond = model.condition(history)
        batch_size = len(cond)
        warm = self.first_guess(cond, left, executed)
        if padding:
            cond, warm = filled_up(cond, padding), None if warm is None else filled_up(warm, padding)
        with model.evaluating():
            drawn = self.sampler.launch(len(cond), cond, noise, warm)
            (_, cost, predictions), [actions] = drawn.read(model.actions(drawn.x[:batch_size], whole_horizon))
        stats = ChunkStats(
            time.perf_counter() - started, cost.rounds[:batch_size], cost.evaluations[:batch_size], cost.acceptance
        )
        return Chunk(model.env_actions(actions), None if predictions is None else predictions[:batch_size], stats)

    @torch.no_grad()
    def first_guess(self, cond: Tensor, left: Tensor | None = None, executed: int | None = None) -> Tensor | None:
        """The guess of each denoising step that a chunk starts from; None if there is none.

        Args:
            cond: (B, global_cond_dim) conditions, from `condition`.
            left: the predictions that an earlier chunk left, as `predict_chunk`'s `warm`.
            executed: as `predict_chunk`.

        Returns:
            (B, K, H, A), to pass to `sampler.draw` as `warm`.
        """
        executed = self.model.config.n_action_steps if executed is None else executed
        if self.guess is None or not isinstance(self.spec, Asd):
            return warm_start(left, executed)
        return guessed_start(self.guess(cond), left, executed, self.sampler.num_steps)

    def warm_up(self, batch_size: int) -> None:
        """Compile or capture all that `draw` runs."""
        model, warm = self.model, None
        cond = model.condition([model.blank(batch_size)] * model.config.n_obs_steps)
        for seed in range(2):  # cold and warm
            generators = [seeded_generator(seed) for _ in range(batch_size)]
            with model.evaluating():
                warm = self.sampler.draw(batch_size, cond, generators, warm).predictions

    def calibratable(self) -> tuple[AsdSampler, Asd]:
        """The sampler and its spec. Raises ConfigError unless it has windows to calibrate."""
        sampler, spec = self.sampler, self.spec
        if not isinstance(sampler, AsdSampler) or not isinstance(spec, Asd):
            raise ConfigError("Only sampler='asd' has windows to calibrate; make the policy with it.")
        return sampler, spec

    def calibrate(self, conds: Tensor, batch_size: int) -> Calibration:
        """Measure the windows for chunks of these conditions (N, D), and save them.

        Raises:
            ConfigError: if the sampler is not "asd".
            CheckpointError: if the windows cannot be saved.
        """
        sampler, spec = self.calibratable()
        with self.model.evaluating():
            calibration = sampler.calibrate(conds, batch_size)
        self.windows.keep(self._calibrated(spec, batch_size), calibration)
        return calibration

    @property
    def is_automatic(self) -> bool:
        """Whether the windows are "auto", to be calibrated."""
        return isinstance(self.spec, Asd) and self.spec.is_automatic

    def check_calibrated(self, batch_size: int) -> None:
        """Raise ConfigError if the windows are "auto" and those in use were not measured for this batch size."""
        sampler = self.sampler
        if not self.is_automatic or not isinstance(sampler, AsdSampler):
            return
        if sampler.windows is None or self._windows_for != batch_size:
            raise ConfigError(
                f"window='auto' has no windows for batches of {batch_size} with these weights, on this device: call "
                f"calibrate(observations, batch_size={batch_size}) or choose a window."
            )

    def _calibrated(self, spec: Asd, batch_size: int) -> Calibrated:
        """The settings for which windows measured now are valid."""
        model, weights = self.model, hash_of(self.model.modules)
        draft, capture = plug_in_name(spec.draft) + spec.ddim_word, plug_in_name(spec.capture)
        return Calibrated(weights, batch_size, model.device, model.dtype, draft, capture)

    def use_calibrated_windows(self, batch_size: int) -> None:
        """Look up the windows of `window="auto"` for the present weights and a batch size."""
        sampler, spec = self.sampler, self.spec
        if self.is_automatic and isinstance(sampler, AsdSampler) and isinstance(spec, Asd):
            found = self.windows.find(self._calibrated(spec, batch_size), sampler.num_steps)
            self.sampler, self._windows_for = sampler.with_windows("auto" if found is None else found), batch_size
