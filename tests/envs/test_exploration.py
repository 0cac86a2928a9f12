"""The noise on an expert's actions: white, with pushes that last, never on a gripper."""

from itertools import islice

import numpy as np
import pytest

from envs.experts.exploration import PUSH, PUSH_STEPS, exploration_noise
from envs.tasks import TASKS


def drawn(task: str, sigma: float, push_rate: float, steps: int, seed: int = 0) -> np.ndarray:
    noise = exploration_noise(TASKS[task], sigma, push_rate, np.random.default_rng(seed))
    return np.array(list(islice(noise, steps)))


def test_without_pushes_it_is_white_noise_on_all_but_the_grippers():
    noise = drawn("transport", 0.05, 0.0, 500)
    expected = 0.05 * np.random.default_rng(0).standard_normal((500, 14))
    expected[:, [6, 13]] = 0.0
    np.testing.assert_array_equal(noise, expected)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_pushes_last_and_come_as_often_as_asked(task):
    noise = drawn(task, 0.0, 0.02, 40_000)
    assert (noise[:, 6::7] == 0).all()
    for arm in range(len(TASKS[task].robots)):
        push = noise[:, 7 * arm : 7 * arm + 6]
        begins = np.flatnonzero(np.r_[True, (push[1:] != push[:-1]).any(axis=1)])
        lengths = np.diff(np.r_[begins, len(push)])[push[begins].any(axis=1)]
        assert PUSH_STEPS[0] <= lengths[:-1].min()
        assert lengths.max() < PUSH_STEPS[1]
        idle = (~push.any(axis=1)).sum()
        assert len(lengths) / idle == pytest.approx(0.02, rel=0.15)
        np.testing.assert_allclose(push[begins][push[begins].any(axis=1)].std(axis=0), PUSH[:6], rtol=0.15)


def test_the_arms_are_pushed_apart_from_each_other():
    noise = drawn("transport", 0.0, 0.02, 20_000)
    left, right = (noise[:, arm : arm + 6].any(axis=1) for arm in (0, 7))
    assert np.corrcoef(left, right)[0, 1] == pytest.approx(0.0, abs=0.1)


def test_it_comes_from_its_generator_alone():
    first, again, other = (drawn("transport", 0.05, 0.1, 100, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
