"""One episode: a policy in an environment, and what it cost."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from asd_policy.errors import NumericalError

Observation = Mapping[str, NDArray[np.floating]]


class ChunkStats(Protocol):
    """What a policy tells of the last chunk it sampled."""

    latency: float  # seconds
    rounds: Any  # (B,) sequential network calls
    evaluations: Any  # (B,) states that the network was asked about
    acceptance: Any  # (K,) share of drafts kept at each step


class Policy(Protocol):
    """Whatever acts: see `asd_policy.DiffusionPolicy`."""

    @property
    def stats(self) -> ChunkStats | None: ...

    def reset(self, seed: int) -> None: ...

    def act(self, obs: Observation) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Episode:
    """The record of one episode with C sampled chunks; every field but the actions is JSON."""

    env_seed: int
    noise_seed: int
    success: bool
    length: int  # control steps
    latency: list[float]  # (C,) seconds per chunk
    rounds: list[int]  # (C,)
    evaluations: list[int]  # (C,)
    acceptance: list[float]  # (K,) mean over the chunks
    action_sha256: str  # of the action stream: equal hashes, equal behaviour
    actions: NDArray[np.float32] = field(repr=False, compare=False)  # (length, action_dim)

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        del record["actions"]
        return record


def rollout(env: gymnasium.Env, policy: Policy, env_seed: int, noise_seed: int) -> Episode:
    """Run one episode until success, termination or the environment's time limit.

    Args:
        env: reports success as `info["success"]`.
        env_seed: of the initial state.
        noise_seed: of the policy's sampling noise.

    Raises:
        NumericalError: on an action that is not finite.
    """
    obs, _ = env.reset(seed=env_seed)
    policy.reset(seed=noise_seed)
    trace = Trace(env_seed, noise_seed)
    while not trace.over:
        action = policy.act(obs)
        trace.acted(action, policy.stats)
        obs, _, terminated, truncated, info = env.step(action)
        trace.moved(bool(info["success"]), terminated or truncated)
    return trace.episode()


class Trace:
    """An episode in the making.

    Args:
        row: the episode's place in the policy's batch.
    """

    def __init__(self, env_seed: int, noise_seed: int, row: int = 0):
        self._seeds, self._row = (env_seed, noise_seed), row
        self._actions: list[NDArray[np.float32]] = []
        self._chunks: list[ChunkStats] = []
        self._success = self.over = False

    def acted(self, action: NDArray[np.float32], stats: ChunkStats | None) -> None:
        """Note an action (A,), and what its chunk cost if it is the first of the chunk.

        Raises:
            NumericalError: if the action is not finite.
        """
        if not np.isfinite(action).all():
            step, seed = len(self._actions), self._seeds[0]
            raise NumericalError(f"The policy's action at step {step} of env seed {seed} is {action}.")
        if stats is not None and (not self._chunks or stats is not self._chunks[-1]):
            self._chunks.append(stats)
        self._actions.append(action)

    def moved(self, success: bool, over: bool) -> None:
        """Note what the environment said of it."""
        self._success, self.over = success, success or over

    def episode(self) -> Episode:
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
    env: gymnasium.Env, env_seed: int, actions: NDArray[np.float32], every: int = 2
) -> list[NDArray[np.uint8]]:
    """Render an episode again from its seed and its actions (length, action_dim): every `every`-th step and the last.

    Rendering apart from the rollout keeps it out of the latencies.

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
