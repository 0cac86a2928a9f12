"""DiffusionPolicy: observations in, actions out, a chunk at a time (Chi et al. 2023, https://arxiv.org/abs/2303.04137)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asd_policy.core import (
    Calibration,
    Noise,
    Sampler,
    SamplerOptions,
    SamplerSpec,
    Schedule,
    as_spec,
    seeded_generator,
)
from asd_policy.core.capture import make_capture
from asd_policy.core.checks import as_count, is_integer
from asd_policy.errors import ConfigError, ObservationError
from asd_policy.policies.chunk import Chunk, ChunkStats, check_warm
from asd_policy.policies.chunk_sampler import ChunkSampler
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.episodes import Episodes, History, as_seeds, with_rows
from asd_policy.policies.guess import ChunkGuess
from asd_policy.policies.model import PolicyModel
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.policies.observations import Observation, batch_size_of, check_image_format
from asd_policy.policies.sampling import build_sampler
from asd_policy.policies.windows import WindowsFile


class DiffusionPolicy:
    """Acts in one environment, or in a batch of them in lock-step; `make_policy` and `load_policy` make one.

    It samples a chunk of `horizon` actions from the last `n_obs_steps` observations, executes `n_action_steps` of them,
    and samples again. Each environment has its own generator, so its noise does not depend on the number of
    environments. If one environment's episode ends before the others', `reset(mask=...)` begins its next one.

    After `reset(seed=...)` there is one environment: `act` takes observations (D,) and returns an action (A,). After
    `reset(seeds=[...])` there are B: `act` takes (B, D) and returns (B, A). `batch_shape` is () or (B,).

    Attributes:
        chunks: samples the chunks, without episodes.
    """

    def __init__(self, chunks: ChunkSampler):
        self.chunks = chunks
        self._stats: ChunkStats | None = None
        self._begin([], batched=False)

    @property
    def model(self) -> PolicyModel:
        """The networks and their configuration, on a device."""
        return self.chunks.model

    @property
    def sampler(self) -> Sampler:
        """Draws chunks. It may be replaced by another sampler of chunks of the same shape."""
        return self.chunks.sampler

    @sampler.setter
    def sampler(self, sampler: Sampler) -> None:
        self.chunks.sampler = sampler

    @property
    def spec(self) -> SamplerSpec:
        """The sampler's spec."""
        return self.chunks.spec

    @property
    def config(self) -> PolicyConfig:
        """The configuration that the weights were trained with."""
        return self.model.config

    @property
    def network(self) -> nn.Module:
        """The noise predictor. Its weights may be changed; another network needs another policy."""
        return self.model.network

    @property
    def normalizer(self) -> LinearNormalizer:
        """The normalizer of observations and actions. It may be replaced by another one of the same sizes."""
        return self.model.normalizer

    @normalizer.setter
    def normalizer(self, normalizer: LinearNormalizer) -> None:
        self.model.normalizer = normalizer

    @property
    def encoders(self) -> nn.ModuleDict:
        """The image encoders, by observation key."""
        return self.model.encoders

    @property
    def guess(self) -> ChunkGuess | None:
        """The learned first guess; None if there is none."""
        return self.chunks.guess

    @property
    def schedule(self) -> Schedule:
        """The schedule that the network was trained with."""
        return self.model.schedule

    @property
    def device(self) -> torch.device:
        """The device that chunks are sampled on."""
        return self.model.device

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading dimensions of observations and actions: (B,) after `reset(seeds=...)`, () after `reset(seed=...)`."""
        return self._episodes.batch_shape

    @property
    def stats(self) -> ChunkStats | None:
        """The cost of the last chunk: a new object for each chunk, None before the first."""
        return self._stats

    @property
    def needs_warm_up(self) -> bool:
        """Whether the first chunk compiles or captures, unless `warm_up` is called first."""
        return make_capture(self.chunks.spec.capture).compiles(self.device)

    def with_sampler(self, sampler: str | SamplerSpec, **options: Unpack[SamplerOptions]) -> DiffusionPolicy:
        """A new policy with the same weights and another sampler. The two share the weights.

        Args:
            sampler: a name ("asd", "ddpm", "ddim"), command-line text ("asd:path:16"), or a spec.
            options: sampler options, replacing those of the text or spec.

        Raises:
            ConfigError: on an unknown sampler, draft, capture or option. The message lists the known ones.
        """
        model, spec = self.chunks.model, as_spec(sampler, **options)
        again = PolicyModel(model.network, model.normalizer, model.config, model.device, model.dtype, model.encoders)
        windows = WindowsFile(self.chunks.windows.path)
        return DiffusionPolicy(ChunkSampler(again, build_sampler(again, spec), spec, windows, self.guess))

    def calibrate(self, observations: Sequence[Observation], batch_size: int = 1) -> Calibration:
        """Choose the windows of `window="auto"` for this network, draft, capture and device; takes seconds to minutes.

        The windows are saved beside the checkpoint, where the next `load_policy` finds them. Timings differ from run to
        run, and other windows give other samples, of the same law, from the same seed. Windows are valid for the
        weights, batch size, device, dtype, draft and capture of the measurement only; `reset` looks them up.

        Args:
            observations: some tens of typical observations, each of one environment.
            batch_size: how many environments will run together.

        Raises:
            ConfigError: if the sampler is not "asd", or there are fewer observations than `batch_size`.
            ObservationError: as `act`.
            CheckpointError: if the windows cannot be saved beside the checkpoint. The policy uses them all the same.
        """
        self.chunks.calibratable()
        observations, batch_size = list(observations), as_count(batch_size, "batch_size")
        if batch_size > len(observations):
            raise ConfigError(
                f"batch_size is {batch_size} for {len(observations)} observations; expected 1 or more each."
            )
        conds = torch.cat([self.condition([obs]) for obs in observations])
        try:
            return self.chunks.calibrate(conds, batch_size)
        finally:
            self.chunks.use_calibrated_windows(len(self._episodes) or batch_size)

    def reset(
        self, seed: int | None = None, seeds: Sequence[int] | None = None, mask: Sequence[bool] | None = None
    ) -> None:
        """Begin an episode: forget observations and actions, seed the noise.

        With `mask`, only those environments of the batch begin an episode, and the others continue. Vector environments
        of gymnasium need this when one episode ends before the others. Call it before `act` gets the new episode's
        first observation.

        Args:
            seed: for one environment; None takes a fresh seed from the operating system.
            seeds: for a batch, one seed for each environment; integers of at least 0, NumPy's too.
            mask: (B,) bool, the environments to reset. `seeds` then holds one seed for each of them, or one for each of
                the B. Without `seeds` their generators continue, which gives new noise too.

        Raises:
            ConfigError: if both `seed` and `seeds` are given, `seeds` is empty (without `mask`) or not a sequence, a
                seed is not an integer of at least 0, or `mask` does not fit the batch.
        """
        seeds = None if seeds is None else as_seeds(seeds)
        if seeds is not None and (seed is not None or (mask is None and len(seeds) == 0)):
            raise ConfigError(f"Got seed={seed} and seeds={seeds}; expected one of them, and at least one seed.")
        if mask is not None:
            self._episodes.begin_rows(mask, seed, seeds)
            return
        self._begin([seeded_generator(value) for value in (seeds if seeds is not None else [seed])], seeds is not None)
        self.chunks.use_calibrated_windows(len(self._episodes))

    def _begin(self, generators: list[torch.Generator], batched: bool) -> None:
        """Forget everything and begin with one environment for each generator."""
        config = self.config
        sizes = config.n_obs_steps, config.n_action_steps, config.env_action_dim
        self._episodes, self._stats = Episodes(generators, batched, *sizes), None

    def act(self, obs: Observation) -> NDArray[np.float32]:
        """Return the next action. An error leaves the policy as it was: the same observation can be given again.

        Args:
            obs: for each of the policy's keys an array (*batch_shape, D), or (*batch_shape, H, W, C) uint8 for an
                image. Other keys are ignored.

        Returns:
            (*batch_shape, A) float32, the environment's actions, within the config's `action_bound`.

        Raises:
            ObservationError: naming the key that is missing, has a wrong shape, or is not finite.
            ConfigError: if `reset` was not called, `window="auto"` has not been calibrated for this batch size, or the
                weights' type, size or device has changed since the policy was made.
            NumericalError: if the network returned NaN or infinity, or the action is not finite.
        """
        episodes = self._episodes
        if not len(episodes):
            raise ConfigError("act() was called before reset(). Call reset(seed=...) at the start of each episode.")
        started = time.perf_counter()
        history = episodes.history.followed_by(self.model.tensors(obs, episodes.batch_shape))
        due = episodes.plan.due
        if len(due):
            self._sample(history, due, started)
        episodes.history = history
        return episodes.plan.pop().reshape(*episodes.batch_shape, -1)

    def predict_chunk(
        self,
        history: Sequence[Observation],
        generator: Noise = None,
        warm: Tensor | None = None,
        executed: int | None = None,
        whole_horizon: bool = False,
        images: str = "uint8_hwc",
    ) -> Chunk:
        """Sample a chunk of actions for each of B environments. The policy's state is neither used nor changed.

        Args:
            history: the last `n_obs_steps` observations, oldest first; fewer at the start of an episode, whose first
                one then repeats. For each of the policy's keys an array (B, D), or (B, H, W, C) for an image.
            generator: one for the batch, or one per environment; None draws from torch's global generator.
            warm: (B, K, H, A) or None, the `predictions` of an earlier chunk of these environments. They reduce the
                cost; the law stays the same. Rows of NaN have no earlier chunk.
            executed: the number of steps from the earlier chunk's last observation to this one's; None for
                `n_action_steps`.
            whole_horizon: return all actions of the horizon, (B, H, A). The first belongs to the oldest of the
                `n_obs_steps` observations.
            images: the format of images. "uint8_hwc": bytes from 0 to 255, channels last. "float_chw": floats from 0 to
                1, channels first. Likewise "uint8_chw" and "float_hwc".

        Returns:
            The actions (B, Ta, A), within the config's `action_bound`; predictions for the next chunk's `warm`; and the
            cost.

        Raises:
            ObservationError: naming the key that is missing, has a wrong shape or format, or is not finite; or unless
                there are 1 to `n_obs_steps` observations.
            ConfigError: on `warm`, `executed` or generators that do not fit, an unknown format of images,
                `window="auto"` without windows for this batch size, or weights that changed, as `act`.
            NumericalError: as `act`.
        """
        started = time.perf_counter()
        check_image_format(images)
        if executed is not None and not (is_integer(executed) and executed >= 0):
            raise ConfigError(f"executed is {executed!r}; expected an integer of at least 0, or None.")
        if not isinstance(history, Sequence) or not history:
            raise ObservationError(
                f"history is a {type(history).__name__}; expected a list of 1 to {self.config.n_obs_steps} "
                "observations, oldest first."
            )
        batch_size = batch_size_of(history[0], next(iter(self.config.obs_keys)))
        steps = self.model.history(history, (batch_size,), images)
        self.chunks.check_calibrated(batch_size)
        check_warm(warm, (batch_size, self.sampler.num_steps, *self.model.event_shape))
        chunk = self.chunks.draw(steps, generator, warm, executed, whole_horizon)
        return chunk._replace(stats=replace(chunk.stats, latency=time.perf_counter() - started))

    def warm_up(self, batch_size: int = 1) -> None:
        """Compile or capture all that `act` runs, before the control loop. The policy's state does not change.

        The first chunk of capture="compile" takes tens of seconds, or a few if torch's cache on disk holds the network:
        https://docs.pytorch.org/tutorials/recipes/torch_compile_caching_tutorial.html. If nothing is compiled
        (`needs_warm_up` is false), this costs two chunks.

        Args:
            batch_size: how many environments will run together.

        Raises:
            ConfigError: as `act`.
        """
        self.chunks.warm_up(as_count(batch_size, "batch_size"))

    def condition(self, history: Sequence[Observation]) -> Tensor:
        """The network's condition for one environment, (1, global_cond_dim); see `PolicyModel.condition_of`."""
        return self.model.condition_of(history)

    def _sample(self, history: History, rows: NDArray[np.intp], started: float) -> None:
        """Sample a chunk for the environments `rows` (N,) and plan its executed part.

        The policy changes only after everything that can fail has succeeded.
        """
        episodes, batch_size = self._episodes, len(self._episodes)
        self.chunks.check_calibrated(batch_size)
        index = slice(None) if len(rows) == batch_size else torch.from_numpy(rows).to(self.device)
        left = None if episodes.predictions is None else episodes.predictions[index]
        generators = [episodes.generators[row].clone_state() for row in rows]
        padding = self.sampler.rows(len(rows), batch_size) - len(rows)
        generators += [generators[0].clone_state() for _ in range(padding)]
        actions, predictions, cost = self.chunks.draw(history.of(rows), generators, left, padding=padding)
        if predictions is not None:
            none = predictions.new_full((batch_size, *predictions.shape[1:]), torch.nan)
            before = none if episodes.predictions is None else episodes.predictions
            episodes.predictions = with_rows(before, index, predictions)
        episodes.plan.fill(rows, actions)
        for row, generator in zip(rows, generators, strict=False):  # padding rows are dropped
            episodes.generators[row] = generator
        rounds, evaluations = torch.zeros(2, batch_size, dtype=torch.int64, device="cpu")
        rounds[rows], evaluations[rows] = cost.rounds, cost.evaluations
        self._stats = ChunkStats(time.perf_counter() - started, rounds, evaluations, cost.acceptance)
