"""Gymnasium ids of the robosuite tasks: `gym.make("envs:asd/Square-v0")` imports this package and finds them."""

import gymnasium

from envs.tasks import ACTIONS, TASKS

for _task in TASKS.values():
    for _actions in ACTIONS:
        gymnasium.register(
            id=_task.variant(_actions),
            entry_point="envs.robosuite_env:RobosuiteEnv",
            kwargs={"task": _task.name, "actions": _actions},
            max_episode_steps=_task.horizon,
        )
