"""Episodes in lock-step: one policy acts for a batch of environments."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from asd_policy.errors import ConfigError
from asd_policy.evaluation.rollout import ChunkStats, Episode, Observation, Trace, succeeded

THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class BatchPolicy(Protocol):
    """Whatever acts in B environments at once: see `asd_policy.DiffusionPolicy`."""

    @property
    def stats(self) -> ChunkStats | None: ...

    def reset(self, *, seeds: Sequence[int]) -> None: ...

    def act(self, obs: Observation) -> NDArray[np.float32]: ...


def rollout_batch(
    envs: AsyncVectorEnv | SyncVectorEnv, policy: BatchPolicy, env_seeds: Sequence[int], noise_seeds: Sequence[int]
) -> list[Episode]:
    """Run one episode per environment, all at once; each is that of `rollout` up to floating-point rounding.

    Every episode has the noise of its own seed, whatever the others are. The policy plans for all of them until the
    last is over: chunks are sampled in lock-step, so an episode begun in a free place would have to wait for the next
    chunk, and its history for another.

    Args:
        envs: B environments that report `success`; what they do after their episode's end is ignored.
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
            obs, _ = envs.reset(options={"reset_mask": ended})  # it does not step what has ended
    return [trace.episode() for trace in traces]


def vector_env(make_env: Callable[[], gymnasium.Env], count: int) -> AsyncVectorEnv:
    """`count` environments in a process each, that rest after their episode's end and leave Ctrl-C to the caller.

    Args:
        make_env: picklable.
    """
    with thread_count(1):
        return AsyncVectorEnv(
            [partial(_resting_env, make_env)] * count, context="spawn", autoreset_mode=AutoresetMode.DISABLED
        )


def kill_envs(envs: AsyncVectorEnv) -> None:
    """End the environments whatever state they are in; `envs.close()` waits for ever for one that has died."""
    for process in envs.processes:
        process.kill()
    for process in envs.processes:
        process.join()
    envs.closed = True


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Processes started within the block compute with this many threads."""
    before = {name: os.environ.get(name) for name in THREAD_COUNTS}
    os.environ.update(dict.fromkeys(THREAD_COUNTS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _resting_env(make_env: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    if multiprocessing.parent_process() is not None:  # gymnasium makes one in the caller's process too
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return _Resting(make_env())


class _Resting(gymnasium.Wrapper):
    """Repeats its last answer once the episode is over: nothing is simulated for nobody."""

    def reset(self, **arguments: Any) -> tuple[Observation, dict[str, Any]]:
        self._last: tuple[Observation, float, bool, bool, Mapping[str, Any]] | None = None
        return super().reset(**arguments)

    def step(self, action: NDArray[np.floating]) -> Any:
        if self._last is not None:
            return self._last
        answer = super().step(action)
        obs, reward, terminated, truncated, info = answer
        if info["success"] or terminated or truncated:
            self._last = obs, float(reward), terminated, truncated, info
        return answer
