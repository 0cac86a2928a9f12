"""AsdSampler's contract: counts, seeds, independence of the batch, and errors."""

import pytest
import torch

from asd_policy.core import DRAFTS, AsdSampler, sample_ddim, sample_ddpm
from asd_policy.errors import ConfigError, NumericalError, UnknownNameError
from tests.core.laws import GaussianMixture

K = 30
WINDOWS = [1, 4, 16, None]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sampler(denoiser=None, **options) -> AsdSampler:
    mixture = GaussianMixture(K)
    return AsdSampler(denoiser or mixture, mixture.schedule, (2,), **options)


class CountingMixture(GaussianMixture):
    """Counts network calls and the states in them."""

    def __init__(self):
        super().__init__(K)
        self.calls, self.states = 0, 0

    def forward(self, x, t, cond):
        self.calls += 1
        self.states += len(x)
        return super().forward(x, t, cond)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_stats_count_every_call(draft, window):
    denoiser = CountingMixture()
    _, stats = sampler(denoiser, draft=draft, window=window)(1, generator=generator())
    assert stats.rounds.tolist() == [denoiser.calls]
    assert stats.evaluations.tolist() == [denoiser.states]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_stats_add_up(draft, window):
    _, stats = sampler(draft=draft, window=window)(64, generator=generator())
    assert (stats.advance.sum(dim=0) == K).all()
    assert int(stats.advance.max()) <= (window or K)
    loops = (stats.advance > 0).sum(dim=0)
    assert torch.equal(stats.rounds, loops * DRAFTS[draft].calls)
    assert stats.acceptance.shape == (K,)
    # Every unfinished round that stops before its window's end stops at a rejection.
    assert stats.acceptance.min() >= 0
    assert stats.acceptance.max() <= 1


def test_speculation_saves_calls():
    assert sampler(window=None)(64, generator=generator())[1].rounds.float().mean() < K / 2


def test_window_one_without_extra_call_is_one_round_per_step():
    assert sampler(draft="reuse", window=1)(3, generator=generator())[1].rounds.tolist() == [K] * 3


def test_window_beyond_the_last_step_is_all_steps():
    long, all_steps = (sampler(window=w)(8, generator=generator())[0] for w in (10 * K, None))
    assert torch.equal(long, all_steps)


@pytest.mark.parametrize("draft", DRAFTS)
def test_same_seed_same_sample(draft):
    first, again, other = (sampler(draft=draft)(8, generator=generator(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("draft", DRAFTS)
def test_own_generator_makes_a_sample_independent_of_its_batch(draft):
    together, _ = sampler(draft=draft)(5, generator=[generator(seed) for seed in range(5)])
    alone = [sampler(draft=draft)(1, generator=[generator(seed)])[0] for seed in range(5)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_shared_tape_makes_asd_and_ddpm_start_alike():
    """Both draw one tape, so an exact draft (the extra call at window 1) retraces the plain sampler."""
    mixture = GaussianMixture(K)
    plain = sample_ddpm(mixture, mixture.schedule, (2,), 16, generator=generator())
    exact, _ = sampler(draft="frozen", window=1)(16, generator=generator())
    torch.testing.assert_close(exact, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0"),
        ({"window": -3}, "window is -3"),
        ({"draft": "frosen"}, "Did you mean 'frozen'"),
        ({"window": (3, 4)}, "one positive integer for each of the 30 steps"),
        ({"window": "some"}, "'auto', or one"),
        ({"capture": "graph"}, "Available: compile, cuda_graph, eager"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        sampler(**options)


def test_a_table_of_windows_is_followed():
    denoiser = CountingMixture()
    table = tuple(3 if k < 10 else 7 for k in range(K))
    _, stats = sampler(denoiser, window=table)(1, generator=generator())
    frontier, expected = 0, 0
    for advance in stats.advance[:, 0].tolist():
        expected += min(table[frontier], K - frontier)
        frontier += advance
    assert denoiser.states == expected


def test_cuda_graph_without_a_cuda_device_is_an_error():
    with pytest.raises(ConfigError, match="needs samples on a CUDA device; they are on cpu"):
        sampler(capture="cuda_graph")(2)


def test_auto_needs_calibration_and_a_table_reproduces_it():
    auto = sampler(window="auto")
    with pytest.raises(ConfigError, match="calibrate"):
        auto(2)
    calibration = auto.calibrate(None)
    with pytest.raises(ConfigError, match="with_windows"):
        auto(2)  # nothing has changed it
    auto = auto.with_windows(calibration.windows)
    assert set(calibration.windows) <= set(calibration.seconds) == {4, 8, 16, 24, K}
    assert len(calibration.windows) == len(calibration.acceptance) == K
    again = sampler(window=calibration.windows)
    assert torch.equal(auto(4, generator=generator())[0], again(4, generator=generator())[0])


def test_unknown_draft_lists_what_exists():
    with pytest.raises(UnknownNameError, match=", ".join(sorted(DRAFTS))):
        sampler(draft="nothing like it")


def test_bad_batch():
    with pytest.raises(ConfigError, match="batch_size is 0"):
        sampler()(0)
    with pytest.raises(ConfigError, match="2 rows for batch_size 3"):
        sampler()(3, cond=torch.zeros(2, 1))
    with pytest.raises(ConfigError, match="2 generators for batch_size 3"):
        sampler()(3, generator=[generator(), generator()])


def test_wrong_output_shape():
    with pytest.raises(ConfigError, match="returned shape"):
        sampler(lambda x, t, cond: x[:, :1])(2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("failing_step", [0, K // 2, K - 1])
def test_network_that_fails_at_one_step(value, failing_step):
    """An error, neither a hang nor a sample."""
    mixture = GaussianMixture(K)
    bad_t = mixture.schedule.timesteps[failing_step]

    def failing(x, t, cond):
        return torch.where((t == bad_t).unsqueeze(1), value, mixture(x, t, cond))

    for draft in DRAFTS:
        with pytest.raises(NumericalError, match="NaN or infinity"):
            sampler(failing, draft=draft)(2, generator=generator())
    for plain in (sample_ddpm, sample_ddim):
        with pytest.raises(NumericalError, match="NaN or infinity"):
            plain(lambda x, t, cond: x * value, mixture.schedule, (2,), 2, generator=generator())


@pytest.mark.parametrize("draft", DRAFTS)
def test_on_round_is_told_how_far_the_chains_are(draft):
    told = []
    draws = sampler(draft=draft, window=8).draw(
        4, generator=generator(), on_round=lambda frontier, x: told.append((frontier.clone(), x.clone()))
    )
    frontiers, states = zip(*told, strict=True)
    assert torch.equal(torch.stack(frontiers).diff(dim=0, prepend=torch.zeros(1, 4)), draws.stats.advance)
    assert torch.equal(states[-1], draws.x)


def test_on_round_of_the_plain_samplers():
    mixture, told = GaussianMixture(K), []
    x = sample_ddpm(mixture, mixture.schedule, (2,), 2, None, generator(), lambda *now: told.append(now))
    assert [frontier.tolist() for frontier, _ in told] == [[k + 1] * 2 for k in range(K)]
    assert torch.equal(told[-1][1], x)
    told.clear()
    x = sample_ddim(mixture, mixture.schedule, (2,), 2, None, generator(), 5, on_round=lambda *now: told.append(now))
    assert [frontier.tolist() for frontier, _ in told] == [[k + 1] * 2 for k in range(5)]
    assert torch.equal(told[-1][1], x)


@pytest.mark.gpu
def test_on_round_needs_a_loop_in_python():
    captured = sampler(capture="cuda_graph", device="cuda")
    with pytest.raises(ConfigError, match="to watch rounds"):
        captured.draw(1, generator=generator(), on_round=lambda frontier, x: None)


def test_compiled_rounds_can_be_watched():
    seen = []
    x = sampler(capture="compile").draw(1, generator=generator(), on_round=lambda *now: seen.append(now)).x
    assert seen[-1][0].tolist() == [K]
    assert torch.equal(seen[-1][1], x)
