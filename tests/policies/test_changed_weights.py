"""One source of truth: a policy acts with the weights that its network has now, in every type and capture."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from asd_policy import load_policy
from asd_policy.errors import ConfigError
from asd_policy.policies.network import evaluating
from tests.tiny import tiny_checkpoint

OBS = {"object": np.zeros(5, np.float32), "robot0_eef_pos": np.ones(3, np.float32)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("weights") / "tiny", {"object": 5, "robot0_eef_pos": 3}, 2)


def first_chunk(policy) -> np.ndarray:
    policy.reset(seed=0)
    return np.stack([policy.act(OBS) for _ in range(8)])


@torch.no_grad()
def multiply(network: nn.Module) -> None:
    for weight in network.parameters():
        weight.mul_(0.5)


def multiply_data(network: nn.Module) -> None:
    """Unlike the others, nothing that a tensor's version counter would show."""
    for weight in network.parameters():
        weight.data.mul_(0.5)


def halved(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: 0.5 * value for name, value in network.state_dict().items()}


def load(network: nn.Module) -> None:
    network.load_state_dict(halved(network))


def load_assigned(network: nn.Module) -> None:
    network.load_state_dict(halved(network), assign=True)


def replace_parameters(network: nn.Module) -> None:
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(0.5 * weight.detach()))


CHANGES = [multiply, multiply_data, load, load_assigned, replace_parameters]
OPTIONS = [
    {"sampler": "ddpm"},
    {"sampler": "ddim", "num_steps": 4},
    {"window": 4},
    {"window": 4, "draft": "frozen"},
    {"window": 4, "dtype": torch.bfloat16},
    {"sampler": "ddpm", "dtype": torch.bfloat16},
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", OPTIONS)
def test_changed_weights_are_used(checkpoint, options, change):
    policy, fresh = load_policy(checkpoint, **options), load_policy(checkpoint, **options)
    before = first_chunk(policy)
    change(policy.network)
    multiply(fresh.network)  # before its first chunk
    after = first_chunk(policy)
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(after, first_chunk(fresh))


def test_changed_weights_are_used_by_compiled_policies(checkpoint):
    policy, eager = (
        load_policy(checkpoint, sampler="ddpm", capture=capture).with_sampler(
            "asd", draft="reuse", window=1, capture=capture
        )
        for capture in ("compile", "eager")
    )
    before = first_chunk(policy)
    for change in CHANGES:
        change(policy.network)
        multiply(eager.network)
        after = first_chunk(policy)
        assert not np.array_equal(before, after), change
        np.testing.assert_allclose(after, first_chunk(eager), atol=1e-4)
        before = after


def test_a_network_of_other_sizes_is_refused(checkpoint):
    policy = load_policy(checkpoint, window=4, dtype=torch.bfloat16)
    policy.network.final_conv[1] = nn.Conv1d(8, 3, 1)
    with pytest.raises(ConfigError, match="make a new policy"):
        first_chunk(policy)


@pytest.mark.parametrize("name", ["network", "config"])
def test_what_was_built_from_it_cannot_be_swapped(checkpoint, name):
    policy = load_policy(checkpoint, window=4)
    with pytest.raises(AttributeError):
        setattr(policy, name, copy.deepcopy(getattr(policy, name)))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_network_in_training_mode_is_run_as_in_evaluation(checkpoint, options):
    class Noisy(nn.Module):
        """What differs most between the two modes."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full_like(x, float("nan")) if self.training else x

    policy, expected = load_policy(checkpoint, **options), first_chunk(load_policy(checkpoint, **options))
    policy.network.diffusion_step_encoder.append(Noisy())
    if "dtype" in options:  # the copy has no such layer
        policy = policy.with_sampler(**{"sampler": "asd", **{k: v for k, v in options.items() if k != "dtype"}})
    policy.network.train()
    np.testing.assert_array_equal(first_chunk(policy), expected)
    assert all(module.training for module in policy.network.modules())


def test_evaluating_leaves_each_module_as_it_was():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5))
    network[1].eval()

    def interrupted():
        with evaluating(network):
            assert not any(module.training for module in network.modules())
            raise InterruptedError

    with pytest.raises(InterruptedError):
        interrupted()
    assert [module.training for module in network.modules()] == [True, True, False]
