"""The command `collect`: the same store from any number of workers, whatever stops them, and every episode replays."""

import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from asd_policy import load_policy
from asd_policy.cli.collect import Arguments, main, make_collection
from asd_policy.collection.demonstration import Demonstrator, Outcome
from asd_policy.collection.lead import Lead
from asd_policy.collection.settings import Collection
from asd_policy.collection.store import failed_seeds, next_seed, open_store, record
from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import ConfigError, DataError, UnknownNameError
from envs.tasks import TASKS, Exploration

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "checkpoints"
SCRIPT = ROOT / "scripts" / "collect_demos.py"
NUM_EPISODES = 3


def start(out: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, SCRIPT, f"--num-episodes={NUM_EPISODES}", f"--workers={workers}", f"--out={out}"]
    pipe, environ = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A store collected in one go by two workers."""
    out = tmp_path_factory.mktemp("straight") / "demos.zarr"
    process = start(out, workers=2)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert "expert success 3/3 (100.0 %)" in " ".join(output.split())
    return EpisodeStore.open(out)


def test_a_collection_that_is_interrupted_and_loses_a_worker_continues_to_the_same_store(straight, tmp_path):
    out = tmp_path / "demos.zarr"
    process = start(out, workers=1)
    while not (out.exists() and has_episodes(out)):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=100)
    assert process.returncode in (0, 130)  # 0: the episodes in flight were the last ones
    interrupted = EpisodeStore.open(out)
    kept = interrupted.num_episodes
    assert kept >= 1

    process = start(out, workers=1)
    kill_worker(process)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0
    assert kept == NUM_EPISODES or "A worker was lost (killed by signal 9)" in errors
    resumed = EpisodeStore.open(out)
    np.testing.assert_array_equal(resumed.seeds, np.arange(NUM_EPISODES))
    assert resumed.attrs == straight.attrs
    np.testing.assert_array_equal(resumed.episode_ends, straight.episode_ends)
    np.testing.assert_array_equal(resumed.steps_to_success, straight.steps_to_success)
    np.testing.assert_array_equal(resumed.actions(), straight.actions())
    np.testing.assert_array_equal(resumed.actions(executed=True), straight.actions(executed=True))
    for key in straight.obs_keys:
        np.testing.assert_array_equal(resumed.obs(key), straight.obs(key))


def kill_worker(process: subprocess.Popen) -> None:
    """Kill the first worker that the process starts, unless the process ends before."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        for child in children.read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)
                return
        time.sleep(0.05)


def has_episodes(out: Path) -> bool:
    try:
        return EpisodeStore.open(out).num_episodes >= 1
    except DataError:  # not a store yet
        return False


def test_a_stored_episode_replays_bit_for_bit(straight, check_replay):
    check_replay(straight.attrs["env_id"], straight.episode(1))


DISTURBED = {
    "tool_hang": Exploration(0.03, pushes=0.025, misses=0.5),
    "transport": Exploration(pushes=0.015, closings=0.005),
}


def demonstration(collection: Collection, seed: int) -> Demonstration:
    expert = Demonstrator(collection)
    episode = expert((seed,)).episode
    expert.close()
    assert episode is not None
    return episode


@pytest.fixture(scope="module")
def check_replay():
    """Checks that executed actions, after a reset with the episode's seed, meet the same observations and succeed."""
    env_of = cache(lambda env_id: gymnasium.make(env_id, terminate_on_success=False))

    def check(env_id: str, episode: Demonstration) -> None:
        env = env_of(env_id)
        obs, info = env.reset(seed=episode.seed)
        successes = []
        for step, action in enumerate(episode.executed_action):
            for key, values in episode.obs.items():
                np.testing.assert_array_equal(obs[key], values[step])
            obs, _, _, _, info = env.step(action)
            successes.append(info["success"])
        assert info["success"]
        assert successes.index(True) + 1 == episode.steps_to_success

    return check


@pytest.mark.parametrize(("task", "seed"), [("tool_hang", 200_000), ("transport", 200_000)])
def test_disturbed_episodes_of_the_other_tasks_replay_bit_for_bit(check_replay, task, seed):
    episode = demonstration(Collection(TASKS[task], DISTURBED[task]), seed)
    check_replay(TASKS[task].env_id, episode)


def test_an_expert_takes_over_from_a_policy(check_replay):
    first = 230  # the frame is being lowered
    lead = Lead(CHECKPOINTS / "tool_hang", (first, first))
    episode = demonstration(Collection(TASKS["tool_hang"], Exploration(noise=0.0), lead=lead), 200_000)
    led, demonstrated = slice(first), slice(first, None)
    assert (episode.action[led] == 0).all()
    assert (episode.executed_action[led] != 0).any(axis=1).all()  # so that Windows.foreseeable leaves them out
    np.testing.assert_array_equal(episode.action[demonstrated], episode.executed_action[demonstrated])
    policy = load_policy(CHECKPOINTS / "tool_hang", sampler="ddim")
    policy.reset(seed=200_000)
    acted = [policy.act({key: values[step] for key, values in episode.obs.items()}) for step in range(16)]
    np.testing.assert_array_equal(episode.executed_action[:16], acted)
    check_replay("asd/ToolHang-v0", episode)


def test_stored_poses_replay_bit_for_bit(check_replay):
    episode = demonstration(Collection(TASKS["square"], Exploration(noise=0.05), actions="base"), 200_000)
    assert np.abs(episode.action[:, 0]).max() < 1  # metres from the base
    assert 0.001 < np.abs(episode.action - episode.executed_action)[:, :3].max() < 0.02  # 0.05 of 0.05 m, some sigmas
    check_replay("asd/SquareBasePose-v0", episode)


def test_only_the_executed_action_is_noisy_and_grippers_are_not(straight):
    noise = straight.actions(executed=True) - straight.actions()
    free = np.abs(straight.actions()[:, :6]) < 0.7  # not clipped
    assert noise[:, :6][free].std() == pytest.approx(0.05, rel=0.1)
    assert abs(noise[:, :6][free].mean()) < 0.005
    assert (noise[:, 6] == 0).all()


def test_episodes_end_soon_after_the_release(straight):
    lengths = np.diff(straight.episode_ends, prepend=0)
    tails = lengths - straight.steps_to_success
    assert ((tails >= 5) & (tails <= 20)).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "sqare"}, UnknownNameError, r"Did you mean 'square'.*Available"),
        ({"task": "nowhere.to_be_found:mine"}, ConfigError, "nowhere.to_be_found cannot be imported"),
        ({"task": "envs.tasks:mine"}, UnknownNameError, "Unknown task 'mine'"),
        ({"actions": "bse"}, UnknownNameError, "Did you mean 'base'"),
        ({"seed_start": 100_000}, ConfigError, "kept for evaluation"),
        ({"seed_start": -1}, ConfigError, "kept for evaluation"),
        ({"noise": -0.1}, ConfigError, "--noise -0.1"),
        ({"pushes": 1.5}, ConfigError, "--pushes 1.5"),
        ({"misses": 0.5}, ConfigError, r"square cannot be led past its goal"),
        ({"policy": Path("nowhere")}, UnknownNameError, "nowhere"),
        ({"policy": CHECKPOINTS / "transport"}, ConfigError, r"for asd/Transport-v0.*asd/Square-v0"),
        ({"policy": CHECKPOINTS / "square", "actions": "base"}, ConfigError, "leave --actions out"),
        ({"takeover": (300, 200)}, ConfigError, "--takeover 300 200"),
        ({"takeover": (0, 400)}, ConfigError, "--takeover 0 400"),
        ({"num_episodes": 0}, ConfigError, "--num-episodes 0"),
        ({"workers": 0}, ConfigError, "--workers 0"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        main(Arguments(**{"out": tmp_path / "demos.zarr", **options}))
    assert not (tmp_path / "demos.zarr").exists()


def test_a_store_is_continued_only_with_its_own_settings(straight):
    with pytest.raises(DataError, match=r"collected with \{'noise': 0.05\}"):
        main(Arguments(out=straight.path, noise=0.1))


def test_each_task_has_its_own_exploration_and_place():
    assert Arguments(task="tool_hang").exploration == Exploration(noise=0.03)
    assert Arguments(task="tool_hang", noise=0.0, closings=0.1).exploration == Exploration(0.0, 0.0, 0.1)
    assert Arguments(task="transport").path == Path("data/transport.zarr")


@pytest.mark.parametrize(("task", "takeover"), [("square", (0, 300)), ("tool_hang", (0, 300))])
def test_the_expert_takes_over_within_300_steps_unless_told(task, takeover):
    collection = make_collection(Arguments(task=task, policy=CHECKPOINTS / task))
    assert collection.lead == Lead(CHECKPOINTS / task, takeover)
    assert collection.attributes["takeover"] == list(takeover)


def test_failed_seeds_are_recorded_and_not_tried_again(tmp_path):
    collection, out = make_collection(Arguments(seed_start=10)), tmp_path / "demos.zarr"
    store = open_store(out, collection)
    assert next_seed(store) == 10
    record(store, Outcome(10, None))
    store.close()
    assert next_seed(open_store(out, collection)) == 11
    assert (failed_seeds(store), store.num_episodes) == ([10], 0)


@pytest.mark.parametrize(("actions", "kind"), [("delta", "delta"), ("world", "pose")])
def test_a_store_says_what_its_actions_are(tmp_path, actions, kind):
    store = open_store(tmp_path / "demos.zarr", make_collection(Arguments(actions=actions)))
    assert store.attrs["action_kind"] == store.action_kind == kind


def test_running_out_of_seeds_is_an_error(tmp_path):
    arguments = Arguments(out=tmp_path / "demos.zarr", seed_start=99_999)
    record(open_store(arguments.path, make_collection(arguments)), Outcome(99_999, None))
    with pytest.raises(DataError, match="used up"):
        main(arguments)


def test_a_full_store_is_left_as_it_is(straight):
    before = straight.attrs
    assert main(Arguments(out=straight.path, num_episodes=2)) == 0
    assert (straight.num_episodes, straight.attrs) == (NUM_EPISODES, before)


def test_a_task_of_another_package_is_collected(tmp_path):
    """In a worker, which has not imported that package."""
    out = tmp_path / "lift.zarr"
    command = [sys.executable, "-m", "asd_policy.cli", "collect", "--task=tests.lift_task:lift", "--num-episodes=1"]
    done = subprocess.run(
        [*command, "--workers=1", f"--out={out}"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    store = EpisodeStore.open(out)
    assert (store.attrs["env_id"], store.attrs["noise"], store.num_episodes) == ("elsewhere/Lift-v0", 0.02, 1)
    assert store.episode(0).obs["object"].shape[1] == 10
