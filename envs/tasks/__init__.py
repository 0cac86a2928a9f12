"""The tasks: one file each, with its spec, its expert, and its misses if there are any.

To add a task, write `envs/tasks/NAME.py` and list its spec below. From another package, call `envs.register`.
"""

from envs.spec import ACTIONS, ARM_ACTION_DIM, ARM_OBSERVATIONS, Exploration, TaskSpec
from envs.tasks.square import SQUARE
from envs.tasks.tool_hang import TOOL_HANG
from envs.tasks.transport import TRANSPORT

__all__ = ["ACTIONS", "ARM_ACTION_DIM", "ARM_OBSERVATIONS", "TASKS", "Exploration", "TaskSpec"]

TASKS: dict[str, TaskSpec] = {task.name: task for task in (SQUARE, TRANSPORT, TOOL_HANG)}
"""Name -> task."""
