"""What is done to an expert's actions while it demonstrates, so that a policy learns to recover.

As in DART (Laskey et al. 2017, https://arxiv.org/abs/1703.09327), the labels are the expert's own actions, from
wherever the noise has taken it.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from envs.tasks import ARM_ACTION_DIM, TaskSpec

PUSH = np.array([0.2] * 3 + [0.1] * 3 + [0.0])
"""Standard deviation of a push on one arm, in fractions of a full action: 1 cm and 0.05 rad a step."""
PUSH_STEPS = 4, 12
"""How long it lasts, the second excluded."""


def exploration_noise(
    task: TaskSpec, sigma: float, push_rate: float, rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """What to add to the action of each step, all arms (A,): white noise, and now and then a push.

    White noise averages out before it has moved the hand far; a push lasts, and so shows how to come back from further
    away. Neither touches the grippers.

    Args:
        task: whose arms.
        sigma: standard deviation of the white noise, in fractions of a full action.
        push_rate: probability that a push on an arm begins at a step.
        rng: source of both.
    """
    arms = len(task.robots)
    white = np.tile([sigma] * (ARM_ACTION_DIM - 1) + [0.0], arms)
    pushes, left = np.zeros((arms, ARM_ACTION_DIM)), np.zeros(arms, int)
    while True:
        noise = white * rng.standard_normal(task.action_dim)
        for arm in range(arms if push_rate else 0):
            if left[arm] == 0 and rng.random() < push_rate:
                pushes[arm], left[arm] = PUSH * rng.standard_normal(ARM_ACTION_DIM), rng.integers(*PUSH_STEPS)
            if left[arm]:
                noise[arm * ARM_ACTION_DIM : (arm + 1) * ARM_ACTION_DIM] += pushes[arm]
                left[arm] -= 1
        yield noise
