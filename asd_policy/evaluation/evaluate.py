"""Several samplers of one policy on the same seeds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import gymnasium
import numpy as np

from asd_policy.errors import ConfigError
from asd_policy.evaluation.rollout import BREAKS_EVERY_EPISODE, Episode, Policy, broken_episode, rollout

MOST_SEEDS = 1_000_000
"""Of one evaluation; more are a slip of the pen."""


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


def noise_seed(env_seed: int, repeat: int) -> int:
    """The seed of the policy's noise in one episode: the same for every sampler, another for every repeat.

    Raises:
        ConfigError: if one of them is negative.
    """
    if env_seed < 0 or repeat < 0:
        raise ConfigError(f"Got env seed {env_seed} and repeat {repeat}; expected neither to be negative.")
    # SeedSequence reads integers as words of 32 bits: without their number, (2^32, 0) would be (0, 1).
    words = () if env_seed < 2**32 else (env_seed.bit_length(),)
    return int(np.random.SeedSequence((env_seed, repeat, *words)).generate_state(1)[0])


def evaluate(
    env: gymnasium.Env,
    policies: Mapping[str, Policy],
    env_seeds: Sequence[int],
    repeat: int = 0,
    started: Callable[[str, int], None] = lambda label, seed: None,
) -> Iterator[tuple[str, Episode]]:
    """Run every policy on every seed and yield each episode as it ends.

    The policies take turns on a seed, and another one begins at each, so a machine that slows down slows all alike. An
    episode that raises is a failure, with its error, and the next one begins.

    Args:
        policies: label -> policy.
        repeat: which noise the episodes get.
        started: called with the label and the seed before each episode.

    Raises:
        ConfigError: if there is no policy; or raised by an episode, as MemoryError: it would break every other too.
    """
    labels = list(policies)
    if not labels:
        raise ConfigError("There is no sampler to evaluate; name at least one.")
    for turn, seed in enumerate(env_seeds):
        begin = turn % len(labels)
        for label in labels[begin:] + labels[:begin]:
            started(label, seed)
            noise = noise_seed(seed, repeat)
            try:
                episode = rollout(env, policies[label], seed, noise)
            except BREAKS_EVERY_EPISODE:
                raise
            except Exception as error:
                episode = broken_episode(seed, noise, error)
            yield label, episode
