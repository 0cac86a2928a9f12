"""Gymnasium environments as evaluation runs them: dict observations, actions within bounds, and `info["success"]`.

Our environments ("asd/...") are used as they are. Any other is adapted:

- A Box observation becomes a dict with one key: `state` for a vector (D,), `pixels` for an image (H, W, C) of uint8.
- A nested dict is flattened; the keys of its levels are joined with "/".
- Actions are clipped to the action space, a Box of vectors (A,), and cast to its type.
- Success is `info["success"]` or `info["is_success"]`, unless the caller names what says it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from asd_policy.errors import ConfigError
from asd_policy.evaluation.rollout import EnvObservation

STATE, PIXELS = "state", "pixels"
"""The keys given to a Box observation: for a vector, and for an image."""

SUCCESS_KEYS = ("success", "is_success")
"""Keys of `info` that report success. The first one present counts."""

TERMINATED = "terminated"
"""In place of a key of `info`: an episode that terminates has succeeded."""


def make_env(
    env_id: str,
    render_mode: str | None = None,
    *,
    success: str | None = None,
    max_steps: int | None = None,
    options: Mapping[str, Any] | None = None,
    modules: Sequence[str] = (),
) -> gymnasium.Env[Any, Any]:
    """Make an environment whose observations are dicts of arrays, and that reports `info["success"]` at each step.

    Args:
        env_id: one of ours ("asd/Square-v0"), a registered id, or "module:Id-v0", where importing the module registers
            the id.
        render_mode: such as "rgb_array".
        success: the key of `info` that reports success, or "terminated"; None looks for the keys in SUCCESS_KEYS.
        max_steps: the time limit in control steps; None takes the registered one.
        options: keyword arguments of the environment.
        modules: modules to import first, which register the environment.

    Raises:
        ConfigError: if it has no time limit, lacks the render mode, or has unsupported observations or actions. Its
            `step` raises ConfigError if `info` does not report success.
        gymnasium.error.Error: if there is no environment with this id.
    """
    import_modules(modules)
    spec = env_spec(env_id)
    if max_steps is None and spec.max_episode_steps is None:
        raise ConfigError(f"{env_id} has no time limit, so an episode may never end. Give one with --max-steps N.")
    if max_steps is not None and max_steps < 1:
        raise ConfigError(f"The time limit is {max_steps} steps; expected 1 or more.")
    env = gymnasium.make(spec, max_episode_steps=max_steps, render_mode=render_mode, **(options or {}))
    try:
        if render_mode is not None and render_mode not in (modes := env.metadata.get("render_modes") or ()):
            raise ConfigError(f"{env_id} cannot render {render_mode}; it has {', '.join(modes) or 'no render modes'}.")
        return env if is_ours(env_id) and success is None else _Adapted(env, env_id, success)
    except BaseException:
        env.close()
        raise


def import_modules(modules: Sequence[str]) -> None:
    """Import modules that register environments, drafts or networks. Raises ConfigError if one is not installed."""
    for module in modules:
        if re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", module, re.ASCII) is None:
            raise ConfigError(f"{module!r} is not a module name; expected one such as gym_pusht.")
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module.partition(".")[0]:
                raise ConfigError(f"Module {module!r} needs {error.name!r}, which is not installed.") from error
            raise ConfigError(f"There is no module {module!r}. Install it, or put its folder on PYTHONPATH.") from error


def module_of(env_id: str) -> str:
    """The module of "module:Id-v0", "envs" for one of ours, else an empty string."""
    return "envs" if is_ours(env_id) else env_id.rpartition(":")[0]


def env_spec(env_id: str) -> EnvSpec:
    """gymnasium's spec of an environment.

    Raises:
        ConfigError: if the module before the colon cannot be found.
        gymnasium.error.Error: if there is no environment with this id; the message lists similar ones.
    """
    module, name = module_of(env_id), env_id.rpartition(":")[2]
    if module:
        import_modules([module])
        return gymnasium.spec(name)
    try:
        return gymnasium.spec(name)
    except (gymnasium.error.NamespaceNotFound, gymnasium.error.NameNotFound) as error:
        raise ConfigError(
            f"{error} Name the module that registers it: --modules MODULE, or MODULE:{name} as the environment's id."
        ) from error


def is_ours(env_id: str) -> bool:
    """Whether the id names one of our environments."""
    return env_id.startswith("asd/")


class _Adapted(gymnasium.Wrapper[EnvObservation, Any, Any, Any]):
    """Adapts an environment from outside; see the module's docstring.

    Raises:
        ConfigError: on observations that are neither a Box nor a Dict, and on actions that are not a Box of vectors.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], env_id: str, success: str | None):
        super().__init__(env)
        self._id, self._success = env_id, success
        self._key = _box_key(env_id, env.observation_space)
        spaced: Any = self._named(env.observation_space)
        observed: Any = spaces.Dict(spaced)
        self.observation_space = observed
        box = env.action_space
        if not isinstance(box, spaces.Box) or len(box.shape) != 1:
            raise ConfigError(f"{env_id} takes actions of {box}; expected a Box of vectors.")
        self._box = box

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[EnvObservation, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._named(obs), info

    def step(self, action: Any) -> tuple[EnvObservation, float, bool, bool, dict[str, Any]]:
        clipped = np.clip(action, self._box.low, self._box.high).astype(self._box.dtype)
        obs, reward, terminated, truncated, info = self.env.step(clipped)
        success = bool(terminated) if self._success == TERMINATED else self._succeeded(info)
        return self._named(obs), float(reward), bool(terminated), bool(truncated), {**info, "success": success}

    def _named(self, obs: Any) -> EnvObservation:
        return dict(_flat(obs if self._key is None else {self._key: obs}))

    def _succeeded(self, info: Mapping[str, Any]) -> bool:
        keys = SUCCESS_KEYS if self._success is None else (self._success,)
        for key in keys:
            if key in info:
                return bool(info[key])
        raise ConfigError(
            f"The info of {self._id} holds {', '.join(sorted(info)) or 'nothing'}; expected {' or '.join(keys)}. Say "
            f"which key means success with --success KEY, or --success {TERMINATED} if every episode that terminates "
            "has succeeded."
        )


def _box_key(env_id: str, space: spaces.Space[Any]) -> str | None:
    """The key given to a Box observation; None for a Dict. Raises ConfigError on other spaces."""
    if isinstance(space, spaces.Dict):
        return None
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return STATE
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8:
        return PIXELS
    raise ConfigError(f"{env_id} observes {space}; expected a Dict, a Box of vectors, or a Box of images of uint8.")


def _flat(nested: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping or Dict space, each with its path."""
    for key, value in nested.items():
        if isinstance(value, Mapping | spaces.Dict):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
