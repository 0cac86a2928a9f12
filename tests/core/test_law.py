"""Exactness: every draft and window draws from the plain sampler's law, and wrong samplers are caught."""

import copy

import pytest
import torch
from torch import Tensor

from asd_policy.core import DRAFTS, AsdSampler, speculative
from asd_policy.core.capture import CAPTURES
from asd_policy.core.denoiser import Context
from asd_policy.core.drafts import make_draft, path
from asd_policy.core.drafts.protocol import Denoise, Draft, Guess
from asd_policy.core.drafts.reuse import ReuseDraft
from asd_policy.core.drafts.secant import pooled_gain, secant_evidence
from asd_policy.core.noise import NoiseTape
from asd_policy.core.verify import gaussian_rejection
from tests.core import laws

N_MIXTURE, N_CHUNKS = 20_000, 8_000


@pytest.fixture(scope="module")
def mixture() -> tuple[laws.GaussianMixture, Tensor]:
    denoiser = laws.GaussianMixture()
    return denoiser, laws.reference(denoiser, denoiser.schedule, (2,), N_MIXTURE)


@pytest.fixture(scope="module")
def chunks():
    denoiser, schedule = laws.learned_chunks()
    cond = torch.tensor([[0.9, 0.4]]).expand(N_CHUNKS, 2)
    return denoiser, schedule, cond, laws.reference(denoiser, schedule, (4, 2), N_CHUNKS, cond)


@pytest.mark.parametrize("window", [1, 4, 16, None])
@pytest.mark.parametrize("draft", DRAFTS)
def test_mixture_law(mixture, draft, window):
    denoiser, expected = mixture
    sampler = AsdSampler(denoiser, denoiser.schedule, (2,), draft=draft, window=window)
    x, stats = sampler(N_MIXTURE, generator=torch.Generator().manual_seed(2))
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5
    if window != 1:
        assert stats.rounds.unique().numel() > 1  # the batch's chains end at different rounds


@pytest.mark.parametrize("window", [1, 4, 16, None])
@pytest.mark.parametrize("draft", DRAFTS)
def test_learned_chunk_law(chunks, draft, window):
    denoiser, schedule, cond, expected = chunks
    x = laws.speculated(AsdSampler(denoiser, schedule, (4, 2), draft=draft, window=window), N_CHUNKS, cond)
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5


@pytest.mark.parametrize("window", [1, 4, None])
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    ("capture", "device"), [("compile", "cpu"), *(pytest.param(c, "cuda", marks=pytest.mark.gpu) for c in CAPTURES)]
)
def test_mixture_law_captured(mixture, draft, window, capture, device):
    denoiser, expected = mixture
    denoiser = copy.deepcopy(denoiser).to(device)
    sampler = AsdSampler(denoiser, denoiser.schedule, (2,), draft=draft, window=window, capture=capture)
    x = laws.speculated(sampler, N_MIXTURE)
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5


@pytest.mark.parametrize("draft", DRAFTS)
def test_law_of_a_warm_start(mixture, draft):
    """Whatever it starts from: the predictions of an earlier draw, and numbers that mean nothing."""
    denoiser, expected = mixture
    sampler = AsdSampler(denoiser, denoiser.schedule, (2,), draft=draft, window=None)
    earlier = sampler.draw(N_MIXTURE, generator=torch.Generator().manual_seed(8)).predictions
    nonsense = torch.randn(N_MIXTURE, 30, 2, generator=torch.Generator().manual_seed(9))
    for warm in (earlier, nonsense):
        x = sampler.draw(N_MIXTURE, generator=torch.Generator().manual_seed(2), warm=warm).x
        assert laws.smallest_p(x, expected) > laws.ACCEPT
        assert laws.largest_z(x, expected) < 5


def test_reference_passes_against_itself(mixture):
    """The test's own size: the plain sampler at another key is not rejected."""
    denoiser, expected = mixture
    again = AsdSampler(denoiser, denoiser.schedule, (2,), draft="frozen", window=1)
    assert laws.smallest_p(laws.speculated(again, N_MIXTURE, seed=4), expected) > laws.ACCEPT


class Peeking(ReuseDraft):
    """Breaks the rule: leans its guess on the step's own row of the tape."""

    def __init__(self, tape: NoiseTape):
        self.tape = tape

    def guess(self, memory: Tensor, step: Tensor) -> Guess:
        offset, gain = super().guess(memory, step)
        return Guess(offset + 0.3 * self.tape.xi[torch.arange(len(step)).unsqueeze(1), step], gain)


def test_control_draft_that_reads_its_own_row(mixture):
    denoiser, expected = mixture
    tape = NoiseTape.draw(N_MIXTURE, 30, (2,), torch.Generator().manual_seed(2))
    sampler = AsdSampler(denoiser, denoiser.schedule, (2,), draft=Peeking(tape), window=16)
    assert laws.smallest_p(laws.speculated(sampler, N_MIXTURE), expected) < laws.REJECT


def without_reflection(m, mhat, s, xi, u):
    """Breaks the verifier: a rejected draw is m + s xi, not its mirror image."""
    y, accepted = gaussian_rejection(m, mhat, s, xi, u)
    return torch.where(accepted.unsqueeze(-1), y, m + s.unsqueeze(-1) * xi), accepted


def with_redrawn_u(m, mhat, s, xi, u):
    """Breaks the verifier: a rejected draft gets a second, fresh u."""
    again = torch.rand(u.shape, generator=torch.Generator().manual_seed(5))
    return gaussian_rejection(m, mhat, s, xi, torch.minimum(u, again))


def always_accepting(m, mhat, s, xi, u):
    """Breaks the verifier: every draft is kept while the step is noisy."""
    return gaussian_rejection(m, mhat, s, xi, torch.zeros_like(u))


@pytest.mark.parametrize("verifier", [without_reflection, with_redrawn_u, always_accepting])
def test_control_broken_verifier(mixture, monkeypatch, verifier):
    denoiser, expected = mixture
    monkeypatch.setattr(speculative, "gaussian_rejection", verifier)
    sampler = AsdSampler(denoiser, denoiser.schedule, (2,), window=16)
    assert laws.smallest_p(laws.speculated(sampler, N_MIXTURE), expected) < laws.REJECT


class Recorder:
    """A draft that notes every guess it makes, offset and gain: (round, step, guess) of each chain."""

    def __init__(self, draft):
        self.inner, self.calls, self.round, self.log = draft, draft.calls, -1, []
        self.begin, self.learn, self.predictions = draft.begin, draft.learn, draft.predictions

    def propose(self, memory: Tensor, x: Tensor, frontier: Tensor, denoise: Denoise) -> Tensor:
        self.round += 1
        return self.inner.propose(memory, x, frontier, denoise)

    def guess(self, memory: Tensor, step: Tensor) -> Guess:
        guess = self.inner.guess(memory, step)
        both = torch.cat([guess.offset, guess.gain.expand_as(guess.offset)], dim=-1)
        for chain, steps in enumerate(step.tolist()):
            self.log += [((self.round, k), chain, both[chain, j]) for j, k in enumerate(steps)]
        return guess


def guesses_where_rows_differ(draft: Draft) -> list[tuple[Tensor, Tensor]]:
    """Pairs of guesses of a step k: of a chain whose tape has rows k and later replaced, and of the untouched chain."""
    K = 30
    denoiser = laws.GaussianMixture(num_steps=K)
    base = NoiseTape.draw(1, K, (2,), torch.Generator().manual_seed(6))
    other = NoiseTape.draw(1, K, (2,), torch.Generator().manual_seed(7))
    later = torch.arange(K) >= torch.arange(K + 1).unsqueeze(1)  # (K + 1, K); the last chain is untouched
    tape = NoiseTape(
        start=base.start.expand(K + 1, 2),
        xi=torch.where(later.unsqueeze(-1), other.xi, base.xi),
        u=torch.where(later, other.u, base.u),
    )
    recorder = Recorder(draft)
    coefficients = (c.float() for c in (denoiser.schedule.a, denoiser.schedule.b, denoiser.schedule.s))
    batch = speculative.Batch(denoiser, Context(denoiser.schedule.timesteps, None), tape, *coefficients)
    state = speculative.begin(batch, recorder)
    while int(state.frontier.min()) < K:
        state = speculative.speculative_round(batch, recorder, state, K)
    guesses = {(key, chain): guess for key, chain, guess in recorder.log}
    return [(guess, guesses[key, K]) for (key, chain), guess in guesses.items() if chain == key[1]]


@pytest.mark.parametrize("draft", DRAFTS)
def test_guess_never_depends_on_its_own_row_or_later(draft):
    """Chain j has rows j and later of the tape replaced: its guesses of step j must be those of the untouched chain."""
    pairs = guesses_where_rows_differ(make_draft(draft))
    for guess, untouched in pairs:
        torch.testing.assert_close(guess, untouched, rtol=0, atol=1e-6)
    assert len(pairs) >= 30


def test_control_gains_that_are_pooled_over_later_steps_too(monkeypatch):
    """Breaks the rule: a later step's evidence was measured at states that contain this step's noise."""

    def both_ways(numerator: Tensor, denominator: Tensor, step: Tensor) -> Tensor:
        last = numerator.shape[1] - 1
        forth = pooled_gain(numerator, denominator, step)
        back = pooled_gain(numerator.flip(1), denominator.flip(1), last - step)  # steps k and later
        return (forth + back) / 2

    monkeypatch.setattr(path, "pooled_gain", both_ways)
    pairs = guesses_where_rows_differ(make_draft("path"))
    assert max(float((guess - untouched).abs().max()) for guess, untouched in pairs) > 1e-2


def test_a_gain_pools_the_evidence_of_the_steps_up_to_its_own():
    """Where the prediction is linear in the state, gains approach its slopes; later steps' evidence changes nothing."""
    generator = torch.Generator().manual_seed(0)
    dy = torch.randn(2, 50, 4, 3, generator=generator)
    slope = torch.rand(4, 3, generator=generator)
    evidence = secant_evidence(slope * dy, dy)
    step = torch.arange(50).expand(2, 50)
    gain = pooled_gain(*evidence, step)
    prior = pooled_gain(*(torch.zeros_like(value) for value in evidence), step)
    torch.testing.assert_close(prior[0, :, 0, 0], 0.3 * (torch.arange(50) / 50) ** 2)

    def error(gain: Tensor) -> float:
        return float((gain - slope)[:, 25:].abs().mean())

    assert error(gain) < 0.5 * error(prior)
    alone = (torch.where(torch.arange(50)[:, None, None] % 7 == 0, value, 0) for value in evidence)
    assert error(gain) < 0.7 * error(pooled_gain(*alone, step))  # more steps tell more

    for k in range(50):
        later = torch.arange(50) > k
        changed = (torch.where(later[:, None, None], 7.0, value) for value in evidence)
        torch.testing.assert_close(pooled_gain(*changed, step)[:, : k + 1], gain[:, : k + 1])


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-8, 1e18, 3e19, float("inf"), float("nan")])
def test_a_displacement_that_tells_nothing_leaves_gains_finite(size):
    dy = torch.full((1, 3, 2), size)
    dy[:, 0] = 1.0
    for value in (1.0, -1e19):
        dx0 = torch.full((1, 3, 2), value)
        dx0[:, 0] = 0.5
        gain = pooled_gain(*secant_evidence(dx0, dy), torch.arange(3).unsqueeze(0))
        assert ((gain >= 0) & (gain <= 1.5)).all()
        torch.testing.assert_close(gain[:, 0], torch.full((1, 2), 0.5 / 2.5))  # one pair against the prior
