"""Schedulers in other libraries' files: settings are accepted or refused by their values, and nothing is dropped."""

import pytest

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.importers import lerobot, load_policy, read_checkpoint, robomimic
from asd_policy.importers.schedulers import read_scheduler
from asd_policy.policies.config import SchedulerConfig
from tests.importers.originals import GOLDEN_LEROBOT
from tests.importers.small import changed_lerobot, changed_robomimic, small_real_stanford, with_config
from tests.tiny import tiny_checkpoint

DEFAULT = {
    "trained_betas": None,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "clip_sample_range": 1.0,
    "predict_epsilon": True,
    "_class_name": "DDPMScheduler",
}


def stanford(path, settings, drop=()):
    def edit(cfg):
        cfg["policy"]["noise_scheduler"].update(settings)
        for name in drop:
            del cfg["policy"]["noise_scheduler"][name]

    small_real_stanford(path, cfg=edit)
    return read_checkpoint(path)


@pytest.mark.parametrize("name", [*DEFAULT, "all"])
def test_settings_equal_to_the_defaults_are_accepted(tmp_path, name):
    settings = DEFAULT if name == "all" else {name: DEFAULT[name]}
    plain = stanford(tmp_path / "plain.ckpt", {})
    assert stanford(tmp_path / "a.ckpt", settings).config == plain.config
    assert plain.config.scheduler == SchedulerConfig(num_train_timesteps=20, use_clipped_model_output=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("thresholding", True),
        ("trained_betas", [0.01] * 20),
        ("rescale_betas_zero_snr", True),
        ("predict_epsilon", False),
        ("variance_type", "learned_range"),
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "score"),
        ("prediction_type", None),
        ("beta_schedule", None),
        ("timestep_spacing", "middle"),
        ("timestep_spacing", None),
        ("steps_offset", None),
        ("steps_offset", -1),
        ("steps_offset", 1.5),
        ("clip_sample", "yes"),
        ("clip_sample_range", "${range}"),
        ("beta_end", float("nan")),
        ("num_train_timesteps", 10**9),
        ("solver_order", 2),
    ],
)
def test_what_is_not_sampled_is_named(tmp_path, name, value):
    with pytest.raises(CheckpointError, match=name):
        stanford(tmp_path / "a.ckpt", {name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("variance_type", None, "fixed_small"),
        ("variance_type", "fixed_large", "fixed_large"),
        ("clip_sample", None, False),
        ("set_alpha_to_one", None, False),
        ("set_alpha_to_one", False, False),
        ("timestep_spacing", "trailing", "trailing"),
        ("steps_offset", 1, 1),
    ],
)
def test_values_and_nulls_mean_what_diffusers_makes_of_them(tmp_path, name, value, expected):
    assert getattr(stanford(tmp_path / "a.ckpt", {name: value}).config.scheduler, name) == expected


def test_missing_settings_are_diffusers_defaults(tmp_path):
    names = ("beta_schedule", "variance_type", "clip_sample", "prediction_type", "beta_start", "beta_end")
    found = stanford(tmp_path / "a.ckpt", {}, drop=names).config.scheduler
    assert found == SchedulerConfig(20, "linear", use_clipped_model_output=False)


def test_null_variance_is_fixed_small_in_diffusers():
    from diffusers import DDPMScheduler

    null, small = (DDPMScheduler(20, variance_type=kind) for kind in (None, "fixed_small"))
    assert [null._get_variance(t) for t in range(20)] == [small._get_variance(t) for t in range(20)]


# ---- DDIM


def ddim(settings=None, steps=8):
    def edit(cfg):
        scheduler = cfg["policy"]["noise_scheduler"]
        del scheduler["variance_type"]
        scheduler["_target_"] = "diffusers.schedulers.scheduling_ddim.DDIMScheduler"
        scheduler.update({"set_alpha_to_one": True, "steps_offset": 0} | (settings or {}))
        cfg["policy"]["num_inference_steps"] = steps

    return edit


TOLD = r'samples with DDIM in 8 steps; sampler="ddim", num_steps=8 draws what the file\'s library draws'


def test_real_stanfords_ddim(tmp_path):
    small_real_stanford(tmp_path / "a.ckpt", cfg=ddim({"set_alpha_to_one": False, "steps_offset": 1}))
    with pytest.warns(UserWarning, match=TOLD):
        scheduler = load_policy(tmp_path / "a.ckpt").config.scheduler
    assert (scheduler.set_alpha_to_one, scheduler.steps_offset, scheduler.use_clipped_model_output) == (False, 1, False)


def test_robomimics_ddim(all_originals, tmp_path):
    def edit(config):
        config["algo"]["ddpm"]["enabled"], config["algo"]["ddim"]["enabled"] = False, True
        config["algo"]["ddim"].update(num_inference_timesteps=8, set_alpha_to_one=False, steps_offset=1)

    path = changed_robomimic(all_originals["robomimic"].path, tmp_path / "a.pth", with_config(edit))
    with pytest.warns(UserWarning, match=TOLD):
        scheduler = load_policy(path).config.scheduler
    assert (scheduler.set_alpha_to_one, scheduler.steps_offset, scheduler.use_clipped_model_output) == (False, 1, False)


def test_robomimics_scheduler_that_is_none(all_originals, tmp_path):
    edit = with_config(lambda config: config["algo"]["ddpm"].update(enabled=False))
    with pytest.raises(CheckpointError, match="enables neither ddpm nor ddim"):
        read_checkpoint(changed_robomimic(all_originals["robomimic"].path, tmp_path / "a.pth", edit))


def test_lerobots_ddim(tmp_path):
    path = changed_lerobot(tmp_path / "a", {"noise_scheduler_type": "DDIM", "num_inference_steps": 8})
    with pytest.warns(UserWarning, match=TOLD):
        scheduler = load_policy(path).config.scheduler
    assert scheduler.set_alpha_to_one
    assert not scheduler.use_clipped_model_output
    assert not read_checkpoint(GOLDEN_LEROBOT).notes


@pytest.mark.parametrize("steps", [0, 21, -1, 2.5, "8", True])
def test_numbers_of_steps_that_are_none(tmp_path, steps):
    with pytest.raises(CheckpointError, match="expected 1 to 20"):
        read_checkpoint(changed_lerobot(tmp_path / "a", {"num_inference_steps": steps}))


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "DDPMScheduler"])
def test_null_steps_are_all(name):
    scheduler, notes = read_scheduler(name, {}, None, "here")
    assert scheduler.num_train_timesteps == 1000
    assert len(notes) == ("DDIM" in name)


@pytest.mark.parametrize("change", [{"timestep_spacing": "trailing"}, {"steps_offset": 1}, {"set_alpha_to_one": False}])
@pytest.mark.parametrize("write", [lerobot.write, robomimic.write])
def test_exporters_refuse_steps_that_they_cannot_tell(tmp_path, write, change):
    from dataclasses import replace

    folder = tiny_checkpoint(tmp_path / "tiny", {"object": 5, "robot0_eef_pos": 3}, action_dim=2)
    checkpoint = read_checkpoint(folder)
    scheduler = replace(checkpoint.config.scheduler, **change)
    with pytest.raises(ConfigError, match="cannot express the scheduler's steps"):
        write(replace(checkpoint, config=replace(checkpoint.config, scheduler=scheduler)), tmp_path / "out")


# ---- wrappers around modules

WRAPPED = {
    "the policy": lambda name, wrapper: f"{wrapper}{name}",
    "the network": lambda name, wrapper: name.replace("model.", f"model.{wrapper}", 1),
    "a layer": lambda name, wrapper: name.replace("final_conv.", f"final_conv.{wrapper}"),
}


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("place", WRAPPED)
def test_wrapped_modules_of_real_stanford(tmp_path, place, wrapper):
    rename = WRAPPED[place]
    small_real_stanford(tmp_path / "plain.ckpt")
    small_real_stanford(
        tmp_path / "a.ckpt", state=lambda state: {rename(name, wrapper): value for name, value in state.items()}
    )
    same(read_checkpoint(tmp_path / "a.ckpt"), read_checkpoint(tmp_path / "plain.ckpt"))


def same(one, other):
    assert one.config == other.config
    assert one.tensors.keys() == other.tensors.keys()
    assert all((one.tensors[name] == value).all() for name, value in other.tensors.items())


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("prefix", ["", "policy.", "policy.noise_pred_net."])
def test_wrapped_modules_of_robomimic(all_originals, tmp_path, prefix, wrapper):
    def edit(payload):
        ema = payload["model"]["ema"]
        payload["model"]["ema"] = {name.replace(prefix, prefix + wrapper, 1): value for name, value in ema.items()}

    source = all_originals["robomimic"].path
    same(read_checkpoint(changed_robomimic(source, tmp_path / "a.pth", edit)), read_checkpoint(source))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("prefix", ["", "diffusion.", "diffusion.unet."])
def test_wrapped_modules_of_lerobot(tmp_path, prefix, wrapper):
    def weights(tensors):
        return {name.replace(prefix, prefix + wrapper, 1): value for name, value in tensors.items()}

    same(read_checkpoint(changed_lerobot(tmp_path / "a", weights=weights)), read_checkpoint(GOLDEN_LEROBOT))


def test_wrapped_modules_of_this_package(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_checkpoint(tmp_path / "tiny", {"object": 5, "module": 3}, action_dim=2)  # a key may be called so
    plain = read_checkpoint(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({k.replace("model.", "model._orig_mod."): v for k, v in tensors.items()}, folder / "model.safetensors")
    same(read_checkpoint(folder), plain)


def test_a_tensor_that_stands_twice(tmp_path):
    name = "diffusion.unet.final_conv.1.bias"

    def weights(tensors):
        return tensors | {f"module.{name}": tensors[name] + 1}

    with pytest.raises(CheckpointError, match=rf"holds {name} twice, once as module\."):
        read_checkpoint(changed_lerobot(tmp_path / "a", weights=weights))


def test_an_average_that_is_missing(tmp_path):
    import torch

    payload = small_real_stanford(tmp_path / "a.ckpt")
    payload["state_dicts"]["model"] = payload["state_dicts"].pop("ema_model")
    torch.save(payload, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"with averaged weights \(training\.use_ema\), but holds none"):
        read_checkpoint(tmp_path / "a.ckpt")
    payload["cfg"]["training"]["use_ema"] = False
    torch.save(payload, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt").config.horizon == 16
