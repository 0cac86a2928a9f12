"""asd-policy calibrate, on the real environment and a policy with random weights."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from asd_policy import load_policy
from asd_policy.benchmarks.calibration import stretches
from asd_policy.cli import calibrate, run
from asd_policy.core.window import cheapest_windows, expected_seconds
from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import ConfigError
from asd_policy.training.demonstrations import Demonstrations
from envs.tasks import TASKS
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    task = TASKS["square"]
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", task.obs_dims, task.action_dim)


def test_windows_are_printed_and_kept(checkpoint, capsys):
    options = ["--sampler", "asd:reuse:auto", "--observations", "3", "--batch-size", "2"]
    assert run("calibrate", [str(checkpoint), *options], "asd-policy calibrate") == 0
    said = capsys.readouterr().out
    [(key, entry)] = json.loads((checkpoint / "windows.json").read_text()).items()
    assert "reuse, eager" in key
    assert "batch 2" in key
    assert stretches(entry["windows"]) in said
    assert str(checkpoint / "windows.json") in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}
    assert set(entry["seconds"]) <= set(rows)
    for window, seconds in entry["seconds"].items():
        assert float(rows[window][-1]) == pytest.approx(1e3 * seconds, abs=0.006)
    policy = load_policy(checkpoint, draft="reuse", window="auto")
    policy.reset(seeds=[0, 1])
    policy.act({key: torch.zeros(2, dim).numpy() for key, dim in TASKS["square"].obs_dims.items()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "ddpm"}, r"--sampler is ddpm; expected asd:DRAFT:auto"),
        ({"sampler": "asd:path:24"}, r"--sampler is asd:path:24; expected asd:DRAFT:auto"),
        ({"sampler": "euler"}, "Unknown sampler 'euler'"),
        ({"sampler": "asd:pth:auto"}, "Did you mean 'path'"),
        ({"device": "gpu"}, "gpu"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"threads": 0}, "threads is 0"),
        ({"observations": 0}, "--observations 0"),
        ({"observations": 2, "batch_size": 3}, "--batch-size 3"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"guess": True, "observations": 63}, "--observations is 63; expected at least 64"),
        ({"guess": True, "observations": 0}, "--observations is 0"),
        ({"guess": True, "device": "cuda:99"}, "cuda:99"),
    ],
)
def test_what_makes_no_sense_is_refused_before_an_episode(checkpoint, options, message, monkeypatch):
    for name in ("record_histories", "record_conditions"):
        monkeypatch.setattr(calibrate, name, lambda *_: pytest.fail("an episode was run"))
    with pytest.raises(ConfigError, match=message):
        calibrate.main(calibrate.Arguments(checkpoint, **options))


def demonstrations(path: Path, episodes: int, keys: dict[str, int]) -> Path:
    """A store of random observations and actions, whose keys stand in another order than the policy's."""
    shapes = {key: (dim,) for key, dim in reversed(keys.items())}
    store, rng = EpisodeStore.create(path, shapes, 7, {"env_id": "asd/Square-v0"}), np.random.default_rng(0)
    for seed in range(episodes):
        obs = {key: rng.normal(size=(40, *shape)).astype(np.float32) for key, shape in shapes.items()}
        action = rng.uniform(-1, 1, (40, 7)).astype(np.float32)
        store.append(Demonstration(seed, obs, action, action, 40))
    return path


def fitted(checkpoint: Path, options: list[str]) -> dict[str, torch.Tensor]:
    """Run the command, and return the tensors of its guess."""
    assert run("calibrate", [str(checkpoint), "--guess", *options], "asd-policy calibrate") == 0
    return load_file(checkpoint / "guess.safetensors")


def test_a_guess_is_fitted_along_episodes(checkpoint, tmp_path, capsys):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "policy"))
    tensors = fitted(folder, ["--observations", "70"])
    said = capsys.readouterr().out
    assert "70 chunks vary by" in said
    assert f"Kept in {folder / 'guess.safetensors'}" in said
    again = fitted(folder, ["--observations", "70"])  # not from the guess that is there
    assert all(torch.equal(again[name], value) for name, value in tensors.items())
    policy = load_policy(folder, "asd:path:4")
    assert policy.guess is not None
    policy.reset(seed=0)
    policy.act({key: np.zeros(dim, np.float32) for key, dim in TASKS["square"].obs_dims.items()})


def test_a_guess_is_fitted_to_demonstrations(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "record_conditions", lambda *_: pytest.fail("an episode was run"))
    folder = Path(shutil.copytree(checkpoint, tmp_path / "policy"))
    data = demonstrations(tmp_path / "demos.zarr", 3, dict(TASKS["square"].obs_dims))
    tensors = fitted(folder, ["--data", str(data)])
    assert "99 chunks vary by" in capsys.readouterr().out
    other = fitted(folder, ["--data", str(data), "--observations", "80", "--seed", "1"])
    assert "80 chunks vary by" in capsys.readouterr().out
    assert not torch.equal(other["last.weight"], tensors["last.weight"])
    few = demonstrations(tmp_path / "few.zarr", 1, dict(TASKS["square"].obs_dims))
    with pytest.raises(ConfigError, match="Got 33 observations to fit"):
        calibrate.main(calibrate.Arguments(folder, guess=True, data=few))
    wrong = demonstrations(tmp_path / "wrong.zarr", 3, {"object": 3})
    with pytest.raises(ConfigError):
        calibrate.main(calibrate.Arguments(folder, guess=True, data=wrong))


def test_expected_seconds_of_all_outcomes():
    """Against a walk through all outcomes of the drafts, one step after the other."""
    acceptance, windows, seconds = [0.5, 0.25, 0.75, 0.0, 1.0], (2, 3, 1, 2, 3), {1: 1.0, 2: 1.5, 3: 1.75}
    total = 0.0
    for kept in itertools.product([True, False], repeat=len(windows)):
        chance, step = 1.0, 0
        for probability, good in zip(acceptance, kept, strict=True):
            chance *= probability if good else 1 - probability
        while step < len(windows):
            total += chance * seconds[windows[step]]
            end = min(step + windows[step], len(windows))
            step = next((k + 1 for k in range(step, end) if not kept[k]), end)
    assert expected_seconds(windows, acceptance, seconds) == pytest.approx(total)


def test_cheapest_windows_are_no_slower_than_fixed_ones():
    acceptance = torch.rand(30, generator=torch.Generator().manual_seed(0)).tolist()
    seconds = {2: 1.0, 8: 1.6, 30: 3.0}
    best = expected_seconds(cheapest_windows(acceptance, seconds), acceptance, seconds)
    for window in seconds:
        assert best <= 1.01 * expected_seconds((window,) * 30, acceptance, seconds)


def test_stretches():
    assert stretches((4, 4, 2, 2, 2, 4)) == "0-1: 4, 2-4: 2, 5-5: 4"
    assert stretches((3,)) == "0-0: 3"


def test_observations_from_demonstrations(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "record_histories", lambda *_: pytest.fail("an episode was run"))
    (checkpoint / "windows.json").unlink(missing_ok=True)
    dims, action_dim = TASKS["square"].obs_dims, TASKS["square"].action_dim
    store = EpisodeStore.create(
        tmp_path / "demos.zarr", {key: (dim,) for key, dim in dims.items()}, action_dim, {"env_id": "asd/Square-v0"}
    )
    obs = {key: np.arange(20 * dim, dtype=np.float32).reshape(20, dim) / 100 for key, dim in dims.items()}
    action = np.zeros((20, action_dim), np.float32)
    store.append(Demonstration(0, obs, action, action, 20))
    chosen = Demonstrations.read(tmp_path / "demos.zarr").observations(3)
    for key, values in obs.items():
        np.testing.assert_array_equal([one[key] for one in chosen], values[[0, 6, 13]])
    options = ["--sampler", "asd:reuse:auto", "--observations", "3", "--data", str(tmp_path / "demos.zarr")]
    assert run("calibrate", [str(checkpoint), *options], "asd-policy calibrate") == 0
    assert len(json.loads((checkpoint / "windows.json").read_text())) == 1
    with pytest.raises(ConfigError, match="21 observations are asked for; the demonstrations have 20 steps"):
        Demonstrations.read(tmp_path / "demos.zarr").observations(21)
