"""What a network is trained to return, how its held-out loss is measured, and what stops a run."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from asd_policy.core import Schedule
from asd_policy.core.denoiser import DENOISERS
from asd_policy.data.windows import TrainingWindows, make_windows
from asd_policy.errors import CheckpointError, ConfigError, NumericalError, UnknownNameError
from asd_policy.policies.config import NetworkConfig, PolicyConfig, SchedulerConfig
from asd_policy.policies.image_keys import ImageKey
from asd_policy.policies.making import make_policy
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.training.files import write_checkpoint
from asd_policy.training.images import UnetSizes, build_unet, image_trainer
from asd_policy.training.loop import (
    Trainer,
    TrainSettings,
    policy_trainer,
    train,
)
from asd_policy.training.loss import TARGETS, noise_prediction_loss

KINDS = ("epsilon", "sample", "v_prediction")
SMALL = NetworkConfig(down_dims=(16, 32), diffusion_step_embed_dim=16, kernel_size=3)


def test_every_denoiser_has_its_target():
    assert TARGETS.keys() == DENOISERS.keys() == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_diffusers(kind):
    scheduler = DDPMScheduler(50, prediction_type=kind, clip_sample=False)
    clean, noise = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    timesteps = torch.arange(0, 48, 6)
    abar = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1)
    expected = {"epsilon": noise, "sample": clean, "v_prediction": scheduler.get_velocity(clean, noise, timesteps)}
    torch.testing.assert_close(TARGETS[kind](clean, noise, abar), expected[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_what_the_sampler_turns_into_the_clean_sample(kind):
    schedule = Schedule.from_diffusers({"num_train_timesteps": 50})
    clean, noise = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(0))
    timesteps = torch.arange(0, 48, 6)
    abar = schedule.alphas_cumprod[timesteps].float().view(-1, 1, 1)
    target = TARGETS[kind](clean, noise, abar)
    denoiser = DENOISERS[kind](lambda x, t, cond: target, schedule, clip=None)
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    torch.testing.assert_close(denoiser(noisy, timesteps), clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_network_has_no_loss(kind):
    abar, clean = torch.linspace(0.99, 0.01, 10), torch.full((20, 4, 2), 3.0)

    def net(sample: Tensor, timestep: Tensor, condition: None) -> Tensor:
        scale = abar[timestep][:, None, None]
        noise = (sample - scale.sqrt() * clean) / (1 - scale).sqrt()
        return TARGETS[kind](clean, noise, scale)

    losses = {
        other: float(noise_prediction_loss(net, None, clean, abar, torch.Generator().manual_seed(0), other))
        for other in KINDS
    }
    assert losses.pop(kind) < 1e-9
    assert min(losses.values()) > 0.1


def policy_config(kind: str) -> PolicyConfig:
    scheduler = SchedulerConfig(num_train_timesteps=20, prediction_type=kind)
    return PolicyConfig(
        "e", {"o": 2}, 2, n_obs_steps=1, horizon=4, n_action_steps=2, network=SMALL, scheduler=scheduler
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_learns_demonstrations_that_are_all_the_same(kind):
    config = policy_config(kind)
    windows = make_windows({"o": torch.zeros(200, 2)}, torch.full((200, 2), 0.5), torch.tensor([200]), 1, 4, 2)
    settings = TrainSettings(steps=400, batch_size=32, learning_rate=2e-3, warmup_steps=10)
    trainer = policy_trainer(config, settings, windows, LinearNormalizer(config.normalizer_dims))
    for _ in range(settings.steps):
        trainer.update()
    network = trainer.net["model"].eval()
    policy = make_policy(network, LinearNormalizer(config.normalizer_dims), config, sampler="ddpm")
    acted = []
    for seed in range(10):
        policy.reset(seed=seed)
        acted.append(policy.act({"o": np.zeros(2, np.float32)}))
    assert np.mean(acted) == pytest.approx(0.5, abs=0.05)
    assert np.std(acted) < 0.15


def images_trainer(scheduler: DDPMScheduler, steps: int = 60) -> Trainer:
    settings = TrainSettings(steps=steps, batch_size=16, learning_rate=5e-3, warmup_steps=5)
    unet = build_unet(UnetSizes((8, 8)), image_size=8, image_channels=1, classes=2, seed=0)
    return image_trainer(unet, scheduler, settings, torch.full((20, 1, 8, 8), 0.5), torch.zeros(20, dtype=torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_network_learns_images_that_are_all_the_same(kind):
    scheduler = DDPMScheduler(20, beta_end=0.4, prediction_type=kind)
    trainer = images_trainer(scheduler)
    for _ in range(60):
        trainer.update()
    schedule = Schedule.from_diffusers(scheduler)
    net = trainer.net.eval()
    denoiser = DENOISERS[kind](lambda x, t, c: net(x, t, torch.zeros(len(x), dtype=torch.int64)).sample, schedule)
    t = torch.full((16,), 3)
    noise = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    abar = schedule.alphas_cumprod[3].float()
    with torch.no_grad():
        clean = denoiser(abar.sqrt() * 0.5 + (1 - abar).sqrt() * noise, t)
    assert (clean - 0.5).abs().mean() < 0.15


def test_a_prediction_type_that_is_not_known_is_refused():
    scheduler = DDPMScheduler(20)
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(UnknownNameError, match=r"'flow'.*epsilon, sample, v_prediction"):
        images_trainer(scheduler)


# The encoder of images may normalise by running statistics, which only training may move.

IMAGES = PolicyConfig(
    "e",
    {"camera": 4},
    2,
    n_obs_steps=1,
    horizon=4,
    n_action_steps=2,
    network=SMALL,
    scheduler=SchedulerConfig(num_train_timesteps=20),
    images=(ImageKey("camera", (32, 32, 3), crop=(2, 2, 28, 28), norm="batch", num_keypoints=4),),
)


def image_windows(seed: int) -> TrainingWindows:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (12, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return make_windows({"camera": images}, torch.rand(12, 2, generator=generator), torch.tensor([12]), 1, 4, 2)


def batch_norm_trainer(held_out: TrainingWindows | None) -> Trainer:
    settings = TrainSettings(steps=4, batch_size=4, warmup_steps=1, snapshot_every=2, log_every=2)
    normalizer = LinearNormalizer(IMAGES.normalizer_dims)
    return policy_trainer(IMAGES, settings, image_windows(0), normalizer, held_out=held_out)


def test_measuring_held_out_loss_changes_nothing(tmp_path):
    measured, plain = batch_norm_trainer(image_windows(1)), batch_norm_trainer(None)
    for trainer, name in ((measured, "measured"), (plain, "plain")):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)
        assert train(trainer, tmp_path / name)
        assert torch.equal(torch.random.get_rng_state(), torch.manual_seed(0).get_state())
    for file in ("ema_000002.safetensors", "ema_000004.safetensors"):
        assert (tmp_path / "measured" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    for ours, theirs in ((measured.net, plain.net), (measured.ema, plain.ema)):
        assert all(
            torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
        )
    before = {name: value.clone() for name, value in measured.ema.state_dict().items()}
    assert measured.held_out_loss() == measured.held_out_loss()
    assert all(torch.equal(value, before[name]) for name, value in measured.ema.state_dict().items())
    assert measured.net.training


def test_snapshots_have_the_running_statistics_of_training(tmp_path):
    trainer = batch_norm_trainer(None)
    for _ in range(3):
        trainer.update()
    named = dict(trainer.ema.module.named_buffers())
    statistics = {name: value for name, value in trainer.net.named_buffers() if "running" in name}
    assert statistics
    for name, value in statistics.items():
        assert torch.equal(named[name], value)


class Doubling(nn.Module):
    """Its loss is finite until its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.where(self.weight > 2, self.weight, (self.weight - self.weight).sqrt())  # sqrt' at 0 is inf


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    written: list[Path] = []
    settings = TrainSettings(steps=4, batch_size=2, warmup_steps=0, snapshot_every=1, log_every=1)
    trainer = Trainer(
        Doubling(),
        settings,
        lambda generator, part: (None, torch.ones(2, 1)[part]),
        Schedule.from_diffusers({"num_train_timesteps": 10}),
        lambda net, path: written.append(path),
        lambda net, x, timestep, condition: net(x),
        "epsilon",
    )
    (tmp_path / "last.pt").write_bytes(b"good")
    with pytest.raises(NumericalError, match="weights that are not finite, weight the first"):
        train(trainer, tmp_path)
    assert written == []
    assert (tmp_path / "last.pt").read_bytes() == b"good"


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"good")

    def disk_full(target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(path, disk_full)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("last.pt", b"good")]


def test_a_last_pt_of_any_length_is_refused(tmp_path):
    trainer = batch_norm_trainer(None)
    trainer.save(tmp_path / "last.pt")
    whole = (tmp_path / "last.pt").read_bytes()
    for keep in (0, 1, 1000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "last.pt").write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match="Cannot resume"):
            trainer.load(tmp_path / "last.pt")
    for state in ([1], {"step": 1}, {"step": "x", "model": {}, "ema": {}, "optimizer": {}}):
        torch.save(state, tmp_path / "last.pt")
        with pytest.raises(CheckpointError, match="Cannot resume"):
            trainer.load(tmp_path / "last.pt")


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"log_every": 0},
        {"snapshot_every": -1},
        {"warmup_steps": -1},
        {"seed": -1},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"max_grad_norm": 0.0},
    ],
)
def test_settings_that_cannot_train_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        replace(TrainSettings(steps=10), **change)
    assert asdict(TrainSettings(steps=10))["steps"] == 10
