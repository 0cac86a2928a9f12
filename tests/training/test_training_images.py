"""Training an image DDPM: the same run whether stopped or not, and snapshots that diffusers loads."""

from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from torch import Tensor

from asd_policy.training.images import UnetSizes, build_unet, image_trainer
from asd_policy.training.loop import Trainer, train
from asd_policy.training.settings import TrainSettings

SETTINGS = TrainSettings(steps=6, batch_size=4, warmup_steps=2, snapshot_every=3, log_every=3)


def make_trainer(settings: TrainSettings = SETTINGS, **options) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (20,), generator=generator)
    images = (labels.view(-1, 1, 1, 1) * 2.0 - 1).expand(20, 1, 8, 8).contiguous()  # class 0 is black, class 1 white
    unet = build_unet(UnetSizes((8, 8)), image_size=8, image_channels=1, classes=2, seed=settings.seed)
    return image_trainer(unet, DDPMScheduler(num_train_timesteps=20, beta_end=0.4), settings, images, labels, **options)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    straight, first, resumed = make_trainer(), make_trainer(), make_trainer()
    for _ in range(6):
        straight.update()
    for _ in range(3):
        first.update()
    first.save(tmp_path / "last.pt")
    resumed.load(tmp_path / "last.pt")
    for _ in range(3):
        resumed.update()
    assert same(resumed.net.state_dict(), straight.net.state_dict())
    assert same(resumed.ema.state_dict(), straight.ema.state_dict())


def test_snapshots_are_folders_of_diffusers(tmp_path: Path) -> None:
    seen = []
    trainer = make_trainer(on_snapshot=lambda pipe, folder: seen.append(folder.name))
    assert train(trainer, tmp_path)
    assert seen == ["ema_000003", "ema_000006"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ema_000003", "ema_000006", "last.pt"]
    pipe = DDPMPipeline.from_pretrained(tmp_path / "ema_000006", use_safetensors=True)
    assert same(pipe.unet.state_dict(), trainer.ema.module.state_dict())
    assert pipe.unet.config.num_class_embeds == 3
    assert pipe.scheduler.config.num_train_timesteps == 20


def test_labels_are_learned() -> None:
    """Shown pure noise, the network finds less of it where it is told to see white, and more where black."""
    settings = TrainSettings(steps=100, batch_size=32, learning_rate=5e-3, warmup_steps=5)
    trainer = make_trainer(settings)
    losses = [float(trainer.update()) for _ in range(settings.steps)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    x = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        black, white = (trainer.net(x, 12, torch.full((64,), label)).sample.mean() for label in range(2))
    assert black > white + 0.1
