"""Chains of real-valued times under every capture, and with networks that precompute."""

import pytest
import torch
from torch import Tensor, nn

from asd_policy.core import (
    AsdSampler,
    EdmDenoiser,
    FlowPath,
    Schedule,
    ScoreDenoiser,
    SigmaEpsilonDenoiser,
    VelocityDenoiser,
    VpPath,
    ancestral_chain,
    chain_sampler,
    edm_chain,
    edm_sigmas,
    sample_chain,
    sde_chain,
)
from asd_policy.core.capture.cuda_graph import check_capturable
from asd_policy.core.denoiser import prepare
from asd_policy.core.speculative import begin, speculative_round
from asd_policy.nets import ConditionalUnet1D
from tests.core.families import FAMILIES
from tests.core.test_capture import CAPTURED

SCHEDULE = Schedule.from_diffusers({"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"})


class Net(nn.Module):
    """A small conditional network that looks at real-valued times."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(5 + 1 + 2, 16), nn.SiLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.layers(torch.cat([x, cond, t.float().unsqueeze(1) / 100], dim=1))


def adapters(net):
    """Name -> (denoiser, chain) of the network in each of the adapters."""
    sigma = SigmaEpsilonDenoiser(net, SCHEDULE)
    levels = edm_sigmas(12, 0.03, 20.0)
    return {
        "sigma": (sigma, ancestral_chain(levels, timesteps=sigma.timesteps(levels[:-1]))),
        "edm": (EdmDenoiser(net, clip=2.0), edm_chain(levels)),
        "score": (ScoreDenoiser(net, VpPath()), sde_chain(VpPath(), torch.linspace(1, 1e-3, 13))),
        "velocity": (VelocityDenoiser(net, FlowPath()), sde_chain(FlowPath(), torch.linspace(1, 0, 13))),
    }


@pytest.mark.parametrize("name", adapters(Net()))
@pytest.mark.parametrize(("capture", "device"), CAPTURED)
def test_same_tape_same_sample_in_the_same_rounds(name, capture, device):
    denoiser, chain = adapters(Net())[name]
    denoiser = denoiser.to(device)
    cond = torch.rand(6, 2, generator=torch.Generator().manual_seed(0)).to(device)
    for make in (lambda c: AsdSampler(denoiser, chain, (5,), window=8, capture=c), plain(denoiser, chain)):
        ours, eager = (make(c).draw(6, cond, torch.Generator().manual_seed(1)) for c in (capture, "eager"))
        torch.testing.assert_close(ours.x, eager.x, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.stats.rounds, eager.stats.rounds)


def plain(denoiser, chain):
    return lambda capture: chain_sampler(denoiser, chain, (5,), capture)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_round_makes_the_host_wait(name):
    """On tensors without values, which raise at any read: what a CUDA graph asks of every family's denoiser."""
    family = FAMILIES[name](12)
    sampler = AsdSampler(family.denoiser, family.chain, (2,), window=4)
    batch = sampler.batch(3, None, torch.Generator().manual_seed(0))
    check_capturable(
        lambda batch, state: speculative_round(batch, sampler.draft, state, 4), batch, begin(batch, sampler.draft)
    )


@pytest.mark.parametrize("name", adapters(Net()))
def test_networks_that_precompute_give_the_same_samples(name):
    """`prepare` is told the network's own times, and `predict` the scaled samples, as a call is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ConditionalUnet1D(2, 5, (8,), kernel_size=3, diffusion_step_embed_dim=8).eval()
    denoiser, chain = adapters(net)[name]
    called, _ = adapters(lambda x, t, cond: net(x, t, cond))[name]  # the same network, only called
    cond = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    assert prepare(denoiser, chain.timesteps, cond).prepared is not None
    assert prepare(called, chain.timesteps, cond).prepared is None
    x, expected = (
        sample_chain(one, chain, (4, 2), 3, cond, torch.Generator().manual_seed(1)) for one in (denoiser, called)
    )
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
