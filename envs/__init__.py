"""robosuite tasks as gymnasium environments, registered by importing it: `gym.make("envs:asd/Square-v0")`."""

import gymnasium

from envs.tasks import ACTIONS, TASKS, TaskSpec

__all__ = ["register"]


def register(task: TaskSpec) -> None:
    """Register a task: in `envs.tasks.TASKS` by its name, and with gymnasium by its id for each kind of actions.

    Raises:
        gymnasium.error.Error: if the task's name or one of its environment ids is taken.
    """
    ids = {task.variant(actions): actions for actions in ACTIONS}
    registered = gymnasium.registry
    taken = [id for id in ids if id in registered and registered[id].kwargs.get("task") != task.name]
    if TASKS.get(task.name, task) != task or taken:
        raise gymnasium.error.Error(
            f"Cannot register {task}: {', '.join(taken) or f'the name {task.name!r}'} is taken. Choose another."
        )
    TASKS[task.name] = task
    for id, actions in ids.items():
        if id not in registered:
            gymnasium.register(
                id=id,
                entry_point="envs.robosuite_env:RobosuiteEnv",
                kwargs={"task": task.name, "actions": actions},
                max_episode_steps=task.horizon,
            )


for _task in TASKS.values():
    register(_task)
