"""Checkpoints and stores that earlier versions wrote load and act as they did; see tests/goldens/importers/make.py."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from asd_policy.data.store import EpisodeStore
from asd_policy.importers import read_checkpoint
from asd_policy.policies.quaternions import Quaternion
from tests.goldens.importers.make import OBS_KEYS, PARTS, STEPS, actions

VERSIONS = sorted((Path(__file__).parents[1] / "goldens" / "importers").glob("v*"))


def test_there_are_goldens_and_they_are_small():
    assert VERSIONS
    assert sum(file.stat().st_size for folder in VERSIONS for file in folder.rglob("*")) < 2**20


@pytest.mark.parametrize("sampler", ["ddpm", "asd:frozen"])
@pytest.mark.parametrize("name", ["native", "lerobot"])
@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_a_checkpoint_acts_as_when_it_was_written(folder, name, sampler):
    expected = load_file(folder / "expected.safetensors")[f"{name}.{sampler}"]
    np.testing.assert_allclose(actions(folder / name, sampler), expected, atol=1e-5)


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_a_configuration_is_read_as_it_was_written(folder):
    native, lerobot = (read_checkpoint(folder / name).config for name in ("native", "lerobot"))
    for config in (native, lerobot):
        assert (config.env_id, config.obs_keys, config.action_bound) == ("asd/SquareBasePose-v0", OBS_KEYS, None)
        assert config.action_parts == PARTS
    assert native.octaves == 1
    assert native.quaternions == (Quaternion("robot0_eef_quat", 0, (0, 0, 0, 1)),)


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_a_store_is_read_as_it_was_written(folder):
    store = EpisodeStore.open(folder / "store.zarr")
    expected = load_file(folder / "expected.safetensors")
    assert (store.num_episodes, store.num_steps) == (len(STEPS), sum(STEPS))
    assert (store.action_kind, store.attrs["notes"]) == ("delta", ["a note"])
    for number, steps in enumerate(STEPS):
        found = store.episode(number)
        assert (found.seed, found.steps_to_success) == (number, steps - 1)
        arrays = {**found.obs, "action": found.action, "executed": found.executed_action}
        for key, value in arrays.items():
            want = expected[f"store.{number}.{key}"].numpy()
            assert value.dtype == want.dtype
            np.testing.assert_array_equal(value, want)
