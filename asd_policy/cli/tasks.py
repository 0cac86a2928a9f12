"""Loads checkpoints' policies and environments for evaluation."""

# Worker processes import this module, so only functions import torch.

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.evaluation.environments import env_spec, import_modules, is_ours, make_env, module_of
from asd_policy.evaluation.worker import LoadedTask

if TYPE_CHECKING:
    from asd_policy.policies.config import PolicyConfig
    from asd_policy.policies.diffusion import DiffusionPolicy


def check_samplers(labels: Sequence[str]) -> None:
    """Raise ConfigError on a label that names no sampler."""
    from asd_policy.core import parse_sampler

    for label in labels:
        parse_sampler(label)


def uses_windows_file(labels: Sequence[str]) -> bool:
    """Whether a sampler takes its window from the checkpoint's calibration (window "auto")."""
    from asd_policy.core import Asd, parse_sampler

    return any(isinstance(spec, Asd) and spec.is_automatic for spec in map(parse_sampler, labels))


def run_settings(
    device: str, threads: int, batch: int = 1, success: str | None = None, max_steps: int | None = None
) -> dict[str, Any]:
    """The settings that are recorded. Those of environments from outside are left out unless given."""
    given = {"success": success, "max_steps": max_steps}
    return {"device": device, "threads": threads, "batch": batch} | {
        name: value for name, value in given.items() if value is not None
    }


def read_checkpoints(paths: Sequence[Path], windows: bool, modules: Sequence[str] = ()) -> dict[str, tuple[Path, str]]:
    """Task -> its checkpoint and SHA-256. With `windows` the hash includes the calibrated windows.

    Raises:
        ConfigError: if two checkpoints are for one task, or a checkpoint needs a module that is not in `modules`.
        CheckpointError: if one cannot be read.
        gymnasium.error.Error: if an environment does not exist.
    """
    from asd_policy.importers.checkpoint import fingerprint
    from asd_policy.importers.registry import read_checkpoint
    from asd_policy.importers.shipped import find_checkpoint

    import_modules(modules)
    found: dict[str, tuple[Path, str]] = {}
    for path in map(find_checkpoint, paths):
        task = read_checkpoint(path).config.env_id
        check_module(task, modules)
        if task in found:
            raise ConfigError(f"{found[task][0]} and {path} are both for {task}; a file holds one checkpoint per task.")
        env_spec(task)
        found[task] = path.absolute(), fingerprint(path, windows)
    return found


@dataclass(frozen=True)
class TaskLoader:
    """Loads a task in the process that runs its episodes.

    Attributes:
        checkpoints: task -> path and SHA-256.
        windows: whether the SHA-256 includes the calibrated windows.
        settings: from `run_settings`.
        render: whether the environment renders.
        modules: modules to import first, which register environments, drafts or networks.
        guess: use the learned first guess; the SHA-256 includes it.
    """

    checkpoints: Mapping[str, tuple[Path, str]]
    windows: bool
    settings: Mapping[str, Any]
    render: bool = False
    modules: tuple[str, ...] = ()
    guess: bool = True

    def __call__(self, task: str) -> LoadedTask:
        """The task's environment, and its policy for each sampler. Policies that compile are warmed up.

        Raises:
            CheckpointError: if the checkpoint has changed since the sweep began.
        """
        import torch

        from asd_policy import load_policy
        from asd_policy.importers.checkpoint import fingerprint

        import_modules(self.modules)
        torch.set_num_threads(self.settings["threads"])
        path, expected = self.checkpoints[task]
        if fingerprint(path, self.windows, self.guess) != expected:
            raise CheckpointError(f"{path} has changed since the sweep began, or differs on this machine.")
        policy = load_policy(path, device=self.settings["device"], guess=self.guess)

        def make_policy(label: str) -> DiffusionPolicy:
            own = policy.with_sampler(label)
            if own.needs_warm_up:
                own.warm_up(self.settings["batch"])  # otherwise the first chunk's latency would include compilation
            return own

        return LoadedTask(task_env(policy.config, self.settings, self.render, self.modules), make_policy)


def check_module(env_id: str, modules: Sequence[str]) -> None:
    """Raise ConfigError if a checkpoint's environment needs a module that the user has not named.

    A checkpoint may come from a stranger, and importing a module runs its code.
    """
    module = module_of(env_id)
    if module not in ("", "envs", *modules):
        raise ConfigError(
            f"The policy's environment is {env_id}, which the module {module} registers. If you trust that module, "
            f"import it: --modules {module}."
        )


def task_env(
    config: PolicyConfig, settings: Mapping[str, Any], render: bool = False, modules: tuple[str, ...] = ()
) -> Callable[[], gymnasium.Env[Any, Any]]:
    """A picklable factory of the policy's environment. Raises ConfigError as `check_module`."""
    check_module(config.env_id, modules)
    return partial(
        make_env,
        config.env_id,
        "rgb_array" if render else None,
        success=settings.get("success"),
        max_steps=settings.get("max_steps"),
        options=config.env_options if is_ours(config.env_id) else None,
        modules=modules,
    )


def as_recorded(settings: Mapping[str, Any], device: str) -> dict[str, Any]:
    """A record's settings, changed to run its episode again here: batch 1, `device`, at most this machine's CPUs."""
    threads = settings.get("threads")
    fits = isinstance(threads, int) and 1 <= threads <= (os.cpu_count() or 1)
    return {**settings, "device": device, "threads": threads if fits else _threads_now(), "batch": 1}


def _threads_now() -> int:
    import torch

    return torch.get_num_threads()
