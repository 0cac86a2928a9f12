"""Demonstrations of our expert through robomimic's own tools and back: they look the same and still succeed."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import robosuite

from asd_policy.collection.demonstration import Demonstrator
from asd_policy.collection.settings import Collection
from asd_policy.data.dataset import Choice
from asd_policy.data.robomimic_hdf5 import RobomimicFile
from asd_policy.data.store import Demonstration
from envs.tasks import TASKS, Exploration

SEEDS = (0, 1)


def record(env: gymnasium.Env, demo: Demonstration, group: h5py.Group) -> None:
    """Replay a demonstration and write down what robosuite's recorder does: states, actions and the model."""
    env.reset(seed=demo.seed)
    sim = env.unwrapped.robosuite.sim
    group.attrs["model_file"] = sim.model.get_xml()
    states = []
    for action in demo.executed_action:
        states.append(np.array(sim.get_state().flatten()))
        env.step(action)
    group["states"], group["actions"] = np.stack(states), demo.executed_action
    group.attrs["num_samples"] = len(states)


@pytest.mark.slow
def test_through_robomimics_tools(tmp_path: Path) -> None:
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.scripts.conversion.robosuite_add_absolute_actions import add_absolute_actions_to_dataset
    from robomimic.scripts.dataset_states_to_obs import dataset_states_to_obs

    expert = Demonstrator(Collection(TASKS["square"], Exploration(noise=0.05)))
    demos = [demo for seed in SEEDS if (demo := expert((seed,)).episode) is not None]
    expert.close()
    assert demos
    env = gymnasium.make("envs:asd/Square-v0", terminate_on_success=False)
    args = {
        "env_name": "NutAssemblySquare",
        "env_version": robosuite.__version__,
        "type": 1,
        "env_kwargs": {
            "robots": ["Panda"],
            "control_freq": 20,
            "controller_configs": robosuite.load_composite_controller_config(controller="BASIC", robot="Panda"),
            "reward_shaping": False,
        },
    }
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        file.create_group("data").attrs.update(env_args=json.dumps(args), total=sum(len(d.action) for d in demos))
        for number, demo in enumerate(demos):
            record(env, demo, file.create_group(f"data/demo_{number}"))
    modalities = {"low_dim": ["object", "robot0_eef_pos"], "rgb": ["agentview_image"]}
    obs_utils.initialize_obs_modality_mapping_from_dict(modalities)
    options = {
        "camera_names": ["agentview"],
        "camera_height": 84,
        "camera_width": 84,
        "shaped": False,
        "depth": False,
        "n": None,
    }
    options |= {"output_name": "low_dim.hdf5", "done_mode": 0, "copy_rewards": False, "copy_dones": False}
    options |= {"compress": False, "exclude_next_obs": True, "dataset": str(tmp_path / "demo.hdf5")}
    dataset_states_to_obs(Namespace(**options))

    check_deltas(tmp_path / "low_dim.hdf5", demos, env)
    with RobomimicFile.open(tmp_path / "low_dim.hdf5", Choice(obs_keys=("agentview_image",))) as file:
        for name, demo in zip(file.names, demos, strict=True):
            seen = file.episode(name).obs["agentview_image"]
            assert seen.shape == (len(demo.action), 84, 84, 3)
            assert np.abs(seen[0].astype(int) - first_picture(demo.seed, tmp_path / "picture.npy")).mean() < 0.5
    add_absolute_actions_to_dataset(tmp_path / "low_dim.hdf5", num_workers=1)
    poses = gymnasium.make("envs:asd/SquareBasePose-v0", terminate_on_success=False)
    with RobomimicFile.open(tmp_path / "low_dim.hdf5", Choice(absolute=True)) as file:
        assert file.env_id == "asd/SquareBasePose-v0"
        for name, demo in zip(file.names, demos, strict=True):
            assert replay(poses, demo.seed, file.episode(name).action)


PICTURE = """
import sys, gymnasium, numpy as np
env = gymnasium.make("envs:asd/Square-v0", cameras={"agentview": (84, 84)})
np.save(sys.argv[2], env.reset(seed=int(sys.argv[1]))[0]["agentview_image"])
"""


def first_picture(seed: int, path: Path) -> np.ndarray:
    """What our environment's camera sees at reset, in a process of its own: OpenGL contexts disturb each other."""
    subprocess.run([sys.executable, "-c", PICTURE, str(seed), str(path)], check=True)
    return np.load(path).astype(int)


def check_deltas(path: Path, demos: list[Demonstration], env: gymnasium.Env) -> None:
    """The file holds what was recorded, and replaying it succeeds."""
    with RobomimicFile.open(path) as file:
        assert file.recording.env_id == "asd/Square-v0"
        assert not file.recording.absolute
        for name, demo in zip(file.names, demos, strict=True):
            episode = file.episode(name)
            np.testing.assert_array_equal(episode.action, demo.executed_action)
            # The first row's relative poses are those of another episode: robosuite computes them from the sample
            # before, and robomimic's tool takes them as they come.
            errors = {key: difference(episode.obs[key][1:], demo.obs[key][1:]) for key in demo.obs}
            print(f"\n{name}: observation errors {errors}")
            assert replay(env, demo.seed, episode.action)
            assert max(errors.values()) < 5e-3  # robosuite samples them within a step, not at its end


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest between (T, D) observations, where a quaternion and its negative are the same rotation."""
    one = one.copy()
    quaternions = {14: (slice(3, 7), slice(10, 14)), 4: (slice(0, 4),)}
    for entries in quaternions.get(one.shape[1], ()):
        one[:, entries] *= np.sign((one[:, entries] * other[:, entries]).sum(axis=1, keepdims=True))
    return float(np.abs(one - other).max())


def replay(env: gymnasium.Env, seed: int, actions: np.ndarray) -> bool:
    """Whether the actions still succeed."""
    env.reset(seed=seed)
    return [env.step(action)[4]["success"] for action in actions][-1]
