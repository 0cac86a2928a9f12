"""Backends that run the loop: the same samples in the same rounds as the eager reference."""

import pytest
import torch
from torch import nn

from asd_policy.core import DRAFTS, AsdSampler
from asd_policy.core.capture import CAPTURES
from asd_policy.errors import ConfigError
from tests.core import laws

CAPTURED = [name for name in CAPTURES if name != "eager"]


@pytest.fixture(scope="module")
def chunks():
    return laws.learned_chunks()


@pytest.mark.parametrize("capture", CAPTURED)
@pytest.mark.parametrize("draft", DRAFTS)
def test_same_tape_same_sample_in_the_same_rounds(chunks, draft, capture):
    denoiser, schedule = chunks
    cond = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
    (x, stats), (expected, expected_stats) = (
        AsdSampler(denoiser, schedule, (4, 2), draft=draft, window=8, capture=name)(
            6, cond, torch.Generator().manual_seed(1)
        )
        for name in (capture, "eager")
    )
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    assert torch.equal(stats.rounds, expected_stats.rounds)
    assert torch.equal(stats.advance, expected_stats.advance)
    assert torch.equal(stats.acceptance, expected_stats.acceptance)


@pytest.mark.parametrize("capture", CAPTURED)
def test_weights_changed_in_place_are_seen_and_samplers_coexist(capture):
    denoiser, schedule = laws.learned_chunks(steps=50)
    cond = torch.full((3, 2), 0.5)

    def sample(sampler: AsdSampler) -> torch.Tensor:
        return sampler(3, cond, torch.Generator().manual_seed(1))[0]

    options = {"draft": "reuse", "window": 4}
    captured = AsdSampler(denoiser, schedule, (4, 2), capture=capture, **options)
    other = AsdSampler(denoiser, schedule, (4, 2), draft="reuse", window=7, capture=capture)
    reference = AsdSampler(denoiser, schedule, (4, 2), **options)
    before, elsewhere = sample(captured), sample(other)
    kept = before.clone()
    with torch.no_grad():
        denoiser.net.layers[-1].bias += 0.2
    after = sample(captured)
    torch.testing.assert_close(after, sample(reference), rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 1e-2
    assert torch.equal(before, kept)  # earlier samples are not overwritten
    assert elsewhere.shape == (3, 4, 2)


class Branching(nn.Module):
    """A network that cannot be captured: what it computes depends on a value."""

    def forward(self, x, t, cond):
        return x if x.mean() > 0 else -x


@pytest.mark.parametrize("capture", CAPTURED)
def test_a_network_that_cannot_be_captured_is_named(capture):
    schedule = laws.GaussianMixture(10).schedule
    sampler = AsdSampler(Branching(), schedule, (2,), draft="reuse", window=2, capture=capture)
    with pytest.raises(ConfigError, match=r"capture='eager'(.|\n)*[Bb]ranch"):
        sampler(2, generator=torch.Generator().manual_seed(0))
