"""Several samplers of one policy on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import gymnasium
import numpy as np

from asd_policy.errors import ConfigError
from asd_policy.evaluation.rollout import Episode, Policy, rollout


def parse_seeds(text: str) -> list[int]:
    """Read "100000-100049", "1,5,7" or a mixture.

    Raises:
        ConfigError: on anything else.
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            seeds += range(int(first), int(last if dash else first) + 1)
    except ValueError:
        seeds = []
    if not seeds:
        raise ConfigError(f"Cannot read the seeds {text!r}; expected something like 100000-100049 or 1,5,7.")
    return seeds


def noise_seed(env_seed: int, repeat: int) -> int:
    """The seed of the policy's noise in one episode: the same for every sampler, another for every repeat."""
    return int(np.random.SeedSequence((env_seed, repeat)).generate_state(1)[0])


def evaluate(
    env: gymnasium.Env,
    policies: Mapping[str, Policy],
    env_seeds: Sequence[int],
    repeat: int = 0,
    started: Callable[[str, int], None] = lambda label, seed: None,
) -> Iterator[tuple[str, Episode]]:
    """Run every policy on every seed and yield each episode as it ends.

    The policies take turns on a seed, and another one begins at each, so a machine that slows down slows all alike.

    Args:
        policies: label -> policy.
        repeat: which noise the episodes get.
        started: called with the label and the seed before each episode.
    """
    labels = list(policies)
    for turn, seed in enumerate(env_seeds):
        begin = turn % len(labels)
        for label in labels[begin:] + labels[:begin]:
            started(label, seed)
            yield label, rollout(env, policies[label], seed, noise_seed(seed, repeat))
