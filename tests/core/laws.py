"""Known laws to sample from, and the two-sample tests that a sampler must pass on them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from asd_policy.core import AsdSampler, Chain, EpsilonDenoiser, Schedule, sample_chain

ACCEPT = 1e-4  # smallest p-value that a correct sampler may show at the fixed seeds
REJECT = 1e-8  # largest p-value that a wrong sampler may show


class Mixture(nn.Module):
    """Denoiser of a 2-D Gaussian mixture at x_t = alpha(t) x* + sigma(t) eps, in closed form: E[x* | x_t].

    `levels` maps t (N,) to alpha and sigma (N,); subclasses may define it instead.
    """

    event_shape = (2,)

    def __init__(self, levels: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None):
        super().__init__()
        if levels is not None:
            self.levels = levels
        self.register_buffer("weights", torch.tensor([0.5, 0.3, 0.2]))
        self.register_buffer("means", torch.tensor([[0.9, 0.1], [-0.7, 0.6], [-0.1, -0.9]]))
        self.register_buffer("variances", torch.tensor([0.01, 0.03, 0.005]))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        alpha, sigma = (level.view(-1, 1, 1) for level in self.levels(t))
        spread = alpha**2 * self.variances.view(1, -1, 1) + sigma**2  # (N, components, 1)
        offset = x.unsqueeze(1) - alpha * self.means
        log_p = self.weights.log().view(1, -1, 1) - spread.log() - (offset**2).sum(-1, keepdim=True) / (2 * spread)
        posterior = self.means + alpha * self.variances.view(1, -1, 1) / spread * offset
        return (log_p.softmax(dim=1) * posterior).sum(dim=1)

    def samples(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` draws of the mixture itself (n, 2)."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, 2, generator=generator)
        return self.means[which] + self.variances[which].sqrt().unsqueeze(1) * noise


class GaussianMixture(Mixture):
    """The mixture at the integer timesteps of a Schedule."""

    def __init__(self, num_steps: int = 30):
        super().__init__()
        self.schedule = Schedule.from_diffusers(
            {"num_train_timesteps": num_steps, "beta_schedule": "squaredcos_cap_v2"}
        )
        self.register_buffer("abar", self.schedule.alphas_cumprod.float())

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma (N,) of t (N,) int64."""
        return self.abar[t].sqrt(), (1 - self.abar[t]).sqrt()


class ChunkNet(nn.Module):
    """A small conditional epsilon network on chunks of 4 actions of 2 dimensions."""

    event_shape = (4, 2)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8 + 1 + 2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 8))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        features = torch.cat([x.flatten(1), cond, t.unsqueeze(1) / 10 - 1], dim=1)
        return self.layers(features).view_as(x)


def learned_chunks(steps: int = 400, num_steps: int = 20) -> tuple[EpsilonDenoiser, Schedule]:
    """Train a ChunkNet on two-mode chunks (left or right of an obstacle, scaled by the condition)."""
    generator = torch.Generator().manual_seed(0)
    schedule = Schedule.from_diffusers({"num_train_timesteps": num_steps, "beta_schedule": "squaredcos_cap_v2"})
    abar = schedule.alphas_cumprod.float()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # layers have no generator argument
        net = ChunkNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    ramp = torch.linspace(0.2, 1, 4).view(1, 4, 1)
    for _ in range(steps):
        cond = torch.rand(256, 2, generator=generator)
        side = torch.randint(0, 2, (256, 1, 1), generator=generator) * 2 - 1
        clean = (side * ramp * cond.unsqueeze(1) + 0.05 * torch.randn(256, 4, 2, generator=generator)).clamp(-1, 1)
        t = torch.randint(0, num_steps, (256,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        signal = abar[t].view(-1, 1, 1)
        loss = (net(signal.sqrt() * clean + (1 - signal).sqrt() * noise, t, cond) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return EpsilonDenoiser(net, schedule, clip=1.0), schedule


def reference(denoiser: Callable, schedule: Chain, event_shape: tuple, n: int, cond: Tensor | None = None) -> Tensor:
    """`n` samples of the plain sampler, at a key of its own."""
    return sample_chain(denoiser, schedule, event_shape, n, cond, torch.Generator().manual_seed(1))


def speculated(sampler: AsdSampler, n: int, cond: Tensor | None = None, seed: int = 2) -> Tensor:
    """`n` samples of an ASD sampler, at a key independent of the reference's; on the CPU wherever it runs."""
    return sampler(n, cond, torch.Generator().manual_seed(seed))[0].cpu()


def smallest_p(x: Tensor, y: Tensor, projections: int = 6) -> float:
    """Smallest p-value of two-sample Kolmogorov-Smirnov tests on fixed random projections of x, y (N, *E)."""
    x, y = x.flatten(1), y.flatten(1)
    directions = torch.randn(x.shape[1], projections, generator=torch.Generator().manual_seed(3))
    return min(ks_p(p, q) for p, q in zip((x @ directions).T, (y @ directions).T, strict=True))


def ks_p(x: Tensor, y: Tensor) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test of x (N,), y (M,), by Stephens' approximation (1970).

    SciPy has the test too, but machines with a GPU need not have SciPy.
    """
    both = torch.cat([x, y])
    below = [torch.searchsorted(z.sort().values, both, right=True).double() / len(z) for z in (x, y)]
    root = (len(x) * len(y) / (len(x) + len(y))) ** 0.5
    distance = (root + 0.12 + 0.11 / root) * float((below[0] - below[1]).abs().max())
    if distance < 0.2:  # where the series converges too slowly, and p is 1 to 12 digits
        return 1.0
    k = torch.arange(1, 101, dtype=torch.float64)
    return float((2 * (-1) ** (k - 1) * torch.exp(-2 * (k * distance) ** 2)).sum())


def largest_z(x: Tensor, y: Tensor) -> float:
    """Largest z-score among the differences of means and second moments of x, y (N, *E)."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    center = y.mean(0)

    def moments(z: Tensor) -> Tensor:
        z = z - center
        return torch.cat([z, torch.einsum("ni,nj->nij", z, z).flatten(1)], dim=1)

    mx, my = moments(x), moments(y)
    error = (mx.var(0) / len(mx) + my.var(0) / len(my)).sqrt()
    return float(np.abs(((mx.mean(0) - my.mean(0)) / error).numpy()).max())
