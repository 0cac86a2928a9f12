"""Arguments of the core that cannot be used are refused, and say which; the rest means what it says."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

from asd_policy.core import DRAFTS, AsdSampler, EpsilonDenoiser, Schedule, sample_ddim, sample_ddpm
from asd_policy.errors import ConfigError

SCHEDULE = Schedule.from_betas(torch.linspace(0.01, 0.2, 10))


def denoiser(x, t, cond):
    return 0.3 * x


@pytest.mark.parametrize("shape", [3, None, 2.5])
def test_an_event_shape_is_a_tuple(shape):
    for sample in (AsdSampler, sample_ddpm, sample_ddim):
        with pytest.raises(ConfigError, match="event_shape"):
            sample(denoiser, SCHEDULE, shape)


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_warm_start_of_another_type_gives_float32_samples(draft):
    sampler = AsdSampler(denoiser, SCHEDULE, (2,), draft)
    guess = torch.ones(1, 10, 2)
    expected = sampler.draw(1, None, torch.Generator().manual_seed(0), guess).x
    for dtype in (torch.float64, torch.int64, torch.bfloat16):
        x = sampler.draw(1, None, torch.Generator().manual_seed(0), guess.to(dtype)).x
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, expected)
    with pytest.raises(ConfigError, match="warm"):
        sampler.draw(1, warm=guess.numpy())


def test_a_table_of_windows_may_be_an_array():
    assert AsdSampler(denoiser, SCHEDULE, (2,), window=np.full(10, 3)).windows == (3,) * 10


@pytest.mark.parametrize("name", [[], {}, None])
def test_names_may_be_anything(name):
    for option in ("draft", "capture"):
        with pytest.raises(ConfigError, match=f"Unknown {option}"):
            AsdSampler(denoiser, SCHEDULE, (2,), **{option: name})


def test_numbers_that_are_none_are_refused():
    for eta in ("1", None, True):
        with pytest.raises(ConfigError, match="eta is"):
            sample_ddim(denoiser, SCHEDULE, (2,), eta=eta)
    for clip in ("1", True, torch.nan):
        with pytest.raises(ConfigError, match="clip is"):
            EpsilonDenoiser(denoiser, SCHEDULE, clip)
    for seed in ("x", -1, 0.5):
        with pytest.raises(ConfigError, match="seed"):
            AsdSampler(denoiser, SCHEDULE, (2,)).calibrate(None, seed=seed)


@pytest.mark.parametrize(
    "changes",
    [
        {"variance": "learned_range"},
        {"spacing": "karras"},
        {"steps_offset": 0.5},
        {"timesteps": torch.tensor([3.0, 1.0])},
        {"timesteps": [3, 1]},
        {"alphas_cumprod": [0.9, 0.8, 0.7, 0.6]},
        {"alphas_cumprod": torch.tensor([2, 1])},
    ],
    ids=str,
)
def test_a_schedule_made_by_hand_passes_the_same_checks(changes):
    with pytest.raises(ConfigError):
        replace(SCHEDULE, **changes)


def test_a_schedule_is_float64():
    assert replace(SCHEDULE, alphas_cumprod=SCHEDULE.alphas_cumprod.float()).s.dtype == torch.float64


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_schedules_do_not_depend_on_the_default_device(spacing, betas):
    config = {"beta_schedule": betas, "timestep_spacing": spacing, "num_train_timesteps": 100}
    expected = Schedule.from_diffusers(config, 10)
    with torch.device("meta"):
        assert Schedule.from_diffusers(config, 10) == expected
        x, _ = AsdSampler(denoiser, Schedule.from_diffusers(config, 10), (2,))(3)
    assert x.device.type == "cpu"


SCHEDULERS = [
    getattr(diffusers, name)
    for name in sorted(dir(diffusers.schedulers))
    if name.endswith("Scheduler") and not name.startswith("Flax") and hasattr(diffusers, name)
]


@pytest.mark.parametrize("make", SCHEDULERS, ids=lambda make: make.__name__)
def test_every_scheduler_of_diffusers_keeps_its_noise_levels_or_is_refused(make, tmp_path):
    try:
        scheduler = make()
    except (TypeError, ImportError):
        pytest.skip("it needs arguments, or packages that are not installed")
    scheduler.save_config(tmp_path)
    for described in (scheduler, make.load_config(tmp_path)):
        try:
            schedule = Schedule.from_diffusers(described)
        except ConfigError:
            continue
        torch.testing.assert_close(
            torch.as_tensor(scheduler.alphas_cumprod), schedule.alphas_cumprod.float(), rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (diffusers.CogVideoXDDIMScheduler, {"rescale_betas_zero_snr": False}),
        (diffusers.EulerDiscreteScheduler, {"timestep_type": "continuous"}),
        (diffusers.DPMSolverMultistepScheduler, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        (diffusers.IPNDMScheduler, {}),
    ],
)
def test_other_noise_levels_are_refused(make, settings, tmp_path):
    make(**settings).save_config(tmp_path)
    for described in (make(**settings), make.load_config(tmp_path)):
        with pytest.raises(ConfigError):
            Schedule.from_diffusers(described)


def test_noise_levels_changed_in_place_are_refused():
    scheduler = diffusers.DDPMScheduler()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    with pytest.raises(ConfigError, match="trained_betas"):
        Schedule.from_diffusers(scheduler)
