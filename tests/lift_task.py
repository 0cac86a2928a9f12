"""A task of another package: robosuite's Lift, with an expert of its own. Importing this module registers it."""

from collections.abc import Iterator
from typing import Any

import numpy as np

import envs
from envs.motion import CLOSE, Arm, Pose, body_pose, gripper_down, never
from envs.spec import Action, Exploration, TaskSpec


def lift(sim: Any, rng: np.random.Generator) -> Iterator[Action]:
    """Grasp the cube from above and raise it."""
    arm, cube = Arm(sim), body_pose(sim, "cube_main")
    speed = rng.uniform(0.8, 1.0)

    def above(height: float) -> Pose:
        return Pose(cube().position + np.array([0.0, 0.0, height]), gripper_down(0.0))

    yield from arm.grasp(lambda: above(0.0), 0.08, (0.006, 0.06), (speed, 0.7 * speed), close_steps=10)
    yield from arm.move(lambda: above(0.1), never, speed=speed, grip=CLOSE, max_steps=12)


LIFT = TaskSpec(
    "lift", "elsewhere/Lift-v0", "Lift", object_dim=10, horizon=150, expert=lift, exploration=Exploration(noise=0.02)
)
envs.register(LIFT)
