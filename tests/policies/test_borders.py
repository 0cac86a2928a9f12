"""What is handed to a policy or done to it: it follows, or says what is wrong, and never acts on something else."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from asd_policy import load_policy
from asd_policy.errors import CheckpointError, ConfigError, NumericalError, ObservationError
from asd_policy.nets import ConditionalUnet1D
from asd_policy.policies.making import make_policy
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.policies.windows import WindowsFile
from tests.tiny import tiny_checkpoint

OBS = {"state": np.full(3, 0.3), "x": np.ones(1)}
BATCH = {key: np.stack([value] * 2) for key, value in OBS.items()}
SAMPLERS = [{}, {"draft": "frozen"}, {"sampler": "ddpm"}, {"sampler": "ddim"}, {"dtype": torch.bfloat16}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("borders") / "tiny", {"state": 3, "x": 1}, 3)


def begun(checkpoint, **options):
    policy = load_policy(checkpoint, **options)
    policy.reset(seed=0)
    return policy


def chunks(policy, n=2):
    return np.stack([policy.act(OBS) for _ in range(n * policy.config.n_action_steps)])


@pytest.mark.parametrize("options", SAMPLERS)
def test_an_act_that_failed_leaves_the_policy_as_it_was(checkpoint, options):
    failing, other = begun(checkpoint, **options), begun(checkpoint, **options)
    np.testing.assert_array_equal(chunks(failing, 1), chunks(other, 1))
    later = {"state": np.full(3, -0.4), "x": np.zeros(1)}
    weights = copy.deepcopy(failing.network.state_dict())
    with torch.no_grad():
        for parameter in failing.network.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(NumericalError):
        failing.act(later)
    failing.network.load_state_dict(weights)
    np.testing.assert_array_equal(failing.act(later), other.act(later))


def test_a_missing_calibration_leaves_the_policy_as_it_was(checkpoint):
    policy, other = begun(checkpoint, window="auto"), begun(checkpoint, window=4)
    with pytest.raises(ConfigError, match="calibrate"):
        policy.act({"state": np.zeros(3), "x": np.zeros(1)})
    policy.sampler = policy.sampler.with_windows(other.sampler.windows)
    np.testing.assert_array_equal(policy.act(OBS), other.act(OBS))


@pytest.mark.parametrize("options", SAMPLERS)
def test_inference_mode_may_begin_and_end_anywhere(checkpoint, options):
    expected = load_policy(checkpoint, **options)
    with torch.inference_mode():
        policy = load_policy(checkpoint, **options)
    results = []
    for one, modes in ((expected, (False, False, False)), (policy, (True, False, True))):
        one.reset(seeds=[0, 1])
        for mode in modes:
            with torch.inference_mode() if mode else contextlib.nullcontext():
                results.append(np.stack([one.act(BATCH) for _ in range(one.config.n_action_steps)]))
                one.reset(mask=[True, False])
    np.testing.assert_array_equal(results[:3], results[3:])


@pytest.mark.parametrize("options", SAMPLERS)
def test_the_default_device_does_not_matter(checkpoint, options):
    expected = chunks(begun(checkpoint, **options))
    with torch.device("meta"):  # whatever is made there has no values
        actual = chunks(begun(checkpoint, **options))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    "value",
    [
        np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False]),
        torch.zeros(3, device="meta"),
        torch.zeros(3).to_sparse(),
        [torch.zeros((), requires_grad=True), 1.0, 2.0],
    ],
    ids=["masked", "meta", "sparse", "grad"],
)
def test_values_that_are_not_there_are_refused(checkpoint, value):
    with pytest.raises(ObservationError, match="state"):
        begun(checkpoint).act(OBS | {"state": value})


def test_unmasked_arrays_and_negated_views_are_taken(checkpoint):
    expected = begun(checkpoint).act(OBS | {"state": -np.ones(3)})
    for value in (np.ma.array(-np.ones(3)), torch._neg_view(torch.ones(3))):
        np.testing.assert_array_equal(begun(checkpoint).act(OBS | {"state": value}), expected)


@pytest.mark.parametrize("obs", [None, 3, "state", np.zeros(3), [OBS], (OBS, {})], ids=str)
def test_an_observation_is_a_dict(checkpoint, obs):
    with pytest.raises(ObservationError, match="expected a dict"):
        begun(checkpoint).act(obs)


@pytest.mark.parametrize("seeds", [5, np.int64(5), torch.tensor(5), "12", {1: 2}, {1, 2}], ids=repr)
def test_seeds_without_an_order_are_refused(checkpoint, seeds):
    policy = begun(checkpoint)
    with pytest.raises(ConfigError, match="seeds"):
        policy.reset(seeds=seeds)
    policy.reset(seeds=[1, 2])
    with pytest.raises(ConfigError, match="seeds"):
        policy.reset(seeds=seeds, mask=[True, False])


@pytest.mark.parametrize(
    "seeds",
    [range(2), iter([0, 1]), np.arange(2, dtype=np.uint8), torch.arange(2)],
    ids=lambda seeds: type(seeds).__name__,
)
def test_seeds_may_be_any_sequence_of_integers(checkpoint, seeds):
    expected, policy = load_policy(checkpoint), load_policy(checkpoint)
    expected.reset(seeds=[0, 1])
    policy.reset(seeds=seeds)
    np.testing.assert_array_equal(policy.act(BATCH), expected.act(BATCH))


def test_a_mask_without_rows_needs_no_seeds(checkpoint):
    policy = load_policy(checkpoint)
    policy.reset(seeds=[0, 1])
    policy.reset(mask=torch.tensor([False, False]), seeds=[])
    policy.act(BATCH)
    for mask in ([True, [1]], torch.zeros(2, dtype=torch.bool, device="meta"), [[True, False]]):
        with pytest.raises(ConfigError, match="mask"):
            policy.reset(mask=mask)


CHANGES = {
    "half": lambda policy: policy.network.half(),
    "double": lambda policy: policy.network.double(),
    "moved": lambda policy: policy.network.to("meta"),
    "normalizer double": lambda policy: policy.normalizer.double(),
    "normalizer moved": lambda policy: policy.normalizer.to("meta"),
    "normalizer of another size": lambda policy: setattr(
        policy, "normalizer", LinearNormalizer({"state": 1, "x": 1, "action": 3})
    ),
    "normalizer of other keys": lambda policy: setattr(policy, "normalizer", LinearNormalizer({"action": 3})),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_were_moved_converted_or_exchanged_are_refused(checkpoint, change, dtype):
    policy = begun(checkpoint, dtype=dtype)
    change(policy)
    with pytest.raises(ConfigError):
        policy.act(OBS)


def other_activations(network):
    for module in network.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Mish):
                setattr(module, name, nn.ReLU())


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def doubled_convolutions(network):
    for module in [module for module in network.modules() if isinstance(module, nn.Conv1d)]:
        parametrize.register_parametrization(module, "weight", Doubled())


def hook(network):
    next(m for m in network.modules() if isinstance(m, nn.Conv1d)).register_forward_hook(lambda m, x, y: 2 * y)


@pytest.mark.parametrize("change", [other_activations, doubled_convolutions, hook])
def test_other_layers_count_or_are_refused(checkpoint, change):
    plain, copied = begun(checkpoint), begun(checkpoint, dtype=torch.bfloat16)
    before = plain.act(OBS)
    plain.reset(seed=0)
    change(plain.network)
    assert not np.array_equal(plain.act(OBS), before)
    change(copied.network)
    with pytest.raises(ConfigError, match="new policy"):
        copied.act(OBS)


class Negated(ConditionalUnet1D):
    def forward(self, sample, timestep, global_cond):
        return -super().forward(sample, timestep, global_cond)


def negated_class(network):
    network.__class__ = Negated


def negated_attribute(network):
    own = network.forward
    network.forward = lambda *args: -own(*args)


def negated_hook(network):
    network.register_forward_hook(lambda module, args, output: -output)


@pytest.mark.parametrize("negate", [negated_class, negated_attribute, negated_hook])
def test_a_network_with_a_forward_of_its_own_is_asked_through_it(checkpoint, negate):
    made = begun(checkpoint)
    expected = load_policy(checkpoint)
    with torch.no_grad():
        for parameter in list(expected.network.final_conv[-1].parameters()):
            parameter.neg_()
    negate(made.network)
    policy = make_policy(made.network, made.normalizer, made.config)
    for one in (policy, expected):
        one.reset(seed=0)
    np.testing.assert_allclose(policy.act(OBS), expected.act(OBS), atol=1e-5)
    with pytest.raises(ConfigError, match="float32 alone"):
        make_policy(made.network, made.normalizer, made.config, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", ["bfloat16", None, torch.int8, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_types_that_no_network_runs_in_are_refused(checkpoint, dtype):
    with pytest.raises(ConfigError, match="dtype is"):
        load_policy(checkpoint, dtype=dtype)


@pytest.mark.parametrize("eta", ["0.5", None, -1, np.nan, True])
def test_a_bad_eta_is_refused_when_the_policy_is_made(checkpoint, eta):
    with pytest.raises(ConfigError, match="eta is"):
        load_policy(checkpoint, sampler="ddim", eta=eta)


def test_windows_that_cannot_be_written_are_used_all_the_same(checkpoint, tmp_path):
    policy = begun(checkpoint, window="auto")
    policy.chunks.windows = WindowsFile(tmp_path / "missing" / "windows.json")
    with pytest.raises(CheckpointError, match="Cannot write the calibrated windows"):
        policy.calibrate([OBS] * 2)
    policy.act(OBS)
    with pytest.raises(ConfigError, match="batch_size"):
        policy.calibrate([OBS], batch_size="1")
