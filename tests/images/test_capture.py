"""Captured pipelines: the images of the eager one, from the same noise, whatever has changed since the last call."""

import copy
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0

from asd_policy.core.capture import CAPTURES
from asd_policy.errors import ConfigError, UnknownNameError
from asd_policy.images import AsdImagePipeline, accelerate_pipeline, ddpm_scheduler
from asd_policy.images.capture import MAX_SAMPLERS
from asd_policy.images.fingerprint import fingerprint
from tests.images.tiny_models import SCHEDULE, pixel_pipeline, pixel_unet, stable_diffusion

CAPTURED = [("compile", "cpu"), *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in CAPTURES)]
# Code for fewer than eight states is compiled apart: with four images and no draft of its own calls there is none.
ASD = {"sampler": "asd", "draft": "reuse", "window": 8}
GUIDED = {"guidance_scale": 4.0, "negative_label": 2}


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def check_same(captured, eager, n=4, **arguments) -> torch.Tensor:
    """Both draw the same images in the same rounds; the images."""
    arguments = {"class_labels": [0, 1, 1, 0, 2][:n], "output_type": "latent", **arguments}
    got, expected = (p(n, generator=generators(n), **arguments).images for p in (captured, eager))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert torch.equal(captured.stats.rounds, eager.stats.rounds)
    return got


def pair(pipe, capture, **options):
    return (AsdImagePipeline(pipe, capture=name, **options) for name in (capture, "eager"))


@pytest.mark.parametrize(("capture", "device"), CAPTURED)
def test_changes_count_at_the_next_call(capture, device):
    pipe = pixel_pipeline(3).to(device)
    captured, eager = pair(pipe, capture, **ASD)

    def scaled_in_place():
        with torch.no_grad():
            pipe.unet.conv_in.weight.mul_(1.1)

    def replaced_weights():
        pipe.unet.conv_in.weight.data = 0.9 * pipe.unet.conv_in.weight.data

    def another_unet():
        pipe.unet = copy.deepcopy(pipe.unet)
        scaled_in_place()

    def another_scheduler():
        pipe.scheduler = DDPMScheduler(**{**SCHEDULE, "beta_end": 0.2})

    def another_prediction():
        pipe.scheduler = ddpm_scheduler(pipe.scheduler, prediction_type="sample")

    before = check_same(captured, eager, **GUIDED)
    for change in (scaled_in_place, replaced_weights, another_unet, another_scheduler, another_prediction):
        change()
        after = check_same(captured, eager, **GUIDED)
        assert (after - before).abs().max() > 1e-3
        before = after
    for arguments in ({**GUIDED, "guidance_scale": 3.0}, {**GUIDED, "guidance_scale": 7.5}, {"n": 5, **GUIDED}):
        check_same(captured, eager, **arguments)
    check_same(captured, eager, num_inference_steps=7, **GUIDED)


@pytest.mark.parametrize(("capture", "device"), CAPTURED)
@pytest.mark.parametrize("options", [{"sampler": "ddpm"}, {"sampler": "ddim", "num_steps": 5}], ids=["ddpm", "ddim"])
def test_plain_samplers(capture, device, options):
    captured, eager = pair(pixel_pipeline(3).to(device), capture, **options)
    for n in (4, 5, 4):
        check_same(captured, eager, n, **GUIDED)


@pytest.mark.parametrize(("capture", "device"), CAPTURED)
def test_cut_batches(capture, device):
    pipe, sizes = pixel_pipeline(3).to(device), []
    captured, eager = pair(pipe, capture, max_states=17, **ASD)
    check_same(captured, eager, **GUIDED)
    pipe.unet.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    eager(4, [0] * 4, generator=generators(4), **GUIDED)
    assert max(sizes) == 16


class Strong(AttnProcessor2_0):
    """Attention with a setting, which an argument of the call may replace."""

    default = 1.0

    def __call__(self, attn, hidden_states, *arguments, strength: float | None = None, **options):
        strength = self.default if strength is None else strength
        return strength * super().__call__(attn, hidden_states, *arguments, **options)


@pytest.mark.parametrize(("capture", "device"), [pytest.param("compile", "cpu", marks=pytest.mark.slow), *CAPTURED[1:]])
def test_stable_diffusion(capture, device, tmp_path):
    pipe = stable_diffusion(tmp_path).to(device)
    options = {"draft": "reuse", "window": 8}
    captured, eager = (accelerate_pipeline(pipe, capture=name, **options) for name in (capture, "eager"))

    def check(**changes):
        arguments = {"negative_prompt": "z", "num_images_per_prompt": 4, "output_type": "latent", **changes}
        got, expected = (f("a b", **{**arguments, "generator": generators(4)}).images for f in (captured, eager))
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        assert torch.equal(captured.stats.rounds, eager.stats.rounds)
        return got

    drawn = [check(), check(guidance_scale=3.0), check(guidance_scale=1.0), check(guidance_rescale=0.7)]
    pipe.unet.set_attn_processor(strong := Strong())
    strong.default = 0.7
    drawn.append(check())
    strong.default = 0.4
    drawn += [check(), check(cross_attention_kwargs={"strength": 0.2})]
    assert all((one - other).abs().max() > 1e-3 for one, other in pairwise(drawn))


def test_a_compiled_run_can_be_watched_and_stopped():
    captured, eager = pair(pixel_pipeline(3), "compile", **ASD)
    told = {}
    for name, pipeline in (("compile", captured), ("eager", eager)):
        told[name] = []
        watcher = lambda frontier, x, to=told[name]: to.append((frontier, x))  # noqa: E731
        pipeline(4, [0] * 4, generator=generators(4), on_round=watcher, **GUIDED)
    assert len(told["eager"]) == len(told["compile"]) == int(captured.stats.rounds.max())
    for (got, x), (expected, expected_x) in zip(told["compile"], told["eager"], strict=True):
        assert torch.equal(got, expected)
        torch.testing.assert_close(x, expected_x, rtol=0, atol=1e-4)

    def stop(frontier, x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        captured(4, [0] * 4, on_round=stop)
    check_same(captured, eager, **GUIDED)


@pytest.mark.gpu
def test_a_bar_of_rounds_that_are_not_seen(capsys):
    pipe = pixel_pipeline().to("cuda")
    pipe.set_progress_bar_config(disable=False)
    accelerate_pipeline(pipe, capture="cuda_graph")()
    assert "20/20" in capsys.readouterr().err


def test_watchers_of_rounds_that_are_not_seen_are_refused(tmp_path):
    called = []
    pixels = accelerate_pipeline(pixel_pipeline(), capture="cuda_graph")
    with pytest.raises(ConfigError, match="on_round is called after each round"):
        pixels(on_round=lambda *arguments: called.append(1))
    fast = accelerate_pipeline(stable_diffusion(tmp_path), capture="cuda_graph")
    with pytest.raises(ConfigError, match="callback_on_step_end is called after each round"):
        fast("a", callback_on_step_end=lambda *arguments: called.append(1))
    for pipeline, arguments in ((pixels, {}), (fast, {"prompt": "a"})):
        with pytest.raises(ConfigError, match="needs samples on a CUDA device"):
            pipeline(**arguments)
    assert not called


@pytest.mark.parametrize("capture", ["jit", None, ["eager"]])
def test_captures_that_do_not_exist(tmp_path, capture):
    for pipe in (pixel_pipeline(), stable_diffusion(tmp_path)):
        with pytest.raises(UnknownNameError, match="capture"):
            accelerate_pipeline(pipe, capture=capture)


def hooked(unet):
    unet.mid_block.register_forward_hook(lambda *arguments: None)


def hooked_before(unet):
    unet.register_forward_pre_hook(lambda *arguments: None)


def wrapped(unet):
    unet.forward = unet.forward


def offloaded(unet):
    unet.conv_in._hf_hook = object()  # as accelerate marks what it moves


@pytest.mark.parametrize("capture", ["compile", "cuda_graph"])
@pytest.mark.parametrize("change", [hooked, hooked_before, wrapped, offloaded])
def test_what_a_call_does_beside_the_unets_code_is_refused(capture, change):
    pipe = pixel_pipeline()
    captured = accelerate_pipeline(pipe, capture=capture)
    change(pipe.unet)
    for refused in (captured, lambda: accelerate_pipeline(pipe, capture=capture)):
        with pytest.raises(ConfigError, match="capture='eager'"):
            refused()
    accelerate_pipeline(pipe)()


class Branching(torch.nn.SiLU):
    """What it computes depends on a value."""

    def forward(self, x):
        return x if x.mean() > 0 else -x


def test_a_unet_that_cannot_be_compiled_is_named():
    pipe = pixel_pipeline()
    pipe.unet.conv_act = Branching()
    with pytest.raises(ConfigError, match=r"cannot be captured(.|\n)*capture='eager'"):
        AsdImagePipeline(pipe, "ddpm", capture="compile")()
    AsdImagePipeline(pipe, "ddpm")()


class TestKeptSamplers:
    """What CUDA graphs belong to is kept, and made anew for whatever a graph would not see."""

    def test_while_nothing_has_changed(self):
        pipe = pixel_pipeline(3)
        pipeline = accelerate_pipeline(pipe, capture="cuda_graph")
        first = pipeline._sampler(None, 4.0)
        other = pipeline._sampler(None, 3.0)
        pipe.unet.conv_in.weight.data.mul_(2)  # in place: a graph reads it
        assert pipeline._sampler(None, 4.0) is first
        assert pipeline._sampler(None, 3.0) is other is not first
        for steps in range(1, MAX_SAMPLERS + 1):
            pipeline._sampler(steps, 4.0)
        assert pipeline._sampler(None, 4.0) is not first

    @pytest.mark.parametrize(
        "change",
        [
            lambda pipe: setattr(pipe, "unet", pixel_unet(num_class_embeds=3)),
            lambda pipe: setattr(pipe.unet.conv_in.weight, "data", pipe.unet.conv_in.weight.data.clone()),
            lambda pipe: pipe.unet.to(torch.bfloat16),
            lambda pipe: pipe.unet.train(),
            lambda pipe: setattr(pipe.unet, "conv_act", torch.nn.ReLU()),
            lambda pipe: setattr(pipe.unet.down_blocks[0].resnets[0], "output_scale_factor", 2.0),
            lambda pipe: setattr(pipe, "scheduler", DDPMScheduler(**{**SCHEDULE, "beta_end": 0.2})),
            lambda pipe: setattr(pipe, "scheduler", ddpm_scheduler(pipe.scheduler, clip_sample=False)),
        ],
    )
    def test_a_change(self, change):
        pipe = pixel_pipeline(3)
        pipeline = accelerate_pipeline(pipe, capture="cuda_graph")
        first = pipeline._sampler(None, 4.0)
        change(pipe)
        second = pipeline._sampler(None, 4.0)
        assert second is not first
        assert pipeline._sampler(None, 4.0) is second

    def test_autocast(self):
        pipeline = accelerate_pipeline(pixel_pipeline(), capture="cuda_graph")
        first = pipeline._sampler(None, 1.0)
        with torch.autocast("cpu", torch.bfloat16):
            assert pipeline._sampler(None, 1.0) is not first


class Settings:
    """Holds what it is given, and itself."""

    def __init__(self, **values):
        self.itself = self
        vars(self).update(values)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"scaling": {"default": 1.0}}, {"scaling": {"default": 0.5}}),
        ({"active": ["a"]}, {"active": ["b"]}),
        ({"flag": True}, {"flag": 1}),
        ({"number": torch.tensor(1.0)}, {"number": torch.tensor(2.0)}),
        ({"inner": Settings(depth=1)}, {"inner": Settings(depth=2)}),
        ({"function": lambda: 1}, {"function": lambda: 1}),
        ({"tensor": torch.zeros(2)}, {"tensor": torch.zeros(2)}),
    ],
    ids=lambda values: next(iter(values)),
)
def test_fingerprints(one, other):
    assert fingerprint(Settings(**one)) == fingerprint(Settings(**one))
    assert hash(fingerprint(Settings(**one))) == hash(fingerprint(Settings(**one)))
    assert fingerprint(Settings(**one)) != fingerprint(Settings(**other))
