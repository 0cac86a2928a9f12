"""The families of chains, each on the Gaussian mixture of `laws`."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from asd_policy.core import (
    Chain,
    EpsilonDenoiser,
    FlowPath,
    GaussianPath,
    VePath,
    VpPath,
    ancestral_chain,
    ddim_chain,
    edm_chain,
    edm_sigmas,
    sde_chain,
    unclipped_ddim,
)
from tests.core import laws


class Family(NamedTuple):
    """A chain, and the mixture's denoiser for it."""

    denoiser: nn.Module
    chain: Chain
    ends_at_mixture: bool = True  # with many steps


class NoiseOf(nn.Module):
    """The noise in x that goes with the mixture's clean sample: an epsilon network for clipping denoisers."""

    def __init__(self, mixture: laws.GaussianMixture):
        super().__init__()
        self.mixture = mixture

    def forward(self, x, t, cond):
        alpha, sigma = (level.view(-1, 1) for level in self.mixture.levels(t))
        return (x - alpha * self.mixture(x, t, cond)) / sigma


def exploding(t):
    """Levels of x = x* + t eps."""
    return torch.ones_like(t), t


def ddpm(steps: int) -> Family:
    mixture = laws.GaussianMixture(steps)
    return Family(mixture, mixture.schedule)


def ddim(steps: int) -> Family:
    mixture = laws.GaussianMixture(4 * steps)
    return Family(mixture, ddim_chain(mixture.schedule, steps, eta=0.8))


def ddim_unclipped(steps: int) -> Family:
    mixture = laws.GaussianMixture(4 * steps)
    clipping = EpsilonDenoiser(NoiseOf(mixture), mixture.schedule, clip=0.8)
    denoiser = unclipped_ddim(clipping, mixture.schedule, steps, 0.8)
    return Family(denoiser, ddim_chain(mixture.schedule, steps, eta=0.8), ends_at_mixture=False)


def ancestral(steps: int) -> Family:
    sigmas = torch.cat([torch.logspace(1, -1.5, steps), torch.zeros(1)])
    return Family(laws.Mixture(exploding), ancestral_chain(sigmas, eta=0.9))


def edm(steps: int) -> Family:
    churning = edm_chain(edm_sigmas(steps, 0.02, 10.0), s_churn=1e9, s_tmin=0, s_tmax=100, s_noise=1)
    return Family(laws.Mixture(exploding), churning)


def edm_in_part(steps: int) -> Family:
    """The noisiest and the last steps have no churn, so no noise."""
    return Family(laws.Mixture(exploding), edm_chain(edm_sigmas(steps, 0.02, 10.0), s_tmin=0.1, s_tmax=5))


def along(path: GaussianPath, end: float) -> Callable[[int], Family]:
    def make(steps: int) -> Family:
        times = torch.linspace(1, end, steps + 1, dtype=torch.float64)
        return Family(laws.Mixture(lambda t: path.levels(t)[:2]), sde_chain(path, times))

    return make


FAMILIES: dict[str, Callable[[int], Family]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "ddim, unclipped": ddim_unclipped,
    "ancestral": ancestral,
    "edm": edm,
    "edm, churned in part": edm_in_part,
    "vp": along(VpPath(), 1e-3),
    "ve": along(VePath(0.02, 10.0), 1e-3),
    "flow": along(FlowPath(), 0.0),
}
"""Name -> (number of steps -> family)."""
