"""The statistics that the law tests decide by."""

import math

import pytest
import torch

from tests.core import laws

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("n", "m"), [(500, 500), (4000, 3000)])
@pytest.mark.parametrize("shift", [0.0, 0.02, 0.1, 0.3])
def test_p_value_is_scipys(n, m, shift):
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(n, generator=generator), torch.randn(m, generator=generator) + shift
    expected = stats.ks_2samp(x.numpy(), y.numpy()).pvalue
    assert math.log(laws.ks_p(x, y)) == pytest.approx(math.log(expected), rel=0.05, abs=0.05)


def test_p_value_of_a_sample_with_itself_is_one():
    x = torch.arange(1000.0)
    assert laws.ks_p(x, x.flip(0)) == 1.0
