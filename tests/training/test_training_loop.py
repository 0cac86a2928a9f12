"""The training loop: learning, resuming bit for bit, stopping, and refusing NaN."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from asd_policy.data.windows import TrainingWindows, make_windows
from asd_policy.errors import CheckpointError, NumericalError
from asd_policy.nets import ConditionalUnet1D
from asd_policy.nets.unet1d.channels_last import store_channels_last
from asd_policy.policies.config import NetworkConfig, PolicyConfig
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.training.ema import ema_decay
from asd_policy.training.loop import (
    Trainer,
    TrainSettings,
    learning_rate,
    policy_trainer,
    step_generator,
    train,
)
from asd_policy.training.loss import noise_prediction_loss

CONFIG = PolicyConfig(
    env_id="asd/Square-v0",
    obs_keys={"object": 3, "robot0_eef_pos": 2},
    action_dim=2,
    network=NetworkConfig(down_dims=(16, 16), n_groups=4, diffusion_step_embed_dim=8),
)
SETTINGS = TrainSettings(steps=20, batch_size=8, warmup_steps=4, snapshot_every=10, log_every=5)


def some_windows(seed: int = 0, actions: Tensor | None = None) -> TrainingWindows:
    obs = torch.rand(60, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    actions = obs[:, :2].clone() if actions is None else actions
    seen = {"object": obs[:, :3], "robot0_eef_pos": obs[:, 3:]}
    return make_windows(seen, actions, torch.tensor([25, 60]), 2, 16, 8)


def make_trainer(
    settings: TrainSettings = SETTINGS, actions: Tensor | None = None, held_out: TrainingWindows | None = None
) -> Trainer:
    windows, normalizer = some_windows(actions=actions), LinearNormalizer(CONFIG.normalizer_dims)
    return policy_trainer(CONFIG, settings, windows, normalizer, held_out=held_out)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    straight = make_trainer()
    for _ in range(20):
        straight.update()
    first = make_trainer()
    for _ in range(10):
        first.update()
    first.save(tmp_path / "last.pt")
    resumed = make_trainer()
    resumed.load(tmp_path / "last.pt")
    for _ in range(10):
        resumed.update()
    assert resumed.step == straight.step == 20
    assert same(resumed.net.state_dict(), straight.net.state_dict())
    assert same(resumed.ema.state_dict(), straight.ema.state_dict())
    assert not same(first.net.state_dict(), straight.net.state_dict())


def test_a_run_can_change_the_memory_layout_of_its_weights_when_resumed(tmp_path: Path) -> None:
    plain = make_trainer()
    for _ in range(10):
        plain.update()
    plain.save(tmp_path / "last.pt")
    other = make_trainer()
    store_channels_last(other.net)
    other.load(tmp_path / "last.pt")
    for _ in range(5):
        plain.update()
        other.update()
    for ours, theirs in zip(other.net.parameters(), plain.net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_loss_falls() -> None:
    trainer = make_trainer(TrainSettings(steps=150, batch_size=64, learning_rate=3e-3, warmup_steps=10))
    losses = [float(trainer.update()) for _ in range(150)]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


def test_held_out_data_are_measured_with_each_snapshot_and_change_nothing(tmp_path: Path) -> None:
    trainer, plain = make_trainer(held_out=some_windows(seed=1)), make_trainer()
    logged: list[tuple[int, float | None]] = []
    assert train(trainer, tmp_path, lambda step, loss, held_out: logged.append((step, held_out)))
    assert [step for step, held_out in logged if held_out is not None] == [10, 20]
    assert logged[-1][1] == trainer.held_out_loss()  # the same windows and noise every time
    for _ in range(20):
        plain.update()
    assert same(trainer.net.state_dict(), plain.net.state_dict())


def test_memorising_shows_in_the_held_out_loss() -> None:
    noise = torch.rand(60, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1  # nothing to learn but by heart
    settings = TrainSettings(steps=1000, batch_size=64, learning_rate=3e-3, warmup_steps=10)
    trainer = make_trainer(settings, noise, held_out=some_windows(seed=1, actions=noise.flip(0)))
    learned = [float(trainer.update()) for _ in range(400)]
    unseen = trainer.held_out_loss()
    assert unseen is not None
    assert unseen > 1.2 * sum(learned[-50:]) / 50


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    make_trainer().update()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_snapshots_are_the_weights_of_a_policy(tmp_path: Path) -> None:
    trainer = make_trainer()
    logged: list[tuple[int, float | None]] = []
    assert train(trainer, tmp_path, lambda step, loss, held_out: logged.append((step, held_out)))
    assert logged == [(5, None), (10, None), (15, None), (20, None)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ema_000010.safetensors", "ema_000020.safetensors", "last.pt",
    ]  # fmt: skip
    weights = load_file(tmp_path / "ema_000020.safetensors")
    net = ConditionalUnet1D(2, 10, (16, 16), n_groups=4, diffusion_step_embed_dim=8)
    net.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    averaged = trainer.ema.module
    assert isinstance(averaged, torch.nn.ModuleDict)
    assert same(net.state_dict(), averaged["model"].state_dict())
    assert weights["normalizer.fields.object.scale"].shape == (3,)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    trainer = make_trainer()
    handler = signal.getsignal(number)
    finished = train(
        trainer, tmp_path, lambda step, loss, held_out: os.kill(os.getpid(), number) if step == 5 else None
    )
    assert not finished
    assert signal.getsignal(number) is handler
    resumed = make_trainer()
    resumed.load(tmp_path / "last.pt")
    assert 0 < resumed.step == trainer.step < 20
    assert train(resumed, tmp_path)


def test_nan_raises_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    actions = torch.full((60, 2), float("nan"))
    with pytest.raises(NumericalError, match="mean loss of steps 0 to 5"):
        train(make_trainer(actions=actions), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="Cannot resume"):
        make_trainer().load(tmp_path / "last.pt")


def test_steps_have_their_own_random_numbers() -> None:
    device = torch.device("cpu")
    draws = [torch.rand(4, generator=step_generator(s, k, device)) for s in (0, 1) for k in (0, 1, 2**32)]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)
    assert torch.equal(draws[0], torch.rand(4, generator=step_generator(0, 0, device)))


def test_loss_noises_by_the_schedule_and_covers_all_timesteps() -> None:
    abar = torch.linspace(0.99, 0.01, 10)
    actions = torch.full((20, 4, 2), 3.0)
    seen: list[Tensor] = []

    def net(sample: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        seen.append(timestep)
        scale = abar[timestep][:, None, None]
        return (sample - scale.sqrt() * actions) / (1 - scale).sqrt()

    loss = noise_prediction_loss(net, torch.zeros(20, 1), actions, abar, torch.Generator().manual_seed(0))
    assert float(loss) < 1e-10
    assert seen[0].tolist() == [k for k in range(10) for _ in range(2)]


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    settings = TrainSettings(steps=1000, warmup_steps=100, learning_rate=1.0)
    rates = [learning_rate(step, settings) for step in range(1001)]
    assert rates[0] == 0.01
    assert max(rates) == rates[100] == 1.0
    assert rates[550] == pytest.approx(0.5)
    assert rates[1000] == pytest.approx(0)


def test_ema_decay_is_diffusion_policys() -> None:
    diffusers = pytest.importorskip("diffusers.training_utils")
    theirs = diffusers.EMAModel([torch.zeros(1)], decay=0.9999, use_ema_warmup=True, inv_gamma=1, power=0.75)
    for step in (1, 10, 1000, 50_000, 10**7):
        assert ema_decay(step) == pytest.approx(theirs.get_decay(step + 1))
