"""Reads the environment metadata of robomimic's demonstrations and checkpoints, which define their actions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asd_policy.errors import DataError
from asd_policy.policies.tasks import POSES, arms_of, env_id

ROBOSUITE = 1  # robomimic's number for robosuite environments
CONTROL_HZ = 20
COMPOSITE = "body_parts"  # the key of the arms' controllers in robosuite 1.5
APART = (None, "BASIC", "HYBRID_MOBILE_BASE")
"""Composite controllers of robosuite 1.5 that give each arm its own controller; None if not named."""

POSE_CONTROLLER = "OSC_POSE"
ROBOT = "Panda"
NEW_CONTROLLERS = (1, 5)
"""The robosuite version of our environments. It changed the arms' controllers."""

OUTPUT = (0.05, 0.05, 0.05, 0.5, 0.5, 0.5)  # metres and radians
LIMITS: Mapping[str, float | Sequence[float]] = {
    "input_max": 1,
    "input_min": -1,
    "output_max": OUTPUT,
    "output_min": tuple(-limit for limit in OUTPUT),
}
"""Controller settings of our environments that set how far a delta of 1 moves the arm."""


@dataclass(frozen=True)
class Recording:
    """The metadata of a recording.

    Attributes:
        env_name: robosuite's name of the environment.
        env_id: our environment for these actions, or robosuite's name if there is none.
        version: robosuite's version as (major, minor); (0, 0) if unknown.
        absolute: whether actions are target poses.
        frame: the frame of target poses, "base" or "world".
        notes: warnings to read before training on the file.
        poses: whether actions are target poses or deltas of poses. Joint positions, for example, are neither.
        controller_notes: warnings about the arms' controllers.
    """

    env_name: str
    env_id: str
    version: tuple[int, int]
    absolute: bool
    frame: str
    notes: tuple[str, ...]
    poses: bool = True
    controller_notes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> Recording:
        """Read `env_args`, the metadata as JSON.

        Raises:
            DataError: if it is not robosuite's, or is incomplete.
        """
        try:
            values = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{where}: its env_args cannot be understood: {error!r:.300}.") from error
        return cls.of(values, where)

    @classmethod
    def of(cls, values: Any, where: str) -> Recording:
        """Read the metadata.

        Raises:
            DataError: if it is not robosuite's, or is incomplete.
        """
        missing = [key for key in ("env_name", "env_kwargs") if not isinstance(values, Mapping) or key not in values]
        if missing:
            got = ", ".join(map(str, values)) if isinstance(values, Mapping) else type(values).__name__
            raise DataError(
                f"{where}: its env_args cannot be understood: they lack {' and '.join(missing)}; got {got:.200}. "
                "Expected what robomimic writes."
            )
        try:
            name, kind, kwargs = values["env_name"], values.get("type", ROBOSUITE), values["env_kwargs"]
            controllers = _arm_controllers(kwargs.get("controller_configs") or {})
            version = _version(values.get("env_version"))
            types = {str(controller.get("type"))[:100] for controller in controllers}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: its env_args cannot be understood: {error!r:.300}.") from error
        if kind != ROBOSUITE:
            raise DataError(
                f"{where} was recorded in an environment of type {str(kind)[:100]}; expected robosuite's ({ROBOSUITE})."
            )
        if not isinstance(name, str):
            raise DataError(f"{where}: its env_name is {type(name).__name__}; expected robosuite's name.")
        new = version >= NEW_CONTROLLERS or (version == (0, 0) and any("input_type" in c for c in controllers))
        poses = types <= {POSE_CONTROLLER}
        absolute = poses and _are_absolute(controllers, new, where)
        frame = _frame(controllers, new, where)
        ours = env_id(name, frame if absolute else None) if poses else name
        controller_notes = _controller_notes(controllers, new)
        if poses and not absolute and frame != "base" and new and arms_of(ours) > 1:
            ours = name  # the bases are rotated, so deltas along the world's axes differ from ours
            controller_notes += (
                f"Its deltas are along the axes of the {frame}; those of {env_id(name)} are each arm's.",
            )
        if poses and not absolute:
            controller_notes += _limit_notes(controllers)
        notes = (*_version_notes(values.get("env_version"), version), *controller_notes, *_setup_notes(name, kwargs))
        return cls(name, ours, version, absolute, frame, notes, poses, controller_notes)

    def env_for(self, absolute: bool) -> str:
        """Our environment for the recorded actions, or with `absolute` for the recorded target poses."""
        return env_id(self.env_name, self.frame) if absolute and self.poses else self.env_id


def _arm_controllers(configs: Any) -> list[Mapping[str, Any]]:
    """The arms' controllers: nested below `body_parts` since robosuite 1.5, the configuration itself before.

    The configuration of several robots is a list.
    """
    if isinstance(configs, list):
        return [controller for config in configs for controller in _arm_controllers(config)]
    if COMPOSITE not in configs:
        return [configs] if configs else []
    if configs.get("type") not in APART:  # one controller for the whole body, which passes joints to the arms
        return [{"type": configs["type"]}]
    parts = configs[COMPOSITE]
    parts = parts.get("arms", parts)
    return [part for name, part in parts.items() if name in ("right", "left")]


def _are_absolute(controllers: list[Mapping[str, Any]], new: bool, where: str) -> bool:
    """Whether the arms' controllers take target poses.

    Raises:
        DataError: if some do and others do not.
    """
    types = {str(controller.get("input_type", "delta"))[:100] for controller in controllers} if new else set()
    if odd := types - {"absolute", "delta"}:
        raise DataError(f"{where}: its controller's input_type is {odd.pop()!r}; expected absolute or delta.")
    modes = {
        controller.get("input_type") == "absolute" if new else controller.get("control_delta") is False
        for controller in controllers
    }
    if len(modes) > 1:
        raise DataError(f"{where}: one arm takes absolute poses and the other deltas, which is not supported.")
    return modes == {True}


def _frame(controllers: list[Mapping[str, Any]], new: bool, where: str) -> str:
    """The frame of target poses: the controllers' setting since robosuite 1.5, "world" before."""
    frames = {str(controller.get("input_ref_frame", "base"))[:100] for controller in controllers} or {"base"}
    if not new:
        return "world"
    if len(frames) > 1 or not frames <= POSES.keys():
        raise DataError(f"{where}: poses are given in the frame {sorted(frames)}; expected one of {', '.join(POSES)}.")
    return frames.pop()


def _version(text: Any) -> tuple[int, int]:
    """(1, 5) for "1.5.1"; (0, 0) if unknown."""
    if text is None:
        return 0, 0
    found = re.match(r"(\d{1,4})\.(\d{1,4})", text)
    if found is None:
        raise ValueError(f"env_version is {str(text)[:100]!r}")
    return int(found[1]), int(found[2])


def _version_notes(text: str | None, version: tuple[int, int]) -> tuple[str, ...]:
    if version >= NEW_CONTROLLERS:
        return ()
    return (
        f"Recorded with robosuite {text or '(unknown)'}. robosuite 1.5 has other controllers: the same actions "
        "move the arm differently there, and replaying them need not succeed. robomimic offers the same "
        "demonstrations for 1.5 (low_dim_v15.hdf5).",
    )


def _setup_notes(name: str, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes on differences between the recording's set-up and our environments'."""
    notes = []
    freq = kwargs.get("control_freq", CONTROL_HZ)
    if freq != CONTROL_HZ:
        notes.append(f"Recorded at {str(freq)[:100]} Hz; the environments here run at {CONTROL_HZ} Hz.")
    robots = kwargs.get("robots") or ROBOT
    other = {str(robot)[:100] for robot in (robots if isinstance(robots, list) else [robots])} - {ROBOT}
    if other:
        notes.append(f"Recorded with the robot {', '.join(sorted(other))}; the environments here have {ROBOT}.")
    if env_id(name) == name:
        notes.append(f"There is no environment for {name} here: a policy can be trained, but not rolled out.")
    return tuple(notes)


def _controller_notes(controllers: list[Mapping[str, Any]], new: bool) -> tuple[str, ...]:
    notes = []
    other = {str(c.get("type"))[:100] for c in controllers} - {POSE_CONTROLLER}
    if new and not other and any("control_delta" in controller for controller in controllers):
        mode = str(controllers[0].get("input_type", "delta"))[:100]
        notes.append(
            "The controller says control_delta, which robosuite 1.5 ignores silently: what counts is input_type, "
            f"here {mode!r}. Actions are taken as {'absolute poses' if mode == 'absolute' else 'deltas'}."
        )
    if other:
        notes.append(
            f"Recorded with the controller {', '.join(sorted(other))}; the environments here use {POSE_CONTROLLER}."
        )
    return tuple(notes)


def _limit_notes(controllers: list[Mapping[str, Any]]) -> tuple[str, ...]:
    """Notes on controller limits that differ, so that a delta of 1 moves the arm by another amount."""
    notes = []
    for name, expected in LIMITS.items():
        said = {str(c[name])[:100] for c in controllers if name in c and not _equals(c[name], expected)}
        if said:
            notes.append(
                f"The controller's {name} is {', '.join(sorted(said))}; in the environments here {expected}: a delta "
                "moves the arm by another amount there."
            )
    return tuple(notes)


def _equals(value: Any, expected: float | Sequence[float]) -> bool:
    """Whether two limits are equal; each is one number for all entries, or one number for each."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    wanted = [expected] if isinstance(expected, int | float) else list(expected)
    longest = max(len(values), len(wanted))
    values, wanted = (part * longest if len(part) == 1 else part for part in (values, wanted))
    return values == wanted
