"""The learned first guess: its fit, its file, and what it changes in a policy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import ks_2samp
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from asd_policy import load_policy
from asd_policy.core import seeded_generator
from asd_policy.errors import CheckpointError, ConfigError, NumericalError
from asd_policy.importers.checkpoint import Checkpoint, fingerprint
from asd_policy.policies import guess_file
from asd_policy.policies.config import NetworkConfig, PolicyConfig, SchedulerConfig
from asd_policy.policies.guess import MIN_CONDITIONS, ChunkGuess, fit_guess, guessed_start
from asd_policy.policies.guess_file import load_guess, save_guess
from asd_policy.policies.guess_targets import drawn_chunks
from asd_policy.policies.image_keys import ImageKey
from asd_policy.policies.making import make_policy
from asd_policy.policies.network import build_encoders, build_network
from asd_policy.policies.normalizer import LinearNormalizer
from tests.tiny import tiny_checkpoint

D, EVENT = 6, (16, 2)


def data(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Conditions, one feature of which is constant, and chunks that depend on them, with noise."""
    generator = torch.Generator().manual_seed(seed)
    cond = 2 * torch.rand(count, D, generator=generator) - 1
    cond[:, 2] = 0.3
    chunks = cond @ torch.linspace(-0.5, 0.5, D * 32).view(D, 32)
    return cond, (chunks + 0.1 * torch.randn(count, 32, generator=generator)).view(-1, *EVENT)


def a_guess(seed: int = 0) -> ChunkGuess:
    return fit_guess(*data(80), seed)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny", {"a": 3}, 2)


@pytest.fixture
def guessed(checkpoint: Path) -> Path:
    save_guess(checkpoint / "guess.safetensors", a_guess(), load_policy(checkpoint).network, 80)
    return checkpoint


def episode(policy, seed: int = 0, steps: int = 20) -> np.ndarray:
    policy.reset(seed=seed)
    rng = np.random.default_rng(seed)
    return np.stack([policy.act({"a": rng.uniform(-1, 1, 3).astype(np.float32)}) for _ in range(steps)])


def test_the_fit_learns_the_mean_chunk():
    guess = fit_guess(*data(2000))
    cond, _ = data(500, seed=1)
    mean = (cond @ torch.linspace(-0.5, 0.5, D * 32).view(D, 32)).view(-1, *EVENT)
    error = (guess(cond) - mean).square().mean().sqrt()
    assert error < 0.06 < mean.std() / 5
    assert torch.equal(guess(cond), guess(torch.cat([cond[:, :2], cond[:, 2:3] + 1e3, cond[:, 3:]], dim=1)))


def test_the_fit_is_determined_by_its_arguments():
    state = torch.get_rng_state()
    one, again, other = a_guess(0), a_guess(0), a_guess(1)
    assert torch.equal(torch.get_rng_state(), state)
    cond, _ = data(5)
    assert torch.equal(one(cond), again(cond))
    assert not torch.equal(one(cond), other(cond))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda cond, chunks: (cond[: MIN_CONDITIONS - 1], chunks[: MIN_CONDITIONS - 1]), "Got 63 observations"),
        (lambda cond, chunks: (cond[:0], chunks[:0]), "Got 0 observations"),
        (lambda cond, chunks: (cond[:-1], chunks), r"expected \(N, D\) and \(N, H, A\)"),
        (lambda cond, chunks: (cond, chunks.flatten(1)), r"expected \(N, D\) and \(N, H, A\)"),
        (lambda cond, chunks: (cond / 0, chunks), "not finite"),
        (lambda cond, chunks: (cond, chunks * torch.nan), "not finite"),
    ],
)
def test_data_that_cannot_be_fitted_are_refused(change, told):
    with pytest.raises(ConfigError, match=told):
        fit_guess(*change(*data(100)))


def test_a_fit_that_overflows_is_reported():
    cond, chunks = data(100)
    with pytest.raises(NumericalError, match=r"The largest number in its data is 3e\+38"):
        fit_guess(torch.full_like(cond, 3e38), chunks)


def test_a_guess_comes_back_from_its_file(guessed):
    policy = load_policy(guessed)
    cond, _ = data(7)
    assert torch.equal(policy.guess(cond), a_guess()(cond))
    modes = [(guessed / name).stat().st_mode for name in ("guess.safetensors", "config.json")]
    assert modes[0] == modes[1]  # whoever reads the configuration reads the guess
    assert policy.with_sampler("asd:path:4").guess is policy.guess
    assert load_policy(guessed, guess=False).guess is None
    assert Checkpoint.of(policy).policy().guess is None


def test_a_checkpoint_that_is_a_file_has_its_guess_beside_it(tmp_path):
    from asd_policy.importers.checkpoint import guess_file as beside

    assert beside(tmp_path / "policy.ckpt") == tmp_path / "policy.guess.safetensors"


def test_a_guess_of_other_weights_is_refused(guessed):
    policy = load_policy(guessed)
    with torch.no_grad():
        policy.network.final_conv[1].bias.add_(0.1)
    Checkpoint.of(policy).save(guessed)
    with pytest.raises(CheckpointError, match=r"belongs to the weights \w{16}; expected \w{16}.*guess=False"):
        load_policy(guessed)
    load_policy(guessed, guess=False)


def rewritten(path: Path, change, metadata: dict[str, str] | None = None) -> None:
    """Change the tensors of a guess file, and keep its metadata unless others are given."""
    kept, _ = guess_file._read(path)
    tensors = load_file(path)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata or {"guess": kept})


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("first.weight"),
        lambda tensors: tensors.pop("first.bias"),
        lambda tensors: tensors.update(more=torch.zeros(2)),
        lambda tensors: tensors.update({"first.bias": torch.zeros(0)}),
        lambda tensors: tensors.update({"first.bias": torch.zeros(5000)}),
        lambda tensors: tensors.update({"first.bias": torch.zeros(4)}),
        lambda tensors: tensors.update({"last.bias": torch.zeros(30)}),
        lambda tensors: tensors.update(center=torch.zeros(7)),
        lambda tensors: tensors.update(center=tensors["center"].double()),
        lambda tensors: tensors["scale"].fill_(torch.inf),
        lambda tensors: tensors["last.weight"].view(-1)[3].fill_(torch.nan),
    ],
)
def test_tensors_that_are_no_guess_are_refused(guessed, change):
    rewritten(guessed / "guess.safetensors", change)
    with pytest.raises(CheckpointError, match=r"Cannot read the first guess .*guess\.safetensors: .*guess=False"):
        load_policy(guessed)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (None, "hold no 'guess' in JSON"),
        ("{", "hold no 'guess' in JSON"),
        ("[" * 100_000, "hold no 'guess' in JSON"),
        ("[]", "expected a JSON object"),
        ({"version": 2}, "version is 2; expected 1"),
        ({"conditions": 0}, "conditions is 0"),
        ({"weights": 3}, "weights is 3"),
        ({"more": 1}, "more is an unknown field"),
    ],
)
def test_records_that_cannot_be_used_are_refused(guessed, record, told):
    path = guessed / "guess.safetensors"
    kept, _ = guess_file._read(path)
    text = json.dumps(json.loads(kept) | record) if isinstance(record, dict) else record
    rewritten(path, lambda tensors: None, {"other": "x"} if text is None else {"guess": text})
    with pytest.raises(CheckpointError, match=told):
        load_policy(guessed)


def test_damaged_and_huge_files_are_refused(guessed, monkeypatch):
    path = guessed / "guess.safetensors"
    content = path.read_bytes()
    for size in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="Cannot read the first guess"):
            load_policy(guessed)
    for start in range(0, 600, 20):
        path.write_bytes(content[:start] + b"\xff" * 20 + content[start + 20 :])
        with pytest.raises(CheckpointError):
            load_policy(guessed)
    path.write_bytes(content)
    monkeypatch.setattr(guess_file, "MAX_BYTES", len(content) - 1)
    with pytest.raises(CheckpointError, match=f"it has {len(content)} bytes; expected at most"):
        load_policy(guessed)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="Cannot read the first guess"):
        load_policy(guessed)


def test_a_guess_that_cannot_be_written_is_reported(tmp_path, checkpoint):
    with pytest.raises(CheckpointError, match="Cannot write the first guess"):
        save_guess(tmp_path / "none" / "guess.safetensors", a_guess(), load_policy(checkpoint).network, 80)


@pytest.mark.parametrize("sampler", ["asd:path:4", "asd:path:all", "asd:reuse:4"])
def test_a_guess_changes_the_samples_of_a_seed_reproducibly(guessed, sampler):
    without = episode(load_policy(guessed, sampler, guess=False))
    with_it = episode(load_policy(guessed, sampler))
    assert np.array_equal(with_it, episode(load_policy(guessed, sampler)))
    assert not np.array_equal(with_it, without)
    (guessed / "guess.safetensors").unlink()
    assert np.array_equal(without, episode(load_policy(guessed, sampler)))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim:4", "asd:frozen:4"])
def test_samplers_without_a_warm_start_ignore_the_guess(guessed, sampler):
    assert np.array_equal(episode(load_policy(guessed, sampler)), episode(load_policy(guessed, sampler, guess=False)))


def test_the_guess_is_averaged_with_what_the_earlier_chunk_predicted():
    generator = torch.Generator().manual_seed(0)
    chunk, left = torch.randn(2, *EVENT, generator=generator), torch.randn(2, 5, *EVENT, generator=generator)
    left[1] = torch.nan  # an episode begins
    start = guessed_start(chunk, left, 6, 5)
    head = (left[0, :, 6:].mean(dim=0) + chunk[0, :10]) / 2
    assert torch.equal(start[0, :, :10], head.expand(5, -1, -1))
    assert torch.equal(start[0, :, 10:], chunk[0, 10:].expand(5, -1, -1))
    for all_new in (start[1], guessed_start(chunk, None, 6, 5)[1], guessed_start(chunk, left, 16, 5)[1]):
        assert torch.equal(all_new, chunk[1].expand(5, -1, -1))
    assert torch.equal(guessed_start(chunk, left, 99, 5)[0], chunk[0].expand(5, -1, -1))
    assert torch.equal(guessed_start(chunk, left, 0, 5)[0], ((left[0].mean(dim=0) + chunk[0]) / 2).expand(5, -1, -1))


def test_a_row_that_begins_an_episode_starts_from_the_guess(guessed):
    policy, warm = load_policy(guessed, "asd:path:4"), []
    launch = policy.sampler.launch
    policy.sampler.launch = lambda *arguments: warm.append(arguments[3]) or launch(*arguments)
    policy.reset(seeds=[0, 1])
    obs = {"a": np.array([[0.1, 0.2, 0.3], [-0.3, -0.2, 0.5]], np.float32)}
    for step in range(16):
        if step == 8:
            policy.reset(mask=[False, True])
        policy.act(obs)
    cond = policy.model.condition([{"a": torch.from_numpy(obs["a"])}] * 2)
    chunk = policy.guess(cond).unsqueeze(1).expand(-1, 12, -1, -1)
    cold, mixed = warm
    assert torch.equal(cold, chunk)
    assert torch.equal(mixed[1], chunk[1])
    assert torch.equal(mixed[0, :, 8:], chunk[0, :, 8:])
    assert not torch.equal(mixed[0, :, :8], chunk[0, :, :8])


def test_law_with_a_guess(checkpoint):
    """The chunks of a good and of a bad guess have the law of DDPM's; those of DDIM have not."""
    policy, count = load_policy(checkpoint, "ddpm"), 3000
    rng = np.random.default_rng(0)
    history = [{"a": np.repeat(rng.uniform(-1, 1, (1, 3)), count, axis=0).astype(np.float32)}]

    def chunks(sampler: str, guess: ChunkGuess | None, seed: int) -> np.ndarray:
        parts = policy.network, policy.normalizer, policy.config
        drawn = make_policy(*parts, sampler, guess=guess).predict_chunk(history, seeded_generator(seed))
        return drawn.actions.reshape(count, -1)

    exact = chunks("ddpm", None, 1)

    def smallest_p(sampler: str, guess: ChunkGuess | None) -> float:
        drawn = chunks(sampler, guess, 2)
        directions = np.random.default_rng(3).normal(size=(exact.shape[1], 6))
        return min(ks_2samp(a, b).pvalue for a, b in zip((exact @ directions).T, (drawn @ directions).T, strict=True))

    bad = a_guess()
    bad.last.bias.fill_(0.9)
    for guess in (a_guess(), bad):
        assert smallest_p("asd:path:all", guess) > 1e-3
    assert smallest_p("ddim:2", None) < 1e-6


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e38])
def test_a_guess_that_fails_costs_rounds_alone(checkpoint, bad):
    parts = load_policy(checkpoint)
    guess = a_guess()
    guess.last.bias.fill_(bad)
    policy = make_policy(parts.network, parts.normalizer, parts.config, "asd:path:all", guess=guess)
    actions = episode(policy)
    assert np.isfinite(actions).all()
    if bad != 1e38:  # zeros stand in for it, as without a guess in a cold start
        assert np.array_equal(actions[:8], episode(load_policy(checkpoint, "asd:path:all"))[:8])


class Constant(nn.Module):
    """Predicts the same clean chunk under every condition."""

    def forward(self, sample, timestep, global_cond):
        return torch.full_like(sample, 0.5)


def test_a_right_guess_takes_one_round(checkpoint):
    policy = load_policy(checkpoint)
    config = replace(policy.config, scheduler=replace(policy.config.scheduler, prediction_type="sample"))
    right, wrong = a_guess(), a_guess()
    for guess, chunk in ((right, 0.5), (wrong, -0.5)):
        guess.last.weight.zero_()
        guess.last.bias.fill_(chunk)
    history, rounds = [{"a": np.zeros((50, 3), np.float32)}], []
    for guess in (right, None, wrong):
        own = make_policy(Constant(), policy.normalizer, config, "asd:path:all", guess=guess)
        rounds.append(own.predict_chunk(history, seeded_generator(0)).stats.rounds.float().mean().item())
    assert rounds[0] == 1 < rounds[1] < rounds[2]


def test_drawn_chunks_follow_their_seed(checkpoint):
    policy, told = load_policy(checkpoint), []
    cond = torch.randn(300, D, generator=torch.Generator().manual_seed(0))
    one, again, other = (drawn_chunks(policy, cond, seed, told.append) for seed in (0, 0, 1))
    assert one.shape == (300, *EVENT)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert told == 3 * [128, 256, 300]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_guess_serves_every_type(guessed, dtype):
    assert np.isfinite(episode(load_policy(guessed, "asd:path:4", dtype=dtype))).all()


def test_a_policy_with_images_takes_a_guess():
    config = PolicyConfig(
        env_id="none",
        obs_keys={"camera": 8, "state": 2},
        action_dim=2,
        network=NetworkConfig(down_dims=(8, 16), diffusion_step_embed_dim=8, kernel_size=3),
        scheduler=SchedulerConfig(num_train_timesteps=6),
        images=(ImageKey("camera", (40, 44, 3), crop=(2, 3, 36, 36), num_keypoints=4),),
    )
    cond = torch.randn(100, config.global_cond_dim, generator=torch.Generator().manual_seed(0))
    guess = fit_guess(cond, torch.zeros(100, *EVENT))
    parts = build_network(config), LinearNormalizer(config.normalizer_dims), config
    policy = make_policy(*parts, "asd:path:4", encoders=build_encoders(config), guess=guess)
    policy.reset(seed=0)
    assert policy.act({"camera": np.zeros((40, 44, 3), np.uint8), "state": np.zeros(2)}).shape == (2,)


def test_a_guess_does_not_wait_for_the_device():
    """Tensors without values raise DataDependentOutputException where the host would read one."""
    with FakeTensorMode(), torch.device("cpu"):
        start = guessed_start(ChunkGuess(D, EVENT)(torch.randn(3, D)), torch.randn(3, 5, *EVENT), 8, 5)
        assert start.shape == (3, 5, *EVENT)
        with pytest.raises(DataDependentOutputException):
            bool(start.isnan().any())


def test_the_fingerprint_includes_the_guess(guessed):
    with_it, without = fingerprint(guessed), fingerprint(guessed, guess=False)
    assert with_it != without
    (guessed / "guess.safetensors").unlink()
    assert fingerprint(guessed) == fingerprint(guessed, guess=False) == without


@pytest.mark.parametrize(
    ("guess", "told"),
    [
        (ChunkGuess(5, EVENT), r"conditions of 5 and chunks \(16, 2\); the policy has 6 and \(16, 2\)"),
        (ChunkGuess(D, (8, 2)), r"chunks \(8, 2\); the policy has 6"),
        (lambda cond: cond, "guess is a function; expected a ChunkGuess"),
    ],
)
def test_a_guess_in_memory_that_does_not_fit_is_refused(checkpoint, guess, told):
    policy = load_policy(checkpoint)
    with pytest.raises(ConfigError, match=told):
        make_policy(policy.network, policy.normalizer, policy.config, guess=guess)


def test_a_guess_of_another_size_is_refused(guessed):
    policy = load_policy(guessed)
    config = replace(policy.config, horizon=8, n_action_steps=4)
    with pytest.raises(CheckpointError, match=r"chunks \(8, 2\)"):
        load_guess(guessed / "guess.safetensors", policy.network, config.global_cond_dim, (config.horizon, 2))


def test_a_guess_is_read_and_fitted_whatever_torchs_default_type(guessed):
    expected, cond, examples = a_guess(), data(5)[0], data(80)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        read = load_policy(guessed).guess
        fitted = fit_guess(*examples)
    finally:
        torch.set_default_dtype(default)
    for guess in (read, fitted):
        assert torch.equal(guess(cond), expected(cond))


@pytest.mark.parametrize("seed", [-1, 1.5, None])
def test_seeds_that_are_none_are_refused(seed):
    with pytest.raises(ConfigError, match="The seed is"):
        fit_guess(*data(80), seed)
