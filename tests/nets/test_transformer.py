"""The transformer: what may influence what, and its configuration. Its numbers are in tests/importers."""

import pytest
import torch
from torch import Tensor

from asd_policy.errors import ConfigError
from asd_policy.nets import ConditionalTransformer, NetworkConfig, TransformerConfig
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.network import build_network

SIZES = {"n_layer": 2, "n_head": 2, "n_emb": 16}


def make(causal_attn: bool = True) -> ConditionalTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ConditionalTransformer(3, 10, horizon=6, n_obs_steps=2, causal_attn=causal_attn, **SIZES).double()
    return net.eval()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    cond = torch.randn(2, 10, generator=generator, dtype=torch.float64)
    return sample, torch.tensor([3, 70]), cond


@pytest.mark.parametrize("causal", [True, False])
def test_an_action_sees_what_the_masks_allow(causal):
    net, (sample, timestep, cond) = make(causal), inputs()
    before = net(sample, timestep, cond)
    for step in range(6):
        changed = sample.clone()
        changed[:, step] += 1
        moved = (net(changed, timestep, cond) - before).abs().amax(dim=(0, 2)) > 1e-9
        assert moved.tolist() == [later >= step or not causal for later in range(6)]
    for obs_step in range(2):
        changed = cond.clone()
        changed[:, obs_step * 5] += 1
        moved = (net(sample, timestep, changed) - before).abs().amax(dim=(0, 2)) > 1e-9
        assert moved.tolist() == [step >= obs_step or not causal for step in range(6)]


def test_every_action_depends_on_the_timestep():
    net, (sample, timestep, cond) = make(), inputs()
    assert ((net(sample, timestep + 1, cond) - net(sample, timestep, cond)).abs().amax(dim=2) > 1e-9).all()


def test_wrong_shapes_are_named():
    sample, timestep, cond = inputs()
    with pytest.raises(ConfigError, match=r"\(2, 5, 3\).*expected \(2, 6, 3\)"):
        make()(sample[:, :5], timestep, cond)


def test_config_round_trip_and_build(tmp_path):
    network = TransformerConfig(**SIZES)
    config = PolicyConfig("asd/Square-v0", {"object": 5}, 3, horizon=10, n_action_steps=8, network=network)
    config.save(tmp_path / "config.json")
    assert PolicyConfig.load(tmp_path / "config.json") == config
    one, other = build_network(config), build_network(config)
    assert isinstance(one, ConditionalTransformer)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ConfigError, match="horizon is 10"):
        PolicyConfig("asd/Square-v0", {"object": 5}, 3, horizon=10, network=NetworkConfig())


@pytest.mark.parametrize(
    ("name", "value"), [("n_layer", 0), ("n_head", 3), ("n_emb", 18.0), ("causal_attn", 1), ("name", "gpt")]
)
def test_unusable_values_are_named(name, value):
    data = PolicyConfig("asd/Square-v0", {"object": 5}, 3, network=TransformerConfig(**SIZES)).to_dict()
    data["network"][name] = value
    with pytest.raises(ConfigError, match="network.n_emb" if name == "n_head" else f"network.{name}"):
        PolicyConfig.from_dict(data)
