"""Confidence intervals and paired comparisons of success rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap, norm

from asd_policy.errors import ConfigError

LEVEL = 0.95
"""The level of every interval here. Equivalence is then Schuirmann's two one-sided tests (1987) at 2.5 % each. The
customary 90 % interval suits a normal estimate; with few episodes and rare differences it is too short."""
RESAMPLES = 9999
POWER = 0.8
PILOT = 5  # seeds on which the samplers must differ before a sample size is computed

Outcomes = Mapping[tuple[int, int], bool]
"""(env seed, repeat) -> success."""


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's interval of a success rate, at LEVEL. It assumes independent episodes.

    Raises:
        ConfigError: unless episodes is positive and 0 <= successes <= episodes.
    """
    if episodes < 1 or not 0 <= successes <= episodes:
        raise ConfigError(f"Got {successes} successes in {episodes} episodes; expected at least one episode.")
    interval = binomtest(successes, episodes).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Comparison:
    """A sampler compared with a baseline, on the episodes that both have run."""

    seeds: int  # env seeds, n
    both: int  # episodes in which both succeed
    only_sampler: int
    only_baseline: int
    neither: int
    p_value: float  # McNemar's exact test, which assumes independent episodes
    difference: float  # success rate of the sampler minus that of the baseline
    interval: tuple[float, float]  # of the difference, at LEVEL
    margin: float
    verdict: str  # "equivalent" (within the margin), "worse", "better" or "undecided"
    more_seeds: int | None  # see `_more_seeds`; None unless undecided

    @property
    def episodes(self) -> int:
        return self.both + self.only_sampler + self.only_baseline + self.neither


def compare(sampler: Outcomes, baseline: Outcomes, rng: np.random.Generator, margin: float = 0.05) -> Comparison:
    """Compare success on the shared episodes.

    The verdict is "equivalent" if the whole interval lies within the margin, even if it excludes zero. Otherwise it is
    "worse" or "better" if the interval excludes zero, and "undecided" if it includes zero.

    Args:
        rng: draws the bootstrap's resamples.
        margin: the largest negligible difference of success rates, chosen before the results are seen.

    Raises:
        ConfigError: if no episode is shared, or the margin is not between 0 and 1.
    """
    if not 0 < margin < 1:
        raise ConfigError(f"The margin is {margin}; expected a share between 0 and 1, such as 0.05 for 5 points.")
    shared = sorted(sampler.keys() & baseline.keys())
    if not shared:
        raise ConfigError("The two samplers share no (env seed, repeat); run both on the same seeds.")
    table = Counter((sampler[key], baseline[key]) for key in shared)
    only_sampler, only_baseline = table[True, False], table[False, True]
    wins, sizes = _per_seed(sampler, baseline, shared)
    low, high = interval = _difference_interval(wins, sizes, rng)
    if -margin < low and high < margin:
        verdict = "equivalent"
    else:
        verdict = "worse" if high < 0 else "better" if low > 0 else "undecided"
    discordant = only_sampler + only_baseline
    return Comparison(
        seeds=len(wins),
        both=table[True, True],
        only_sampler=only_sampler,
        only_baseline=only_baseline,
        neither=table[False, False],
        p_value=float(binomtest(only_sampler, discordant).pvalue) if discordant else 1.0,
        difference=(only_sampler - only_baseline) / len(shared),
        interval=interval,
        margin=margin,
        verdict=verdict,
        more_seeds=_more_seeds(wins, sizes, margin) if verdict == "undecided" else None,
    )


def _per_seed(
    sampler: Outcomes, baseline: Outcomes, shared: list[tuple[int, int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each env seed, the sampler's wins minus its losses, and its number of episodes; (n,) each."""
    wins: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    for key in shared:
        wins[key[0]] += int(sampler[key]) - int(baseline[key])
        sizes[key[0]] += 1
    return np.array([wins[seed] for seed in sizes], float), np.array(list(sizes.values()), float)


def _with_imaginary(
    wins: NDArray[np.float64], sizes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add two imaginary seeds, one that the sampler wins and one that it loses.

    Without them, samplers that never differed in three episodes would get the interval [0, 0]. For one repeat this is
    the adjustment of Bonett and Price (J. Educ. Behav. Stat. 37, 2012).
    """
    size = sizes.mean()
    return np.append(wins, [size, -size]), np.append(sizes, [size, size])


def _difference_interval(
    wins: NDArray[np.float64], sizes: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile bootstrap over env seeds. Repeats of a seed are not independent: they are resampled together."""

    def difference(wins: NDArray[np.float64], sizes: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        shares: NDArray[np.float64] = wins.sum(axis) / sizes.sum(axis)
        return shares

    interval = bootstrap(
        _with_imaginary(wins, sizes),
        difference,
        paired=True,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        method="percentile",
        batch=1000,
        rng=rng,
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _more_seeds(wins: NDArray[np.float64], sizes: NDArray[np.float64], margin: float) -> int | None:
    """Env seeds to add so that equally good samplers are found "equivalent" with probability POWER.

    Assumes that new seeds vary like the present ones. None if the samplers differ on fewer than PILOT seeds, or if
    there are enough seeds already.
    """
    if np.count_nonzero(wins) < PILOT:
        return None
    padded, weights = _with_imaginary(wins, sizes)
    deviation = np.sqrt(np.mean((padded - weights * padded.sum() / weights.sum()) ** 2)) / weights.mean()
    quantiles = norm.ppf((1 + LEVEL) / 2) + norm.ppf((1 + POWER) / 2)
    more = ceil((quantiles * deviation / margin) ** 2) - len(wins)
    return more if more > 0 else None
