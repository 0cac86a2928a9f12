"""What one worker of a sweep does: episodes in, records out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv

from asd_policy.evaluation.evaluate import noise_seed
from asd_policy.evaluation.provenance import software
from asd_policy.evaluation.results import Job, Record
from asd_policy.evaluation.rollout import BREAKS_EVERY_EPISODE, Episode, broken_episode, rollout
from asd_policy.evaluation.vector import kill_envs, rollout_batch, vector_env

Wave = tuple[Job, ...]
"""Episodes of one task and sampler that one policy serves at once."""


@dataclass(frozen=True)
class Parts:
    """One task's environment and policy, in memory."""

    make_env: Callable[[], gymnasium.Env]  # picklable, for waves of several episodes
    make_policy: Callable[[str], Any]  # sampler's label -> Policy, or BatchPolicy for waves of several episodes


class EpisodeWorker:
    """Runs waves of episodes; loads a task when its first one comes.

    An episode that raises is a failure, on record; the others of its wave are run again, each by itself. What
    would break every episode is raised.

    Args:
        load: task -> its parts.
        checkpoints: task -> SHA-256, for the records.
        settings: for the records; `batch` is the number of episodes of a wave.
    """

    def __init__(self, load: Callable[[str], Parts], checkpoints: Mapping[str, str], settings: Mapping[str, Any]):
        self._load = load
        self._checkpoints, self._settings, self._software = checkpoints, settings, software()
        self._parts: tuple[str, Parts] | None = None
        self._policies: dict[str, Any] = {}  # of that task, by sampler
        self._env: tuple[str, gymnasium.Env] | None = None
        self._envs: tuple[str, AsyncVectorEnv] | None = None

    def __call__(self, wave: Wave) -> list[Record]:
        if self._settings["batch"] == 1:
            return [self._alone(job) for job in wave]
        try:
            episodes = self._together(wave)
        except BREAKS_EVERY_EPISODE:
            raise
        except Exception:  # of one of them, and it took the others along
            self._close_envs()
            return [self._alone(job) for job in wave]
        return [self._record(job, episode) for job, episode in zip(wave, episodes, strict=True)]

    def close(self) -> None:
        self._close_env()
        self._close_envs()

    def _alone(self, job: Job) -> Record:
        policy, env = self._policy(job), self._single_env(job.task)
        try:
            return self._record(job, rollout(env, policy, job.env_seed, noise_seed(job.env_seed, job.repeat)))
        except BREAKS_EVERY_EPISODE:
            raise
        except Exception as error:
            self._close_env()  # the next episode must not depend on what this one has left behind
            return self._record(job, broken_episode(job.env_seed, noise_seed(job.env_seed, job.repeat), error))

    def _together(self, wave: Wave) -> list[Episode]:
        policy, envs = self._policy(wave[0]), self._vector_env(wave[0].task)
        full = [*wave, *wave[-1:] * (envs.num_envs - len(wave))]  # the last wave's empty places repeat an episode
        noise_seeds = [noise_seed(job.env_seed, job.repeat) for job in full]
        return rollout_batch(envs, policy, [job.env_seed for job in full], noise_seeds)[: len(wave)]

    def _task(self, task: str) -> Parts:
        if self._parts is None or self._parts[0] != task:
            self._parts = None  # a plan goes through its tasks one after the other: memory holds one
            self._policies.clear()
            self._parts = task, self._load(task)
        return self._parts[1]

    def _policy(self, job: Job) -> Any:
        parts = self._task(job.task)
        if job.sampler not in self._policies:
            self._policies[job.sampler] = parts.make_policy(job.sampler)
        return self._policies[job.sampler]

    def _single_env(self, task: str) -> gymnasium.Env:
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

    def _record(self, job: Job, episode: Episode) -> Record:
        return Record(**episode.to_json(), **self._common(job), error=episode.error)

    def _common(self, job: Job) -> dict[str, Any]:
        return {
            "task": job.task,
            "sampler": job.sampler,
            "repeat": job.repeat,
            "checkpoint_sha256": self._checkpoints[job.task],
            "settings": dict(self._settings),
            "software": self._software,
        }
