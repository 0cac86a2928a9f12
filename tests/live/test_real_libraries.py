"""`accelerate` on policies of lerobot and of real-stanford themselves, where they are installed.

lerobot: pip install 'lerobot==0.4.4' (Python 3.10 and 3.11) or 'lerobot[diffusion]==0.6.1' (Python 3.12).
real-stanford: git clone https://github.com/real-stanford/diffusion_policy, and its folder on PYTHONPATH. Its hybrid
policies need robomimic 0.2.0 before the installed one there (pip install --no-deps --target FOLDER robomimic==0.2.0).
robomimic's own policies are in the other tests.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from asd_policy import accelerate
from asd_policy.errors import ConfigError

NUM_STEPS, BATCH = 20, 2
STATE, ENV, ACTION, SIDE = 9, 14, 7, 48
HORIZON, TO, TA = 16, 2, 8
SETTINGS = {
    "all steps": {},
    "half of the steps": {"num_inference_steps": NUM_STEPS // 2},
    "predicts the sample": {"prediction_type": "sample"},
    "not clipped": {"clip_sample": False},
}


def same_from_the_same_noise(policy: Any, episode: Callable[[Any], Tensor], steps: int = NUM_STEPS) -> None:
    """Compare the policy with itself accelerated; `episode` resets the policy and returns its actions."""

    def run(one: Any) -> Tensor:
        torch.manual_seed(5)
        return episode(one)

    stock, left = run(policy), torch.get_rng_state()
    policy.reset()
    accelerate(policy, "ddpm")
    ours = run(policy)
    assert torch.equal(left, torch.get_rng_state())
    # Random networks amplify rounding: one bit of the start alone moves a chunk by up to 2e-5.
    assert float((ours - stock).abs().max()) < 1e-4 * (1 + float(stock.abs().max()))
    assert policy.asd.stats.rounds.tolist() == [steps] * BATCH
    policy.asd.restore()
    assert torch.equal(run(policy), stock)
    policy.reset()
    names = list(policy.state_dict())
    accelerate(policy, draft="path", window=None)
    drawn = run(policy)
    assert not torch.equal(drawn, stock)
    assert int(policy.asd.stats.rounds.max()) < steps
    assert list(policy.state_dict()) == names
    assert torch.equal(run(copy.deepcopy(policy)), drawn)


# lerobot


def lerobot_policy(images: bool, **settings: Any) -> Any:
    pytest.importorskip("lerobot", reason="lerobot is not installed here; see the top of this file")
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))}
    if images:
        inputs["observation.images.front"] = PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE))
    else:
        inputs["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (ENV,))
    config = DiffusionConfig(
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        down_dims=(16, 32),
        diffusion_step_embed_dim=16,
        device="cpu",
        pretrained_backbone_weights=None,
        **{"num_train_timesteps": NUM_STEPS, "crop_shape": (40, 40), **settings},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiffusionPolicy(config).eval()


def lerobot_observation(i: int, images: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(i)
    obs = {"observation.state": torch.randn(BATCH, STATE, generator=generator)}
    if images:
        return obs | {"observation.images.front": torch.rand(BATCH, 3, SIDE, SIDE, generator=generator)}
    return obs | {"observation.environment_state": torch.randn(BATCH, ENV, generator=generator)}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("images", [False, True], ids=["state", "images"])
def test_lerobot(images, settings):
    def episode(policy: Any) -> Tensor:
        policy.reset()
        return torch.stack([policy.select_action(lerobot_observation(i, images)) for i in range(2 * TA)])

    chosen = SETTINGS[settings]
    policy = lerobot_policy(images, **chosen)
    same_from_the_same_noise(policy, episode, chosen.get("num_inference_steps", NUM_STEPS))


def test_lerobots_chunks_and_noise():
    """`predict_action_chunk`, and the start that lerobot takes as `noise`."""
    policy, noise = (
        lerobot_policy(False),
        torch.randn(BATCH, HORIZON, ACTION, generator=torch.Generator().manual_seed(1)),
    )

    def chunk() -> Tensor:
        policy.reset()
        policy.select_action(lerobot_observation(0, False))
        torch.manual_seed(5)
        return policy.predict_action_chunk(lerobot_observation(0, False), noise=noise)

    stock = chunk()
    policy.reset()
    accelerate(policy, "ddpm")
    torch.testing.assert_close(chunk(), stock, atol=1e-5, rtol=1e-5)
    assert stock.shape == (BATCH, TA, ACTION)


def test_lerobots_compiled_network_is_unwrapped():
    policy = lerobot_policy(False, compile_model=True)
    accelerate(policy)
    policy.select_action(lerobot_observation(0, False))
    assert int(policy.asd.stats.rounds.max()) < NUM_STEPS


def test_lerobots_ddim():
    with pytest.raises(ConfigError, match="DDIMScheduler in 10 steps"):
        accelerate(lerobot_policy(False, noise_scheduler_type="DDIM", num_inference_steps=10))


# real-stanford


def stanford(module: str, name: str) -> Any:
    pytest.importorskip("diffusion_policy", reason="diffusion_policy is not on PYTHONPATH; see the top of this file")
    return getattr(pytest.importorskip(f"diffusion_policy.{module}"), name)


def stanford_scheduler(settings: dict[str, Any]) -> Any:
    from diffusers import DDPMScheduler

    chosen = {name: value for name, value in settings.items() if name != "num_inference_steps"}
    return DDPMScheduler(num_train_timesteps=NUM_STEPS, beta_schedule="squaredcos_cap_v2", **chosen)


def stanford_unet(kind: str, settings: dict[str, Any]) -> Any:
    conditions = {"global": (None, STATE * TO), "local": (STATE, None), "inpainting": (None, None)}[kind]
    dim = ACTION + STATE * (kind == "inpainting")
    net = stanford("model.diffusion.conditional_unet1d", "ConditionalUnet1D")(dim, *conditions, 16, [16, 32], 3)
    make = stanford("policy.diffusion_unet_lowdim_policy", "DiffusionUnetLowdimPolicy")
    return make(
        net,
        stanford_scheduler(settings),
        *(HORIZON, STATE, ACTION, TA, TO, settings.get("num_inference_steps")),
        obs_as_local_cond=kind == "local",
        obs_as_global_cond=kind == "global",
    )


def stanford_transformer(kind: str, settings: dict[str, Any]) -> Any:
    conditioned, dim = kind == "global", ACTION + STATE * (kind == "inpainting")
    cond_dim = STATE if conditioned else 0
    net = stanford("model.diffusion.transformer_for_diffusion", "TransformerForDiffusion")(
        *(dim, dim, HORIZON, TO, cond_dim), n_layer=2, n_head=2, n_emb=16, causal_attn=True
    )
    make = stanford("policy.diffusion_transformer_lowdim_policy", "DiffusionTransformerLowdimPolicy")
    sizes = (HORIZON, STATE, ACTION, TA, TO, settings.get("num_inference_steps"))
    return make(net, stanford_scheduler(settings), *sizes, obs_as_cond=conditioned)


SHAPE_META = {
    "obs": {"cam": {"shape": (3, SIDE, SIDE), "type": "rgb"}, "obs": {"shape": (STATE,), "type": "low_dim"}},
    "action": {"shape": (ACTION,)},
}
SMALL = {"down_dims": (16, 32), "diffusion_step_embed_dim": 16, "kernel_size": 3}


def stanford_image(kind: str, settings: dict[str, Any]) -> Any:
    encoder = stanford("model.vision.multi_image_obs_encoder", "MultiImageObsEncoder")(
        SHAPE_META,
        stanford("model.vision.model_getter", "get_resnet")("resnet18"),
        crop_shape=(40, 40),
        random_crop=False,
        use_group_norm=True,
    )
    make = stanford("policy.diffusion_unet_image_policy", "DiffusionUnetImagePolicy")
    sizes = (HORIZON, TA, TO, settings.get("num_inference_steps"))
    return make(SHAPE_META, stanford_scheduler(settings), encoder, *sizes, kind == "global", **SMALL)


def stanford_hybrid(kind: str, settings: dict[str, Any]) -> Any:
    make = stanford("policy.diffusion_unet_hybrid_image_policy", "DiffusionUnetHybridImagePolicy")
    return make(
        SHAPE_META,
        stanford_scheduler(settings),
        *(HORIZON, TA, TO, settings.get("num_inference_steps"), kind == "global"),
        crop_shape=(40, 40),
        obs_encoder_group_norm=True,
        eval_fixed_crop=True,
        **SMALL,
    )


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (stanford_unet, "global"),
        (stanford_unet, "local"),
        (stanford_unet, "inpainting"),
        (stanford_transformer, "global"),
        (stanford_transformer, "inpainting"),
        (stanford_image, "global"),
        (stanford_image, "inpainting"),
        (stanford_hybrid, "global"),
        (stanford_hybrid, "inpainting"),
    ],
)
def test_real_stanford(make, kind, settings):
    images = make in (stanford_image, stanford_hybrid)
    normalizer = stanford("model.common.normalizer", "LinearNormalizer")()
    fields = {"obs": (STATE,), "action": (ACTION,), **({"cam": (3, SIDE, SIDE)} if images else {})}
    generator = torch.Generator().manual_seed(1)
    normalizer.fit({field: torch.randn(50, *shape, generator=generator) for field, shape in fields.items()})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = make(kind, SETTINGS[settings])
    policy.set_normalizer(normalizer)

    def episode(one: Any) -> Tensor:
        one.reset()
        with torch.no_grad():
            return torch.stack([one.predict_action(observation(i))["action_pred"] for i in range(3)])

    def observation(i: int) -> dict[str, Tensor]:
        drawn = torch.Generator().manual_seed(i)
        obs = {"obs": torch.randn(BATCH, TO, STATE, generator=drawn)}
        return obs | ({"cam": torch.rand(BATCH, TO, 3, SIDE, SIDE, generator=drawn)} if images else {})

    same_from_the_same_noise(policy.eval(), episode, SETTINGS[settings].get("num_inference_steps", NUM_STEPS))
