"""A network that is not finite is an error where the chain goes, and costs nothing where only speculation goes."""

import pytest
import torch
from torch import Tensor, nn

from asd_policy.core import DENOISERS, DRAFTS, AsdSampler, Schedule, sample_ddim, sample_ddpm
from asd_policy.core.verify import gaussian_rejection
from asd_policy.errors import ConfigError, NumericalError
from tests.core import laws

N = 20_000
SCHEDULE = Schedule.from_betas(torch.linspace(1e-4, 0.2, 20, dtype=torch.float64))


class FailsOffTheChain(nn.Module):
    """The mixture's denoiser, which returns `bad` in the last steps wherever a state is far from the data."""

    def __init__(self, bad: float):
        super().__init__()
        self.mixture = laws.GaussianMixture()
        self.bad = bad
        self.failures = 0

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        fails = (t < 6) & (x.abs().amax(dim=1) > 2.5)
        self.failures += int(fails.sum())
        return torch.where(fails.unsqueeze(1), self.bad, self.mixture(x, t, cond))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("draft", DRAFTS)
def test_law_of_a_network_that_fails_where_the_chain_never_goes(draft, bad):
    """Drafts start from guesses of 5, so that speculation runs far off; the plain sampler never sees a failure."""
    denoiser = FailsOffTheChain(bad)
    schedule = denoiser.mixture.schedule
    expected = laws.reference(denoiser, schedule, (2,), N)
    assert denoiser.failures == 0
    sampler = AsdSampler(denoiser, schedule, (2,), draft=draft, window=None)
    warm = torch.full((N, 30, 2), 5.0)
    x, stats, _ = sampler.draw(N, generator=torch.Generator().manual_seed(2), warm=warm)
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5
    sound = AsdSampler(denoiser.mixture, schedule, (2,), draft=draft, window=None)
    _, plain, _ = sound.draw(N, generator=torch.Generator().manual_seed(2), warm=warm)
    if draft != "frozen":  # which is not warm, so that it never strays as far
        assert denoiser.failures > 1000
    assert stats.rounds.float().mean() < plain.rounds.float().mean() + 2  # forgotten, not dragged along to the end


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_warm_start_that_is_not_finite_costs_no_sample(draft):
    denoiser = laws.GaussianMixture()
    warm = torch.full((4, 30, 2), float("nan"))
    warm[1], warm[2] = float("inf"), -float("inf")
    sampler = AsdSampler(denoiser, denoiser.schedule, (2,), draft=draft, window=None)
    x, stats, _ = sampler.draw(4, generator=torch.Generator().manual_seed(0), warm=warm)
    assert x.isfinite().all()
    assert stats.rounds.max() <= 30


@pytest.mark.parametrize("mean", [float("nan"), float("inf"), -float("inf"), 3e38, 1e25])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_draft_mean_that_is_not_usable_is_replaced_by_the_exact_one(mean, everywhere):
    generator = torch.Generator().manual_seed(0)
    m, xi = torch.randn(2, 5, 3, 2, generator=generator)
    u, s = torch.rand(5, 3, generator=generator), torch.full((5, 3), 0.5)
    mhat = m.clone()
    mhat[:, 1, slice(None) if everywhere else 0] = mean
    y, accepted = gaussian_rejection(m, mhat, s, xi, u)
    assert accepted[:, [0, 2]].all()
    assert not accepted[:, 1].any()
    torch.testing.assert_close(y, m + 0.5 * xi)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("step", [0, 10, 19])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("prediction", DENOISERS)
def test_a_failure_on_the_chain_is_an_error_even_under_a_clip(prediction, bad, step, clip):
    def net(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        return torch.where((t == 19 - step).unsqueeze(1), bad, 0.1 * x)

    denoiser = DENOISERS[prediction](net, SCHEDULE, clip)
    with pytest.raises(NumericalError, match=r"samples \[0, 1\] of a batch of 2"):
        sample_ddpm(denoiser, SCHEDULE, (3,), 2)
    for clipped in (True, False):
        with pytest.raises(NumericalError):
            sample_ddim(denoiser, SCHEDULE, (3,), 2, num_steps=20, use_clipped_model_output=clipped)
    for draft in DRAFTS:
        for window in (1, 7, None):
            with pytest.raises(NumericalError):
                AsdSampler(denoiser, SCHEDULE, (3,), draft=draft, window=window)(2)


def test_one_entry_that_is_not_finite_is_enough():
    def net(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        y = 0.1 * x
        y[1, 2] = float("inf")
        return y

    with pytest.raises(NumericalError, match=r"samples \[1\] of a batch of 3"):
        sample_ddpm(DENOISERS["epsilon"](net, SCHEDULE, 1.0), SCHEDULE, (4,), 3)


@pytest.mark.parametrize("clip", [0, -1.0, float("nan"), float("inf")])
def test_a_clip_that_is_no_bound_is_refused(clip):
    with pytest.raises(ConfigError, match="expected a positive number"):
        DENOISERS["epsilon"](lambda x, t, cond: x, SCHEDULE, clip)
