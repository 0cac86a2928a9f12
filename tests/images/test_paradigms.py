"""The sampler to compare with: without tolerance it is the plain DDPM, with it an approximation in fewer rounds."""

import pytest
import torch
from diffusers import DDPMParallelScheduler, UNet2DModel
from torch import Tensor

from asd_policy.benchmarks.paradigms import sample_paradigms
from asd_policy.core import AsdSampler, Schedule, sample_ddpm
from asd_policy.images import UnetNetwork, make_denoiser
from tests.images.tiny_models import EVENT, SCHEDULE, pixel_unet

K = 20


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    return pixel_unet()


def paradigms(unet: UNet2DModel, tolerance: float, window: int = 8) -> tuple[Tensor, int]:
    scheduler = DDPMParallelScheduler(**SCHEDULE, prediction_type="sample")
    scheduler.set_timesteps(K)
    generator = torch.Generator().manual_seed(0)
    return sample_paradigms(lambda x, t: unet(x, t).sample, scheduler, EVENT, 2, generator, window, tolerance)


def plain(unet: UNet2DModel) -> Tensor:
    scheduler = DDPMParallelScheduler(**SCHEDULE, prediction_type="sample")
    schedule = Schedule.from_diffusers(scheduler)
    denoiser = make_denoiser(UnetNetwork(unet), scheduler, schedule)
    assert AsdSampler(denoiser, schedule, EVENT).num_steps == K
    return sample_ddpm(denoiser, schedule, EVENT, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("window", [1, 8, 50])
def test_without_tolerance_it_is_the_plain_sampler(unet, window):
    x, rounds = paradigms(unet, tolerance=0.0, window=window)
    torch.testing.assert_close(x, plain(unet), rtol=0, atol=1e-4)
    assert rounds <= K
    assert window > 1 or rounds == K


def test_tolerance_buys_rounds_with_error(unet):
    exact, approximate = paradigms(unet, tolerance=0.0), paradigms(unet, tolerance=0.5)
    assert approximate[1] < exact[1]
    assert 1e-4 < (approximate[0] - plain(unet)).abs().max() < 1
