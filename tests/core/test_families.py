"""Every family of chains under every draft: AsdSampler draws from the law of the family's own plain sampler."""

import inspect

import pytest
import torch

from asd_policy.core import DRAFTS, AsdSampler, chains, speculative
from tests.core import families, laws
from tests.core.families import FAMILIES, Family
from tests.core.test_law import always_accepting

N, STEPS = 10_000, 20


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> tuple[Family, torch.Tensor]:
    made = FAMILIES[request.param](STEPS)
    return made, laws.reference(made.denoiser, made.chain, (2,), N)


@pytest.mark.parametrize("window", [4, None])
@pytest.mark.parametrize("draft", DRAFTS)
def test_law(family, draft, window):
    made, expected = family
    x, stats = AsdSampler(made.denoiser, made.chain, (2,), draft, window)(N, None, torch.Generator().manual_seed(2))
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5
    assert float(stats.rounds.float().mean()) < STEPS * DRAFTS[draft].calls


def test_control_a_verifier_that_accepts_everything(family, monkeypatch):
    made, expected = family
    monkeypatch.setattr(speculative, "gaussian_rejection", always_accepting)
    assert (
        laws.smallest_p(laws.speculated(AsdSampler(made.denoiser, made.chain, (2,), window=None), N), expected)
        < laws.REJECT
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_many_steps_end_at_the_mixture(name):
    """The moments of the mixture itself, to what a hundred steps and their noise leave."""
    made = FAMILIES[name](100)
    if not made.ends_at_mixture:
        pytest.skip("its denoiser clips the mixture")
    x = laws.speculated(AsdSampler(made.denoiser, made.chain, (2,), window=16), 2500)
    true = laws.Mixture().samples(200_000, torch.Generator().manual_seed(3))
    torch.testing.assert_close(x.mean(0), true.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(x.T.cov(), true.T.cov(), atol=0.05, rtol=0)


def test_every_constructor_of_chains_is_in_a_family():
    code = inspect.getsource(families)
    assert [name for name in chains.__all__ if name not in code] == ["euler_ancestral_chain"]  # it needs diffusers
