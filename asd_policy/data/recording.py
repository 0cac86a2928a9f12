"""How a robomimic file says it was recorded (`env_args`), and where that misleads with robosuite 1.5."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asd_policy.errors import DataError
from asd_policy.policies.tasks import env_id

ROBOSUITE = 1  # robomimic's number for robosuite's environments
CONTROL_HZ = 20
COMPOSITE = "body_parts"  # robosuite 1.5 nests the arms' controllers below this


@dataclass(frozen=True)
class Recording:
    """What `env_args` says.

    Attributes:
        env_name: robosuite's name of the environment.
        env_id: ours, or robosuite's where there is none.
        version: robosuite's, as (major, minor).
        absolute: actions are target poses, not deltas.
        frame: of target poses, "base" or "world".
        notes: what somebody who trains on the file should know.
    """

    env_name: str
    env_id: str
    version: tuple[int, int]
    absolute: bool
    frame: str
    notes: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, where: str) -> Recording:
        """Read `env_args`.

        Raises:
            DataError: if it is not robosuite's, or incomplete.
        """
        try:
            values = json.loads(text)
            name, kind, kwargs = values["env_name"], values.get("type", ROBOSUITE), values["env_kwargs"]
            controllers = _arm_controllers(kwargs.get("controller_configs") or {})
            version = _version(values.get("env_version"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: its env_args cannot be understood: {error!r}.") from error
        if kind != ROBOSUITE:
            raise DataError(
                f"{where} was recorded in an environment of type {kind}; expected robosuite's ({ROBOSUITE})."
            )
        modes = {_is_absolute(controller, version) for controller in controllers} or {False}
        if len(modes) > 1:
            raise DataError(f"{where}: one arm takes absolute poses and the other deltas, which is not supported.")
        notes = (*_version_notes(values.get("env_version"), version), *_controller_notes(controllers, version))
        freq = kwargs.get("control_freq", CONTROL_HZ)
        if freq != CONTROL_HZ:
            notes += (f"Recorded at {freq} Hz; the environments here run at {CONTROL_HZ} Hz.",)
        if env_id(name) == name:
            notes += (f"There is no environment for {name} here: a policy can be trained, but not rolled out.",)
        frame = controllers[0].get("input_ref_frame", "base") if version >= (1, 5) and controllers else "world"
        return cls(name, env_id(name), version, modes.pop(), str(frame), notes)


def _arm_controllers(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The arms' controllers: nested below `body_parts` since robosuite 1.5, the configuration itself before."""
    if COMPOSITE not in config:
        return [config] if config else []
    parts = config[COMPOSITE]
    parts = parts.get("arms", parts)
    return [part for name, part in parts.items() if name in ("right", "left")]


def _is_absolute(controller: Mapping[str, Any], version: tuple[int, int]) -> bool:
    if version >= (1, 5) and "input_type" in controller:
        return bool(controller["input_type"] == "absolute")
    return version < (1, 5) and controller.get("control_delta") is False


def _version(text: str | None) -> tuple[int, int]:
    major, minor = (text or "0.0").split(".")[:2]
    return int(major), int(minor)


def _version_notes(text: str | None, version: tuple[int, int]) -> tuple[str, ...]:
    if version >= (1, 5):
        return ()
    return (
        f"Recorded with robosuite {text or '(unknown)'}. robosuite 1.5 has other controllers: the same actions "
        "move the arm differently there, and replaying them need not succeed. robomimic offers the same "
        "demonstrations for 1.5 (low_dim_v15.hdf5).",
    )


def _controller_notes(controllers: list[Mapping[str, Any]], version: tuple[int, int]) -> tuple[str, ...]:
    notes = []
    if version >= (1, 5) and any("control_delta" in controller for controller in controllers):
        mode = controllers[0].get("input_type", "delta")
        notes.append(
            "The controller says control_delta, which robosuite 1.5 ignores silently: what counts is input_type, "
            f"here {mode!r}. Actions are taken as {'absolute poses' if mode == 'absolute' else 'deltas'}."
        )
    other = {str(c.get("type")) for c in controllers} - {"OSC_POSE"}
    if other:
        notes.append(f"Recorded with the controller {', '.join(sorted(other))}; the environments here use OSC_POSE.")
    return tuple(notes)
