"""Runs one episode of a policy in an environment and measures its cost."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from asd_policy.errors import ConfigError, NumericalError

EnvObservation = Mapping[str, NDArray[Any]]
"""Key -> array, for one environment or for a batch."""

BREAKS_EVERY_EPISODE = (ConfigError, MemoryError, gymnasium.error.DependencyNotInstalled)
"""Errors of the settings or of the machine. They are raised, not recorded as a failed episode."""


class ChunkCost(Protocol):
    """The cost of a policy's last chunk."""

    @property
    def latency(self) -> float:
        """Seconds."""
        ...

    @property
    def rounds(self) -> Any:
        """(B,) sequential network calls."""
        ...

    @property
    def evaluations(self) -> Any:
        """(B,) states that the network was evaluated on."""
        ...

    @property
    def acceptance(self) -> Any:
        """(K,) share of drafts kept at each step."""
        ...


class Policy(Protocol):
    """Acts in one environment; `asd_policy.DiffusionPolicy` is one."""

    @property
    def stats(self) -> ChunkCost | None:
        """The last chunk's cost, a new object for each chunk; None before the first."""
        ...

    def reset(self, seed: int) -> None:
        """Begin an episode with the noise of this seed."""
        ...

    def act(self, obs: EnvObservation) -> NDArray[np.float32]:
        """The next action, (A,)."""
        ...


@dataclass(frozen=True)
class Episode:
    """One episode with C sampled chunks. `to_json` leaves out the actions and the error."""

    env_seed: int
    noise_seed: int
    success: bool
    length: int  # control steps
    latency: list[float]  # (C,) seconds per chunk
    rounds: list[int]  # (C,)
    evaluations: list[int]  # (C,)
    acceptance: list[float]  # (K,) share of drafts kept, mean over the chunks
    action_sha256: str  # of the action stream: equal hashes, equal behaviour
    actions: NDArray[np.float32] = field(repr=False, compare=False)  # (length, action_dim)
    error: str | None = None  # "ErrorName: message" of an episode that raised: a failure, whose lists are empty

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        del record["actions"], record["error"]
        return record


def rollout(env: gymnasium.Env[Any, Any], policy: Policy, env_seed: int, noise_seed: int) -> Episode:
    """Run one episode until success, termination or the environment's time limit.

    Args:
        env: reports success as `info["success"]`; see `asd_policy.evaluation.environments.make_env`.
        env_seed: the seed of the initial state.
        noise_seed: the seed of the policy's sampling noise.

    Raises:
        ConfigError: on actions of another shape than the environment's, or if `info` does not report success.
        NumericalError: on an action that is not finite.
    """
    obs, _ = env.reset(seed=env_seed)
    policy.reset(seed=noise_seed)
    trace = Trace(env_seed, noise_seed, env.action_space.shape)
    while not trace.over:
        action = policy.act(obs)
        trace.acted(action, policy.stats)
        obs, _, terminated, truncated, info = env.step(action)
        trace.moved(succeeded(info), terminated or truncated)
    return trace.episode()


def succeeded(info: Mapping[str, Any], row: int | None = None) -> bool:
    """Success as reported by the info of a step, or by one row of a vector environment's info.

    Raises:
        ConfigError: if the info does not report success.
    """
    final = info.get("final_info")
    if row is not None and final is not None and info["_final_info"][row]:
        info = final  # gymnasium's same-step autoreset: the rest belongs to the next episode
    if "success" not in info:
        raise ConfigError(f"The environment's info holds {sorted(info)}; expected success. Make it with make_env.")
    return bool(info["success"] if row is None else info["success"][row])


def broken_episode(env_seed: int, noise_seed: int, error: Exception) -> Episode:
    """The record of an episode that raised: a failure with its error, without costs."""
    return Episode(
        env_seed=env_seed,
        noise_seed=noise_seed,
        success=False,
        length=0,
        latency=[],
        rounds=[],
        evaluations=[],
        acceptance=[],
        action_sha256="",
        actions=np.zeros((0, 0), np.float32),
        error=f"{type(error).__name__}: {error}",
    )


class Trace:
    """Collects the steps of an episode.

    Args:
        shape: the expected shape of an action; None accepts any.
        row: the episode's row in the policy's batch.
    """

    def __init__(self, env_seed: int, noise_seed: int, shape: tuple[int, ...] | None = None, row: int = 0):
        self._seeds, self._shape, self._row = (env_seed, noise_seed), shape, row
        self._actions: list[NDArray[np.float32]] = []
        self._chunks: list[ChunkCost] = []
        self._success = self.over = False

    def acted(self, action: NDArray[np.float32], stats: ChunkCost | None) -> None:
        """Add an action (A,), and its chunk's cost if it is the first of the chunk.

        Raises:
            ConfigError: if the action has another shape than the environment's.
            NumericalError: if the action is not finite.
        """
        if self._shape is not None and np.shape(action) != self._shape:
            raise ConfigError(f"The policy's action has shape {np.shape(action)}; the environment takes {self._shape}.")
        if not np.isfinite(action).all():
            step, seed = len(self._actions), self._seeds[0]
            raise NumericalError(f"The policy's action at step {step} of env seed {seed} is {action}.")
        if stats is not None and (not self._chunks or stats is not self._chunks[-1]):
            self._chunks.append(stats)
        self._actions.append(action)

    def moved(self, success: bool, over: bool) -> None:
        """Add the result of the environment's step."""
        self._success, self.over = success, success or over

    def episode(self) -> Episode:
        """The episode so far."""
        stream = np.stack(self._actions)
        acceptance = [np.asarray(chunk.acceptance) for chunk in self._chunks]
        env_seed, noise_seed = self._seeds
        return Episode(
            env_seed=env_seed,
            noise_seed=noise_seed,
            success=self._success,
            length=len(stream),
            latency=[chunk.latency for chunk in self._chunks],
            rounds=[int(chunk.rounds[self._row]) for chunk in self._chunks],
            evaluations=[int(chunk.evaluations[self._row]) for chunk in self._chunks],
            acceptance=np.mean(acceptance, axis=0).tolist() if acceptance else [],
            action_sha256=hashlib.sha256(stream.tobytes()).hexdigest(),
            actions=stream,
        )


def replay_frames(
    env: gymnasium.Env[Any, Any], env_seed: int, actions: NDArray[np.float32], every: int = 2
) -> list[NDArray[np.uint8]]:
    """Replay an episode's actions (length, action_dim) and render every `every`-th step and the last.

    Rendering after the rollout keeps it out of the latencies.

    Args:
        env: made with `render_mode="rgb_array"`.

    Returns:
        frames (height, width, 3), uint8.
    """
    env.reset(seed=env_seed)
    frames = []
    for step, action in enumerate(actions):
        env.step(action)
        if step % every == 0 or step == len(actions) - 1:
            frames.append(np.asarray(env.render(), dtype=np.uint8))
    return frames
