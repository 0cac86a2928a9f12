"""The first guess of a finished run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from asd_policy import load_policy
from asd_policy.cli.train import New, Resume, main, prepare
from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import CheckpointError
from asd_policy.policies.config import NetworkConfig
from asd_policy.training.loop import TrainSettings, train
from asd_policy.training.run import Machine

NETWORK = NetworkConfig(down_dims=(8, 16), n_groups=4, diffusion_step_embed_dim=8)
SETTINGS = TrainSettings(steps=6, batch_size=4, warmup_steps=2, snapshot_every=3, log_every=3)
MACHINE = Machine(device="cpu")


def store(path: Path, episodes: int) -> Path:
    """Demonstrations whose first action is the state, and whose second is its opposite."""
    opened = EpisodeStore.create(path, {"state": (2,)}, 2, {"env_id": "asd/Square-v0"})
    for seed in range(episodes):
        state = np.random.default_rng(seed).uniform(-1, 1, (40, 1)).astype(np.float32).repeat(2, axis=1)
        action = np.concatenate([state[:, :1], -state[:, :1]], axis=1)
        opened.append(Demonstration(seed, {"state": state}, action, action, 40))
    return path


@pytest.fixture
def run(tmp_path: Path) -> New:
    return New(store(tmp_path / "demos.zarr", 20), tmp_path / "run", SETTINGS, network=NETWORK, machine=MACHINE)


def policy_of(run: Path, folder: Path):
    """The checkpoint that docs/training.md makes of a run."""
    folder.mkdir()
    for name, source in {"config.json": "config.json", "model.safetensors": "ema_000006.safetensors"}.items():
        (folder / name).write_bytes((run / source).read_bytes())
    (folder / "guess.safetensors").write_bytes((run / "guess.safetensors").read_bytes())
    return load_policy(folder, "asd:path:4")


def test_a_finished_run_has_a_guess_for_its_weights(run, tmp_path, capsys):
    assert main(run) == 0
    assert f"first guess: {run.out / 'guess.safetensors'}" in capsys.readouterr().out
    policy = policy_of(run.out, tmp_path / "checkpoint")
    state = 0.5
    cond = policy.condition(2 * [{"state": np.full(2, state, np.float32)}])
    chunk = policy.normalizer.unnormalize("action", policy.guess(cond))[0]
    assert chunk[1].tolist() == pytest.approx([state, -state], abs=0.15)  # the action at the last observation
    policy.reset(seed=0)
    assert np.isfinite(policy.act({"state": np.zeros(2)})).all()
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes((run.out / "ema_000003.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="belongs to the weights"):
        load_policy(tmp_path / "checkpoint")


def test_a_resumed_run_has_the_same_guess(run, tmp_path):
    assert main(run) == 0
    tensors = load_file(run.out / "guess.safetensors")
    stopped = New(run.data, tmp_path / "stopped", SETTINGS, network=NETWORK, machine=MACHINE)
    trainer = prepare(stopped).trainer
    for _ in range(3):
        trainer.update()
    trainer.save(stopped.out / "last.pt")  # as a run that was stopped
    assert not (stopped.out / "guess.safetensors").exists()
    state = torch.get_rng_state()
    assert main(Resume(stopped.out, MACHINE)) == 0
    assert torch.equal(torch.get_rng_state(), state)
    resumed = load_file(stopped.out / "guess.safetensors")
    assert resumed.keys() == tensors.keys()
    assert all(torch.equal(resumed[name], tensors[name]) for name in tensors)


def test_a_run_that_was_killed_before_its_guess_gets_it_when_resumed(run):
    trainer = prepare(run).trainer
    assert train(trainer, run.out)
    assert not (run.out / "guess.safetensors").exists()
    assert main(Resume(run.out, MACHINE)) == 0
    assert (run.out / "guess.safetensors").exists()


def test_too_few_demonstrations_leave_a_run_without_a_guess(tmp_path, capsys):
    run = New(store(tmp_path / "few.zarr", 1), tmp_path / "run", SETTINGS, network=NETWORK, machine=MACHINE)
    assert main(run) == 0
    said = capsys.readouterr().out
    assert "no first guess: Got 33 observations to fit a first guess to; expected at least 64" in said
    assert not (run.out / "guess.safetensors").exists()
