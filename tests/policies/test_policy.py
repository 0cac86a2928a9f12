"""DiffusionPolicy and load_policy on a small network with random weights."""

import gc
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import asd_policy
from asd_policy import load_policy
from asd_policy.core import DRAFTS, Asd
from asd_policy.errors import CheckpointError, ConfigError, NumericalError, ObservationError
from tests.tiny import tiny_checkpoint

OBS_KEYS = {"object": 5, "robot0_eef_pos": 3}
SAMPLERS = [("ddpm", {}), ("ddim", {"num_steps": 4}), ("asd", {"draft": "frozen"}), ("asd", {"window": None})]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", OBS_KEYS, action_dim=2)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """A U-Net of one level, which takes half as long to compile."""
    return tiny_checkpoint(tmp_path_factory.mktemp("shallow") / "tiny", OBS_KEYS, action_dim=2, down_dims=(8,))


def observation(step: int, batch: int | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    one = {key: rng.standard_normal(dim) for key, dim in OBS_KEYS.items()}
    return one if batch is None else {key: np.stack([value] * batch) for key, value in one.items()}


def acts(policy, steps: int, batch: int | None = None) -> np.ndarray:
    return np.stack([policy.act(observation(step, batch)) for step in range(steps)])


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
def test_same_seed_same_actions(checkpoint, sampler, options):
    policy = load_policy(checkpoint, sampler=sampler, **options)
    streams = []
    for seed in (0, 0, 1):
        policy.reset(seed=seed)
        streams.append(acts(policy, 20))
    assert np.array_equal(streams[0], streams[1])
    assert not np.array_equal(streams[0], streams[2])
    assert streams[0].shape == (20, 2)
    assert streams[0].dtype == np.float32
    assert np.abs(streams[0]).max() <= 1


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
def test_an_environment_acts_alike_alone_and_in_a_batch(checkpoint, sampler, options):
    policy = load_policy(checkpoint, sampler=sampler, **options)
    policy.reset(seeds=[3, 4, 5])
    together = acts(policy, 20, batch=3)
    assert together.shape == (20, 3, 2)
    for row, seed in enumerate((3, 4, 5)):
        policy.reset(seed=seed)
        # Batches round differently, and the untrained network amplifies it. Another row's noise would differ by 1.
        np.testing.assert_allclose(together[:, row], acts(policy, 20), atol=1e-2)


def test_global_generator_is_left_alone(checkpoint):
    policy = load_policy(checkpoint)
    before = torch.get_rng_state()
    policy.reset(seed=0)
    policy.act(observation(0))
    assert torch.equal(before, torch.get_rng_state())


def test_a_chunk_is_sampled_every_eight_actions_and_described(checkpoint):
    policy = load_policy(checkpoint, sampler="asd", draft="reuse", window=4)
    policy.reset(seed=0)
    assert policy.stats is None
    seen = []
    for step in range(17):
        policy.act(observation(step))
        if not seen or policy.stats is not seen[-1]:
            seen.append(policy.stats)
    assert len(seen) == 3
    assert 3 <= int(seen[0].rounds[0]) <= 12
    assert seen[0].latency > 0
    assert seen[0].acceptance.shape == (12,)


def test_the_condition_is_the_last_two_observations_in_order(checkpoint, monkeypatch):
    policy = load_policy(checkpoint, sampler="ddpm")
    conditions = []
    sampler = policy.sampler
    recorder = SimpleNamespace(
        launch=lambda n, cond, *rest: (conditions.append(cond.clone()), sampler.launch(n, cond, *rest))[1],
        rows=sampler.rows,
    )
    monkeypatch.setattr(policy, "sampler", recorder)
    policy.reset(seed=0)
    acts(policy, 9)

    def flat(step):
        return torch.from_numpy(np.concatenate([observation(step)[key] for key in OBS_KEYS])).float()

    torch.testing.assert_close(conditions[0][0], torch.cat([flat(0), flat(0)]))  # the first fills the history
    torch.testing.assert_close(policy.condition([observation(0)]), conditions[0])
    torch.testing.assert_close(policy.condition([observation(7), observation(8)]), conditions[1])
    torch.testing.assert_close(conditions[1][0], torch.cat([flat(7), flat(8)]))


def test_with_sampler_shares_the_weights(checkpoint):
    policy = load_policy(checkpoint)
    other = policy.with_sampler("ddpm")
    assert other.network is policy.network
    assert other.normalizer is policy.normalizer
    other.reset(seed=0)
    assert other.act(observation(0)).shape == (2,)
    with pytest.raises(ConfigError, match="before reset"):
        policy.act(observation(0))


SPEC = Asd("reuse", 5)
WAYS = [
    ("asd:reuse:5", {}),
    ("asd", {"draft": "reuse", "window": 5}),
    (SPEC, {}),
    (Asd(), {"draft": "reuse", "window": 5}),
]


@pytest.mark.parametrize(("sampler", "options"), WAYS, ids=["text", "options", "spec", "spec and options"])
def test_a_sampler_is_named_written_or_described(checkpoint, sampler, options):
    expected = load_policy(checkpoint, draft="reuse", window=5)
    expected.reset(seed=0)
    actions = acts(expected, 3)
    for policy in (load_policy(checkpoint, sampler, **options), expected.with_sampler(sampler, **options)):
        assert policy.spec == SPEC
        policy.reset(seed=0)
        assert np.array_equal(acts(policy, 3), actions)


class OwnDraft(DRAFTS["reuse"]):
    """A draft of one's own."""


def test_drafts_may_be_objects(checkpoint):
    expected, policy = (
        load_policy(checkpoint, draft="reuse", window=5),
        load_policy(checkpoint, draft=OwnDraft(), window=5),
    )
    for one in (expected, policy):
        one.reset(seed=0)
    assert isinstance(policy.sampler.draft, OwnDraft)
    assert np.array_equal(acts(policy, 10), acts(expected, 10))


def test_what_ddim_leaves_open_is_as_the_model_was_trained(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", OBS_KEYS, action_dim=2)
    values = json.loads((checkpoint / "config.json").read_text())
    values["scheduler"] |= {"use_clipped_model_output": False, "set_alpha_to_one": False}
    (checkpoint / "config.json").write_text(json.dumps(values))
    open_, trained, other = (
        load_policy(checkpoint, "ddim:4", use_clipped_model_output=value, set_alpha_to_one=value)
        for value in (None, False, True)
    )
    chunks = []
    for policy in (open_, trained, other):
        policy.reset(seed=0)
        chunks.append(acts(policy, 8))
    assert np.array_equal(chunks[0], chunks[1])
    assert not np.array_equal(chunks[0], chunks[2])


def test_the_shape_of_observations_and_actions_is_that_of_the_last_reset(checkpoint):
    policy = load_policy(checkpoint, window=4)
    assert policy.batch_shape == ()
    for options, batch in (({"seed": 0}, None), ({"seeds": [1]}, 1), ({"seeds": [1, 2]}, 2), ({}, None)):
        policy.reset(**options)
        assert policy.batch_shape == (() if batch is None else (batch,))
        assert policy.act(observation(0, batch)).shape == (*policy.batch_shape, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object": None}, "lacks 'object'"),
        ({"robot0_eef_pos": None}, "lacks 'robot0_eef_pos'; it has 'object'"),
        ({"object": np.zeros(4)}, r"'object' has shape \(4,\); expected \(5,\)"),
        ({"robot0_eef_pos": np.zeros((1, 3))}, r"'robot0_eef_pos' has shape \(1, 3\)"),
        ({"robot0_eef_pos": np.array([0.0, np.nan, 0.0])}, "'robot0_eef_pos' has values that are not finite"),
        ({"object": np.full(5, np.inf)}, "'object' has values that are not finite"),
        ({"object": np.array(["a"] * 5)}, "'object' is not an array of numbers"),
    ],
)
def test_bad_observations(checkpoint, change, message):
    policy = load_policy(checkpoint)
    policy.reset(seed=0)
    obs = {key: value for key, value in (observation(0) | change).items() if value is not None}
    with pytest.raises(ObservationError, match=message):
        policy.act(obs)
    assert policy.act(observation(0)).shape == (2,)  # a bad observation leaves no trace


def test_batch_size_must_be_that_of_reset(checkpoint):
    policy = load_policy(checkpoint)
    policy.reset(seeds=[0, 1])
    with pytest.raises(ObservationError, match=r"shape \(3, 5\); expected \(2, 5\)"):
        policy.act(observation(0, batch=3))
    with pytest.raises(ObservationError, match=r"shape \(5,\); expected \(2, 5\)"):
        policy.act(observation(0))
    with pytest.raises(ConfigError, match="one of them"):
        policy.reset(seed=0, seeds=[1])


def test_nan_weights_raise(checkpoint):
    policy = load_policy(checkpoint)
    policy.network.final_conv[1].bias.data.fill_(float("nan"))
    policy.reset(seed=0)
    with pytest.raises(NumericalError, match="NaN"):
        policy.act(observation(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "dpm"}, "Did you mean 'ddpm'.*Available: asd, ddim, ddpm"),
        ({"sampler": "ddpm", "window": 3}, "option of sampler 'ddpm' 'window'"),
        ({"sampler": "asd", "windw": 3}, "Did you mean 'window'"),
        ({"sampler": "asd", "draft": "paht"}, "Unknown draft 'paht'"),
        ({"sampler": "asd", "window": 0}, "window is 0"),
        ({"sampler": "ddim", "num_steps": 13}, "expected 1 to 12"),
    ],
)
def test_bad_sampler(checkpoint, arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_policy(checkpoint, **arguments)


def test_unknown_checkpoint_lists_what_exists(checkpoint):
    with pytest.raises(ConfigError, match=f"Unknown checkpoint.*Did you mean.*{checkpoint.name}"):
        load_policy(checkpoint.parent / "tinny")


def copy_of(checkpoint: Path, to: Path) -> Path:
    for file in checkpoint.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_truncated_weights(checkpoint, tmp_path):
    weights = copy_of(checkpoint, tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    for keep in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match="Is the file complete"):
            load_policy(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_policy(tmp_path)


def test_weights_that_do_not_fit(checkpoint, tmp_path):
    config = copy_of(checkpoint, tmp_path) / "config.json"
    values = json.loads(config.read_text())
    values["network"]["down_dims"] = [8, 24]
    config.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"is \(16,.*the config says \(24"):
        load_policy(tmp_path)


def test_missing_and_foreign_tensors(checkpoint, tmp_path):
    weights = copy_of(checkpoint, tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    tensors["stranger"] = tensors.pop("normalizer.fields.action.scale")
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"action\.scale is missing; stranger is not of this network"):
        load_policy(tmp_path)


def test_captured_ddpm_takes_every_step_in_turn(shallow):
    """Its law is in the sampler's tests, whose captures are run at window 1 too."""
    policy = load_policy(shallow, sampler="ddpm", capture="compile")
    policy.reset(seed=0)
    policy.act(observation(0))
    assert policy.stats.rounds.tolist() == policy.stats.evaluations.tolist() == [12]


@pytest.mark.parametrize("capture", ["eager", "compile"])
def test_bfloat16_weights_are_another_network_close_by(shallow, capture):
    policy, half = (
        load_policy(shallow, window=4, capture=capture, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    x, cond = torch.randn(3, 16, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 16)
    denoisers = [p.sampler.denoiser for p in (policy, half)]
    exact, close = (denoiser(x, torch.full((3,), 5), cond) for denoiser in denoisers)
    assert close.dtype == torch.float32
    assert 0 < (exact - close).abs().max() < 0.1
    half.reset(seed=0)
    assert half.act(observation(0)).shape == (2,)
    assert half.network is not denoisers[1].net
    assert half.network.final_conv[1].weight.dtype == torch.float32


def test_calibrated_windows_are_kept_beside_the_checkpoint(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", OBS_KEYS, action_dim=2)
    policy = load_policy(checkpoint, window="auto")
    policy.reset(seed=0)
    with pytest.raises(ConfigError, match="call calibrate"):
        policy.act(observation(0))
    observations = [observation(step) for step in range(6)]
    calibration = policy.calibrate(observations)
    assert len(calibration.windows) == 12
    tuned = load_policy(checkpoint, window=calibration.windows)
    for found in (policy, load_policy(checkpoint, window="auto"), tuned.with_sampler("asd", window="auto")):
        found.reset(seed=3)
        tuned.reset(seed=3)
        assert np.array_equal(found.act(observation(0)), tuned.act(observation(0)))
    other_draft = load_policy(checkpoint, draft="reuse", window="auto")
    other_draft.reset(seed=0)
    with pytest.raises(ConfigError, match="call calibrate"):
        other_draft.act(observation(0))
    for wrong, message in ((policy.with_sampler("ddpm"), "sampler='asd'"), (policy, "batch_size is 9")):
        with pytest.raises(ConfigError, match=message):
            wrong.calibrate(observations, batch_size=9)
    (checkpoint / "windows.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"windows\.json.* Delete the file"):
        load_policy(checkpoint, window="auto")


@pytest.mark.parametrize("history", [[], [observation(0)] * 3])
def test_histories_of_another_length_are_refused(checkpoint, history):
    with pytest.raises(ObservationError, match=f"Got {len(history)} observations; expected 1 to 2"):
        load_policy(checkpoint).condition(history)


@pytest.mark.parametrize(
    "convert",
    [
        torch.from_numpy,
        lambda x: torch.from_numpy(x).requires_grad_(),
        lambda x: torch.from_numpy(x).float(),
        lambda x: x.astype(">f8"),
        lambda x: x.tolist(),
        lambda x: x[::-1][::-1],
    ],
)
def test_observations_of_every_kind_are_the_same(checkpoint, convert):
    policy = load_policy(checkpoint, sampler="ddim", num_steps=2)
    actions = []
    for change in (lambda x: x, convert):
        policy.reset(seed=0)
        actions.append(policy.act({key: change(value) for key, value in observation(0).items()}))
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize(
    "value",
    [
        "12345",
        list("12345"),
        np.ones(5, complex),
        np.ones(5, object),
        torch.ones(5, dtype=torch.complex64),
        None,
        np.full(5, 1e300),  # too large for float32
    ],
)
def test_observations_that_are_no_numbers_are_refused(checkpoint, value):
    policy = load_policy(checkpoint, sampler="ddim", num_steps=2)
    policy.reset(seed=0)
    with pytest.raises(ObservationError, match="'object'"):
        policy.act(observation(0) | {"object": value})
    policy.act(observation(0))


@pytest.mark.parametrize(
    ("name", "value"), [("scale", 1e-45), ("scale", np.nan), ("offset", np.inf), ("center", np.nan)]
)
def test_the_last_thing_computed_is_checked(checkpoint, name, value):
    """Under a bound, which would make a number of infinity."""
    policy = load_policy(checkpoint, sampler="ddim", num_steps=2)
    getattr(policy.normalizer.fields["action"], name)[0] = value
    policy.reset(seed=0)
    with pytest.raises(NumericalError, match="actions are not finite"):
        policy.act(observation(0))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "asd"])
def test_the_default_type_changes_nothing(checkpoint, sampler):
    def chunk() -> np.ndarray:
        policy = load_policy(checkpoint, sampler=sampler)
        policy.reset(seed=0)
        return acts(policy, 3)

    before = chunk()
    torch.set_default_dtype(torch.float64)
    try:
        after = chunk()
    finally:
        torch.set_default_dtype(torch.float32)
    assert after.dtype == np.float32
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpuu"])
def test_devices_that_are_not_here_are_refused(checkpoint, device):
    with pytest.raises(ConfigError, match="cannot be used here"):
        load_policy(checkpoint, device=device)


def test_a_spawned_process_goes_on_acting(checkpoint):
    policy = load_policy(checkpoint, window=4)
    policy.reset(seed=0)
    policy.act(observation(0))
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_act_elsewhere, args=(policy, results), nprocs=1)
    np.testing.assert_array_equal(results.get(), policy.act(observation(1)))


def _act_elsewhere(rank: int, policy, results) -> None:
    results.put(policy.act(observation(1)))


def test_top_level_names():
    for name in asd_policy.__all__:
        assert getattr(asd_policy, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = asd_policy.nothing


@pytest.mark.slow
@pytest.mark.parametrize("capture", ["eager", "compile"])
def test_ten_thousand_actions_do_not_grow_the_memory(checkpoint, capture):
    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    policy = load_policy(checkpoint, draft="path", window=4, capture=capture)
    policy.reset(seed=0)
    obs = observation(0)
    for _ in range(1000):  # allocators and caches fill
        policy.act(obs)
    before = resident()
    for _ in range(10_000):
        policy.act(obs)
    assert resident() - before < 2**20
