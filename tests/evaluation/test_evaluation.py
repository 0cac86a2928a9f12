"""Episodes, their summary, and their order, on a toy environment and policy."""

import hashlib
import json

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from asd_policy.errors import ConfigError, NumericalError, ObservationError
from asd_policy.evaluation.backends import Serial
from asd_policy.evaluation.results import ResultsFile
from asd_policy.evaluation.rollout import replay_frames, rollout
from asd_policy.evaluation.seeds import noise_seed, parse_seeds
from asd_policy.evaluation.summary import mean_acceptance, plot_acceptance, summarize, table
from asd_policy.evaluation.sweep import Plan, sweep
from asd_policy.evaluation.vector import rollout_batch
from asd_policy.evaluation.worker import LoadedTask
from tests.evaluation import records
from tests.evaluation.toy import Push, Walk


def test_episode_records_every_chunk_and_stops_at_success():
    episode = rollout(Walk(), Push(0.9, rounds=7), env_seed=1, noise_seed=2)
    assert episode.success
    assert 5 <= episode.length <= 7
    assert episode.rounds == [7, 7]
    assert episode.latency == [0.007, 0.007]
    assert episode.acceptance == [1.0, 0.5]
    assert episode.actions.shape == (episode.length, 1)


def test_episode_ends_at_the_time_limit():
    episode = rollout(Walk(), Push(0.0, rounds=7), env_seed=1, noise_seed=2)
    assert (episode.success, episode.length, len(episode.rounds)) == (False, 12, 3)


def test_same_seeds_same_episode():
    first, again, other = (rollout(Walk(), Push(0.9, 1), 1, seed) for seed in (2, 2, 3))
    assert first == again
    assert first.action_sha256 != other.action_sha256


def test_action_that_is_not_finite():
    with pytest.raises(NumericalError, match="step 0 of env seed 5"):
        rollout(Walk(), Push(np.nan, 1), env_seed=5, noise_seed=0)


def test_replay_renders_every_other_step_and_the_last():
    episode = rollout(Walk(), Push(0.9, rounds=7), env_seed=1, noise_seed=2)
    frames = replay_frames(Walk(), 1, episode.actions[:6], every=2)
    assert [int(frame[0, 0, 0]) for frame in frames] == [1, 3, 5, 6]


def evaluate(folder, env, policies, env_seeds):
    """Run every policy on every seed in this process; the records as they come."""
    settings = {"device": "cpu", "threads": 1, "batch": 1}
    plan = Plan({"walk": "ab" * 32}, tuple(policies), tuple(env_seeds), 1, settings)
    with ResultsFile(folder / "episodes.jsonl") as file:
        return list(sweep(plan, file, Serial(), lambda task: LoadedTask(lambda: env, policies.__getitem__)))


def test_policies_take_turns_on_shared_seeds_and_noise(tmp_path):
    policies = {"strong": Push(0.9, 100), "weak": Push(0.0, 10)}
    order = evaluate(tmp_path, Walk(), policies, [3, 4, 5])
    assert [record.sampler for record in order] == ["strong", "weak", "weak", "strong", "strong", "weak"]
    assert all(record.noise_seed == noise_seed(record.env_seed, 0) for record in order)
    assert noise_seed(3, 0) != noise_seed(3, 1)


@pytest.fixture
def results(tmp_path):
    results = {"ddpm": [], "asd:reuse": []}
    for record in evaluate(tmp_path, Walk(), {"ddpm": Push(0.9, 100), "asd:reuse": Push(0.0, 10)}, range(8)):
        results[record.sampler].append(record)
    return results


def test_summary(results):
    plain, fast = summarize(results)
    assert (plain.successes, fast.successes) == (8, 0)
    assert plain.success_interval == pytest.approx((0.676, 1.0), abs=1e-3)  # Wilson, 8 of 8
    assert plain.rounds / fast.rounds == 10
    assert fast.evaluations == 20
    assert fast.latency_ms == pytest.approx(10)


def test_summary_of_a_sampler_without_episodes(results):
    assert [row.sampler for row in summarize({"ddpm": results["ddpm"], "none": []})] == ["ddpm"]


def test_table_compares_with_the_baseline(results):
    columns = {column.header: list(column.cells) for column in table(summarize(results)).columns}
    assert columns["fewer"] == ["1.0x", "10.0x"]
    assert columns["success"] == ["8/8", "0/8"]
    alone = table(summarize({"asd:reuse": results["asd:reuse"]}))
    assert next(list(column.cells) for column in alone.columns if column.header == "faster") == ["-"]


def test_json_holds_everything_but_the_actions():
    record = json.loads(json.dumps(rollout(Walk(), Push(0.9, 100), 0, 0).to_json()))
    assert record["rounds"] == [100, 100]
    assert len(record["action_sha256"]) == 64
    assert "actions" not in record


def test_plot(results, tmp_path):
    plot_acceptance(results, tmp_path / "acceptance.png")
    assert (tmp_path / "acceptance.png").read_bytes().startswith(b"\x89PNG")


def test_a_captured_ddpm_has_no_drafts():
    plain = records.episode("square", "ddpm", 0, 0, True, acceptance=[0.9] * 100)  # it runs as a window of one step
    assert mean_acceptance([plain]).size == 0
    speculative = records.episode("square", "asd:path:16", 0, 0, True, acceptance=[0.9] * 100)
    assert mean_acceptance([speculative]).tolist() == pytest.approx([0.9] * 99)


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [3]), ("1,5", [1, 5]), ("7-9,2", [7, 8, 9, 2]), ("3-3", [3]), ("1, 5 - 6", [1, 5, 6])]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "1-",
        "5-3",
        "1,,2",
        "-3",
        "1--2",
        "1-2-3",
        "1_0",
        "²",
        "٣",
        "1,1",
        "1-3,2",
        "1.0",
        "0-1000000",
        "9" * 5000,
    ],
)
def test_bad_seeds(text):
    with pytest.raises(ConfigError, match="Cannot read the seeds"):
        parse_seeds(text)


def test_noise_seeds_are_refused_below_zero():
    with pytest.raises(ConfigError, match="expected neither to be negative"):
        noise_seed(1, -1)


def test_no_sampler(tmp_path):
    with pytest.raises(ConfigError, match="no samplers; expected at least 1"):
        evaluate(tmp_path, Walk(), {}, [1])


def test_observer_gets_the_actions_of_each_episode(tmp_path):
    plan = Plan({"walk": "ab" * 32}, ("a", "b"), (1, 2), 1, {"device": "cpu", "threads": 1, "batch": 1}, first_repeat=4)
    observed = {}
    with ResultsFile(tmp_path / "episodes.jsonl") as file:
        parts = LoadedTask(Walk, lambda label: Push(0.9, 7))
        records = list(sweep(plan, file, Serial(), lambda task: parts, observe=observed.__setitem__))
    assert list(observed) == [record.key for record in records]
    assert {key.repeat for key in observed} == {4}
    for record in records:
        episode = observed[record.key]
        assert hashlib.sha256(episode.actions.tobytes()).hexdigest() == record.action_sha256
        assert record.noise_seed == noise_seed(record.env_seed, 4)


class Answers(Walk):
    """Answers with something changed."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def step(self, action):
        return self.change(*super().step(action))


BROKEN_ENVS = {
    "KeyError": lambda obs, *rest: ({}, *rest),
    "ObservationError": lambda obs, *rest: ({"x": obs["x"] * np.nan}, *rest),
    "ValueError": lambda obs, *rest: rest,
}


class Careful(Push):
    """Refuses observations that are not finite, as the package's policies do."""

    def act(self, obs):
        if not np.isfinite(obs["x"]).all():
            raise ObservationError("x is not finite")
        return super().act(obs)


@pytest.mark.parametrize("name", BROKEN_ENVS)
def test_episode_that_breaks_is_a_failure_with_its_reason(name, tmp_path):
    episodes = evaluate(tmp_path, Answers(BROKEN_ENVS[name]), {"ddpm": Careful(0.9, 7)}, [1, 2])
    assert len(episodes) == 2  # the next one begins
    assert all(episode.error.startswith(name) and not episode.success for episode in episodes)
    assert summarize({"ddpm": episodes})[0].successes == 0
    assert json.loads(json.dumps(episodes[0].to_json()))["length"] == 0


def test_actions_that_are_not_finite_are_failures(tmp_path):
    [episode] = evaluate(tmp_path, Walk(), {"ddpm": Push(np.nan, 7)}, [1])
    assert episode.error.startswith("NumericalError: The policy's action at step 0 of env seed 1")


def test_environment_that_does_not_report_success():
    silent = Answers(lambda *answer: (*answer[:-1], {"other": 1}))
    with pytest.raises(ConfigError, match=r"holds \['other'\]; expected success"):
        rollout(silent, Push(0.9, 7), 1, 2)


@pytest.mark.parametrize("shape", [(1, 1), (2,), ()])
def test_actions_of_another_shape(shape):
    class Wrong(Push):
        def act(self, obs):
            return np.resize(super().act(obs), shape)

    with pytest.raises(ConfigError, match=r"the environment takes \(1,\)"):
        rollout(Walk(), Wrong(0.9, 7), 1, 2)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_batches_agree_with_single_episodes_in_every_autoreset_mode(mode):
    """Success too, which same-step autoreset puts elsewhere: the rows end at different steps, some with success."""
    seeds, noise_seeds = [3, 4, 5], [30, 40, 50]

    class Strengths(Push):
        def act(self, obs):
            self.strength = np.array([[0.9], [0.0], [0.4]])
            return super().act(obs)

    envs = SyncVectorEnv([Walk] * 3, autoreset_mode=mode)
    together = rollout_batch(envs, Strengths(0, 7), seeds, noise_seeds)
    alone = [
        rollout(Walk(), Push(strength, 7), seed, noise)
        for strength, seed, noise in zip((0.9, 0.0, 0.4), seeds, noise_seeds, strict=True)
    ]
    assert together == alone
    assert len({episode.success for episode in alone}) == 2
    assert len({episode.length for episode in alone}) > 1


@pytest.mark.parametrize("count", [1, 4])
def test_batch_of_another_size(count):
    class Wrong(Push):
        def act(self, obs):
            return np.resize(super().act(obs), (count, 1))

    envs = SyncVectorEnv([Walk] * 3)
    with pytest.raises(ConfigError, match=f"{count} actions for 3 environments"):
        rollout_batch(envs, Wrong(0.9, 7), [1, 2, 3], [1, 2, 3])


def test_noise_seeds_of_long_env_seeds_differ():
    pairs = [(seed + shift, repeat) for seed in (0, 1, 5) for shift in (0, 2**32, 2**33, 2**64) for repeat in (0, 1, 2)]
    assert len({noise_seed(*pair) for pair in pairs}) == len(pairs)
    assert noise_seed(100_000, 0) == int(np.random.SeedSequence((100_000, 0)).generate_state(1)[0])  # published results
