"""`accelerate` on every library's policies: the same chunks from the same noise, warm starts, and the way back."""

import copy
import gc
import weakref

import pytest
import torch

from asd_policy import accelerate
from asd_policy.core import AsdSampler, seeded_generator
from asd_policy.errors import ConfigError, NumericalError
from asd_policy.live import LOOPS
from tests.live import doubles
from tests.live.doubles import scheduler
from tests.live.policies import NUM_STEPS, SUBJECTS, Subject, lerobot, real_stanford, robomimic

TOLERANCE = 1e-5


@pytest.fixture(params=SUBJECTS)
def subject(request) -> Subject:
    return SUBJECTS[request.param]()


@pytest.fixture
def warmth(monkeypatch) -> list[bool]:
    """Whether each chunk that ASD drew was warm-started."""
    seen: list[bool] = []
    draw = AsdSampler.draw
    monkeypatch.setattr(
        AsdSampler,
        "draw",
        lambda self, n, cond, noise, warm: (seen.append(warm is not None), draw(self, n, cond, noise, warm))[1],
    )
    return seen


def test_without_speculation_the_chunks_are_the_librarys(subject):
    """From the same seed, chunk after chunk; the generator is left as the library leaves it."""
    stock = subject.episode()
    left = torch.get_rng_state()
    subject.begin()
    assert accelerate(subject.policy, "ddpm") is subject.policy
    ours = subject.episode()
    assert torch.equal(left, torch.get_rng_state())
    assert float((ours - stock).abs().max()) < TOLERANCE * (1 + float(stock.abs().max()))
    assert subject.policy.asd.stats.rounds.tolist() == [NUM_STEPS] * len(subject.policy.asd.stats.rounds)


def test_restored_policies_are_as_before(subject):
    stock, before = subject.episode(), attributes(subject)
    subject.begin()
    accelerate(subject.policy)
    assert not torch.equal(subject.episode(), stock)
    acceleration = subject.policy.asd
    subject.policy.asd.restore()
    assert not hasattr(subject.policy, "asd")
    assert torch.equal(subject.episode(), stock)
    subject.begin()
    acceleration.restore()  # again changes nothing
    assert attributes(subject) == before
    accelerate(subject.policy, "ddpm")  # and again
    assert hasattr(subject.policy, "asd")


def attributes(subject: Subject) -> list[frozenset[str]]:
    return [frozenset(vars(each)) for each in (subject.policy, subject.model)]


@pytest.mark.parametrize("draft", ["path", "reuse"])
def test_speculation_saves_calls_and_is_reproducible(subject, draft):
    subject.begin()
    generator = seeded_generator(3)
    accelerate(subject.policy, draft=draft, window=None, generator=generator)
    state = torch.get_rng_state()
    subject.begin()
    chunks = torch.stack([subject.chunk(i) for i in range(2)])
    if not hasattr(subject.policy, "start_episode"):  # robomimic draws a start, which is unused
        assert torch.equal(state, torch.get_rng_state())  # all noise is from the generator
    stats = subject.policy.asd.stats
    assert int(stats.rounds.max()) < NUM_STEPS
    assert stats.evaluations.shape == stats.rounds.shape
    assert stats.acceptance.shape == (NUM_STEPS,)
    assert stats.latency > 0
    assert isinstance(subject.policy.asd.sampler, AsdSampler)
    subject.begin()
    generator.manual_seed(3)
    assert torch.equal(chunks, torch.stack([subject.chunk(i) for i in range(2)]))
    assert not torch.equal(chunks, torch.stack([subject.chunk(i) for i in range(2)]))


def test_weights_and_names_of_tensors_are_unchanged():
    for subject in (lerobot(), real_stanford("inpainting")):
        before = {name: value.clone() for name, value in subject.policy.state_dict().items()}
        accelerate(subject.policy)
        subject.episode()
        after = subject.policy.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], value) for name, value in before.items())


def test_copies_have_networks_of_their_own():
    for subject in (lerobot(), real_stanford("global")):
        accelerate(subject.policy)
        subject.episode()
        twin = copy.deepcopy(subject.policy)
        assert twin.asd is not subject.policy.asd
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.fill_(torch.nan)
        assert subject.episode().isfinite().all()
        if isinstance(twin, doubles.LeRobotPolicy):
            twin.reset()
            with pytest.raises(NumericalError):
                twin.select_action({"observation.state": torch.zeros(1, doubles.OBS_DIM)})
        twin.asd.restore()
        assert hasattr(subject.policy, "asd")


def test_a_restored_policy_keeps_nothing_alive():
    subject = lerobot()
    accelerate(subject.policy)
    acceleration = weakref.ref(subject.policy.asd)
    subject.policy.asd.restore()
    gc.collect()
    assert acceleration() is None


# Warm starts.


def test_chunks_within_an_episode_are_warm(subject, warmth):
    subject.begin()
    accelerate(subject.policy)
    subject.episode()
    subject.episode()
    assert warmth == [False, True, True] * 2


def test_warm_starts_can_be_left_out(subject, warmth):
    subject.begin()
    accelerate(subject.policy, warm_start=False)
    subject.episode()
    assert warmth == [False] * 3


def test_drafts_that_keep_nothing_start_cold(warmth):
    subject = lerobot()
    accelerate(subject.policy, draft="reuse")
    subject.episode()
    assert warmth == [False] * 3


def test_another_batch_size_starts_cold(warmth):
    policy = real_stanford("global").policy
    accelerate(policy)
    for batch in (2, 3, 3):
        policy.predict_action({"obs": torch.zeros(batch, doubles.TO, doubles.OBS_DIM)})
    assert warmth == [False, False, True]


def test_chunks_that_the_user_asks_lerobot_for_are_cold_and_apart(warmth):
    subject = lerobot()
    accelerate(subject.policy)
    subject.begin()
    subject.chunk(0)
    subject.policy.predict_action_chunk({"observation.state": torch.zeros(2, 3)})
    subject.chunk(1)
    assert warmth == [False, False, True]


def test_warm_starts_save_rounds():
    """Where the clean sample depends on the observation alone, the last chunk's predictions guess the next one."""
    policy = real_stanford("global", noise_scheduler=scheduler(prediction_type="sample")).policy
    policy.n_action_steps = 0  # the same chunk again
    with torch.no_grad():
        policy.model.layers[0].weight[:, : doubles.HORIZON * doubles.ACTION_DIM + 1] = 0
    rounds = {}
    for warm in (True, False):
        accelerate(policy, draft="path", window=None, warm_start=warm)
        torch.manual_seed(1)
        total = 0
        for _ in range(12):
            policy.predict_action({"obs": torch.ones(1, doubles.TO, doubles.OBS_DIM)})
            total += int(policy.asd.stats.rounds)
        rounds[warm] = total
        policy.asd.restore()
    assert rounds[True] < rounds[False]


# What changes while it is accelerated.


def test_other_weights_and_networks_count_at_once():
    subject = lerobot()
    accelerate(subject.policy, "ddpm")
    for change in (shrink, exchange):
        change(subject.model)
        ours = subject.episode()
        plain = copy.deepcopy(subject.policy)
        plain.asd.restore()
        expected = lerobot()
        expected.policy.load_state_dict(plain.state_dict())
        torch.testing.assert_close(ours, expected.episode(), atol=1e-5, rtol=1e-5)


def shrink(model):
    with torch.no_grad():
        for parameter in model.unet.parameters():
            parameter.mul_(0.5)


def exchange(model):
    model.unet = doubles.seeded(doubles.Net, (doubles.HORIZON, doubles.ACTION_DIM), doubles.TO * doubles.OBS_DIM)


@pytest.mark.parametrize("make", [lerobot, robomimic, lambda: real_stanford("inpainting")])
def test_other_numbers_of_steps_and_schedulers_count_at_once(make):
    subject = make()
    accelerate(subject.policy, "ddpm")
    if make is robomimic:
        with subject.model.global_config.unlocked(), subject.model.algo_config.unlocked():
            setattr(*subject.steps, 10)
    else:
        setattr(*subject.steps, 10)
    ten = subject.episode()
    assert subject.policy.asd.stats.rounds.tolist() == [10] * len(subject.policy.asd.stats.rounds)
    subject.model.noise_scheduler = scheduler(clip_sample_range=0.5)
    clipped = subject.episode()
    subject.begin()
    subject.policy.asd.restore()
    torch.testing.assert_close(clipped, subject.episode(), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ten, clipped, atol=1e-3)


def test_half_precision_stays_theirs():
    subject = lerobot()
    subject.policy.to(torch.bfloat16)
    subject.policy.reset()
    accelerate(subject.policy)
    assert subject.episode().dtype == torch.bfloat16
    assert subject.episode().isfinite().all()


def test_a_start_and_a_generator_may_be_given():
    """lerobot's `noise`, and both libraries' `generator`."""
    policy = lerobot().policy
    cond, noise = torch.ones(2, doubles.TO * doubles.OBS_DIM), torch.randn(2, doubles.HORIZON, doubles.ACTION_DIM)
    with torch.no_grad():
        stock = policy.diffusion.conditional_sample(2, cond, torch.Generator().manual_seed(0), noise=noise)
    accelerate(policy, "ddpm")
    ours = policy.diffusion.conditional_sample(2, cond, torch.Generator().manual_seed(0), noise=noise)
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"noise has shape \(2, 3\)"):
        policy.diffusion.conditional_sample(2, cond, noise=torch.zeros(2, 3))


def test_networks_in_wrappers_are_unwrapped():
    subject = lerobot()
    expected = subject.episode()
    unet, subject.model.unet = subject.model.unet, torch.compile(subject.model.unet)
    subject.begin()
    accelerate(subject.policy, "ddpm")
    torch.testing.assert_close(subject.episode(), expected, atol=1e-5, rtol=1e-5)
    subject.policy.asd.restore()
    subject.model.unet = torch.nn.DataParallel(unet)
    subject.begin()
    accelerate(subject.policy, "ddpm")
    torch.testing.assert_close(subject.episode(), expected, atol=1e-5, rtol=1e-5)


def test_known_coordinates_are_kept_and_cost_nothing():
    """Inpainting samples the free coordinates alone: the known ones are the observation, whatever is speculated."""
    subject = real_stanford("inpainting")
    accelerate(subject.policy, draft="path", window=None)
    obs = torch.randn(2, doubles.TO, doubles.OBS_DIM)
    whole = subject.policy.predict_action({"obs": obs})["whole"]
    assert torch.equal(whole[:, : doubles.TO, doubles.ACTION_DIM :], obs)
    free = doubles.HORIZON * (doubles.ACTION_DIM + doubles.OBS_DIM) - doubles.TO * doubles.OBS_DIM
    assert subject.policy.asd.sampler.event_shape == (free,)


def test_libraries_are_found_by_what_an_object_has():
    assert set(LOOPS) == {"lerobot", "robomimic", "real-stanford"}
    for name, make in SUBJECTS.items():
        policy = make().policy
        found = [library for library, loop in LOOPS.items() if loop.find(policy, None) is not None]
        assert found == [name.partition(",")[0].partition(" ")[0]]
