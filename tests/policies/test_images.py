"""Policies that see images: their configuration, from demonstrations to acting, and what is refused."""

from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from asd_policy import load_policy
from asd_policy.cli.train import New, Resume, main
from asd_policy.data.dataset import Choice, copy_to_store
from asd_policy.data.robomimic_hdf5 import RobomimicFile
from asd_policy.data.store import EpisodeStore
from asd_policy.errors import ConfigError, DataError, ObservationError, UnknownNameError
from asd_policy.importers import read_checkpoint, robomimic
from asd_policy.policies.config import NetworkConfig, PolicyConfig
from asd_policy.policies.image_keys import ImageKey
from asd_policy.training.demonstrations import Demonstrations
from asd_policy.training.loop import TrainSettings, random_corners
from asd_policy.training.run import Machine
from tests.data.robomimic_file import env_args, write_file

SIZE = (40, 44, 3)
KEYS = ("robot0_eef_pos", "agentview_image", "robot0_gripper_qpos")
NETWORK = NetworkConfig(down_dims=(8, 16), n_groups=4, diffusion_step_embed_dim=8)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_file(tmp_path_factory.mktemp("data") / "image_v15.hdf5", env_args(), lengths=(20, 18))
    rng = np.random.default_rng(1)
    with h5py.File(path, "r+") as written:
        for demo in written["data"].values():
            demo["obs/agentview_image"] = rng.integers(1, 256, (demo.attrs["num_samples"], *SIZE), np.uint8)
            demo["obs/agentview_depth"] = rng.random((demo.attrs["num_samples"], *SIZE[:2], 1))
    return path


@pytest.fixture(scope="module")
def run(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of training on the file, its last snapshot in place as the weights."""
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = TrainSettings(steps=3, batch_size=4, warmup_steps=1, snapshot_every=3, log_every=3)
    assert main(New(file, out, settings, obs_keys=KEYS, network=NETWORK, machine=Machine(device="cpu"))) == 0
    (out / "ema_000003.safetensors").rename(out / "model.safetensors")
    return out


def observation(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "robot0_eef_pos": rng.standard_normal(3),
        "robot0_gripper_qpos": rng.standard_normal(2),
        "agentview_image": rng.integers(0, 256, SIZE, np.uint8),
    }


def test_files_and_stores_hold_the_same(file: Path, tmp_path: Path) -> None:
    with RobomimicFile.open(file, Choice(obs_keys=KEYS)) as opened:
        assert opened.obs_shapes == {KEYS[0]: (3,), KEYS[1]: SIZE, KEYS[2]: (2,)}
        copy_to_store(opened, tmp_path / "human.zarr")
    there, here = Demonstrations.read(file, obs_keys=KEYS), Demonstrations.read(tmp_path / "human.zarr")
    assert list(here.obs) == list(there.obs) == list(KEYS)
    assert here.obs["agentview_image"].dtype == torch.uint8
    assert all(torch.equal(here.obs[key], there.obs[key]) for key in KEYS)
    alone = Demonstrations.read(tmp_path / "human.zarr", obs_keys=KEYS[:1])
    assert list(alone.obs) == [KEYS[0]]
    for path in (file, tmp_path / "human.zarr"):
        with pytest.raises(UnknownNameError, match="'wrist_image'"):
            Demonstrations.read(path, obs_keys=("wrist_image",))
    with pytest.raises(DataError, match="agentview_depth"):
        RobomimicFile.open(file, Choice(obs_keys=("agentview_depth",)))


def test_missing_pictures_are_noticed(file: Path, tmp_path: Path) -> None:
    with RobomimicFile.open(file, Choice(obs_keys=KEYS)) as opened:
        copy_to_store(opened, tmp_path / "human.zarr")
    for chunk in (tmp_path / "human.zarr" / "data" / "obs" / "agentview_image" / "c").rglob("0"):
        if chunk.is_file():
            chunk.unlink()
    with pytest.raises(DataError, match="steps are missing from data/obs/agentview_image"):
        EpisodeStore.open(tmp_path / "human.zarr").obs("agentview_image")


def test_training_learns_the_encoder_and_resumes(file: Path, run: Path) -> None:
    assert main(Resume(run, Machine(device="cpu"))) == 0
    config = PolicyConfig.load(run / "config.json")
    assert dict(config.obs_keys) == {KEYS[0]: 3, KEYS[1]: 64, KEYS[2]: 2}
    assert config.images == (ImageKey("agentview_image", SIZE, crop=(2, 2, 36, 39)),)
    assert config.env_options == {"cameras": {"agentview": (40, 44)}}
    weights = load_file(run / "model.safetensors")
    fresh = load_file(train_again(file, run.parent / "still", learning_rate=0.0))
    encoder = [name for name in weights if name.startswith("encoders.agentview_image.")]
    changed = [name for name in encoder if not torch.equal(weights[name], fresh[name])]
    assert len(changed) > 0.9 * len(encoder)
    assert weights["normalizer.fields.agentview_image.scale"].tolist() == pytest.approx([2 / 255] * 3)


def train_again(file: Path, out: Path, learning_rate: float, init: Path | None = None) -> Path:
    settings = TrainSettings(3, 4, learning_rate, warmup_steps=1, snapshot_every=3, log_every=3)
    machine = Machine(device="cpu")
    assert main(New(file, out, settings, obs_keys=KEYS, network=NETWORK, init=init, machine=machine)) == 0
    return out / "ema_000003.safetensors"


def test_a_run_can_start_from_its_networks(file: Path, run: Path, tmp_path: Path) -> None:
    weights, kept = (
        load_file(path) for path in (run / "model.safetensors", train_again(file, tmp_path / "a", 0.0, run))
    )
    assert all(torch.equal(weights[name], kept[name]) for name in weights)


def test_it_acts_alone_and_in_a_batch(run: Path) -> None:
    policy = load_policy(run, sampler="asd", window=16)
    policy.reset(seed=1)
    alone = np.stack([policy.act(observation(step)) for step in range(10)])
    assert alone.shape == (10, 7)
    policy.reset(seeds=[1, 2])
    pairs = [(observation(step), observation(100 + step)) for step in range(10)]
    together = [policy.act({key: np.stack([a[key], b[key]]) for key in a}) for a, b in pairs]
    np.testing.assert_allclose(np.stack(together)[:, 0], alone, atol=1e-4)
    other = policy.with_sampler("ddim")
    other.reset(seed=1)
    blank = other.condition([{**observation(0), "agentview_image": np.zeros(SIZE, np.uint8)}])
    assert not torch.equal(other.condition([observation(0)]), blank)


def test_pictures_that_are_none_are_refused(run: Path) -> None:
    policy = load_policy(run)
    policy.reset(seed=0)
    floats = observation(0)["agentview_image"] / 255
    with pytest.raises(ObservationError, match="float64; expected an image of uint8"):
        policy.act({**observation(0), "agentview_image": floats})
    with pytest.raises(ObservationError, match=r"shape \(3, 40, 44\); expected \(40, 44, 3\)"):
        policy.act({**observation(0), "agentview_image": observation(0)["agentview_image"].transpose(2, 0, 1)})


def test_robomimic_cannot_hold_it(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot express observations with images"):
        robomimic.write(read_checkpoint(run), tmp_path / "out")


def test_random_corners_reach_every_place(run: Path) -> None:
    config = PolicyConfig.load(run / "config.json")
    corners = random_corners(config, 200, torch.Generator().manual_seed(0))["agentview_image"]
    assert corners.shape == (200, 2, 2)
    assert corners.amin(dim=(0, 1)).tolist() == [0, 0]
    assert corners.amax(dim=(0, 1)).tolist() == [4, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (84, 84)}, "shape is"),
        ({"crop": (9, 0, 76, 76)}, "crop is"),
        ({"crop": (0, 0, 76)}, "crop is"),
        ({"resize": (0, 5)}, "resize is"),
        ({"backbone": "vit"}, "one of resnet18"),
        ({"norm": "layer"}, "group or batch"),
        ({"num_keypoints": 0}, "num_keypoints is 0"),
        ({"key": "wrist"}, r"images is \['wrist'\]"),
    ],
)
def test_configurations_that_make_no_sense(run: Path, change: dict, message: str) -> None:
    config = PolicyConfig.load(run / "config.json")
    assert PolicyConfig.from_dict(config.to_dict()) == config
    image = ImageKey("agentview_image", (84, 84, 3))
    with pytest.raises(ConfigError, match=message):
        replace(config, images=(ImageKey(**asdict(image) | change),))
    with pytest.raises(ConfigError, match="at most 32"):
        replace(config, images=(image, image))
