"""Gymnasium ids of the robosuite tasks: `gym.make("envs:asd/Square-v0")` imports this package and finds them."""

import gymnasium

from envs.tasks import TASKS

for _task in TASKS.values():
    gymnasium.register(
        id=_task.env_id,
        entry_point="envs.robosuite_env:RobosuiteEnv",
        kwargs={"task": _task.name},
        max_episode_steps=_task.horizon,
    )
