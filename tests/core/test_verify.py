"""The Gaussian rejection sampler alone."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from asd_policy.core.verify import gaussian_rejection

N = 20_000


def draws(gap: float, s: float) -> tuple[torch.Tensor, torch.Tensor]:
    """N draws in 3 dimensions with draft and exact means `gap` standard deviations apart."""
    generator = torch.Generator().manual_seed(0)
    m = torch.tensor([0.3, -1.0, 2.0]).expand(N, 1, 3)
    direction = torch.tensor([2.0, -1.0, 2.0]) / 3
    xi, u = torch.randn(N, 1, 3, generator=generator), torch.rand(N, 1, generator=generator)
    y, accepted = gaussian_rejection(m, m + gap * s * direction, torch.full((N, 1), s), xi, u)
    return ((y - m) / s).squeeze(1), accepted


@settings(deadline=None, max_examples=15)
@given(gap=st.floats(0, 6), s=st.floats(0.01, 10))
def test_law_and_acceptance_for_any_gap(gap, s):
    z, accepted = draws(gap, s)
    for coordinate in z.double().T:
        assert stats.kstest(coordinate.numpy(), "norm").pvalue > 1e-6
    expected = 2 * stats.norm.cdf(-gap / 2)
    tolerance = 5 * math.sqrt(expected * (1 - expected) / N) + 1e-6
    assert abs(float(accepted.float().mean()) - expected) < tolerance


def test_equal_means_always_accept():
    _, accepted = draws(gap=0.0, s=1.0)
    assert accepted.all()


def test_no_noise_returns_the_exact_mean():
    m, mhat = torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]]]), torch.tensor([[[1.5, 2.0]], [[1.0, 2.0]]])
    y, accepted = gaussian_rejection(m, mhat, torch.zeros(2, 1), torch.randn_like(m), torch.rand(2, 1))
    assert torch.equal(y, m)
    assert accepted.flatten().tolist() == [False, True]
