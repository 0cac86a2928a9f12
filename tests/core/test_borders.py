"""What callers hand in and get back: types, devices, shapes and seeds."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from asd_policy.core import (
    DRAFTS,
    AsdSampler,
    EpsilonDenoiser,
    NoiseTape,
    Schedule,
    sample_ddim,
    sample_ddpm,
    seeded_generator,
)
from asd_policy.core.speculative import begin, speculative_round
from asd_policy.errors import ConfigError

SCHEDULE = Schedule.from_diffusers({"num_train_timesteps": 12, "beta_schedule": "squaredcos_cap_v2"})


def network(x, t=None, cond=None):
    return torch.tanh(x)


def samples(denoiser):
    """Two of every sampler, from the same seed."""
    generator = [torch.Generator().manual_seed(0) for _ in range(2 + len(DRAFTS))]
    yield sample_ddpm(denoiser, SCHEDULE, (3,), 2, generator=generator[0])
    yield sample_ddim(denoiser, SCHEDULE, (3,), 2, generator=generator[1], num_steps=4)
    for draft, own in zip(DRAFTS, generator[2:], strict=True):
        yield AsdSampler(denoiser, SCHEDULE, (3,), draft=draft, window=4)(2, generator=own)[0]


def test_samples_are_ordinary_tensors():
    weight = nn.Parameter(torch.ones(3))
    for x in samples(EpsilonDenoiser(lambda x, t, cond: network(x) * weight, SCHEDULE)):
        assert not x.requires_grad
        assert not x.is_inference()
        (x * weight).sum().backward()
        x.clamp_(-1, 1)
    sampler = AsdSampler(EpsilonDenoiser(network, SCHEDULE), SCHEDULE, (3,))
    draws = sampler.draw(2, on_round=lambda frontier, x: x.add_(0))
    assert not any(t.is_inference() for t in (draws.predictions, draws.stats.rounds, draws.stats.acceptance))


def test_the_default_type_changes_nothing():
    denoiser = EpsilonDenoiser(network, SCHEDULE)
    before = list(samples(denoiser))
    torch.set_default_dtype(torch.float64)
    try:
        after = list(samples(denoiser))
    finally:
        torch.set_default_dtype(torch.float32)
    for x, y in zip(before, after, strict=True):
        assert y.dtype == torch.float32
        assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_denoiser_of_another_type_is_sampled_in_float32(dtype):
    for x in samples(lambda x, t, cond: network(x).to(dtype)):
        assert x.dtype == torch.float32


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x[:, :1], r"returned shape \(2, 1\)"),
        (lambda x: x.to(torch.complex64), "complex64"),
        (lambda x: (x,), "returned a tuple"),
        (lambda x: None, "returned a NoneType"),
    ],
)
def test_a_denoiser_that_returns_something_else_is_refused(output, message):
    with pytest.raises(ConfigError, match=message):
        sample_ddpm(lambda x, t, cond: output(x), SCHEDULE, (3,), 2)


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_sample_may_be_a_single_number(draft):
    """Each of the samples of a batch is a chain of its own: what one of them does is nothing to the others."""
    sampler = AsdSampler(lambda x, t, cond: torch.tanh(3 * x), SCHEDULE, (), draft=draft, window=None)
    vector = AsdSampler(lambda x, t, cond: torch.tanh(3 * x), SCHEDULE, (1,), draft=draft, window=None)
    (x, stats), (y, same) = (s(50, None, torch.Generator().manual_seed(0)) for s in (sampler, vector))
    assert x.shape == (50,)
    torch.testing.assert_close(x, y.squeeze(1))
    assert torch.equal(stats.rounds, same.rounds)


@pytest.mark.parametrize("event_shape", [(0,), (3, -1), (2.5,), ("3",), (True,)])
def test_event_shapes_that_are_none(event_shape):
    with pytest.raises(ConfigError, match="event_shape"):
        AsdSampler(network, SCHEDULE, event_shape)
    with pytest.raises(ConfigError, match="event_shape"):
        sample_ddpm(network, SCHEDULE, event_shape)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, "2", None, True])
def test_batch_sizes_that_are_none(batch_size):
    for sample in (AsdSampler(network, SCHEDULE, (3,)), lambda n: sample_ddpm(network, SCHEDULE, (3,), n)):
        with pytest.raises(ConfigError, match="batch_size"):
            sample(batch_size)


@pytest.mark.parametrize("window", [0, -3, 2.5, "24", True, (1, 2), (0,) * 12, [1.5] * 12])
def test_windows_that_are_none(window):
    with pytest.raises(ConfigError, match="window is"):
        AsdSampler(network, SCHEDULE, (3,), window=window)


def test_integers_of_numpy_are_integers():
    sampler = AsdSampler(network, SCHEDULE, (np.int64(3),), window=np.int32(4))
    x, _ = sampler(np.int64(2))
    assert x.shape == (2, 3)
    assert sample_ddim(network, SCHEDULE, (3,), np.uint8(2), num_steps=np.int64(4)).shape == (2, 3)
    assert SCHEDULE.with_num_steps(np.int16(5)).num_steps == 5


@pytest.mark.parametrize("cond", [np.zeros((2, 3)), [1, 2], torch.tensor(1.0), torch.zeros(3, 3)])
def test_conditions_that_are_none(cond):
    with pytest.raises(ConfigError, match="cond "):
        sample_ddpm(network, SCHEDULE, (3,), 2, cond)


@pytest.mark.parametrize("eta", [-0.1, float("nan"), float("inf")])
def test_etas_that_are_none(eta):
    with pytest.raises(ConfigError, match="eta is"):
        sample_ddim(network, SCHEDULE, (3,), eta=eta)


def test_predictions_before_a_clip_that_cannot_be_told_are_refused():
    class Clipped(nn.Module):
        clip = 1.0

        def forward(self, x, t, cond=None):
            return x.clamp(-1, 1)

    with pytest.raises(ConfigError, match="use_clipped_model_output"):
        sample_ddim(Clipped(), SCHEDULE, (3,), use_clipped_model_output=False)


def test_a_function_is_sampled_where_it_is_asked_to():
    """On the meta device, whose tensors have no values: no sample is finished, but the network is asked there."""
    seen = []

    def note(x, t, cond):
        seen.append((x.device.type, t.device.type))
        raise InterruptedError

    for sample in (sample_ddpm, sample_ddim):
        with pytest.raises(InterruptedError):
            sample(note, SCHEDULE, (3,), device="meta")
    with pytest.raises(InterruptedError):
        AsdSampler(note, SCHEDULE, (3,), device="meta", draft="frozen").draw()
    assert seen == [("meta", "meta")] * 3


def test_a_module_is_sampled_where_it_is():
    denoiser = EpsilonDenoiser(network, SCHEDULE)
    assert sample_ddpm(denoiser, SCHEDULE, (3,), device="cpu").device.type == "cpu"
    with pytest.raises(ConfigError, match="device is meta, but the denoiser lies on cpu"):
        sample_ddpm(denoiser, SCHEDULE, (3,), device="meta")
    for wrong in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match="cannot be used here"):
            AsdSampler(network, SCHEDULE, (3,), device=wrong)


def test_a_sampler_keeps_its_schedule():
    sampler = AsdSampler(network, SCHEDULE, (3,))
    with pytest.raises(AttributeError):
        sampler.schedule = SCHEDULE.with_num_steps(4)


SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64 + 1, 2**200]


def test_different_seeds_give_different_noise():
    noise = {tuple(torch.randn(4, generator=seeded_generator(seed)).tolist()) for seed in SEEDS}
    assert len(noise) == len(SEEDS)
    for seed in SEEDS[:4]:  # as torch seeds
        expected = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.randn(4, generator=seeded_generator(seed)), expected)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint32, torch.tensor])
def test_integers_of_every_kind_are_seeds(kind):
    assert torch.equal(*(torch.randn(4, generator=seeded_generator(seed)) for seed in (kind(7), 7)))


@pytest.mark.parametrize("seed", [-1, 1.0, "1", True, np.float64(2), [1]])
def test_seeds_that_are_none(seed):
    with pytest.raises(ConfigError, match="seed is"):
        seeded_generator(seed)


def test_no_seed_is_another_one_each_time():
    assert not torch.equal(*(torch.randn(4, generator=seeded_generator(None)) for _ in range(2)))


def test_a_tape_stands_for_the_generator_that_drew_it():
    sampler = AsdSampler(network, SCHEDULE, (3,), window=4)
    tape = NoiseTape.draw(2, 12, (3,), torch.Generator().manual_seed(0))
    for noise in (tape, [torch.Generator().manual_seed(seed) for seed in (1, 2)]):
        assert sampler(2, generator=noise)[0].shape == (2, 3)
    assert torch.equal(sampler(2, generator=tape)[0], sampler(2, generator=torch.Generator().manual_seed(0))[0])
    double = NoiseTape(*(rows.double() for rows in tape))
    assert torch.equal(sampler(2, generator=double)[0], sampler(2, generator=tape)[0])
    with pytest.raises(ConfigError, match="noise tape has start, xi and u of shapes"):
        sampler(2, generator=tape._replace(u=tape.u[:, 1:]))


@pytest.mark.parametrize("generator", [0, "cpu", [1, 2], np.random.default_rng(0), [torch.Generator()]])
def test_generators_that_are_none(generator):
    with pytest.raises(ConfigError, match="generator"):
        sample_ddpm(network, SCHEDULE, (3,), 2, generator=generator)


class NoFloat64(TorchDispatchMode):
    """A device without float64, such as Apple's: here the meta device, whose tensors have no values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            assert not (isinstance(tensor, torch.Tensor) and tensor.is_meta and tensor.dtype == torch.float64), func
        return result


@pytest.mark.parametrize("draft", DRAFTS)
def test_nothing_is_float64_on_the_device(draft):
    denoiser = EpsilonDenoiser(network, SCHEDULE).to("meta")
    sampler = AsdSampler(denoiser, SCHEDULE, (3,), draft=draft, window=4)
    with NoFloat64():
        batch = sampler.batch(2, None, None)
        state = speculative_round(
            batch, sampler.draft, begin(batch, sampler.draft, torch.zeros(2, 12, 3, device="meta")), 4
        )
    assert state.x.dtype == torch.float32
    with pytest.raises(AssertionError), NoFloat64():
        torch.zeros(1, device="meta").double()


def test_the_plain_samplers_hold_nothing_in_float64_on_the_device():
    calls = []

    def net(x, t, cond):
        calls.append(x.dtype)
        if len(calls) % 3 == 0:
            raise InterruptedError  # the samples have no values to check
        return x

    for sample in (sample_ddpm, sample_ddim):
        with pytest.raises(InterruptedError), NoFloat64():
            sample(net, SCHEDULE, (3,), device="meta")
    assert set(calls) == {torch.float32}
