"""A run on disk: from a store to a policy's weights, through the command line."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from asd_policy import load_policy
from asd_policy.cli.train import New, Resume, main
from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from asd_policy.policies.actions import to_env_actions
from asd_policy.policies.config import NetworkConfig, PolicyConfig
from asd_policy.policies.making import make_policy
from asd_policy.policies.network import build_network
from asd_policy.training.demonstrations import Demonstrations
from asd_policy.training.log import LossLog
from asd_policy.training.loop import TrainSettings
from asd_policy.training.run import Machine, RunInfo

DIMS = {"robot0_eef_pos": 3, "object": 4}
SHAPES = {key: (dim,) for key, dim in DIMS.items()}
NETWORK = NetworkConfig(down_dims=(8, 16), n_groups=4, diffusion_step_embed_dim=8)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "demos.zarr"
    episodes = EpisodeStore.create(path, SHAPES, 2, {"env_id": "asd/Square-v0"})
    generator = np.random.default_rng(0)
    for seed in range(3):
        steps = 30 + seed
        obs = {key: generator.normal(size=(steps, dim)).astype(np.float32) for key, dim in DIMS.items()}
        action = generator.uniform(-1, 1, size=(steps, 2)).astype(np.float32)
        episodes.append(Demonstration(seed, obs, action, action + 0.1, steps))
    return path


def test_demonstrations_become_normalised_windows(store: Path) -> None:
    demonstrations = Demonstrations.read(store, episodes=2)
    config = demonstrations.policy_config(NETWORK, {})
    assert list(config.obs_keys.items()) == list(DIMS.items())
    normalizer = demonstrations.fit_normalizer({"object": [1]})
    windows = demonstrations.windows(config, normalizer)
    assert windows.actions.abs().max() == pytest.approx(1, abs=1e-5)
    seen, actions = windows.gather(torch.tensor([1]))  # window 0 begins one step before the episode
    for key, values in demonstrations.obs.items():
        assert torch.equal(seen[key], values[:2][None])
    assert actions.shape == (1, 16, 2)
    condition = normalizer.global_condition(seen, config.obs_keys)
    assert condition.shape == (1, 14)
    assert (condition[:, [4, 11]] == 0).all()  # what is ignored, in both steps


def test_held_out_episodes_are_the_last(store: Path) -> None:
    whole = Demonstrations.read(store)
    learned, held_out = whole.split(1)
    assert held_out is not None
    assert (learned.episode_ends.tolist(), held_out.episode_ends.tolist()) == ([30, 61], [32])
    for name, values in whole.obs.items():
        assert torch.equal(torch.cat([learned.obs[name], held_out.obs[name]]), values)
    assert torch.equal(torch.cat([learned.actions, held_out.actions]), whole.actions)
    assert whole.split(0) == (whole, None)
    for held in (-1, 3):
        with pytest.raises(ConfigError, match=f"{held} of 3 episodes"):
            whole.split(held)


def test_target_poses_are_learned_with_rotations_in_six_numbers(tmp_path: Path) -> None:
    episodes = EpisodeStore.create(tmp_path / "poses.zarr", SHAPES, 14, {"env_id": "asd/TransportBasePose-v0"})
    generator = np.random.default_rng(0)
    obs = {key: generator.normal(size=(30, dim)).astype(np.float32) for key, dim in DIMS.items()}
    action = generator.uniform(-1, 1, size=(30, 14)).astype(np.float32)
    episodes.append(Demonstration(0, obs, action, action, 30))
    demonstrations = Demonstrations.read(tmp_path / "poses.zarr")
    config = demonstrations.policy_config(NETWORK, {})
    assert (config.action_dim, config.env_action_dim, config.action_bound) == (20, 14, None)
    back = to_env_actions(demonstrations.actions, config.action_parts)
    np.testing.assert_allclose(back, action, atol=1e-5)


def test_what_the_store_lacks_is_refused(store: Path) -> None:
    with pytest.raises(DataError, match="holds 3 episodes; 4 are asked for"):
        Demonstrations.read(store, episodes=4)
    for ignored in ({"object": [4]}, {"rgb": [0]}):
        with pytest.raises(ConfigError, match="There are no entries"):
            Demonstrations.read(store).fit_normalizer(ignored)
    with pytest.raises(ConfigError, match="There are no entries"):
        Demonstrations.read(store).policy_config(NETWORK, {"rgb": [0]})


def test_training_and_policy_see_the_same_quaternions(store: Path) -> None:
    raw = Demonstrations.read(store)
    config = raw.policy_config(NETWORK, {"object": [0]})
    seen = raw.as_seen_by(config)
    normalizer = seen.fit_normalizer({})
    policy = make_policy(build_network(config), normalizer, config, "ddim", num_steps=2)
    history, _ = seen.windows(config, normalizer).gather(torch.tensor([1]))
    condition = normalizer.global_condition(history, config.obs_keys)
    observed = [{key: values[step].numpy() for key, values in raw.obs.items()} for step in range(2)]
    torch.testing.assert_close(policy.condition(observed), condition)
    assert not torch.equal(seen.obs["object"], raw.obs["object"])


def test_command_line_trains_and_resumes(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    settings = TrainSettings(steps=12, batch_size=4, warmup_steps=2, snapshot_every=6, log_every=3)
    machine = Machine(device="cpu")
    new = New(store, out, settings, held_out=1, ignore={"object": (1,)}, network=NETWORK, machine=machine)
    assert main(new) == 0
    told = capsys.readouterr().out
    assert "3 episodes (1 held out)" in told
    assert "\ntraining: 12/12, loss " in told
    names = {path.name for path in out.iterdir()}
    expected = {"config.json", "train.json", "normalizer.safetensors", "last.pt", "log.jsonl", "loss.png"}
    assert names == expected | {"ema_000006.safetensors", "ema_000012.safetensors"}
    assert PolicyConfig.load(out / "config.json").network == NETWORK
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [3, 6, 9, 12]
    assert [entry["step"] for entry in entries if "held_out_loss" in entry] == [6, 12]
    assert main(Resume(out, machine)) == 0
    with pytest.raises(ConfigError, match="exists already"):
        main(new)


def test_octaves_are_added_to_a_checkpoint(store: Path, tmp_path: Path) -> None:
    machine, settings = Machine(device="cpu"), TrainSettings(steps=12, batch_size=4, snapshot_every=12)
    assert main(New(store, tmp_path / "first", settings, network=NETWORK, machine=machine)) == 0
    init, still = checkpoint_of(tmp_path / "first"), replace(settings, learning_rate=0.0)
    assert main(New(store, tmp_path / "finer", still, init=init, octaves=2, machine=machine)) == 0
    finer = checkpoint_of(tmp_path / "finer")
    policies = [load_policy(path, sampler="ddim", num_steps=2) for path in (init, finer)]
    assert [policy.config.octaves for policy in policies] == [0, 2]
    chunks = []
    for policy in policies:
        policy.reset(seed=0)
        chunks.append(policy.act({key: np.full(dim, 0.3) for key, dim in DIMS.items()}))
    np.testing.assert_allclose(*chunks, atol=1e-5)
    with pytest.raises(ConfigError, match="Leave --octaves out"):
        main(New(store, tmp_path / "again", still, init=finer, octaves=2, machine=machine))


def test_what_nobody_can_foresee_is_not_learned(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed = EpisodeStore.create(tmp_path / "pushed.zarr", SHAPES, 2, {"env_id": "asd/Square-v0"})
    episode = EpisodeStore.open(store).episode(2)  # of 32 steps: windows begin at -1 to 23
    executed = episode.action.copy()
    executed += 0.1  # noise
    executed[20] += 0.5
    pushed.append(replace(episode, executed_action=executed))
    settings, machine = TrainSettings(steps=2, batch_size=4, warmup_steps=1, snapshot_every=2), Machine(device="cpu")
    out = tmp_path / "run"
    assert main(New(pushed.path, out, settings, foreseeable=0.2, network=NETWORK, machine=machine)) == 0
    # Those from 6 to 19 see what comes before the push, and have later actions that answer it.
    assert ", 11 windows," in capsys.readouterr().out
    assert main(Resume(out, machine)) == 0
    assert ", 11 windows," in capsys.readouterr().out
    with pytest.raises(DataError, match="pushes leave gaps"):
        main(New(store, tmp_path / "none", settings, foreseeable=0.0, network=NETWORK, machine=machine))
    assert not (tmp_path / "none").exists()


def checkpoint_of(run: Path) -> Path:
    (run / "model.safetensors").write_bytes((run / "ema_000012.safetensors").read_bytes())
    return run


def test_a_run_can_start_from_a_checkpoint(store: Path, tmp_path: Path) -> None:
    machine, settings = Machine(device="cpu"), TrainSettings(steps=12, batch_size=4, snapshot_every=12)
    first, tuned = tmp_path / "first", tmp_path / "tuned"
    assert main(New(store, first, settings, episodes=2, ignore={"object": (1,)}, network=NETWORK, machine=machine)) == 0
    init = checkpoint_of(first)
    still = replace(settings, learning_rate=0.0)
    assert main(New(store, tuned, still, init=init, machine=machine)) == 0
    for name in ("config.json", "normalizer.safetensors", "ema_000012.safetensors"):
        assert (tuned / name).read_bytes() == (first / name).read_bytes()
    assert main(Resume(tuned, machine)) == 0  # the normalisation is the checkpoint's, not one fitted to the data

    other = tmp_path / "other.zarr"
    EpisodeStore.create(other, {"object": (4,)}, 2, {"env_id": "asd/Square-v0"}).append(
        Demonstration(0, {"object": np.zeros((20, 4), np.float32)}, *[np.zeros((20, 2), np.float32)] * 2, 20)
    )
    with pytest.raises(UnknownNameError, match="Unknown observation of"):
        main(New(other, tmp_path / "misfit", settings, init=init, machine=machine))


GOLDENS = Path(__file__).parent.parent / "goldens"


def test_files_of_earlier_runs_are_read(tmp_path: Path) -> None:
    settings = TrainSettings(steps=12, batch_size=4, warmup_steps=2, snapshot_every=6, log_every=3)
    expected = RunInfo(
        "demos.zarr",
        3,
        {"object": [1]},
        None,
        settings,
        held_out=1,
        foreseeable=0.2,
        fingerprint="55cd8246ea65a8e0",
    )
    assert RunInfo.load(GOLDENS / "train.json") == expected
    expected.save(tmp_path / "train.json")
    assert (tmp_path / "train.json").read_bytes() == (GOLDENS / "train.json").read_bytes()
    old = {"data": "demos.zarr", "episodes": None, "ignored": {}, "init": None, "settings": {"steps": 3}}
    (tmp_path / "train.json").write_text(json.dumps(old))  # as the first version wrote it
    assert RunInfo.load(tmp_path / "train.json") == RunInfo("demos.zarr", None, {}, None, TrainSettings(steps=3))
    (tmp_path / "log.jsonl").write_bytes((GOLDENS / "log.jsonl").read_bytes())
    with LossLog(tmp_path / "log.jsonl", 12) as log:
        assert [entry["step"] for entry in log.entries] == [3, 6, 9, 12]
        assert log.entries[-1]["held_out_loss"] == 1.0961329936981201
    assert (tmp_path / "log.jsonl").read_bytes() == (GOLDENS / "log.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"surprise": 1}, "surprise is an unknown field"),
        ({"episodes": "3"}, "episodes is '3'; expected a valid integer"),
        ({"settings": {"steps": 0}}, "steps is 0; expected at least 1"),
        ({"settings": {"steps": 1.5}}, "settings.steps is 1.5; expected a valid integer"),
        ({"foreseeable": -1}, "foreseeable is -1.0"),
        ({"ignored": {"object": 1}}, "ignored.object is 1; expected a valid array"),
    ],
)
def test_training_settings_that_cannot_be_used_are_refused(tmp_path: Path, change: dict, told: str) -> None:
    (tmp_path / "train.json").write_text(json.dumps(json.loads((GOLDENS / "train.json").read_text()) | change))
    with pytest.raises(CheckpointError) as refused:
        RunInfo.load(tmp_path / "train.json")
    assert told in str(refused.value)
    assert "train.json" in str(refused.value)


def test_settings_round_trip(tmp_path: Path) -> None:
    info = RunInfo("demos.zarr", 3, {"object": [1]}, "checkpoints/square", TrainSettings(steps=10))
    info.save(tmp_path / "train.json")
    assert RunInfo.load(tmp_path / "train.json") == info
    (tmp_path / "train.json").write_text('{"data": "x"}')
    with pytest.raises(CheckpointError, match=r"train\.json"):
        RunInfo.load(tmp_path / "train.json")


def test_the_log_forgets_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_log(path)
    assert steps_of(path, 20) == [10, 20]
    assert len(path.read_text().splitlines()) == 2
    assert steps_of(path, 20) == [10, 20]


def write_log(path: Path) -> None:
    with LossLog(path, 0) as log:
        for step in (10, 20, 30):
            log.append(step=step, loss=1 / step, held_out_loss=float("nan"))


def steps_of(path: Path, resumed_step: int) -> list[int]:
    with LossLog(path, resumed_step) as log:
        return [entry["step"] for entry in log.entries]


def test_a_log_is_written_by_one_run_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_log(path)
    with LossLog(path, 10) as log:  # which writes the file anew
        with pytest.raises(ConfigError, match="Another process is writing"):
            LossLog(path, 10)
        log.append(step=20, loss=0.5)
    assert steps_of(path, 100) == [10, 20]


def test_a_log_that_was_cut_off_at_any_byte_does_not_stop_a_run(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_log(path)
    whole = path.read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for keep in range(len(whole) + 1):
        for rest in (b"", b"\0" * 7, b"\xff") if keep % 9 == 0 or keep in ends else (b"",):
            path.write_bytes(whole[:keep] + rest)
            lines = sum(keep > end for end in ends)
            with LossLog(path, 100) as again:
                assert [entry["step"] for entry in again.entries] == [10, 20, 30][:lines]
                again.append(step=40, loss=0.1)
            assert steps_of(path, 100) == [*[10, 20, 30][:lines], 40]


@pytest.mark.parametrize("line", ["{", "7", "{}", '{"step": "x"}', "[" * 100_000, "\0"])
def test_a_log_that_is_damaged_elsewhere_is_reported(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text(f'{{"step": 1, "loss": 0.5}}\n{line}\n{{"step": 3, "loss": 0.5}}\n')
    with pytest.raises(CheckpointError, match=r"log\.jsonl, line 2 "):
        LossLog(tmp_path / "log.jsonl", 10)


KILLED_AT = ("write_run", "train_with_progress", "snapshot")


@pytest.mark.parametrize("place", KILLED_AT)
def test_a_run_that_is_killed_before_its_first_snapshot_goes_on(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """In a process of its own, which is gone at once, as by SIGKILL: one of the two commands takes what is left."""
    out, machine = tmp_path / "run", Machine(device="cpu")
    settings = TrainSettings(steps=4, batch_size=4, warmup_steps=1, snapshot_every=2, log_every=1)
    new = New(store, out, settings, network=NETWORK, machine=machine)
    whole = replace(new, out=tmp_path / "whole")
    assert main(whole) == 0
    program = f"""
import os
from pathlib import Path
from asd_policy.cli import train
from asd_policy.policies.config import NetworkConfig
from asd_policy.training import start
from asd_policy.training.loop import Trainer, TrainSettings
from asd_policy.training.run import Machine
def die(*_): os._exit(9)
def half(folder, info, *rest):
    info.save(folder / "train.json")
    die()
target = dict(snapshot=Trainer, write_run=start, train_with_progress=train)[{place!r}]
setattr(target, {place!r}, half if {place!r} == "write_run" else die)
settings = TrainSettings(steps=4, batch_size=4, warmup_steps=1, snapshot_every=2, log_every=1)
network = NetworkConfig(down_dims=(8, 16), n_groups=4, diffusion_step_embed_dim=8)
train.main(train.New(Path({str(store)!r}), Path({str(out)!r}), settings, network=network, machine=Machine("cpu")))
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=100, check=False).returncode == 9
    assert not (out / "last.pt").exists()
    assert out.exists() == (place != "write_run")
    assert main(Resume(out, machine) if out.exists() else new) == 0
    for name in ("ema_000002.safetensors", "ema_000004.safetensors", "config.json", "normalizer.safetensors"):
        assert (out / name).read_bytes() == (whole.out / name).read_bytes()
    assert steps_of(out / "log.jsonl", 4) == [1, 2, 3, 4]


def test_a_killed_run_begins_anew_from_its_checkpoint(store: Path, tmp_path: Path) -> None:
    machine, settings = Machine(device="cpu"), TrainSettings(steps=12, batch_size=4, snapshot_every=12)
    assert main(New(store, tmp_path / "first", settings, network=NETWORK, machine=machine)) == 0
    out = tmp_path / "tuned"
    init = checkpoint_of(tmp_path / "first")
    assert main(New(store, out, settings, init=init, octaves=2, machine=machine)) == 0
    whole = (out / "ema_000012.safetensors").read_bytes()
    for name in ("last.pt", "ema_000012.safetensors"):
        (out / name).unlink()
    assert main(Resume(out, machine)) == 0
    assert (out / "ema_000012.safetensors").read_bytes() == whole


def test_a_run_is_not_resumed_on_other_data(store: Path, tmp_path: Path) -> None:
    machine, out = Machine(device="cpu"), tmp_path / "run"
    settings = TrainSettings(steps=2, batch_size=4, warmup_steps=1, snapshot_every=2)
    assert main(New(store, out, settings, network=NETWORK, machine=machine)) == 0
    writer = EpisodeStore.open(store, writable=True)  # more episodes are no other data
    writer.append(writer.episode(0))
    writer.close()
    assert main(Resume(out, machine)) == 0
    root = zarr.open_group(store, mode="r+")
    root["data/obs/object"][3, 1] += 0.5
    with pytest.raises(DataError, match="has changed since the run began"):
        main(Resume(out, machine))
    store.rename(tmp_path / "moved.zarr")
    with pytest.raises(DataError, match="No episode store"):
        main(Resume(out, machine))
    (out / "normalizer.safetensors").unlink()
    (tmp_path / "moved.zarr").rename(store)
    with pytest.raises(CheckpointError, match=r"normalizer\.safetensors"):
        main(Resume(out, machine))


def test_target_poses_of_another_frame_are_not_learned(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    kinds = []
    for frame in ("Base", "World"):
        path = tmp_path / f"{frame}.zarr"
        episodes = EpisodeStore.create(path, SHAPES, 7, {"env_id": f"asd/Square{frame}Pose-v0"})
        obs = {key: generator.normal(size=(30, dim)).astype(np.float32) for key, dim in DIMS.items()}
        action = generator.uniform(-1, 1, size=(30, 7)).astype(np.float32)
        episodes.append(Demonstration(0, obs, action, action, 30))
        kinds.append(Demonstrations.read(path))
    base, world = kinds
    base.check_fit(base.policy_config(NETWORK, {}))
    with pytest.raises(ConfigError, match=r"SquareBasePose-v0.*SquareWorldPose-v0"):
        base.check_fit(world.policy_config(NETWORK, {}))


@pytest.mark.parametrize("options", [{"device": "gpu"}, {"device": "cpu", "threads": 0}, {"device": "cpu:x"}])
def test_machines_that_do_not_exist(options: dict) -> None:
    with pytest.raises(ConfigError, match=r"device is|threads is"):
        Machine(**options)


@pytest.mark.parametrize("foreseeable", [math.nan, -0.1])
def test_a_foreseeable_disturbance_that_is_none_is_refused(foreseeable):
    with pytest.raises(ConfigError, match="foreseeable is"):
        RunInfo("demos.zarr", 3, {}, None, TrainSettings(steps=10), foreseeable=foreseeable)
