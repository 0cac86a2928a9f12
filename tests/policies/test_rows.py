"""Batches of environments whose episodes end at different times: each episode is that of a single run."""

import copy
import pickle
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from asd_policy import load_policy
from asd_policy.errors import ConfigError
from tests.tiny import tiny_checkpoint

LENGTHS = (3, 11, 50)
STEPS = 40
SAMPLERS = [("ddpm", {}), ("ddim", {"num_steps": 4}), ("asd", {"window": 4}), ("asd", {"draft": "frozen"})]


class Counting(gym.Env):
    """Observes which episode and step it is in, and what was done last; ends after `length` steps."""

    observation_space = gym.spaces.Dict({"a": gym.spaces.Box(-99, 99, (3,), np.float32)})
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, row: int, length: int):
        self.row, self.length, self.episode, self.steps = row, length, -1, 0

    def _obs(self, action=(0.0, 0.0)):
        return {"a": np.array([self.row + self.episode / 10, self.steps / 10, action[0]], np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        return self._obs(action), 0.0, self.steps == self.length, False, {}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("rows") / "tiny", {"a": 3}, 2)


def noise_seed(row: int, episode: int) -> int:
    return 1000 * row + episode


def single_runs(policy) -> list[list[NDArray]]:
    """For each row the actions of its episodes, run one after another in one environment."""
    runs = []
    for row, length in enumerate(LENGTHS):
        env, episodes = Counting(row, length), []
        for episode in range(STEPS // length + 1):
            obs, _ = env.reset()
            policy.reset(seed=noise_seed(row, episode))
            actions, done = [], False
            while not done:
                actions.append(policy.act(obs))
                obs, _, done, _, _ = env.step(actions[-1])
            episodes.append(np.stack(actions))
        runs.append(episodes)
    return runs


def vector_run(policy, mode: AutoresetMode) -> Iterator[tuple[int, int, int, NDArray]]:
    """(row, episode, step, action) of every action that an episode was given."""
    envs = SyncVectorEnv([lambda r=r, n=n: Counting(r, n) for r, n in enumerate(LENGTHS)], autoreset_mode=mode)
    obs, _ = envs.reset()
    episode, step = np.zeros(len(LENGTHS), int), np.zeros(len(LENGTHS), int)
    policy.reset(seeds=[noise_seed(row, 0) for row in range(len(LENGTHS))])
    resting = np.zeros(len(LENGTHS), bool)  # NEXT_STEP: rows whose next step is their reset
    for _ in range(STEPS):
        actions = policy.act(obs)
        for row in np.flatnonzero(~resting):
            yield row, int(episode[row]), int(step[row]), actions[row].copy()
        obs, _, terminated, truncated, _ = envs.step(actions)
        step += ~resting
        over = (terminated | truncated) & ~resting
        if mode == AutoresetMode.NEXT_STEP:
            begins, resting = resting, over
        else:
            begins = over
        if mode == AutoresetMode.DISABLED and begins.any():
            obs, _ = envs.reset(options={"reset_mask": begins})
        episode += begins
        step[begins] = 0
        if begins.any():
            policy.reset(mask=begins, seeds=[noise_seed(row, episode[row]) for row in np.flatnonzero(begins)])


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize(("sampler", "options"), SAMPLERS)
def test_every_autoreset_mode_gives_the_episodes_of_single_runs(checkpoint, sampler, options, mode):
    policy = load_policy(checkpoint, sampler=sampler, **options)
    expected = single_runs(policy)
    seen = set()
    for row, episode, step, action in vector_run(policy, mode):
        # Batches round differently, and the untrained network amplifies it. Another row's noise would differ by 1.
        np.testing.assert_allclose(action, expected[row][episode][step], atol=1e-2)
        seen.add((row, episode))
    assert len(seen) > len(LENGTHS) + 8


def test_captured_batches_are_filled_up(checkpoint):
    """As a capture sees it: always a batch of three, and still the same actions."""
    policy, plain = (load_policy(checkpoint, window=4) for _ in range(2))
    sizes = []
    launch = policy.sampler.launch
    type_of = type(policy.sampler)

    class Captured(type_of):
        def rows(self, due, batch_size):
            return batch_size

        def launch(self, batch_size, *rest):
            sizes.append(batch_size)
            return launch(batch_size, *rest)

    policy.sampler.__class__ = Captured
    for (*at, action), (*same, expected) in zip(
        vector_run(policy, AutoresetMode.SAME_STEP), vector_run(plain, AutoresetMode.SAME_STEP), strict=True
    ):
        assert at == same
        np.testing.assert_allclose(action, expected, atol=1e-5)
    assert set(sizes) == {3}


def observation(step: int, batch: int) -> dict[str, NDArray]:
    return {"a": np.random.default_rng(step).standard_normal((batch, 3))}


def test_rows_that_are_not_reset_go_on(checkpoint):
    policy = load_policy(checkpoint, window=4)
    streams = []
    for begins in (None, [False, True, False]):
        policy.reset(seeds=[1, 2, 3])
        actions = []
        for step in range(20):
            if step == 5 and begins is not None:
                policy.reset(mask=begins, seeds=[9])
            actions.append(policy.act(observation(step, 3)))
        streams.append(np.stack(actions))
    np.testing.assert_allclose(streams[0][:, [0, 2]], streams[1][:, [0, 2]], atol=1e-2)
    np.testing.assert_allclose(streams[0][:5], streams[1][:5], atol=1e-5)
    assert not np.allclose(streams[0][5:, 1], streams[1][5:, 1], atol=1e-1)


def test_stats_tell_which_rows_were_planned(checkpoint):
    policy = load_policy(checkpoint, window=4)
    policy.reset(seeds=[1, 2, 3])
    policy.act(observation(0, 3))
    assert (policy.stats.rounds > 0).all()
    first = policy.stats
    policy.reset(mask=[True, False, False])
    policy.act(observation(1, 3))
    assert policy.stats is not first
    assert (policy.stats.rounds > 0).tolist() == [True, False, False]
    assert (policy.stats.evaluations > 0).tolist() == [True, False, False]


def test_seeds_of_a_mask(checkpoint):
    policy = load_policy(checkpoint, sampler="ddim", num_steps=2)

    def after(**options) -> NDArray:
        policy.reset(seeds=[1, 2, 3])
        policy.act(observation(0, 3))
        policy.reset(**options)
        return policy.act(observation(1, 3))

    mask = np.array([True, False, True])
    np.testing.assert_array_equal(after(mask=mask, seeds=[7, 8]), after(mask=mask, seeds=[7, 99, 8]))
    goes_on, again = after(mask=mask), after(mask=mask)  # without seeds the generators go on
    np.testing.assert_array_equal(goes_on, again)
    assert not np.allclose(goes_on[[0, 2]], after(mask=mask, seeds=[1, 3])[[0, 2]])
    nobody = after(mask=[False] * 3)
    np.testing.assert_array_equal(nobody, after(mask=[False] * 3, seeds=[4, 5, 6]))


@pytest.mark.parametrize(
    "options",
    [
        {"mask": [True, False]},
        {"mask": [1, 0, 1]},
        {"mask": [0]},
        {"mask": True},
        {"mask": [[True, False, False]]},
        {"mask": [True, False, False], "seed": 3},
        {"mask": [True, False, False], "seeds": [1, 2]},
        {"mask": [True, False, False], "seeds": [-1]},
        {"mask": [True, False, False], "seeds": [1.5]},
    ],
)
def test_masks_that_do_not_fit_change_nothing(checkpoint, options):
    policy, same = (load_policy(checkpoint, window=4) for _ in range(2))
    for one in (policy, same):
        one.reset(seeds=[1, 2, 3])
        one.act(observation(0, 3))
    with pytest.raises(ConfigError):
        policy.reset(**options)
    for step in range(1, 12):
        np.testing.assert_array_equal(policy.act(observation(step, 3)), same.act(observation(step, 3)))


def test_a_mask_needs_a_batch(checkpoint):
    policy = load_policy(checkpoint, window=4)
    for begin in (lambda: None, lambda: policy.reset(seed=0)):
        begin()
        with pytest.raises(ConfigError, match=r"after reset\(seeds=\.\.\.\)"):
            policy.reset(mask=[True])


@pytest.mark.parametrize(("sampler", "options"), [*SAMPLERS, ("asd", {"window": 4, "capture": "compile"})])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_a_copy_goes_on_in_the_middle_of_an_episode(checkpoint, sampler, options, copied):
    policy = load_policy(checkpoint, sampler=sampler, **options)
    fresh = copied(policy)
    policy.reset(seeds=[1, 2])
    steps = 0
    if "capture" not in options:  # compiling both takes minutes, and adds nothing
        steps = 12
        for step in range(5):
            policy.act(observation(step, 2))
    policy.reset(mask=[True, False])
    other = copied(policy)
    for step in range(steps):
        np.testing.assert_array_equal(policy.act(observation(step, 2)), other.act(observation(step, 2)))
    fresh.reset(seed=0)
