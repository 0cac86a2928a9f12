"""Demonstrations in robomimic's HDF5 layout."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from envs.tasks import ARM_OBSERVATIONS

ARM = {f"robot0_{key}": dim for key, dim in ARM_OBSERVATIONS.items()}
OBS_DIMS = {"object": 14, **ARM}
OSC = {"type": "OSC_POSE", "input_max": 1, "input_min": -1}


def env_args(version: str = "1.5.1", name: str = "NutAssemblySquare", **controller: Any) -> dict[str, Any]:
    """robomimic's, with the controller as robosuite of that version describes it."""
    config: dict[str, Any] = (
        OSC | ({"control_delta": True} if version < "1.5" else {"input_type": "delta"}) | controller
    )
    if version >= "1.5":
        config = {"type": "BASIC", "body_parts": {"right": config}}
    kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": config}
    return {"env_name": name, "env_version": version, "type": 1, "env_kwargs": kwargs}


def write_file(
    path: Path, args: dict[str, Any], lengths: Iterable[int] = (30, 25, 40), obs_dims: dict[str, int] | None = None
) -> Path:
    """Random demonstrations whose reward is 1 from the third-last step on."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(args)
        data.attrs["total"] = sum(lengths)
        for number, steps in reversed(list(enumerate(lengths))):  # h5py lists names as text, robomimic numbers them
            demo = data.create_group(f"demo_{number + 8}")
            demo.attrs.update(num_samples=steps, model_file="<mujoco/>")
            demo["actions"] = rng.uniform(-1, 1, (steps, 7))
            demo["rewards"] = np.arange(steps) >= steps - 3
            demo["dones"] = np.arange(steps) >= steps - 1
            demo["states"] = rng.normal(size=(steps, 45))
            for key, dim in ({**OBS_DIMS, "robot0_joint_pos": 7} if obs_dims is None else obs_dims).items():
                demo[f"obs/{key}"] = rng.normal(size=(steps, dim))
                demo[f"next_obs/{key}"] = rng.normal(size=(steps, dim))
    return path
