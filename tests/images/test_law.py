"""Exactness with prompts, labels and guidance: two-sample tests against the plain DDPM, and controls that must fail."""

import pytest
import torch
from torch import Tensor

from asd_policy.core import SampleStats, speculative
from asd_policy.core.verify import gaussian_rejection
from asd_policy.images import AsdImagePipeline, accelerate_pipeline
from tests.core import laws
from tests.images.tiny_models import pixel_pipeline, stable_diffusion

N = 1000
GUIDANCE = 4.0
DRAFTS = [("frozen", 4), ("reuse", 8), ("path", 8)]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("sd"), prediction_type="sample")


def prompted(pipe, seed: int, guidance_scale: float = GUIDANCE, **options) -> tuple[Tensor, SampleStats]:
    """Latents (N, C, H, W) of one prompt, and what they cost."""
    arguments = {"num_images_per_prompt": N, "num_inference_steps": 10, "output_type": "latent"}
    generator = torch.Generator().manual_seed(seed)
    fast = accelerate_pipeline(pipe, **options)
    x = fast("a b", negative_prompt="z", guidance_scale=guidance_scale, generator=generator, **arguments).images
    return x, fast.stats


@pytest.fixture(scope="module")
def expected(pipe) -> Tensor:
    """The plain sampler's: diffusers' own, as test_stable_diffusion.py shows."""
    return prompted(pipe, seed=1, draft="frozen", window=1)[0]


@pytest.mark.parametrize(("draft", "window"), DRAFTS)
def test_law_of_a_guided_prompt(pipe, expected, draft, window):
    x, stats = prompted(pipe, seed=2, draft=draft, window=window)
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5
    assert stats.rounds.float().mean() < 10
    assert stats.acceptance[:-1].min() < 0.9  # the drafts are wrong often enough to matter


def test_control_other_guidance(pipe, expected):
    x, _ = prompted(pipe, seed=2, guidance_scale=1.0, draft="path", window=8)
    assert laws.smallest_p(x, expected) < laws.REJECT


def always_accepting(m, mhat, s, xi, u):
    """Breaks the verifier: every draft is kept while the step is noisy."""
    return gaussian_rejection(m, mhat, s, xi, torch.zeros_like(u))


def test_control_broken_verifier(pipe, expected, monkeypatch):
    monkeypatch.setattr(speculative, "gaussian_rejection", always_accepting)
    x, _ = prompted(pipe, seed=2, draft="reuse", window=None)
    assert laws.smallest_p(x, expected) < laws.REJECT


COMPILED = pytest.param(False, "compile", marks=pytest.mark.slow)  # tests of capture draw the same samples compiled


@pytest.mark.parametrize(("thresholding", "capture"), [(False, "eager"), (True, "eager"), COMPILED])
def test_law_of_guided_labels(thresholding, capture):
    pipe = pixel_pipeline(3, prediction_type="sample", thresholding=thresholding, sample_max_value=1.5)
    arguments = {"class_labels": [0] * N, "guidance_scale": GUIDANCE, "negative_label": 2, "output_type": "latent"}
    plain = AsdImagePipeline(pipe, "ddpm")(N, generator=torch.Generator().manual_seed(1), **arguments).images
    fast = accelerate_pipeline(pipe, window=8, capture=capture)
    x = fast(N, generator=torch.Generator().manual_seed(2), **arguments).images
    assert fast.stats.acceptance[1:-1].min() < 1
    assert laws.smallest_p(x, plain) > laws.ACCEPT
    assert laws.largest_z(x, plain) < 5
