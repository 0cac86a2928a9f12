"""Environment seeds on command lines, and the seeds of the policy's noise."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from asd_policy.errors import ConfigError

MOST_SEEDS = 1_000_000
"""The most seeds of one evaluation. A larger number is likely a typing error."""

SEED_SETS: Mapping[str, tuple[str, int]] = {
    "smoke": ("100000-100002", 1),
    "dev": ("200000-200019", 1),
    "paper": ("100000-100099", 3),
}
"""Name -> environment seeds, and the number of repeats of each."""


def parse_seeds(text: str) -> list[int]:
    """Read "100000-100049", "1,5,7" or a mixture.

    Raises:
        ConfigError: on anything else, a range that runs backwards, a seed named twice, or more than MOST_SEEDS.
    """
    refusal = f"Cannot read the seeds {text!r}"
    seeds: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r" *([0-9]{1,19}) *(?:- *([0-9]{1,19}) *)?", part)
        if ends is None:
            raise ConfigError(f"{refusal}; expected something like 100000-100049 or 1,5,7.")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if first > last:
            raise ConfigError(f"{refusal}: {part.strip()} runs backwards. Did you mean {last}-{first}?")
        if last - first + len(seeds) >= MOST_SEEDS:
            raise ConfigError(f"{refusal}: they are more than {MOST_SEEDS}.")
        seeds += range(first, last + 1)
    twice = [seed for seed, count in Counter(seeds).items() if count > 1]
    if twice:
        raise ConfigError(f"{refusal}: env_seeds holds {twice} more than once; an episode is run once.")
    return seeds


def parse_seed_set(text: str) -> tuple[list[int], int]:
    """Environment seeds and their repeats: a name in SEED_SETS, or seeds as in `parse_seeds` with one repeat.

    Raises:
        ConfigError: on anything else.
    """
    seeds, repeats = SEED_SETS.get(text, (text, 1))
    try:
        return parse_seeds(seeds), repeats
    except ConfigError as error:
        raise ConfigError(f"{error} Or a seed set: {', '.join(SEED_SETS)}.") from None


def noise_seed(env_seed: int, repeat: int) -> int:
    """The seed of the policy's noise in one episode: equal for all samplers, different for each repeat.

    Raises:
        ConfigError: if either number is negative.
    """
    if env_seed < 0 or repeat < 0:
        raise ConfigError(f"Got env seed {env_seed} and repeat {repeat}; expected neither to be negative.")
    # SeedSequence reads integers as 32-bit words: without the word counts, (2^32, 0) would equal (0, 1).
    words = () if env_seed < 2**32 else (env_seed.bit_length(),)
    return int(np.random.SeedSequence((env_seed, repeat, *words)).generate_state(1)[0])
