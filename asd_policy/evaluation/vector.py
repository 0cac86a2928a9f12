"""Runs episodes in lock-step: one policy acts in a batch of environments."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from asd_policy.errors import ConfigError
from asd_policy.evaluation.rollout import ChunkCost, EnvObservation, Episode, Trace, succeeded
from asd_policy.threads import thread_count


class BatchPolicy(Protocol):
    """Acts in B environments at once; `asd_policy.DiffusionPolicy` is one."""

    @property
    def stats(self) -> ChunkCost | None:
        """The last chunk's cost, a new object for each chunk; None before the first."""
        ...

    def reset(self, *, seeds: Sequence[int]) -> None:
        """Begin an episode in every environment, each with the noise of its seed."""
        ...

    def act(self, obs: EnvObservation) -> NDArray[np.float32]:
        """The next actions, (B, A)."""
        ...


def rollout_batch(
    envs: AsyncVectorEnv | SyncVectorEnv, policy: BatchPolicy, env_seeds: Sequence[int], noise_seeds: Sequence[int]
) -> list[Episode]:
    """Run one episode per environment, all at once. Each equals that of `rollout` up to floating-point rounding.

    Each episode's noise depends on its own seed alone. When an episode ends, no new one begins in its row: chunks are
    sampled in lock-step, so it would have to wait for the next chunk.

    Args:
        envs: B environments that report `success`. Results after an episode's end are ignored.
        env_seeds: (B,)
        noise_seeds: (B,)

    Returns:
        (B,) episodes. A chunk's latency is the batch's, and acceptance is the mean over the batch.

    Raises:
        ConfigError: unless there is one seed of each kind per environment, and one action; and as `rollout`.
        NumericalError: on an action that is not finite.
    """
    if not len(env_seeds) == len(noise_seeds) == envs.num_envs:
        raise ConfigError(
            f"Got {len(env_seeds)} env seeds and {len(noise_seeds)} noise seeds for {envs.num_envs} environments."
        )
    obs, _ = envs.reset(seed=list(env_seeds))
    policy.reset(seeds=noise_seeds)
    shape = envs.single_action_space.shape
    traces = [Trace(*seeds, shape, row) for row, seeds in enumerate(zip(env_seeds, noise_seeds, strict=True))]
    while live := [(row, trace) for row, trace in enumerate(traces) if not trace.over]:
        actions = policy.act(obs)
        if len(actions) != envs.num_envs:
            raise ConfigError(f"The policy answered with {len(actions)} actions for {envs.num_envs} environments.")
        for row, trace in live:
            trace.acted(actions[row], policy.stats)
        obs, _, terminated, truncated, info = envs.step(actions)
        for row, trace in live:
            trace.moved(succeeded(info, row), bool(terminated[row] or truncated[row]))
        ended = terminated | truncated
        if ended.any() and isinstance(envs, SyncVectorEnv) and envs.autoreset_mode == AutoresetMode.DISABLED:
            obs, _ = envs.reset(options={"reset_mask": ended})  # gymnasium refuses to step an ended episode
    return [trace.episode() for trace in traces]


def vector_env(make_env: Callable[[], gymnasium.Env[Any, Any]], count: int) -> AsyncVectorEnv:
    """`count` environments, each in its own process. They idle after their episode's end and ignore Ctrl-C.

    Args:
        make_env: picklable.
    """
    with thread_count(1):
        return AsyncVectorEnv(
            [partial(_resting_env, make_env)] * count, context="spawn", autoreset_mode=AutoresetMode.DISABLED
        )


def kill_envs(envs: AsyncVectorEnv) -> None:
    """Kill the environments in any state. `envs.close()` would wait for ever for a dead one."""
    for process in envs.processes:
        process.kill()
    for process in envs.processes:
        process.join()
    envs.closed = True


def _resting_env(make_env: Callable[[], gymnasium.Env[Any, Any]]) -> gymnasium.Env[Any, Any]:
    if multiprocessing.parent_process() is not None:  # gymnasium also makes one in the caller's process
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return _Resting(make_env())


class _Resting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """After an episode's end, repeats its last step's results instead of simulating on."""

    def reset(self, **arguments: Any) -> tuple[EnvObservation, dict[str, Any]]:
        self._last: tuple[EnvObservation, float, bool, bool, Mapping[str, Any]] | None = None
        return super().reset(**arguments)

    def step(self, action: NDArray[np.float32]) -> Any:
        if self._last is not None:
            return self._last
        answer = super().step(action)
        obs, reward, terminated, truncated, info = answer
        if info["success"] or terminated or truncated:
            self._last = obs, float(reward), terminated, truncated, info
        return answer
