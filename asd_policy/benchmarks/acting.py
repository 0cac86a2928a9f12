"""A policy acting on recorded observations, to time whole chunks from NumPy arrays to NumPy arrays."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from asd_policy.benchmarks.work import chunk_range
from asd_policy.errors import DataError
from asd_policy.policies.chunk import ChunkStats
from asd_policy.policies.diffusion import DiffusionPolicy

SQUARE_OBSERVATIONS = Path(__file__).parent / "data" / "square_observations.npz"
"""Observations recorded along three episodes of the shipped Square policy."""


class RecordedEpisodes:
    """The last two observations before each of N chunks that a policy sampled along episodes.

    Attributes:
        first: (N,) bool, whether an episode begins here.
        values: for each key (N, 2, D).
    """

    def __init__(self, first: NDArray[np.bool_], values: Mapping[str, NDArray[np.float32]]):
        self.first, self.values = first, values

    @staticmethod
    def read(path: Path) -> RecordedEpisodes:
        """Read an .npz file. Raises DataError if it cannot be read."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                values = {key: arrays[key] for key in arrays.files if key != "first"}
                return RecordedEpisodes(arrays["first"], values)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"Cannot read the recorded observations {path}: {error}.") from error

    def __len__(self) -> int:
        return len(self.first)

    def at(self, index: NDArray[np.intp], which: int) -> dict[str, NDArray[np.float32]]:
        """The last observation (`which` 1) or the one before (0) at the places `index` (N',): (N', D) for each key."""
        return {key: value[index, which] for key, value in self.values.items()}


class Acting:
    """A policy in a batch of recorded environments. Each environment is one chunk ahead of the previous one."""

    def __init__(self, policy: DiffusionPolicy, recording: RecordedEpisodes, batch_size: int):
        self.policy, self._recording = policy, recording
        self._index = np.arange(batch_size) % len(recording)
        self._begun = False

    def chunk(self) -> tuple[float, ChunkStats]:
        """Sample and execute the next chunk. Returns its statistics and the seconds of the `act` that sampled it."""
        result = self.sample()
        self.finish()
        return result

    def sample(self) -> tuple[float, ChunkStats]:
        """The timed part of `chunk`: from observations to the chunk's first actions."""
        policy, index = self.policy, self._index
        if not self._begun:
            policy.reset(seeds=list(range(len(index))))
            self._begun = True
        elif self._recording.first[index].any():
            policy.reset(mask=self._recording.first[index].tolist())
        now = self._recording.at(index, 1)
        if policy.device.type == "cuda":
            torch.cuda.synchronize(policy.device)
        with chunk_range():
            started = time.perf_counter()
            policy.act(now)
            seconds = time.perf_counter() - started
        assert policy.stats is not None
        return seconds, policy.stats

    def finish(self) -> None:
        """The rest of `chunk`: act until the next chunk is due."""
        now, following = self._recording.at(self._index, 1), (self._index + 1) % len(self._recording)
        to_come = self.policy.config.n_action_steps - 1
        for _ in range(to_come - 1):
            self.policy.act(now)
        if to_come:
            self.policy.act(self._recording.at(following, 0))  # the observation before the next chunk's
        self._index = following
