"""`predict_chunk`: the chunks of `act`, without the policy's state."""

import numpy as np
import pytest
import torch

from asd_policy import load_policy
from asd_policy.core import NoiseTape, seeded_generator
from asd_policy.errors import AsdPolicyError, ConfigError, ObservationError, UnknownNameError
from asd_policy.nets import ConditionalUnet1D
from asd_policy.policies.chunk import warm_start
from asd_policy.policies.config import NetworkConfig, PolicyConfig, SchedulerConfig
from asd_policy.policies.image_keys import ImageKey
from asd_policy.policies.making import make_policy
from asd_policy.policies.network import build_encoders, build_network
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.policies.observations import IMAGES
from tests.tiny import tiny_checkpoint

OBS_KEYS = {"object": 5, "robot0_eef_pos": 3}
SAMPLERS = ["ddpm", "ddim:4", "asd:frozen:4", "asd:reuse:8", "asd:path:all"]
SIZE = (40, 44, 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", OBS_KEYS, action_dim=2)


@pytest.fixture(scope="module")
def seeing():
    """A policy with a camera and random weights."""
    config = PolicyConfig(
        env_id="none",
        obs_keys={"camera": 8, "state": 2},
        action_dim=2,
        network=NetworkConfig(down_dims=(8, 16), diffusion_step_embed_dim=8, kernel_size=3),
        scheduler=SchedulerConfig(num_train_timesteps=6),
        images=(ImageKey("camera", SIZE, crop=(2, 3, 36, 36), num_keypoints=4),),
    )
    normalizer = LinearNormalizer(config.normalizer_dims)
    normalizer.fit("camera", torch.tensor([[0.0] * 3, [255.0] * 3]))
    return make_policy(build_network(config), normalizer, config, "asd:path:4", encoders=build_encoders(config))


def observation(step: int, batch: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {key: rng.standard_normal((batch, dim)) for key, dim in OBS_KEYS.items()}


def picture(step: int, batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {
        "camera": rng.integers(0, 256, (batch, *SIZE), np.uint8),
        "state": rng.standard_normal((batch, 2)),
    }


def as_format(image: np.ndarray, images: str) -> np.ndarray:
    image = np.moveaxis(image, -1, -3) if images.endswith("chw") else image
    return image / 255 if images.startswith("float") else image


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_act_executes_its_chunks(checkpoint, sampler):
    """Three chunks of a batch, the second and third warm, equal those of `act` bit for bit."""
    policy, stateless = load_policy(checkpoint, sampler), load_policy(checkpoint, sampler)
    policy.reset(seeds=[3, 4])
    generators, warm = [seeded_generator(seed) for seed in (3, 4)], None
    for first in (0, 8, 16):
        acted = np.stack([policy.act(observation(step, 2)) for step in range(first, first + 8)], axis=1)
        chunk = stateless.predict_chunk(
            [observation(s, 2) for s in range(max(first - 1, 0), first + 1)], generators, warm
        )
        assert np.array_equal(chunk.actions, acted)
        assert torch.equal(chunk.stats.rounds, policy.stats.rounds)
        assert chunk.stats.latency > 0
        warm = chunk.predictions
    assert (warm is None) == (not sampler.startswith("asd:path"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_state_of_the_policy_is_neither_used_nor_changed(checkpoint, sampler):
    policy, undisturbed = load_policy(checkpoint, sampler), load_policy(checkpoint, sampler)
    before = policy.predict_chunk([observation(50)], seeded_generator(9)).actions
    for one in (policy, undisturbed):
        one.reset(seed=0)
    state = torch.get_rng_state()
    for step in range(12):
        action, stats = policy.act({k: v[0] for k, v in observation(step).items()}), policy.stats
        again = policy.predict_chunk([observation(50)], seeded_generator(9)).actions
        policy.predict_chunk([observation(51, 3)], seeded_generator(9))
        assert np.array_equal(before, again)
        assert np.array_equal(action, undisturbed.act({k: v[0] for k, v in observation(step).items()}))
        assert policy.stats is stats
        assert policy.batch_shape == ()
    assert torch.equal(state, torch.get_rng_state())


def test_the_whole_horizon_holds_the_executed_part(checkpoint):
    policy = load_policy(checkpoint)
    history = [observation(0, 2), observation(1, 2)]
    whole = policy.predict_chunk(history, seeded_generator(0), whole_horizon=True)
    part = policy.predict_chunk(history, seeded_generator(0))
    assert whole.actions.shape == (2, 16, 2)
    assert whole.actions.dtype == np.float32
    assert np.array_equal(whole.actions[:, 1:9], part.actions)


def test_a_row_depends_on_its_own_noise_alone(checkpoint):
    policy = load_policy(checkpoint)
    together = policy.predict_chunk([observation(0, 3)], [seeded_generator(seed) for seed in range(3)])
    for row in range(3):
        own = {key: value[row : row + 1] for key, value in observation(0, 3).items()}
        alone = policy.predict_chunk([own], [seeded_generator(row)])
        np.testing.assert_allclose(alone.actions[0], together.actions[row], atol=1e-4)


def test_without_a_generator_the_noise_is_torchs(checkpoint):
    policy = load_policy(checkpoint)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        drawn = policy.predict_chunk([observation(0)]).actions
    assert np.array_equal(drawn, policy.predict_chunk([observation(0)], torch.Generator().manual_seed(7)).actions)


def test_a_warm_start_saves_rounds_and_rows_of_nan_are_cold():
    policy = load_policy("square", "asd:path:all", guess=False)
    generator = np.random.default_rng(0)
    sizes = policy.config.obs_keys
    history = [{key: generator.normal(size=(2, size)) / 10 for key, size in sizes.items()}]
    tape = NoiseTape.draw(2, policy.sampler.num_steps, policy.model.event_shape, seeded_generator(1))
    cold = policy.predict_chunk(history, tape)
    same = policy.predict_chunk(history, tape, warm=cold.predictions, executed=0)
    assert int(same.stats.rounds.sum()) < int(cold.stats.rounds.sum())
    left = cold.predictions.clone()
    left[1] = torch.nan
    half = policy.predict_chunk(history, tape, warm=left, executed=0)
    assert half.stats.rounds.tolist() == [same.stats.rounds[0], cold.stats.rounds[1]]
    np.testing.assert_allclose(half.actions[1], cold.actions[1], atol=1e-4)


def test_predictions_are_averaged_and_shifted_by_the_executed_steps():
    left = torch.arange(5.0).view(1, 1, 5, 1) + torch.tensor([-1.0, 0, 1]).view(1, 3, 1, 1)
    left = left.repeat(2, 1, 1, 1)
    for executed, expected in ((0, [0, 1, 2, 3, 4]), (2, [2, 3, 4, 4, 4]), (5, [4] * 5), (9, [4] * 5)):
        assert warm_start(left, executed)[1, 2, :, 0].tolist() == expected
    left[0] = torch.nan
    assert warm_start(left, 2)[:, 0, 0, 0].tolist() == [0, 2]
    assert warm_start(None, 2) is None


@pytest.mark.parametrize("images", IMAGES)
def test_images_of_every_format_are_the_same(seeing, images):
    expected = seeing.predict_chunk([picture(0), picture(1)], seeded_generator(0)).actions
    history = [{**obs, "camera": as_format(obs["camera"], images)} for obs in (picture(0), picture(1))]
    for convert in (np.asarray, torch.from_numpy):
        converted = [{key: convert(value) for key, value in obs.items()} for obs in history]
        actions = seeing.predict_chunk(converted, seeded_generator(0), images=images).actions
        np.testing.assert_allclose(actions, expected, atol=1e-5)
    other = [{**obs, "camera": 255 - obs["camera"]} for obs in (picture(0), picture(1))]
    assert not np.allclose(seeing.predict_chunk(other, seeded_generator(0)).actions, expected, atol=1e-4)


@pytest.mark.parametrize("given", IMAGES)
@pytest.mark.parametrize("said", IMAGES)
def test_images_of_another_format_than_said_are_refused(seeing, given, said):
    history = [{**picture(0), "camera": as_format(picture(0)["camera"], given)}]
    if given == said:
        seeing.predict_chunk(history, images=said)
        return
    with pytest.raises(ObservationError, match=r"'camera' (is of|has shape)"):
        seeing.predict_chunk(history, images=said)


def test_floats_beyond_zero_to_one_are_no_image(seeing):
    history = [{**picture(0), "camera": picture(0)["camera"].astype(np.float32)}]
    with pytest.raises(ObservationError, match=r"pixels from 0.0 to 255.0; expected 0 to 1"):
        seeing.predict_chunk(history, images="float_hwc")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"history": []}, ObservationError, "1 to 2"),
        ({"history": observation(0)}, ObservationError, "history is a dict"),
        ({"history": [observation(0)] * 3}, ObservationError, "Got 3 observations"),
        ({"history": [{k: v[0] for k, v in observation(0).items()}]}, ObservationError, r"shape \(5,\)"),
        ({"history": [{k: v[:0] for k, v in observation(0).items()}]}, ObservationError, "a row per environment"),
        ({"history": [{"object": 3.0}]}, ObservationError, r"shape \(\)"),
        ({"history": [{"robot0_eef_pos": np.zeros((1, 3))}]}, ObservationError, "lacks 'object'"),
        ({"history": [observation(0, 2), observation(1, 3)]}, ObservationError, r"expected \(2, 5\)"),
        ({"warm": torch.zeros(1, 12, 16, 3)}, ConfigError, r"warm has shape \(1, 12, 16, 3\).*\(1, 12, 16, 2\)"),
        ({"warm": np.zeros((1, 12, 16, 2))}, ConfigError, "warm has type ndarray"),
        ({"executed": -1}, ConfigError, "executed is -1"),
        ({"executed": True}, ConfigError, "executed is True"),
        ({"images": "bgr"}, UnknownNameError, "'bgr'"),
        ({"generator": [seeded_generator(0)] * 2}, ConfigError, "2 generators"),
    ],
)
def test_what_is_refused(checkpoint, arguments, error, message):
    policy = load_policy(checkpoint)
    with pytest.raises(error, match=message):
        policy.predict_chunk(**{"history": [observation(0)], **arguments})


def test_automatic_windows_are_those_of_the_batch_size(checkpoint, tmp_path):
    policy = load_policy(checkpoint)
    policy = make_policy(policy.network, policy.normalizer, policy.config, "asd:path:auto")
    with pytest.raises(ConfigError, match="no windows for batches of 2"):
        policy.predict_chunk([observation(0, 2)])
    policy.calibrate([{k: v[0] for k, v in observation(step).items()} for step in range(2)], batch_size=2)
    assert policy.predict_chunk([observation(0, 2)]).actions.shape == (2, 8, 2)
    with pytest.raises(ConfigError, match="no windows for batches of 3"):
        policy.predict_chunk([observation(0, 3)])


def test_a_network_that_fails_is_an_error(checkpoint):
    policy = load_policy(checkpoint)
    assert isinstance(policy.network, ConditionalUnet1D)
    with torch.no_grad():
        next(policy.network.parameters()).fill_(torch.nan)
    with pytest.raises(AsdPolicyError, match="NaN"):
        policy.predict_chunk([observation(0)])
