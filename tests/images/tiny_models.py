"""Diffusers models of a few thousand random weights, made on the spot."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

EVENT = (1, 4, 4)
LATENT = (4, 2, 2)
SCHEDULE = {"num_train_timesteps": 20, "beta_start": 0.005, "beta_end": 0.4}  # nearly pure noise after 20 steps
BLOCKS = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}


def seeded(make, **config):
    """A model whose weights come from seed 0, without touching the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(**config).eval()


def pixel_unet(**config) -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), **BLOCKS}
    return seeded(UNet2DModel, sample_size=4, in_channels=1, out_channels=1, add_attention=False, **blocks, **config)


def pixel_pipeline(num_class_embeds: int | None = None, **scheduler) -> DDPMPipeline:
    unet = pixel_unet(num_class_embeds=num_class_embeds)
    return quiet(DDPMPipeline(unet, DDPMScheduler(**{**SCHEDULE, **scheduler})))


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Knows single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(folder / "vocab.json", folder / "merges.txt", model_max_length=6)


def text_encoder(vocabulary: int, kind=CLIPTextModel, layers: int = 1):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPTextConfig(vocab_size=vocabulary, max_position_embeddings=6, projection_dim=4, **sizes, **special)
    return seeded(kind, config=config)


def text_unet(**config) -> UNet2DConditionModel:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",), **BLOCKS}
    return seeded(UNet2DConditionModel, **{"sample_size": LATENT[1], "cross_attention_dim": 8, **blocks, **config})


def autoencoder() -> AutoencoderKL:
    return seeded(
        AutoencoderKL,
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=8,
    )


def latent_scheduler(**scheduler) -> DDPMScheduler:
    return DDPMScheduler(**{**SCHEDULE, "clip_sample": False, "steps_offset": 1, **scheduler})


def stable_diffusion(folder: Path, **scheduler) -> StableDiffusionPipeline:
    """Saved as a folder and loaded back from it, as a user would."""
    folder.mkdir(exist_ok=True)
    words = tokenizer(folder)
    pipe = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(len(words)),
        tokenizer=words,
        unet=text_unet(),
        scheduler=latent_scheduler(**scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return quiet(StableDiffusionPipeline.from_pretrained(folder))


def stable_diffusion_xl(folder: Path, **scheduler) -> StableDiffusionXLPipeline:
    """As `stable_diffusion`: two text encoders of width 8, pooled embeddings of width 4."""
    folder.mkdir(exist_ok=True)
    words = tokenizer(folder)
    sizes = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 2,
        "projection_class_embeddings_input_dim": 6 * 2 + 4,
    }
    pipe = StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(len(words), layers=2),
        text_encoder_2=text_encoder(len(words), CLIPTextModelWithProjection, layers=3),
        tokenizer=words,
        tokenizer_2=words,
        unet=text_unet(cross_attention_dim=16, **sizes),
        scheduler=latent_scheduler(**scheduler),
    )
    pipe.save_pretrained(folder)
    return quiet(StableDiffusionXLPipeline.from_pretrained(folder))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe
