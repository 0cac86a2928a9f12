"""The disturbances of an expert: white noise, pushes that last, and fingers that close by themselves."""

from itertools import islice

import numpy as np
import pytest

from envs.exploration import CLOSING, CLOSING_STEPS, PUSH, PUSH_STEPS, exploration_noise
from envs.tasks import Exploration

MOTION, GRIPPERS = [i for i in range(14) if i % 7 != 6], [6, 13]


def drawn(exploration: Exploration, steps: int, seed: int = 0) -> np.ndarray:
    """Of two arms, (steps, 14)."""
    return np.array(list(islice(exploration_noise(exploration, 2, np.random.default_rng(seed)), steps)))


def runs(events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of events (steps, d), zero between them: the value and the length of each that has ended."""
    begins = np.flatnonzero(np.r_[True, (events[1:] != events[:-1]).any(axis=1)])
    values, lengths = events[begins][:-1], np.diff(begins)
    happening = values.any(axis=1)
    return values[happening], lengths[happening]


def test_alone_it_is_white_noise_on_all_but_the_grippers():
    expected = 0.05 * np.random.default_rng(0).standard_normal((500, 14))
    expected[:, GRIPPERS] = 0.0
    np.testing.assert_array_equal(drawn(Exploration(noise=0.05), 500), expected)


@pytest.mark.parametrize("arm", [0, 1])
def test_pushes_last_and_come_as_often_as_asked(arm):
    noise = drawn(Exploration(noise=0.0, pushes=0.02), 40_000)
    assert (noise[:, GRIPPERS] == 0).all()
    push = noise[:, 7 * arm : 7 * arm + 6]
    values, lengths = runs(push)
    assert (lengths.min(), lengths.max()) == (PUSH_STEPS[0], PUSH_STEPS[1] - 1)
    assert len(lengths) / (~push.any(axis=1)).sum() == pytest.approx(0.02, rel=0.15)
    np.testing.assert_allclose(values.std(axis=0), PUSH[:6], rtol=0.15)


@pytest.mark.parametrize("gripper", GRIPPERS)
def test_fingers_close_and_never_open(gripper):
    noise = drawn(Exploration(noise=0.0, closings=0.01), 40_000)
    assert (noise[:, MOTION] == 0).all()
    values, lengths = runs(noise[:, [gripper]])
    assert (values == CLOSING[-1]).all()
    assert (np.clip(np.array([-1.0, 1.0]) + CLOSING[-1], -1, 1) == 1).all()
    assert lengths.min() == CLOSING_STEPS[0]
    assert len(lengths) / (noise[:, gripper] == 0).sum() == pytest.approx(0.01, rel=0.15)


def test_the_arms_are_disturbed_apart_from_each_other():
    noise = drawn(Exploration(noise=0.0, pushes=0.02, closings=0.02), 20_000)
    for channel in (0, 6):
        left, right = (noise[:, channel + arm] != 0 for arm in (0, 7))
        assert np.corrcoef(left, right)[0, 1] == pytest.approx(0.0, abs=0.1)


def test_it_comes_from_its_generator_alone():
    disturbed = Exploration(noise=0.05, pushes=0.1, closings=0.1)
    first, again, other = (drawn(disturbed, 100, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
