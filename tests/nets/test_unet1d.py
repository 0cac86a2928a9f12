"""The U-Net against robomimic's, which shares its maths and names with real-stanford/diffusion_policy."""

from functools import partial

import pytest
import torch
from torch import Tensor

from asd_policy.errors import ConfigError
from asd_policy.nets import ConditionalUnet1D
from asd_policy.nets.unet1d.channels_last import _mish, channels_last_trunk

SIZES = {"down_dims": (16, 32, 64), "kernel_size": 5, "n_groups": 8, "diffusion_step_embed_dim": 32}


def inputs(batch: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(batch, 16, 7, generator=generator)
    timestep = torch.randint(100, (batch,), generator=generator)
    return sample, timestep, torch.randn(batch, 46, generator=generator)


@pytest.mark.parametrize("down_dims", [(16, 32, 64), (16, 32)])
def test_matches_robomimic(down_dims: tuple[int, ...]) -> None:
    nets = pytest.importorskip("robomimic.models.diffusion_policy_nets")
    theirs = nets.ConditionalUnet1D(7, 46, 32, list(down_dims), 5, 8)
    ours = ConditionalUnet1D(7, 46, **{**SIZES, "down_dims": down_dims})
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(ours(*inputs()), theirs(*inputs()), rtol=0, atol=1e-5)


def test_bias_only_film_has_half_the_film_outputs() -> None:
    net = ConditionalUnet1D(7, 46, **SIZES, cond_predict_scale=False)
    names = net.state_dict()
    assert names["down_modules.0.0.cond_encoder.1.weight"].shape == (16, 32 + 46)
    assert net(*inputs()).shape == (5, 16, 7)


def test_a_wider_condition_changes_nothing_until_it_is_learned_from() -> None:
    net = ConditionalUnet1D(7, 46, **SIZES)
    sample, timestep, cond = inputs()
    expected = net(sample, timestep, cond)
    net.widen(n_obs_steps=2, obs_dim=30)
    steps = torch.cat([cond.unflatten(1, (2, 23)), torch.randn(5, 2, 7)], dim=2)
    output = net(sample, timestep, steps.flatten(1))
    torch.testing.assert_close(output, expected)
    output.square().mean().backward()
    gradient = net.mid_modules[0].cond_encoder[1].weight.grad
    assert gradient.shape == (128, 32 + 60)
    assert (gradient[:, 32:].abs().amax(dim=0) > 0).all()


@pytest.mark.parametrize("cond_predict_scale", [True, False])
def test_channels_last_trunk_is_the_same_function(cond_predict_scale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = ConditionalUnet1D(7, 46, **SIZES, cond_predict_scale=cond_predict_scale)
    expected = net(*inputs())
    monkeypatch.setattr(net, "trunk", partial(channels_last_trunk, net))
    got = net(*inputs())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    weights = list(net.parameters())
    for ours, plain in zip(
        torch.autograd.grad(got.square().mean(), weights),
        torch.autograd.grad(expected.square().mean(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-6)


def test_mish_of_large_values_is_torchs_and_so_are_its_gradients() -> None:
    x = torch.tensor([-200.0, -20.0, -1.0, 0.0, 1.0, 19.0, 30.0, 60.0, 200.0], requires_grad=True)
    ours, torchs = _mish(x), torch.nn.functional.mish(x)
    torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=1e-5)
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y in (ours, torchs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("cond_predict_scale", [True, False])
def test_prepared_steps_and_conditions_give_the_same_function(cond_predict_scale: bool) -> None:
    net = ConditionalUnet1D(7, 46, **SIZES, cond_predict_scale=cond_predict_scale)
    sample, _, cond = inputs()
    timesteps, step, row = torch.tensor([90, 50, 3]), torch.tensor([2, 0, 0, 1, 2]), torch.tensor([0, 0, 1, 1, 0])
    film = net.prepare(timesteps, cond[:2])
    expected = net(sample, timesteps[step], cond[row])
    torch.testing.assert_close(net.predict(sample, step, row, film), expected, rtol=0, atol=1e-5)


def test_rows_do_not_see_each_other() -> None:
    net = ConditionalUnet1D(7, 46, **SIZES)
    sample, timestep, cond = inputs()
    alone = net(sample[2:3], timestep[2:3], cond[2:3])
    # A matrix product of five rows may sum in another order than that of one, by the processor.
    torch.testing.assert_close(net(sample, timestep, cond)[2:3], alone, rtol=0, atol=1e-5)


def test_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    net = ConditionalUnet1D(7, 46, **SIZES)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs()), net(*inputs()))


@pytest.mark.parametrize("shape", [(5, 16, 6), (5, 15, 7), (16, 7)])
def test_refuses_wrong_shapes(shape: tuple[int, ...]) -> None:
    net = ConditionalUnet1D(7, 46, **SIZES)
    _, timestep, cond = inputs()
    with pytest.raises(ConfigError, match="expected"):
        net(torch.zeros(shape), timestep, cond)
