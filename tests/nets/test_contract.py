"""What every network of the registry offers, and what an object that stands in for one must offer."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from asd_policy.core.denoiser import can_prepare
from asd_policy.errors import ConfigError
from asd_policy.nets import NETWORKS, CanWiden, HasCompiledLayout, HasInferenceForm, check_architecture
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.network import build_network, for_inference

SMALL = {
    "unet1d": {"down_dims": (8, 16), "diffusion_step_embed_dim": 8, "kernel_size": 3},
    "transformer": {"n_layer": 2, "n_head": 2, "n_emb": 16},
}
"""Small sizes of the networks; another's are its defaults."""

OBS_KEYS = {"object": 5}


def config_of(name: str) -> PolicyConfig:
    network = NETWORKS[name](**SMALL.get(name, {}))
    return PolicyConfig("asd/Square-v0", OBS_KEYS, 3, horizon=8, n_action_steps=4, network=network)


def inputs(rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample, cond = (torch.randn(rows, *shape, generator=generator) for shape in ((8, 3), (10,)))
    return sample, torch.randint(100, (rows,), generator=generator), cond


@pytest.mark.parametrize("name", NETWORKS)
def test_the_configuration_names_itself_and_survives_a_file(name, tmp_path):
    config = config_of(name)
    check_architecture(config.network)
    assert config.network.name == name
    assert config.network.describe().startswith(name)
    assert "\n" not in config.network.describe()
    config.save(tmp_path / "config.json")
    assert PolicyConfig.load(tmp_path / "config.json") == config


@pytest.mark.parametrize("name", NETWORKS)
def test_horizons_are_multiples_of_the_downsampling(name):
    config = config_of(name)
    horizon = config.network.downsampling + 7
    if horizon % config.network.downsampling:
        with pytest.raises(ConfigError, match=f"horizon is {horizon}; expected a multiple of"):
            replace(config, horizon=horizon)
    else:
        assert replace(config, horizon=horizon).horizon == horizon


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_predicts_rows_alone_and_refuses_other_shapes(name):
    network = build_network(config_of(name))
    sample, timestep, cond = inputs()
    whole = network(sample, timestep, cond)
    assert whole.shape == sample.shape
    torch.testing.assert_close(network(sample[1:2], timestep[1:2], cond[1:2]), whole[1:2], rtol=0, atol=1e-5)
    assert (network(sample, timestep, cond + 1) - whole).abs().max() > 1e-6
    assert (network(sample, (timestep + 50) % 100, cond) - whole).abs().max() > 1e-6
    with pytest.raises(ConfigError, match="expected"):
        network(sample[..., :2], timestep, cond)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_seed_gives_the_same_weights(name):
    one, same, other = (build_network(config_of(name), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_other_forms_of_the_network_compute_the_same(name):
    network, (sample, timestep, cond) = build_network(config_of(name)).eval(), inputs()
    with torch.no_grad():
        expected = network(sample, timestep, cond)
        if can_prepare(network):
            prepared = network.prepare(timestep, cond)
            rows = torch.arange(len(sample))
            torch.testing.assert_close(network.predict(sample, rows, rows, prepared), expected, rtol=0, atol=1e-5)
        if isinstance(network, HasInferenceForm):
            assert can_prepare(network)  # or it would never be used
        for compiled_on_cpu in (False, True):
            run = for_inference(network, torch.float32, compiled_on_cpu)
            torch.testing.assert_close(run(sample, timestep, cond), expected, rtol=0, atol=1e-5)
        if isinstance(network, HasCompiledLayout):
            network.store_for_compiled_cpu()
            torch.testing.assert_close(network(sample, timestep, cond), expected, rtol=0, atol=1e-5)
        if isinstance(network, CanWiden):
            network.widen(n_obs_steps=2, obs_dim=7)
            wider = torch.cat([cond.unflatten(1, (2, 5)), torch.ones(len(cond), 2, 2)], dim=2).flatten(1)
            torch.testing.assert_close(network(sample, timestep, wider), expected, rtol=0, atol=1e-5)


@dataclass(frozen=True)
class Outside:
    """A network that this package does not know."""

    width: int = 4
    name: str = "outside"
    downsampling: int = 1

    def describe(self) -> str:
        return f"outside {self.width}"

    def build(self, input_dim: int, cond_dim: int, horizon: int, n_obs_steps: int) -> nn.Module:
        return nn.Linear(input_dim, input_dim)


def test_a_configuration_may_come_from_outside():
    config = PolicyConfig("asd/Square-v0", OBS_KEYS, 3, network=Outside())
    assert isinstance(build_network(config), nn.Linear)
    assert config.to_dict()["network"] == {"width": 4, "name": "outside", "downsampling": 1}
    with pytest.raises(ConfigError, match=r"Unknown network\.name 'outside'.*Available: .*unet1d"):
        PolicyConfig.from_dict(config.to_dict())
    NETWORKS["outside"] = Outside
    try:
        assert PolicyConfig.from_dict(config.to_dict()) == config
    finally:
        del NETWORKS["outside"]


class NoDescribe:
    name, downsampling = "x", 1

    def build(self) -> None: ...


class NoDataclass(NoDescribe):
    def describe(self) -> str:
        return "x"


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (None, "network is a NoneType, which lacks build, describe, downsampling, name"),
        (NoDescribe(), "network is a NoDescribe, which lacks describe of the protocol Architecture; expected"),
        (NoDataclass(), "expected an object of a dataclass"),
        (Outside, "network is the class Outside; expected an object"),
        (Outside(downsampling=0), "downsampling 0; expected"),
        (Outside(name=3), "name 3 and"),  # type: ignore[arg-type]
    ],
)
def test_an_object_that_breaks_the_protocol_is_refused(network, told):
    with pytest.raises(ConfigError) as refused:
        PolicyConfig("asd/Square-v0", OBS_KEYS, 3, network=network)
    assert told in str(refused.value)
