"""Intervals and verdicts: known values, symmetry, and their error rates on simulated samplers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asd_policy.errors import ConfigError
from asd_policy.evaluation.stats import compare, wilson


def compared(sampler, baseline, margin=0.05, seed=0):
    """Compare two arrays of successes, (n,) or (n, repeats)."""
    outcomes = [
        {(i, j): bool(x) for (i, j), x in np.ndenumerate(np.reshape(array, (len(array), -1)))}
        for array in (sampler, baseline)
    ]
    return compare(*outcomes, np.random.default_rng(seed), margin)


def test_wilson():
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)  # Newcombe 1998, Table I, method 3
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)  # likewise
    low, high = wilson(15, 148)
    assert wilson(133, 148) == pytest.approx((1 - high, 1 - low))


def test_mcnemar_counts_and_p_value():
    """Of 50 pairs 7 speak for the one and 1 for the other: p = 2 (C(8,0) + C(8,1)) / 2^8."""
    sampler = np.array([1] * 30 + [1] * 7 + [0] * 1 + [0] * 12)
    baseline = np.array([1] * 30 + [0] * 7 + [1] * 1 + [0] * 12)
    result = compared(sampler, baseline)
    assert (result.both, result.only_sampler, result.only_baseline, result.neither) == (30, 7, 1, 12)
    assert (result.episodes, result.seeds) == (50, 50)
    assert result.p_value == pytest.approx(2 * (1 + 8) / 256)
    assert result.difference == pytest.approx(0.12)


def test_interval_agrees_with_bonett_and_price():
    """Their adjusted Wald interval, (b - c)/(n + 2) +- z sqrt((b + c + 2 - (b - c)^2/(n + 2))) / (n + 2)."""
    n, wins, losses = 400, 30, 22
    sampler = np.array([1] * wins + [0] * losses + [1] * (n - wins - losses))
    baseline = np.array([0] * wins + [1] * losses + [1] * (n - wins - losses))
    center = (wins - losses) / (n + 2)
    half = 1.96 * np.sqrt(wins + losses + 2 - (wins - losses) ** 2 / (n + 2)) / (n + 2)
    assert compared(sampler, baseline).interval == pytest.approx((center - half, center + half), abs=0.003)


def test_repeats_of_a_seed_count_as_one():
    """Where every repeat repeats the first, the interval stays what one repeat gives."""
    rng = np.random.default_rng(0)
    sampler, baseline = rng.random((2, 60)) < 0.8
    once = compared(sampler, baseline)
    thrice = compared(np.tile(sampler[:, None], 3), np.tile(baseline[:, None], 3))
    assert thrice.interval == once.interval
    assert thrice.p_value < once.p_value  # McNemar's takes them to be independent, as documented


def test_only_shared_episodes_count():
    result = compare({(1, 0): True, (2, 0): True}, {(1, 0): False, (3, 0): False}, np.random.default_rng(0))
    assert (result.episodes, result.only_sampler) == (1, 1)


def test_same_generator_same_interval():
    sampler, baseline = np.random.default_rng(0).random((2, 80)) < 0.8
    assert compared(sampler, baseline, seed=1) == compared(sampler, baseline, seed=1)


@pytest.mark.parametrize(
    ("sampler", "baseline", "verdict"),
    [
        ([1] * 200, [1] * 200, "equivalent"),
        ([1] * 198 + [0] * 2, [1] * 200, "equivalent"),
        ([1] * 180 + [0] * 20, [1] * 200, "worse"),
        ([1] * 200, [1] * 180 + [0] * 20, "better"),
        ([1] * 190 + [0] * 10, [1] * 200, "worse"),
        ([1] * 95 + [0] * 5, [0] * 5 + [1] * 95, "undecided"),
    ],
)
def test_verdicts(sampler, baseline, verdict):
    assert compared(np.array(sampler), np.array(baseline)).verdict == verdict


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("seeds", [1, 2, 3, 20, 50])
def test_few_seeds_without_a_difference_prove_nothing(seeds, repeats):
    same = np.ones((seeds, repeats))
    result = compared(same, same)
    assert result.verdict == "undecided"
    assert result.difference == 0
    assert result.more_seeds is None  # nothing tells how much they vary


def test_wide_margin_needs_fewer_seeds():
    same = np.ones(30)
    assert compared(same, same, margin=0.2).verdict == "equivalent"


outcomes = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n) for _ in range(2)])
)


@settings(max_examples=25, deadline=None)
@given(outcomes)
def test_swapping_the_samplers_mirrors_the_comparison(pair):
    sampler, baseline = map(np.array, pair)
    there, back = compared(sampler, baseline), compared(baseline, sampler)
    assert (there.only_sampler, there.only_baseline) == (back.only_baseline, back.only_sampler)
    assert there.p_value == back.p_value
    assert there.difference == -back.difference
    step = 1 / (len(sampler) + 2)  # the resampled differences are multiples of it
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]), abs=1.01 * step)
    assert there.interval[0] <= there.difference <= there.interval[1]


def simulate(rng, seeds, repeats, handicap):
    """Successes (seeds, repeats) of two samplers on env seeds of different difficulty; the first fails more often."""
    chance = rng.beta(2, 0.3, (seeds, 1))
    wins = rng.random((2, seeds, repeats)) < chance
    return wins[0] & (rng.random((seeds, repeats)) >= handicap), wins[1]


@pytest.fixture
def fewer_resamples(monkeypatch):
    monkeypatch.setattr("asd_policy.evaluation.stats.RESAMPLES", 999)


@pytest.mark.parametrize(("seeds", "repeats"), [(60, 1), (50, 3)])
def test_coverage(seeds, repeats, fewer_resamples):
    """The interval holds the true difference in at least 95 % of evaluations; 91.7 % is 2.6 standard errors less."""
    rng = np.random.default_rng(0)
    true = -0.1 * 2 / 2.3  # the handicap's share of the mean success
    results = [compared(*simulate(rng, seeds, repeats, 0.1)) for _ in range(300)]
    assert np.mean([low <= true <= high for low, high in (result.interval for result in results)]) > 0.917
    assert np.mean([result.difference for result in results]) == pytest.approx(true, abs=0.01)


@pytest.mark.parametrize("seeds", [59, 100])
def test_equivalence_is_rarely_claimed_at_the_margin(seeds, fewer_resamples):
    """A sampler that loses 5 points and wins none is called equivalent within 5 points at most 1 time in 20."""
    rng = np.random.default_rng(1)
    verdicts = [compared(rng.random(seeds) >= 0.05, np.ones(seeds)).verdict for _ in range(300)]
    assert verdicts.count("equivalent") / 300 < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 300)


def test_more_seeds_settle_it(fewer_resamples):
    """With as many seeds as a pilot asks for, equal samplers are found equivalent about 4 times in 5."""
    rng = np.random.default_rng(2)
    pilot = compared(*simulate(rng, 100, 1, 0))
    assert pilot.verdict == "undecided"
    seeds = 100 + pilot.more_seeds
    verdicts = [compared(*simulate(rng, seeds, 1, 0)).verdict for _ in range(100)]
    assert 0.6 < verdicts.count("equivalent") / 100 < 0.97


def test_enough_seeds_with_a_difference_ask_for_no_more():
    """400 seeds would do for equal samplers: that these differ by 2.5 points is what leaves it undecided."""
    sampler = np.array([1] * 25 + [0] * 15 + [1] * 360)
    baseline = np.array([0] * 25 + [1] * 15 + [1] * 360)
    result = compared(sampler, baseline, margin=0.053)
    assert (result.verdict, result.more_seeds) == ("undecided", None)


def test_nothing_shared():
    with pytest.raises(ConfigError, match="share no"):
        compare({(1, 0): True}, {(2, 0): True}, np.random.default_rng(0))


@pytest.mark.parametrize("margin", [0, 1, -0.1, float("nan")])
def test_bad_margin(margin):
    with pytest.raises(ConfigError, match="margin"):
        compare({(1, 0): True}, {(1, 0): True}, np.random.default_rng(0), margin)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (-1, 3), (4, 3)])
def test_no_interval_of_nothing(successes, episodes):
    with pytest.raises(ConfigError, match="expected at least one episode"):
        wilson(successes, episodes)


@pytest.mark.parametrize(("one", "other"), [(True, True), (True, False), (False, False)])
def test_one_episode_decides_nothing(one, other):
    comparison = compare({(0, 0): one}, {(0, 0): other}, np.random.default_rng(0))
    assert comparison.episodes == 1
    assert comparison.verdict == "undecided"
    assert np.isfinite(comparison.interval).all()
    assert comparison.p_value == 1.0


@pytest.mark.parametrize("margin", [float("nan"), float("inf"), -0.1, 0, 1])
def test_margins_that_are_none(margin):
    with pytest.raises(ConfigError, match="expected a share between 0 and 1"):
        compare({(0, 0): True}, {(0, 0): True}, np.random.default_rng(0), margin)
