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
    actions: list[NDArray[np.float32]] = []
    chunks: list[ChunkStats] = []
    success = over = False
    while not (success or over):
        action = policy.act(obs)
        if not np.isfinite(action).all():
            raise NumericalError(f"The policy's action at step {len(actions)} of env seed {env_seed} is {action}.")
        if policy.stats is not None and (not chunks or policy.stats is not chunks[-1]):
            chunks.append(policy.stats)
        obs, _, terminated, truncated, info = env.step(action)
        actions.append(action)
        success, over = bool(info["success"]), terminated or truncated
    stream = np.stack(actions)
    return Episode(
        env_seed=env_seed,
        noise_seed=noise_seed,
        success=success,
        length=len(actions),
        latency=[chunk.latency for chunk in chunks],
        rounds=[int(chunk.rounds[0]) for chunk in chunks],
        evaluations=[int(chunk.evaluations[0]) for chunk in chunks],
        acceptance=np.mean([np.asarray(chunk.acceptance) for chunk in chunks], axis=0).tolist(),
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
