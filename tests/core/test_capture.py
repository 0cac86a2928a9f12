"""Backends that run the loop: the same samples in the same rounds as the eager reference."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from asd_policy.core import DRAFTS, AsdSampler, ddim_sampler, ddpm_sampler
from asd_policy.core.capture import CAPTURES
from asd_policy.errors import ConfigError
from tests.core import laws

GPU = [pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in CAPTURES]
CAPTURED = [("compile", "cpu"), *GPU]


@pytest.mark.parametrize(("capture", "device"), CAPTURED)
@pytest.mark.parametrize("draft", DRAFTS)
def test_same_tape_same_sample_in_the_same_rounds(draft, capture, device):
    denoiser, schedule = laws.learned_chunks()
    denoiser = denoiser.to(device)
    cond = torch.rand(6, 2, generator=torch.Generator().manual_seed(0)).to(device)
    (x, stats), (expected, expected_stats) = (
        AsdSampler(denoiser, schedule, (4, 2), draft=draft, window=8, capture=name)(
            6, cond, torch.Generator().manual_seed(1)
        )
        for name in (capture, "eager")
    )
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    assert torch.equal(stats.rounds, expected_stats.rounds)
    assert torch.equal(stats.advance, expected_stats.advance)
    assert torch.equal(stats.acceptance, expected_stats.acceptance)


@pytest.mark.parametrize(("capture", "device"), CAPTURED)
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize(("make", "options"), [(ddpm_sampler, {}), (ddim_sampler, {"num_steps": 5, "eta": 0.5})])
def test_plain_samplers_are_captured_too(make, options, batch, capture, device):
    denoiser, schedule = laws.learned_chunks(steps=50)
    denoiser = denoiser.to(device)
    for seed in (0, 1):
        cond = torch.rand(batch, 2, generator=torch.Generator().manual_seed(seed)).to(device)
        x, expected = (
            make(denoiser, schedule, (4, 2), capture=name, **options).draw(
                batch, cond, torch.Generator().manual_seed(seed)
            )
            for name in (capture, "eager")
        )
        torch.testing.assert_close(x.x, expected.x, rtol=0, atol=1e-5)
        assert torch.equal(x.stats.rounds, expected.stats.rounds)


def test_compiled_samples_do_not_depend_on_what_was_compiled_before():
    denoiser, schedule = laws.learned_chunks(steps=50)
    cond = torch.rand(6, 2, generator=torch.Generator().manual_seed(0))

    def sample(batch: int, window: int) -> torch.Tensor:
        sampler = AsdSampler(denoiser, schedule, (4, 2), window=window, capture="compile")
        return sampler(batch, cond[:batch], torch.Generator().manual_seed(1))[0]

    sizes = [(6, 5), (1, 12), (2, 7), (1, 3)]
    samples = {}
    for order in (sizes, sizes[::-1]):
        torch._dynamo.reset()
        samples[order[0]] = {size: sample(*size) for size in order}
    first, second = samples.values()
    assert all(torch.equal(first[size], second[size]) for size in sizes)


@pytest.mark.parametrize(("capture", "device"), CAPTURED)
def test_weights_changed_in_place_are_seen_and_samplers_coexist(capture, device):
    denoiser, schedule = laws.learned_chunks(steps=50)
    denoiser = denoiser.to(device)
    cond = torch.full((3, 2), 0.5, device=device)

    def sample(sampler: AsdSampler) -> torch.Tensor:
        return sampler(3, cond, torch.Generator().manual_seed(1))[0]

    options = {"draft": "reuse", "window": 4}
    captured = AsdSampler(denoiser, schedule, (4, 2), capture=capture, **options)
    other = AsdSampler(denoiser, schedule, (4, 2), draft="reuse", window=7, capture=capture)
    reference = AsdSampler(denoiser, schedule, (4, 2), **options)
    before, elsewhere = sample(captured), sample(other)
    kept = before.clone()
    with torch.no_grad():
        denoiser.net.layers[-1].bias += 0.2
    after = sample(captured)
    torch.testing.assert_close(after, sample(reference), rtol=0, atol=1e-5)
    assert (after - before).abs().max() > 1e-2
    assert torch.equal(before, kept)  # earlier samples are not overwritten
    assert elsewhere.shape == (3, 4, 2)


def test_threads_may_sample_at_the_same_time():
    denoiser, schedule = laws.learned_chunks(steps=10)
    cond = torch.full((3, 2), 0.5)
    shared = AsdSampler(denoiser, schedule, (4, 2), draft="reuse", window=4, capture="compile")

    def sample(seed: int) -> torch.Tensor:
        return shared(3, cond, torch.Generator().manual_seed(seed))[0]

    alone = [sample(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(sample, range(8)))
    assert all(map(torch.equal, alone, together))


@pytest.mark.gpu
class TestCudaGraph:
    """What only a CUDA device can show."""

    @pytest.fixture
    def sampler(self):
        denoiser, schedule = laws.learned_chunks(steps=10)
        return AsdSampler(denoiser.cuda(), schedule, (4, 2), window=8, capture="cuda_graph")

    def test_replay_with_new_conditions_and_recapture_for_new_shapes_only(self, sampler):
        reference = AsdSampler(sampler.denoiser, sampler.schedule, (4, 2), window=8)
        for batch in (3, 3, 5, 3):
            cond = torch.rand(batch, 2, device="cuda")
            x, expected = (s(batch, cond, torch.Generator().manual_seed(batch))[0] for s in (sampler, reference))
            torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
        assert sampler.capture.captures == 2

    def test_no_synchronisation_and_no_allocation_in_the_loop(self, sampler, monkeypatch):
        cond = torch.rand(3, 2, device="cuda")
        for _ in range(3):
            sampler(3, cond, torch.Generator().manual_seed(0))
        allocated = torch.cuda.memory_allocated()
        inner = sampler.capture.run_rounds

        def guarded(*arguments):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return inner(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(sampler.capture, "run_rounds", guarded)
        sampler(3, cond, torch.Generator().manual_seed(0))
        assert torch.cuda.memory_allocated() == allocated

    def test_faster_than_the_python_loop(self, sampler):
        eager = AsdSampler(sampler.denoiser, sampler.schedule, (4, 2), window=8)
        cond = torch.rand(3, 2, device="cuda")

        def seconds(sampler):
            times = []
            for _ in range(30):
                torch.cuda.synchronize()
                started = time.perf_counter()
                sampler(3, cond, torch.Generator().manual_seed(0))
                torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
            return statistics.median(times[5:])

        assert seconds(sampler) < seconds(eager)


class Branching(nn.Module):
    """A network that cannot be captured: what it computes depends on a value."""

    def __init__(self):
        super().__init__()
        self.where = nn.Parameter(torch.zeros(()))  # the samples are drawn on its device

    def forward(self, x, t, cond):
        return x if x.mean() > 0 else -x


@pytest.mark.parametrize(("capture", "device"), CAPTURED[:1] + GPU[1:])
def test_a_network_that_cannot_be_captured_is_named(capture, device):
    schedule = laws.GaussianMixture(10).schedule
    sampler = AsdSampler(Branching().to(device), schedule, (2,), draft="reuse", window=2, capture=capture)
    with pytest.raises(ConfigError, match=r"cannot be captured(.|\n)*capture='eager'"):
        sampler(2, generator=torch.Generator().manual_seed(0))


def test_sizes_that_happen_to_be_equal_are_not_compiled_into_one():
    """A window as long as the event, and a batch as large as the number of steps; then others."""
    denoiser, schedule = laws.learned_chunks(steps=10)
    torch._dynamo.reset()
    compiled = []
    for window, batch in ((4, 4), (20, 20), (3, 2), (7, 4), (2, 9)):
        sampler = AsdSampler(denoiser, schedule, (4, 2), window=window, capture="compile")
        sampler(batch, torch.full((batch, 2), 0.5), torch.Generator().manual_seed(0))
        compiled.append(counters["stats"]["unique_graphs"])
    assert len(set(compiled)) == 1
