"""A worker of a sweep: runs episodes and returns their records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv

from asd_policy.evaluation.provenance import software
from asd_policy.evaluation.results import EpisodeKey, Record
from asd_policy.evaluation.rollout import BREAKS_EVERY_EPISODE, Episode, Policy, broken_episode, rollout
from asd_policy.evaluation.seeds import noise_seed
from asd_policy.evaluation.vector import kill_envs, rollout_batch, vector_env
from asd_policy.plugins import check_members

Wave = tuple[EpisodeKey, ...]
"""Episodes of one task and sampler that one policy runs at once."""

Observer = Callable[[EpisodeKey, Episode], object]
"""Called with each finished episode, with its actions."""


@dataclass(frozen=True)
class LoadedTask:
    """Factories of one task's environment and policies.

    Attributes:
        make_env: picklable, for waves of several episodes.
        make_policy: sampler's label -> Policy, or BatchPolicy for waves of several episodes.
    """

    make_env: Callable[[], gymnasium.Env[Any, Any]]
    make_policy: Callable[[str], Any]


class EpisodeWorker:
    """Runs waves of episodes. It loads a task with the task's first episode.

    If an episode raises, it is recorded as a failure, and the others of its wave are run again, one by one. Errors that
    would break every episode are raised.

    Args:
        load: task -> its parts.
        checkpoints: task -> SHA-256, for the records.
        settings: for the records; `batch` is the number of episodes of a wave.
        observe: called with each finished episode, in the process that ran it.
    """

    def __init__(
        self,
        load: Callable[[str], LoadedTask],
        checkpoints: Mapping[str, str],
        settings: Mapping[str, Any],
        observe: Observer | None = None,
    ):
        self._load, self._observe = load, observe
        self._checkpoints, self._settings, self._software = checkpoints, settings, software()
        self._parts: tuple[str, LoadedTask] | None = None
        self._policies: dict[str, Any] = {}  # sampler -> policy of the present task
        self._env: tuple[str, gymnasium.Env[Any, Any]] | None = None
        self._envs: tuple[str, AsyncVectorEnv] | None = None

    def __call__(self, wave: Wave) -> list[Record]:
        if self._settings["batch"] == 1:
            return [self._alone(key) for key in wave]
        try:
            episodes = self._together(wave)
        except BREAKS_EVERY_EPISODE:
            raise
        except Exception:  # one episode raised and broke the whole wave
            self._close_envs()
            return [self._alone(key) for key in wave]
        return [self._record(key, episode) for key, episode in zip(wave, episodes, strict=True)]

    def close(self) -> None:
        """Close the environments."""
        self._close_env()
        self._close_envs()

    def _alone(self, key: EpisodeKey) -> Record:
        policy, env, noise = self._policy(key), self._single_env(key.task), noise_seed(key.env_seed, key.repeat)
        try:
            episode = rollout(env, policy, key.env_seed, noise)
        except BREAKS_EVERY_EPISODE:
            raise
        except Exception as error:
            self._close_env()  # the next episode must not depend on the state left by this one
            episode = broken_episode(key.env_seed, noise, error)
        return self._record(key, episode)

    def _together(self, wave: Wave) -> list[Episode]:
        policy, envs = self._policy(wave[0]), self._vector_env(wave[0].task)
        full = [*wave, *wave[-1:] * (envs.num_envs - len(wave))]  # a last wave that is too short repeats an episode
        noise_seeds = [noise_seed(key.env_seed, key.repeat) for key in full]
        return rollout_batch(envs, policy, [key.env_seed for key in full], noise_seeds)[: len(wave)]

    def _task(self, task: str) -> LoadedTask:
        if self._parts is None or self._parts[0] != task:
            self._parts = None  # memory holds one task; a plan runs its tasks one after the other
            self._policies.clear()
            self._parts = task, self._load(task)
        return self._parts[1]

    def _policy(self, key: EpisodeKey) -> Any:
        parts = self._task(key.task)
        if key.sampler not in self._policies:
            policy = parts.make_policy(key.sampler)
            check_members("policy", policy, Policy)
            self._policies[key.sampler] = policy
        return self._policies[key.sampler]

    def _single_env(self, task: str) -> gymnasium.Env[Any, Any]:
        if self._env is None or self._env[0] != task:
            self._close_env()
            self._env = task, self._task(task).make_env()
        return self._env[1]

    def _vector_env(self, task: str) -> AsyncVectorEnv:
        if self._envs is None or self._envs[0] != task:
            self._close_envs()
            self._envs = task, vector_env(self._task(task).make_env, self._settings["batch"])
        return self._envs[1]

    def _close_env(self) -> None:
        if self._env is not None:
            with suppress(Exception):  # it may be broken
                self._env[1].close()
            self._env = None

    def _close_envs(self) -> None:
        if self._envs is not None:
            kill_envs(self._envs[1])
            self._envs = None

    def _record(self, key: EpisodeKey, episode: Episode) -> Record:
        if self._observe is not None:
            self._observe(key, episode)
        return Record(**episode.to_json(), **self._common(key), error=episode.error)

    def _common(self, key: EpisodeKey) -> dict[str, Any]:
        return {
            "task": key.task,
            "sampler": key.sampler,
            "repeat": key.repeat,
            "checkpoint_sha256": self._checkpoints[key.task],
            "settings": dict(self._settings),
            "software": self._software,
        }
