"""TensorBoard and Weights & Biases show the losses of log.jsonl, where that is asked for."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from asd_policy.cli import train
from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import ConfigError
from asd_policy.nets import NetworkConfig
from asd_policy.training.run import Machine
from asd_policy.training.settings import TrainSettings

NETWORK = NetworkConfig(down_dims=(8, 16), n_groups=4, diffusion_step_embed_dim=8)
SETTINGS = TrainSettings(steps=4, batch_size=4, warmup_steps=2, snapshot_every=2, log_every=1)


@pytest.fixture
def store(tmp_path) -> Path:
    episodes = EpisodeStore.create(tmp_path / "demos.zarr", {"position": (3,)}, 2, {"env_id": "asd/Square-v0"})
    generator = np.random.default_rng(0)
    for seed in range(2):
        action = generator.uniform(-1, 1, size=(20, 2)).astype(np.float32)
        obs = {"position": generator.normal(size=(20, 3)).astype(np.float32)}
        episodes.append(Demonstration(seed, obs, action, action, 20))
    return tmp_path / "demos.zarr"


class RefusedError(Exception):
    """wandb's own error."""


def run(store: Path, out: Path, *track: str) -> list[dict[str, float]]:
    """Train, tracked. Returns the lines of log.jsonl."""
    machine = Machine("cpu", track=track)
    assert train.main(train.New(store, out, SETTINGS, held_out=1, network=NETWORK, machine=machine)) == 0
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_nothing_is_tracked_unless_asked_for(store, tmp_path, monkeypatch):
    for name in ("tensorboard", "wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    run(store, tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_tensorboard_shows_the_losses(store, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = run(store, tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for name in ("loss", "held_out_loss"):
        expected = [(line["step"], line[name]) for line in lines if name in line]
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in shown] == [step for step, _ in expected]
        assert [value for _, value in shown] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_wandb_is_told_the_losses_and_continues_a_resumed_run(store, tmp_path, monkeypatch):
    """With a stand-in for wandb, which needs a server."""
    told: list[tuple[int, dict[str, float]]] = []
    started: list[dict[str, object]] = []

    def init(**options: object) -> SimpleNamespace:
        if refused:
            raise RefusedError("no API key")
        started.append(options)
        own = options["id"] or f"id{len(started)}"
        return SimpleNamespace(id=own, log=lambda values, step: told.append((step, values)), finish=lambda: None)

    refused: list[bool] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=RefusedError))
    lines = run(store, tmp_path / "run", "wandb")
    assert [step for step, _ in told] == [line["step"] for line in lines]
    assert all(
        line[name] == value for line, (_, values) in zip(lines, told, strict=True) for name, value in values.items()
    )
    assert train.main(train.Resume(tmp_path / "run", Machine("cpu", track=("wandb",)))) == 0
    assert [options["id"] for options in started] == [None, "id1"]
    assert all(options["resume"] == "allow" for options in started)
    refused.append(True)
    with pytest.raises(ConfigError, match=r"--track wandb: no API key \(wandb login, or WANDB_MODE=offline\)"):
        run(store, tmp_path / "other", "wandb")


@pytest.mark.slow
def test_the_real_wandb_without_a_network(store, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(store, tmp_path / "run", "wandb")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_tracker_that_is_not_installed_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"--track wandb needs wandb \(pip install wandb\)"):
        run(store, tmp_path / "run", "wandb")
    assert not (tmp_path / "run").exists()
