"""DiffusionPolicy: observations in, actions out, a chunk at a time (Chi et al. 2023, https://arxiv.org/abs/2303.04137)."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asd_policy.core import DENOISERS, AsdSampler, Calibration, Schedule, seeded_generator
from asd_policy.core.checks import as_count, as_device
from asd_policy.core.transfer import to_device
from asd_policy.errors import ConfigError, NumericalError, ObservationError
from asd_policy.policies.actions import to_env_actions
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.episodes import History, Plan, as_mask, as_seeds, filled_up, shifted, with_rows
from asd_policy.policies.network import evaluating, for_inference, kinds_of_tensors
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.policies.observations import Observation, checked
from asd_policy.policies.quaternions import with_steady_signs
from asd_policy.policies.samplers import make_sampler
from asd_policy.policies.windows import Calibrated, WindowsFile, hash_of

DDIM_SETTINGS = ("use_clipped_model_output", "set_alpha_to_one")
"""Options of sampler="ddim" that are the config's unless given."""


@dataclass(frozen=True)
class ChunkStats:
    """What the last chunk cost; B environments, K denoising steps."""

    latency: float  # seconds from observation to actions
    rounds: Tensor  # (B,) int64, sequential network calls; 0 where an environment goes on with an earlier chunk
    evaluations: Tensor  # (B,) int64, states that the network was asked about
    acceptance: Tensor  # (K,) float32, share of drafts kept at each step; 0 for a sampler without drafts


class DiffusionPolicy:
    """Acts in one environment, or in a batch of them in lock-step.

    It samples a chunk of `horizon` actions given the last `n_obs_steps` observations, executes `n_action_steps` of it,
    and samples again. Each environment has a generator of its own, so the noise it is given does not depend on how many
    run together. Where one environment's episode ends before the others', `reset(mask=...)` begins its next one.

    The weights are those of `network`, `normalizer` and `encoders` at the time of each chunk: a training step or
    `load_state_dict` counts at once, in every type and capture. They are run in evaluation mode, and left in theirs.

    Args:
        network: (sample (N, H, A), timestep (N,), global_cond (N, global_cond_dim)) -> prediction (N, H, A).
        normalizer: with a field per observation key and "action".
        config: what the two were trained with.
        sampler: "asd", "ddpm" or "ddim".
        device: where to sample.
        dtype: of the weights that run at every evaluation. torch.bfloat16 is for hardware made for it, and makes
            another network: the sampler, which computes in float32 all the same, is exact for that one.
        windows_file: where `calibrate` keeps its windows, and `window="auto"` finds them.
        encoders: of the images among the observations, by key; see `asd_policy.nets.vision.ImageEncoder`.
        sampler_options: asd: `draft`, `window`, `capture`; ddpm: `capture`; ddim: `num_steps`, `eta`, and
            `use_clipped_model_output` and `set_alpha_to_one`, if not those of the config.

    Raises:
        ConfigError: on an unknown sampler or option, or a device that this machine lacks.
    """

    def __init__(
        self,
        network: nn.Module,
        normalizer: LinearNormalizer,
        config: PolicyConfig,
        sampler: str = "asd",
        device: torch.device | str = "cpu",
        windows_file: Path | None = None,
        dtype: torch.dtype = torch.float32,
        encoders: nn.ModuleDict | None = None,
        **sampler_options: Any,
    ):
        self._config = config
        self._dtype = dtype
        self.device = as_device(device)
        self._network = network.to(self.device).eval()
        self.normalizer = normalizer.to(self.device)
        self.encoders = (nn.ModuleDict() if encoders is None else encoders).to(self.device).eval()
        self._windows = WindowsFile(windows_file)
        self._options = sampler_options
        scheduler = config.scheduler
        self.schedule = Schedule.from_diffusers(asdict(scheduler))
        clip = scheduler.clip_sample_range if scheduler.clip_sample else None
        compiled_on_cpu = self.device.type == "cpu" and sampler_options.get("capture") == "compile"
        run = for_inference(network, dtype, compiled_on_cpu)
        denoiser = DENOISERS[scheduler.prediction_type](run, self.schedule, clip).to(self.device)
        event_shape = (config.horizon, config.action_dim)
        as_trained = {name: getattr(scheduler, name) for name in DDIM_SETTINGS} if sampler == "ddim" else {}
        options = as_trained | sampler_options
        self.sampler = make_sampler(sampler, denoiser, self.schedule, event_shape, **options)
        self._kinds = self._kinds_now()
        self._generators: list[torch.Generator] = []
        self._batched = False
        if self._automatic is not None:
            self._windows.read()  # refuses now a file that cannot be read
        self._begin([])
        self._stats: ChunkStats | None = None

    @property
    def config(self) -> PolicyConfig:
        """What the weights were trained with."""
        return self._config

    @property
    def network(self) -> nn.Module:
        """The noise predictor. Its weights may be changed; for another network make another policy."""
        return self._network

    @property
    def stats(self) -> ChunkStats | None:
        """What the last chunk cost; a new object for each chunk, None before the first."""
        return self._stats

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: generators as their states, in NumPy's arrays.

        Tensors made here would be gone before a spawned process can share their memory.
        """
        return self.__dict__ | {"_generators": [generator.get_state().numpy() for generator in self._generators]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generators = [torch.Generator("cpu") for _ in state["_generators"]]
        for generator, saved in zip(generators, state["_generators"], strict=True):
            generator.set_state(torch.from_numpy(saved))
        self.__dict__ = state | {"_generators": generators}

    def with_sampler(self, sampler: str, **sampler_options: Any) -> DiffusionPolicy:
        """A policy of its own that shares this one's weights and is run by another sampler."""
        return DiffusionPolicy(
            self.network,
            self.normalizer,
            self.config,
            sampler,
            self.device,
            self._windows.path,
            self._dtype,
            self.encoders,
            **sampler_options,
        )

    def calibrate(self, observations: Sequence[Observation], batch_size: int = 1) -> Calibration:
        """Choose the windows of `window="auto"` for this network, draft, capture and device; takes seconds to minutes.

        They are kept beside the checkpoint and found there by the next `load_policy`: timings differ from run to run,
        and other windows give other samples, of the same law, from the same seed. They hold for the weights, batch
        size, device, dtype, draft and capture that they were measured with; `reset` looks for them.

        Args:
            observations: for one environment each, like those to come; some tens of them.
            batch_size: how many environments will run together.

        Raises:
            ConfigError: if the sampler is not "asd", or there are fewer observations than `batch_size`.
            ObservationError: as `act`.
            CheckpointError: if the windows cannot be kept beside the checkpoint; they are used all the same.
        """
        sampler = self.sampler
        if not isinstance(sampler, AsdSampler):
            raise ConfigError("Only sampler='asd' has windows to calibrate; make the policy with it.")
        observations, batch_size = list(observations), as_count(batch_size, "batch_size")
        if batch_size > len(observations):
            raise ConfigError(
                f"batch_size is {batch_size} for {len(observations)} observations; expected 1 or more each."
            )
        conds = torch.cat([self.condition([obs]) for obs in observations])
        with evaluating(self.network):
            calibration = copy.copy(sampler).calibrate(conds, batch_size)
        try:
            self._windows.keep(self._calibrated(batch_size), calibration)
        finally:
            self._use_calibrated_windows(len(self._generators) or batch_size)
        return calibration

    def reset(
        self, seed: int | None = None, seeds: Sequence[int] | None = None, mask: Sequence[bool] | None = None
    ) -> None:
        """Begin an episode: forget observations and actions, seed the noise.

        With `mask`, only those environments of the batch begin an episode, and the others go on. gymnasium's vector
        environments need that where one of them ends first. Call it before `act` gets the new episode's first
        observation.

        Args:
            seed: for one environment; None takes a fresh seed from the operating system.
            seeds: for a batch of environments, one each; integers of at least 0, NumPy's too.
            mask: (B,) bool, the environments to reset. `seeds` then holds one for each of these, or one for each of the
                B. Without `seeds` their generators go on, which gives new noise too.

        Raises:
            ConfigError: if `seed` and `seeds` are given both, `seeds` is empty (without `mask`) or no sequence, a seed
                is no such integer, or `mask` is not of the batch that was reset before.
        """
        seeds = None if seeds is None else as_seeds(seeds)
        if seeds is not None and (seed is not None or (mask is None and len(seeds) == 0)):
            raise ConfigError(f"Got seed={seed} and seeds={seeds}; expected one of them, and at least one seed.")
        if mask is not None:
            self._reset_rows(mask, seed, seeds)
            return
        generators = [seeded_generator(value) for value in (seeds if seeds is not None else [seed])]
        self._batched = seeds is not None
        self._begin(generators)
        self._use_calibrated_windows(len(generators))

    def _begin(self, generators: list[torch.Generator]) -> None:
        """Forget everything; an environment for each generator."""
        config = self.config
        self._generators = generators
        self._history = History(len(generators), config.n_obs_steps)
        self._plan = Plan(len(generators), config.n_action_steps, config.env_action_dim)
        self._warm: Tensor | None = None  # (B, K, H, A), from where the next chunk's drafts start
        self._stats = None

    def _reset_rows(self, rows_reset: Sequence[bool], seed: int | None, seeds: Sequence[int] | None) -> None:
        """Begin an episode in the rows of the mask (B,)."""
        batch_size, mask = len(self._generators), as_mask(rows_reset)
        if not self._batched or seed is not None or mask.dtype != bool or mask.shape != (batch_size,):
            raise ConfigError(
                f"Got seed={seed} and mask {mask} after a reset of {batch_size} environments; expected a bool for each "
                "of them, after reset(seeds=...)."
            )
        rows = np.flatnonzero(mask)
        if seeds is not None:
            if len(seeds) not in (len(rows), batch_size):
                raise ConfigError(
                    f"Got {len(seeds)} seeds for {len(rows)} of {batch_size} environments; expected one each."
                )
            chosen = seeds if len(seeds) == len(rows) else [seeds[row] for row in rows]
            for row, generator in zip(rows, [seeded_generator(value) for value in chosen], strict=True):
                self._generators[row] = generator
        self._history.begin(mask)
        self._plan.forget(mask)
        if self._warm is not None:
            self._warm = with_rows(self._warm, torch.from_numpy(rows).to(self.device), 0)  # as at the first chunk

    def act(self, obs: Observation) -> NDArray[np.float32]:
        """The next action. If this raises, the policy is as it was before: the observation can be given again.

        Args:
            obs: for each of the policy's keys an array (D,), of an image (H, W, C) uint8, and (B, ...) after
                `reset(seeds=...)`; others are ignored.

        Returns:
            (A,), or (B, A) for a batch: float32, the environment's actions, within the config's `action_bound`.

        Raises:
            ObservationError: naming the key that is missing, has a wrong shape, or is not finite.
            ConfigError: if `reset` was not called, `window="auto"` has not been calibrated for this batch size, or the
                weights are of another type, size or device than when the policy was made.
            NumericalError: if the network returned NaN or infinity, or the action is not finite.
        """
        if not self._generators:
            raise ConfigError("act() was called before reset(). Call reset(seed=...) at the start of each episode.")
        started = time.perf_counter()
        history = self._history.followed_by(self._tensors(obs, (len(self._generators),) if self._batched else ()))
        due = self._plan.due
        if len(due):
            self._sample(history, due, started)
        self._history = history
        action = self._plan.pop()
        return action if self._batched else action[0]

    def warm_up(self, batch_size: int = 1) -> None:
        """Compile or capture all that `act` will run, so that a robot never waits for it. The policy stays as it is.

        The first chunk of capture="compile" takes tens of seconds, or a few where torch's cache on disk holds the
        network: https://docs.pytorch.org/tutorials/recipes/torch_compile_caching_tutorial.html.

        Args:
            batch_size: how many environments will run together.

        Raises:
            ConfigError: as `act`.
        """
        batch_size = as_count(batch_size, "batch_size")
        images = self.encoders
        blank = {
            key: torch.zeros(batch_size, *shape, dtype=torch.uint8 if key in images else torch.float32, device="cpu")
            for key, shape in self.config.obs_shapes.items()
        }
        cond, warm = self._condition([blank] * self.config.n_obs_steps), None
        for seed in range(2):  # cold and warm
            generators = [seeded_generator(seed) for _ in range(batch_size)]
            with evaluating(self.network):
                warm = self.sampler.draw(batch_size, cond, generators, warm).predictions

    def condition(self, history: Sequence[Observation]) -> Tensor:
        """What the network is told of one environment, (1, global_cond_dim).

        Args:
            history: its last observations, oldest first: n_obs_steps of them, or fewer at the start of an episode.

        Raises:
            ObservationError: as `act`, and if there are none or more than n_obs_steps.
        """
        if not 1 <= len(history) <= self.config.n_obs_steps:
            raise ObservationError(f"Got {len(history)} observations; expected 1 to {self.config.n_obs_steps}.")
        tensors = [self._tensors(obs, ()) for obs in history]
        return self._condition(tensors[:1] * (self.config.n_obs_steps - len(tensors)) + tensors)

    def _tensors(self, obs: Observation, batch: tuple[int, ...]) -> dict[str, Tensor]:
        """The policy's keys of an observation on the CPU, (B, D) or (B, H, W, C); `batch` is (B,), or () for one."""
        shapes = self.config.obs_shapes
        values = {key: checked(obs, key, (*batch, *shape), key in self.encoders) for key, shape in shapes.items()}
        tensors = {key: value.view(-1, *shapes[key]) for key, value in values.items()}
        return with_steady_signs(tensors, self.config.quaternions)

    @torch.no_grad()
    def _condition(self, history: Sequence[dict[str, Tensor]]) -> Tensor:
        """The network's condition (B, global_cond_dim) of the last To observations, oldest first."""
        self._check_weights()
        keys = self.config.obs_keys
        steps = to_device([torch.stack([obs[key] for obs in history], dim=1) for key in keys], self.device)
        with evaluating(self.encoders):
            return self.normalizer.global_condition(
                dict(zip(keys, steps, strict=True)), keys, self.encoders, self.config.octaves
            )

    def _kinds_now(self) -> frozenset[tuple[torch.device, torch.dtype]]:
        return kinds_of_tensors(self.network, self.normalizer, self.encoders)

    def _check_weights(self) -> None:
        """Raise ConfigError if weights were moved or converted, or the normaliser is another policy's."""
        now = self._kinds_now()
        if not now <= self._kinds:
            got, expected = (", ".join(sorted(f"{d} on {w}" for w, d in kinds)) for kinds in (now, self._kinds))
            raise ConfigError(
                f"The weights are {got}; when the policy was made they were {expected}. Move them back, or make "
                "another policy (device=, dtype=)."
            )
        sizes = {key: shape[-1] for key, shape in self.config.obs_shapes.items()}
        self.normalizer.check_sizes({**sizes, "action": self.config.action_dim})

    def _sample(self, history: History, rows: NDArray[np.intp], started: float) -> None:
        """Sample a chunk for the environments `rows` (N,) and plan the part of it that is executed.

        Nothing of the policy changes before all that can fail is done.
        """
        config, batch_size = self.config, len(self._generators)
        if self._automatic is not None and self._automatic.windows is None:
            raise ConfigError(
                f"window='auto' has no windows for batches of {batch_size} with these weights, on this device: call "
                f"calibrate(observations, batch_size={batch_size}) or choose a window."
            )
        cond = self._condition(history.of(rows))
        index = slice(None) if len(rows) == batch_size else torch.from_numpy(rows).to(self.device)
        warm = None if self._warm is None else self._warm[index]
        generators = [self._generators[row].clone_state() for row in rows]
        missing = self.sampler.rows(len(rows), batch_size) - len(rows)
        if missing:  # a smaller batch would be captured anew: copies of a row fill it up
            cond, warm = filled_up(cond, missing), None if warm is None else filled_up(warm, missing)
            generators += [generators[0].clone_state() for _ in range(missing)]
        with evaluating(self.network):
            drawn = self.sampler.launch(len(cond), cond, generators, warm)
            executed = self._executed(drawn.x[: len(rows)])
            (_, cost, predictions), [executed] = drawn.read(executed)
        actions = self._env_actions(executed)
        if predictions is not None:
            guesses = shifted(predictions[: len(rows)], config.n_action_steps)
            before = guesses.new_zeros(batch_size, *guesses.shape[1:]) if self._warm is None else self._warm
            self._warm = with_rows(before, index, guesses)
        self._plan.fill(rows, actions)
        for row, generator in zip(rows, generators, strict=False):  # those that fill up a batch are dropped
            self._generators[row] = generator
        rounds, evaluations = torch.zeros(2, batch_size, dtype=torch.int64, device="cpu")
        rounds[rows], evaluations[rows] = cost.rounds[: len(rows)], cost.evaluations[: len(rows)]
        self._stats = ChunkStats(time.perf_counter() - started, rounds, evaluations, cost.acceptance)

    @torch.no_grad()
    def _executed(self, chunk: Tensor) -> Tensor:
        """The part of chunks (N, H, A) that is executed, in the units of the demonstrations: (N, Ta, A)."""
        first = self.config.n_obs_steps - 1
        return self.normalizer.unnormalize("action", chunk[:, first : first + self.config.n_action_steps])

    def _env_actions(self, executed: Tensor) -> NDArray[np.float32]:
        """Executed actions (N, Ta, A), on the CPU, as the environment's (N, Ta, A_env)."""
        config = self.config
        actions = to_env_actions(executed, config.action_parts)
        if not bool(actions.isfinite().all()):
            bad = actions[~actions.isfinite()][:4].tolist()
            raise NumericalError(
                f"The actions are not finite ({bad}), though the network's chunk is. Check the normaliser's statistics "
                "of actions."
            )
        if config.action_bound is not None:
            actions = actions.clamp(-config.action_bound, config.action_bound)
        return actions.numpy()

    @property
    def _automatic(self) -> AsdSampler | None:
        """The sampler, if its windows are to be calibrated ones."""
        sampler = self.sampler
        return sampler if isinstance(sampler, AsdSampler) and self._options.get("window") == "auto" else None

    def _calibrated(self, batch_size: int) -> Calibrated:
        """What windows measured now would hold for."""
        draft, capture = self._options.get("draft", "path"), self._options.get("capture", "eager")
        weights = hash_of([self.network, self.normalizer, self.encoders])
        return Calibrated(weights, batch_size, self.device, self._dtype, draft, capture)

    def _use_calibrated_windows(self, batch_size: int) -> None:
        """Look for the windows of `window="auto"`, for the weights as they are now."""
        sampler = self._automatic
        if sampler is not None:
            sampler.windows = self._windows.find(self._calibrated(batch_size), sampler.num_steps)
