"""A fast stand-in for the simulator: episodes of noise, seeds that fail, and seeds that kill their worker."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asd_policy.collection.demonstration import Outcome
from asd_policy.data.gate import Demonstration

FAILING = frozenset({1, 4, 5, 9})


@dataclass(frozen=True)
class FakeDemonstrator:
    """Makes an episode of a seed's own; every third takes longer than its neighbours.

    Attributes:
        deadly: seed -> how many of its first attempts kill the worker.
        attempts: folder with a file per attempt, named SEED-PID.
    """

    attempts: Path
    deadly: tuple[tuple[int, int], ...] = ()

    def __call__(self, task: tuple[int]) -> Outcome:
        (seed,) = task
        (self.attempts / f"{seed}-{os.getpid()}").touch()
        if len(list(self.attempts.glob(f"{seed}-*"))) <= dict(self.deadly).get(seed, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02 * (seed % 3 == 0))
        return outcome(seed)

    def close(self) -> None:
        pass


def outcome(seed: int) -> Outcome:
    if seed in FAILING:
        return Outcome(seed, None)
    rng = np.random.default_rng(seed)
    length = int(rng.integers(2, 6))
    actions = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
    return Outcome(seed, Demonstration(seed, {"object": actions[:, :3] + 1}, actions, actions, length))
