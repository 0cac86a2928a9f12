"""GaussianChain: what it takes and refuses, where it starts, and any coefficients under every draft."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from asd_policy.core import (
    DRAFTS,
    SIGMA_DENOISERS,
    Asd,
    AsdSampler,
    Ddim,
    Ddpm,
    EpsilonDenoiser,
    FlowPath,
    GaussianChain,
    NoiseTape,
    Schedule,
    VePath,
    VpPath,
    chain_sampler,
    ddim_chain,
    sample_chain,
    sample_ddim,
    sample_ddpm,
    sde_chain,
    unclipped_ddim,
)
from asd_policy.errors import ConfigError
from tests.core import laws

SCHEDULE = Schedule.from_betas(torch.linspace(0.01, 0.2, 10))
CHAIN = GaussianChain(
    torch.linspace(0.9, 0.0, 6),
    torch.linspace(0.1, 1.0, 6),
    torch.linspace(0.5, 0.0, 6),
    torch.linspace(3, 0.1, 6),
    2.0,
)


def denoiser(x, t, cond):
    return torch.tanh(2 * x) * 0.8


def tape_of(chain, n=3, shape=(2,), seed=0):
    return NoiseTape.draw(n, chain.num_steps, shape, torch.Generator().manual_seed(seed))


def test_it_is_frozen_and_equal_by_value():
    assert CHAIN.num_steps == 6
    assert replace(CHAIN) == CHAIN
    assert hash(replace(CHAIN)) == hash(CHAIN)
    assert replace(CHAIN, start_std=1.0) != CHAIN
    assert replace(CHAIN, s=2 * CHAIN.s) != CHAIN
    assert CHAIN != 3
    with pytest.raises(FrozenInstanceError):
        CHAIN.start_std = 1.0


def test_arrays_and_lists_are_vectors_too():
    other = GaussianChain([0.5, 0.0], np.array([0.5, 1.0], dtype=np.float32), (1, 0), [7, 3])
    assert other.a.dtype == other.b.dtype == other.s.dtype == torch.float64
    assert other.timesteps.dtype == torch.int64
    assert replace(other, timesteps=[7.5, 3]).timesteps.dtype == torch.float32
    with torch.device("meta"):
        assert replace(other, a=[0.5, 0.0]) == other


def test_changing_the_arguments_afterwards_changes_no_chain():
    vectors = [torch.rand(3, dtype=torch.float64) for _ in range(3)] + [torch.rand(3)]
    chain = GaussianChain(*vectors)
    expected = replace(chain)
    for vector in vectors:
        vector.mul_(2)
    assert chain == expected


@pytest.mark.parametrize("path", [VpPath(), VePath(), FlowPath()], ids=["vp", "ve", "flow"])
def test_an_sde_that_begins_later_starts_with_less_noise(path):
    assert sde_chain(path, torch.linspace(1, 0.1, 5)).start_std == path.start_std
    late = sde_chain(path, torch.linspace(0.5, 0.1, 5))
    sigma = path.levels(torch.tensor([0.5, 1.0], dtype=torch.float64)).sigma
    assert late.start_std == pytest.approx(float(path.start_std * sigma[0] / sigma[1]))


def test_a_denoisers_own_forward_is_called_where_its_network_precomputes_terms():
    class Network(nn.Module):
        def forward(self, x, t, cond):
            return torch.zeros_like(x)

        def prepare(self, timesteps, cond):
            return cond

        def predict(self, x, step, row, prepared):
            return torch.zeros_like(x)

    class Guided(EpsilonDenoiser):
        def forward(self, x, t, cond=None):
            return super().forward(x, t, cond) + 0.5

    plain = EpsilonDenoiser(Network(), SCHEDULE)
    replaced, hooked = EpsilonDenoiser(Network(), SCHEDULE), EpsilonDenoiser(Network(), SCHEDULE)
    replaced.forward = lambda x, t, cond=None: plain(x, t, cond) + 0.5
    hooked.register_forward_hook(lambda module, inputs, output: output + 0.5)
    guided, tape, cond = Guided(Network(), SCHEDULE), tape_of(SCHEDULE), torch.zeros(3, 1)
    expected = sample_chain(lambda x, t, cond: plain(x, t, cond) + 0.5, SCHEDULE, (2,), 3, cond, tape)
    for own in (guided, replaced, hooked):
        torch.testing.assert_close(sample_chain(own, SCHEDULE, (2,), 3, cond, tape), expected)
        with pytest.raises(ConfigError, match="predictions before they are clipped"):
            unclipped_ddim(own, SCHEDULE, 5)


@pytest.mark.parametrize("draft", DRAFTS)
def test_samples_are_float32_whatever_torchs_default_type(draft):
    sampler, default = AsdSampler(denoiser, CHAIN, (2,), draft=draft), torch.get_default_dtype()
    expected = sampler(3, generator=tape_of(CHAIN))[0]
    try:
        torch.set_default_dtype(torch.float64)
        got = sampler(3, generator=tape_of(CHAIN))[0]
    finally:
        torch.set_default_dtype(default)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"s": [0.1, -0.1]}, "s is .*at least 0"),
        ({"a": [0.1, float("nan")]}, "a is .*finite"),
        ({"b": [0.1, float("inf")]}, "b is .*finite"),
        ({"s": [1e39, 0.0]}, "s is .*finite in float32"),
        ({"timesteps": [float("nan"), 0.0]}, "timesteps is .*finite"),
        ({"a": [0.1]}, r"lengths \[1, 2, 2, 2\]"),
        ({"timesteps": [3, 2, 1]}, r"lengths \[2, 2, 2, 3\]"),
        ({name: [] for name in ("a", "b", "s", "timesteps")}, r"lengths \[0, 0, 0, 0\].*at least 1"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "a is .*complex64; expected a vector of real numbers"),
        ({"b": torch.ones(2, 1)}, r"b is a tensor of shape \(2, 1\)"),
        ({"s": torch.tensor(0.5)}, r"s is a tensor of shape \(\)"),
        ({"s": torch.tensor([True, False])}, "s is .*bool"),
        ({"a": "ab"}, "a is 'ab'"),
        ({"b": None}, "b is None"),
        ({"timesteps": [object()]}, "timesteps is"),
        ({"start_std": 0}, "start_std is 0; expected a positive number"),
        ({"start_std": -1.0}, "start_std is"),
        ({"start_std": float("inf")}, "start_std is"),
        ({"start_std": "1"}, "start_std is"),
        ({"start_std": True}, "start_std is"),
    ],
)
def test_what_is_no_chain_is_refused(changes, message):
    chain = {"a": [0.5, 0.0], "b": [0.5, 1.0], "s": [1.0, 0.0], "timesteps": [1, 0]}
    with pytest.raises(ConfigError, match=message):
        GaussianChain(**chain | changes)


@pytest.mark.parametrize("wrong", [None, 3, "ddpm", torch.linspace(0.1, 0.2, 5), {"a": 1}])
def test_what_is_neither_schedule_nor_chain_is_refused(wrong):
    for make in (AsdSampler, sample_chain, chain_sampler):
        with pytest.raises(ConfigError, match="expected a Schedule or a GaussianChain"):
            make(denoiser, wrong, (2,))


def test_an_eta_with_more_noise_than_ddim_has_room_for_is_refused():
    for make in (lambda eta: ddim_chain(SCHEDULE, 5, eta), lambda eta: sample_ddim(denoiser, SCHEDULE, (2,), eta=eta)):
        make(1.0)
        with pytest.raises(ConfigError, match=r"eta is 3\.0: with \d+ steps.*0 to 1 fits every schedule"):
            make(3.0)


@pytest.mark.parametrize("name", ["use_clipped_model_output", "set_alpha_to_one"])
@pytest.mark.parametrize("value", [0, np.False_, "no"], ids=repr)
@pytest.mark.parametrize("spec", [Asd, Ddim])
def test_switches_of_ddim_are_bools(spec, name, value):
    with pytest.raises(ConfigError, match=f"{name} is .*; expected True, False or None"):
        spec(eta=0.5, **{name: value})


def test_ddim_strides_schedules_alone():
    assert Ddpm().build(denoiser, CHAIN, (2,)).num_steps == 6
    with pytest.raises(ConfigError, match="strides the timesteps of a Schedule; got a GaussianChain"):
        Ddim(3).build(denoiser, CHAIN, (2,))


@pytest.mark.parametrize("make", [AsdSampler, chain_sampler])
def test_a_schedules_denoiser_refuses_times_that_it_does_not_know(make):
    """It looks its weights up by the timestep: a negative one would be another row, without an error."""
    table = EpsilonDenoiser(denoiser, SCHEDULE)
    for times in ([3.5, 1.0], [3.0, 1.0], [10, 0], [3, -1]):
        with pytest.raises(ConfigError, match=r"takes integers, 0 to 9"):
            make(table, GaussianChain([0.5, 0], [0.5, 1], [1, 0], times), (2,))
    for sigma in SIGMA_DENOISERS.values():
        for times in ([9.5, 1.0], [3.0, -0.1]):
            with pytest.raises(ConfigError, match="takes 0 to 9, its schedule's training timesteps and the times"):
                make(sigma(denoiser, SCHEDULE), GaussianChain([0.5, 0], [0.5, 1], [1, 0], times), (2,))
    longer = Schedule.from_betas(torch.linspace(0.01, 0.2, 12))
    with pytest.raises(ConfigError, match="takes integers, 0 to 9"):
        make(table, longer, (2,))


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        (
            "reuse",
            [
                [0.32598069310188293, -0.6318158507347107, -0.45704546570777893],
                [0.57407146692276, 1.0, 0.7975040674209595],
                [0.19695760309696198, -1.0, -0.06811533868312836],
            ],
        ),
        (
            "frozen",
            [
                [-0.734024167060852, -0.9132193326950073, -0.13599075376987457],
                [0.8033173680305481, 1.0, 0.7907004952430725],
                [-0.4736507534980774, -1.0, -0.18168091773986816],
            ],
        ),
    ],
)
def test_samples_of_a_ddpm_are_what_they_were(draft, expected):
    """Recorded before GaussianChain existed; the same bits on one machine, to rounding on others."""
    schedule = Schedule.from_betas(torch.linspace(0.01, 0.2, 10), "fixed_large")
    ours = EpsilonDenoiser(lambda x, t, cond: 0.3 * x, schedule)
    x, _ = AsdSampler(ours, schedule, (3,), draft=draft, window=4)(8, None, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x[:3], torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_a_schedule_and_its_coefficients_are_the_same_chain():
    chain = GaussianChain(SCHEDULE.a, SCHEDULE.b, SCHEDULE.s, SCHEDULE.timesteps)
    tape = tape_of(chain)
    assert torch.equal(*(sample_ddpm(denoiser, one, (2,), 3, None, tape) for one in (SCHEDULE, chain)))
    assert torch.equal(*(AsdSampler(denoiser, one, (2,))(3, None, tape)[0] for one in (SCHEDULE, chain)))


def test_the_plain_sampler_is_the_recursion():
    told = []

    def noting(x, t, cond):
        told.append(t[0])
        return denoiser(x, t, cond)

    tape = tape_of(CHAIN)
    x = 2.0 * tape.start
    for k in range(6):
        x = CHAIN.a[k].float() * x + CHAIN.b[k].float() * denoiser(x, None, None) + CHAIN.s[k].float() * tape.xi[:, k]
    torch.testing.assert_close(sample_chain(noting, CHAIN, (2,), 3, None, tape), x)
    assert torch.equal(torch.stack(told), CHAIN.timesteps)  # as they are: not rounded, of their own type


@pytest.mark.parametrize("draft", DRAFTS)
def test_the_start_has_the_chains_deviation(draft):
    """One step without noise that keeps the state shows it."""
    chain = GaussianChain([1.0], [0.0], [0.0], [1.0], 80.0)
    tape = tape_of(chain)
    assert torch.equal(AsdSampler(denoiser, chain, (2,), draft)(3, None, tape)[0], 80.0 * tape.start)
    assert torch.equal(sample_chain(denoiser, chain, (2,), 3, None, tape), 80.0 * tape.start)


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_chain_without_noise_is_followed_exactly_and_slowly(draft):
    still = replace(CHAIN, s=torch.zeros(6))
    tape = tape_of(still, 8)
    x, stats = AsdSampler(denoiser, still, (2,), draft, window=None)(8, None, tape)
    torch.testing.assert_close(x, sample_chain(denoiser, still, (2,), 8, None, tape))
    assert int(stats.rounds.max()) <= 6 * DRAFTS[draft].calls
    if draft == "reuse":  # its guess moves with every round, so each step is certain only at its true state
        assert stats.rounds.tolist() == [6] * 8


@pytest.mark.parametrize("draft", DRAFTS)
def test_steps_without_noise_in_the_middle_keep_the_law(draft):
    chain = replace(CHAIN, s=torch.tensor([0.5, 0.4, 0.0, 0.3, 0.0, 0.1]))
    n = 10_000
    expected = laws.reference(denoiser, chain, (2,), n)
    x, stats = AsdSampler(denoiser, chain, (2,), draft, window=None)(n, None, torch.Generator().manual_seed(2))
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5
    assert float(stats.acceptance[2]) < 0.5 < float(stats.acceptance[0])  # it is certain only once it was evaluated


coefficients = st.floats(-1.25, 1.25, width=32)
deviations = st.one_of(st.just(0.0), st.floats(2**-6, 1.5, width=32))


@st.composite
def chains(draw):
    steps = draw(st.integers(1, 7))
    a, b, s, times = (
        draw(st.lists(values, min_size=steps, max_size=steps))
        for values in (coefficients, coefficients, deviations, coefficients)
    )
    return GaussianChain(a, b, s, times, draw(st.floats(0.1, 10)))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(chains(), st.sampled_from(sorted(DRAFTS)), st.sampled_from([1, 2, 3, None]))
def test_any_coefficients_keep_the_law(chain, draft, window):
    n = 4000
    expected = laws.reference(denoiser, chain, (2,), n)
    x, stats = AsdSampler(denoiser, chain, (2,), draft, window)(n, None, torch.Generator().manual_seed(2))
    assert laws.smallest_p(x, expected) > 1e-6
    assert int(stats.rounds.max()) <= chain.num_steps * DRAFTS[draft].calls
