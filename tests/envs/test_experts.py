"""Every task's scripted expert solves it, from explicit randomness only."""

from itertools import islice

import gymnasium
import numpy as np
import pytest

from envs.experts import make_expert, make_misses
from envs.exploration import exploration_noise
from envs.tasks import TASKS

SUCCESSES, SUCCESSES_OF = 90, {"square": 95}
"""At least, of 100 fresh seeds under the task's exploration; and of tasks that are held to more."""


def test_every_task_has_an_expert():
    assert not [name for name, task in TASKS.items() if task.expert is None]


@pytest.fixture(scope="module", params=sorted(TASKS))
def env(request):
    env = gymnasium.make(f"envs:{TASKS[request.param].env_id}", terminate_on_success=False)
    yield env
    env.close()


def demonstrate(env, seed):
    """Run the expert once under the task's exploration; the clean actions, and the success flag of each step."""
    env.reset(seed=seed)
    task = env.unwrapped.task
    noise = exploration_noise(task.exploration, len(task.robots), np.random.default_rng([seed, 1]))
    actions, successes = [], []
    for action, disturbance in zip(make_expert(env, np.random.default_rng([seed, 0])), noise, strict=False):
        assert action.shape == env.action_space.shape
        assert np.abs(action).max() <= 1.0
        executed = np.clip(action + disturbance, -1, 1).astype(np.float32)
        _, reward, terminated, truncated, info = env.step(executed)
        assert reward == float(info["success"])
        assert not terminated
        actions.append(action)
        successes.append(info["success"])
        if truncated:
            break
    return np.array(actions), successes


# One fast episode of each other task is in tests/data/test_collect_demos.py.
@pytest.mark.parametrize(
    "env",
    [pytest.param(task, marks=() if task == "square" else pytest.mark.slow) for task in sorted(TASKS)],
    indirect=True,
)
@pytest.mark.parametrize("seed", [200_000, 200_001, 200_002])
def test_the_expert_succeeds(env, seed):
    _, successes = demonstrate(env, seed)
    assert successes[-1]
    assert successes.index(True) < 0.9 * env.spec.max_episode_steps


@pytest.mark.parametrize("env", ["tool_hang"], indirect=True)
@pytest.mark.parametrize("steps", [230, *(pytest.param(n, marks=pytest.mark.slow) for n in (60, 140, 190, 290, 400))])
def test_another_expert_goes_on_from_where_one_stopped(env, steps):
    """As it must when it takes over from a policy."""
    env.reset(seed=200_000)
    for action in islice(make_expert(env, np.random.default_rng(0)), steps):
        env.step(action.astype(np.float32))
    for action in make_expert(env, np.random.default_rng(1)):
        *_, truncated, info = env.step(action.astype(np.float32))
        if truncated:
            break
    assert info["success"]


def test_only_an_expert_with_a_place_to_miss_is_led_past_it(env):
    env.reset(seed=200_000)
    rng = np.random.default_rng(0)
    assert next(make_misses(env, 0.0, rng)) is None
    if env.unwrapped.task.misses:
        assert next(make_misses(env, 1.0, rng)) is None  # for it is not there yet
    else:
        with pytest.raises(ValueError, match="tool_hang"):
            make_misses(env, 1.0, rng)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_expert_succeeds_on_most_of_100_seeds(env):
    solved = sum(demonstrate(env, seed)[1][-1] for seed in range(300_000, 300_100))
    assert solved >= SUCCESSES_OF.get(env.unwrapped.task.name, SUCCESSES)


def test_an_episode_ends_at_success_unless_asked_to_go_on():
    ending = gymnasium.make("envs:asd/Square-v0", terminate_on_success=True)
    _, info = ending.reset(seed=200_000)
    assert info["success"] is False
    for action in make_expert(ending, np.random.default_rng([200_000, 0])):
        _, reward, terminated, truncated, info = ending.step(action.astype(np.float32))
        if info["success"]:
            break
    ending.close()
    assert (info["success"], terminated, reward, truncated) == (True, True, 1.0, False)


def test_the_expert_varies_with_its_generator_and_with_nothing_else(env):
    def first_actions(style_seed):
        env.reset(seed=200_000)
        expert = make_expert(env, np.random.default_rng(style_seed))
        actions = []
        for _ in range(5):
            actions.append(next(expert))
            env.step(actions[-1].astype(np.float32))
        return np.array(actions)

    first, again, other = (first_actions(style_seed) for style_seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
