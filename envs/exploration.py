"""Disturbances of an expert's actions during demonstrations, so that a policy learns to recover.

As in DART (Laskey et al. 2017, https://arxiv.org/abs/1703.09327), the labels are the expert's own actions in the
disturbed states.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from envs.spec import ARM_ACTION_DIM, Exploration

PUSH: NDArray[np.float64] = np.array([0.2] * 3 + [0.1] * 3 + [0.0])
"""Standard deviation of a push on one arm, as a fraction of a full action: 1 cm and 0.05 rad a step."""
PUSH_STEPS = 4, 12
"""Duration of a push in control steps, the second number excluded."""

CLOSING: NDArray[np.float64] = np.array([0.0] * 6 + [2.0])
"""Added to an action and clipped to [-1, 1], it closes the gripper for any action (-1 opens, 1 closes)."""
CLOSING_STEPS = 8, 24
"""Control steps for which the gripper stays closed, the second number excluded."""


def exploration_noise(exploration: Exploration, arms: int, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """For each step, the disturbance to add to the action of all arms (7 * arms,): white noise, pushes and closings.

    White noise averages out before it moves the hand far. A push lasts several steps, so the expert demonstrates a
    recovery from further away. Fingers that close too early miss the object, so the expert demonstrates another grasp.
    """
    white = np.tile([exploration.noise] * (ARM_ACTION_DIM - 1) + [0.0], arms)

    def push() -> NDArray[np.float64]:
        return PUSH * rng.standard_normal(ARM_ACTION_DIM)

    pushes = [_now_and_then(exploration.pushes, push, PUSH_STEPS, rng) for _ in range(arms)]
    closings = [_now_and_then(exploration.closings, lambda: CLOSING, CLOSING_STEPS, rng) for _ in range(arms)]
    while True:
        noise = white * rng.standard_normal(len(white))
        for events in (pushes, closings):
            noise = noise + np.concatenate([next(event) for event in events])
        yield noise


def _now_and_then(
    rate: float, event: Callable[[], NDArray[np.float64]], steps: tuple[int, int], rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """At each step (7,): an event that begins with probability `rate` and lasts several steps; zeros otherwise."""
    nothing = np.zeros(ARM_ACTION_DIM)
    while True:
        if rate and rng.random() < rate:
            happening = event()
            for _ in range(rng.integers(*steps)):
                yield happening
        else:
            yield nothing
