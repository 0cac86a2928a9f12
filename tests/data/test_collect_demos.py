"""Collecting: the same store from any number of workers, whatever interrupts it, and every episode replays."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from asd_policy import load_policy
from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import ConfigError, DataError, UnknownNameError, WorkerError
from envs.tasks import TASKS, Exploration

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "checkpoints"
SCRIPT = ROOT / "scripts" / "collect_demos.py"
NUM_EPISODES = 3


def start(out: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, SCRIPT, f"--num-episodes={NUM_EPISODES}", f"--workers={workers}", f"--out={out}"]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A store collected in one go by two workers."""
    out = tmp_path_factory.mktemp("straight") / "demos.zarr"
    process = start(out, workers=2)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert "expert success 3/3 (100.0 %)" in " ".join(output.split())
    return EpisodeStore.open(out)


def test_an_interrupted_collection_continues_to_the_same_store(straight, tmp_path):
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
    process.communicate(timeout=200)
    assert process.returncode == 0
    resumed = EpisodeStore.open(out)
    np.testing.assert_array_equal(resumed.seeds, np.arange(NUM_EPISODES))
    assert resumed.attrs == straight.attrs
    np.testing.assert_array_equal(resumed.episode_ends, straight.episode_ends)
    np.testing.assert_array_equal(resumed.steps_to_success, straight.steps_to_success)
    np.testing.assert_array_equal(resumed.actions(), straight.actions())
    np.testing.assert_array_equal(resumed.actions(executed=True), straight.actions(executed=True))
    for key in straight.obs_keys:
        np.testing.assert_array_equal(resumed.obs(key), straight.obs(key))


def has_episodes(out: Path) -> bool:
    try:
        return EpisodeStore.open(out).num_episodes >= 1
    except DataError:  # not a store yet
        return False


def test_a_stored_episode_replays_bit_for_bit(straight):
    check_replay(straight.attrs["env_id"], straight.episode(1))


DISTURBED = {
    "tool_hang": Exploration(0.03, pushes=0.025, misses=0.5),
    "transport": Exploration(pushes=0.015, closings=0.005),
}


@pytest.mark.parametrize(("task", "seed"), [("tool_hang", 200_000), ("transport", 200_000)])
def test_disturbed_episodes_of_the_other_tasks_replay_bit_for_bit(script, task, seed):
    episode = script.roll_out(task, seed, DISTURBED[task])
    assert episode is not None
    check_replay(TASKS[task].env_id, episode)


def test_an_expert_takes_over_from_a_policy(script):
    first = 230  # the frame is being lowered
    lead = script.Lead(CHECKPOINTS / "tool_hang", (first, first))
    episode = script.roll_out("tool_hang", 200_000, Exploration(noise=0.0), lead=lead)
    assert episode is not None
    led, demonstrated = slice(first), slice(first, None)
    assert (episode.action[led] == 0).all()
    assert (episode.executed_action[led] != 0).any(axis=1).all()  # so that Windows.foreseeable leaves them out
    np.testing.assert_array_equal(episode.action[demonstrated], episode.executed_action[demonstrated])
    policy = load_policy(CHECKPOINTS / "tool_hang", sampler="ddim")
    policy.reset(seed=200_000)
    acted = [policy.act({key: values[step] for key, values in episode.obs.items()}) for step in range(16)]
    np.testing.assert_array_equal(episode.executed_action[:16], acted)
    check_replay("asd/ToolHang-v0", episode)


def test_stored_poses_replay_bit_for_bit(script):
    episode = script.roll_out("square", 200_000, Exploration(noise=0.05), actions="base")
    assert episode is not None
    assert np.abs(episode.action[:, 0]).max() < 1  # metres from the base
    assert 0.001 < np.abs(episode.action - episode.executed_action)[:, :3].max() < 0.02  # 0.05 of 0.05 m, some sigmas
    check_replay("asd/SquareBasePose-v0", episode)


def check_replay(env_id: str, episode: Demonstration) -> None:
    """The executed actions, after a reset with the episode's seed, meet the same observations and succeed."""
    env = gymnasium.make(f"envs:{env_id}", terminate_on_success=False)
    obs, info = env.reset(seed=episode.seed)
    successes = []
    for step, action in enumerate(episode.executed_action):
        for key, values in episode.obs.items():
            np.testing.assert_array_equal(obs[key], values[step])
        obs, _, _, _, info = env.step(action)
        successes.append(info["success"])
    env.close()
    assert info["success"]
    assert successes.index(True) + 1 == episode.steps_to_success


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


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("collect_demos", SCRIPT)
    module = sys.modules["collect_demos"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["collect_demos"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "sqare"}, UnknownNameError, r"Did you mean 'square'.*Available"),
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
def test_bad_arguments_are_refused(script, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        script.main(script.Args(**{"out": tmp_path / "demos.zarr", **options}))
    assert not (tmp_path / "demos.zarr").exists()


def test_a_store_is_continued_only_with_its_own_settings(script, straight):
    with pytest.raises(DataError, match=r"collected with \{'noise': 0.05\}"):
        script.main(script.Args(out=straight.path, noise=0.1))


def test_each_task_has_its_own_exploration_and_place(script):
    assert script.Args(task="tool_hang").exploration == Exploration(noise=0.03)
    assert script.Args(task="tool_hang", noise=0.0, closings=0.1).exploration == Exploration(0.0, 0.0, 0.1)
    assert script.Args(task="transport").path == Path("data/transport.zarr")


def test_failed_seeds_are_recorded_and_not_tried_again(script, tmp_path):
    args = script.Args(out=tmp_path / "demos.zarr", seed_start=10)
    store = script.open_store(args)
    assert script.next_seed(store, args) == 10
    script.record(store, 10, None)
    store.close()
    assert script.next_seed(script.open_store(args), args) == 11
    assert (script.failed_seeds(store), store.num_episodes) == ([10], 0)


def test_running_out_of_seeds_is_an_error(script, tmp_path):
    out = tmp_path / "demos.zarr"
    args = script.Args(out=out, seed_start=99_999)
    script.record(script.open_store(args), 99_999, None)
    with pytest.raises(DataError, match="used up"):
        script.main(args)


def test_a_full_store_is_left_as_it_is(script, straight):
    before = straight.attrs
    script.main(script.Args(out=straight.path, num_episodes=2))
    assert (straight.num_episodes, straight.attrs) == (NUM_EPISODES, before)


def lose_the_worker(task: str, seed: int, *_: object) -> Demonstration | None:
    if seed == 2:
        os._exit(9)
    return None


def test_a_lost_worker_is_an_error_that_keeps_what_came_before(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "roll_out", lose_the_worker)
    monkeypatch.setattr(script, "ignore_interrupts", os.getpid)  # which a spawned process can import
    args = script.Args(out=tmp_path / "demos.zarr", num_episodes=1, workers=1)
    with pytest.raises(WorkerError, match="at seed 2 or soon after"):
        script.collect(script.open_store(args), args)
    assert script.failed_seeds(EpisodeStore.open(args.path)) == [0, 1]
