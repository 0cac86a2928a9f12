"""U-Nets as denoisers: what a scheduler would make of their outputs, guidance, and batches cut into several calls."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler

from asd_policy.core import Schedule
from asd_policy.errors import ConfigError, UnknownNameError
from asd_policy.images import UnetNetwork, ddpm_scheduler, make_denoiser
from tests.images.tiny_models import EVENT, SCHEDULE, pixel_unet


def states(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(n, *EVENT, generator=generator), torch.randint(20, (n,), generator=generator)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "bounds",
    [
        {"clip_sample": False},
        {"clip_sample_range": 0.7},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.4},
    ],
)
@torch.no_grad()
def test_predictions_are_the_schedulers(prediction_type, bounds):
    scheduler = DDPMScheduler(**SCHEDULE, prediction_type=prediction_type, **bounds)
    unet = pixel_unet()
    x, t = states()
    expected = [
        scheduler.step(unet(x[i : i + 1], t[i]).sample, int(t[i]), x[i : i + 1]).pred_original_sample
        for i in range(len(x))
    ]
    got = make_denoiser(UnetNetwork(unet), scheduler, Schedule.from_diffusers(scheduler))(x, t, None)
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_guidance_is_two_calls_mixed():
    unet = pixel_unet(num_class_embeds=3)
    x, t = states()
    labels = torch.tensor([[2, 0]] * 3 + [[2, 1]] * 3)
    away, toward = (unet(x, t, class_labels=column).sample for column in labels.T)
    got = UnetNetwork(unet, guidance_scale=3.0)(x, t, labels)
    torch.testing.assert_close(got, away + 3 * (toward - away), rtol=1e-4, atol=1e-5)
    assert (got - toward).abs().max() > 1e-3


@torch.no_grad()
def test_a_compiled_unet_is_told_its_labels_too():
    unet = pixel_unet(num_class_embeds=3)
    x, t = states()
    labels = torch.tensor([[0], [1], [2]] * 2)
    compiled = torch.compile(unet, backend="eager")
    torch.testing.assert_close(UnetNetwork(compiled)(x, t, labels), UnetNetwork(unet)(x, t, labels))


@pytest.mark.parametrize(("max_states", "largest"), [(1, 2), (4, 4), (5, 4), (100, 12)])
@torch.no_grad()
def test_cutting_a_batch_changes_nothing(max_states, largest):
    unet = pixel_unet(num_class_embeds=3)
    x, t = states()
    labels = torch.tensor([[2, 0]] * 3 + [[2, 1]] * 3)
    whole = UnetNetwork(unet, 3.0)(x, t, labels)
    sizes = []
    unet.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    cut = UnetNetwork(unet, 3.0, max_states)(x, t, labels)
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)
    assert max(sizes) == largest
    assert sum(sizes) == 12


@pytest.mark.parametrize("scheduler", [DDIMScheduler(**SCHEDULE), PNDMScheduler(**SCHEDULE), DDPMScheduler(**SCHEDULE)])
def test_schedulers_of_the_same_diffusion(scheduler):
    betas = Schedule.from_diffusers(ddpm_scheduler(scheduler)).alphas_cumprod.float()
    torch.testing.assert_close(betas, DDPMScheduler(**SCHEDULE).alphas_cumprod)


def test_refusals():
    with pytest.raises(ConfigError, match="FlowMatchEulerDiscreteScheduler has no DDPM"):
        ddpm_scheduler(FlowMatchEulerDiscreteScheduler())
    scheduler = DDPMScheduler(**SCHEDULE, prediction_type="flow")
    with pytest.raises(UnknownNameError, match="prediction_type 'flow'"):
        make_denoiser(UnetNetwork(pixel_unet()), scheduler, Schedule.from_diffusers(scheduler))
    with pytest.raises(ConfigError, match="max_states is 0"):
        UnetNetwork(pixel_unet(), max_states=0)
    unet = pixel_unet()
    unet.register_to_config(out_channels=2)
    with pytest.raises(ConfigError, match="takes 1 channels and returns 2"):
        UnetNetwork(unet)
