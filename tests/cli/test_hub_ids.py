"""The commands take Hugging Face hub ids where they take paths. The hub is on this machine."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from asd_policy.cli import calibrate, collect, import_checkpoint, tasks, train
from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import UnknownNameError
from asd_policy.importers import find_checkpoint
from asd_policy.importers.checkpoint import fingerprint
from asd_policy.training.run import Machine, RunInfo
from asd_policy.training.settings import TrainSettings
from tests.fake_hub import FakeHub, serving
from tests.tiny import tiny_checkpoint

OBS = {"robot0_eef_pos": 3, "object": 4}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[FakeHub]:
    """A hub with the policy me/tiny, and nothing else."""
    with serving(tmp_path / "cache", monkeypatch) as hub:
        folder = tiny_checkpoint(tmp_path / "tiny", OBS, 2)
        hub.commit("me/tiny", {file.name: file.read_bytes() for file in folder.iterdir()})
        yield hub


def test_evaluate_and_sweep_record_the_downloaded_files(hub, tmp_path):
    found = tasks.read_checkpoints([Path("me/tiny@main")], windows=False)
    [(path, sha256)] = found.values()
    assert path == find_checkpoint("me/tiny")
    assert sha256 == fingerprint(path) == fingerprint(tmp_path / "tiny")
    assert tmp_path / "cache" in path.parents


def test_import_converts_a_repository(hub, tmp_path, capsys):
    out = tmp_path / "converted"
    assert import_checkpoint.main(import_checkpoint.Arguments(Path("me/tiny"), out, to="lerobot")) == 0
    assert (out / "policy_preprocessor.json").is_file()


def test_calibrate_says_what_was_tried(hub):
    with pytest.raises(UnknownNameError, match=r"me/other.*The hub has no model me/other"):
        calibrate.main(calibrate.Arguments(Path("me/other")))


def test_the_policy_of_a_collection_is_pinned(hub):
    arguments = collect.Arguments(policy=Path("me/tiny"))
    lead = collect.make_collection(arguments).lead
    assert lead is not None
    assert str(lead.policy) == f"me/tiny@{find_checkpoint('me/tiny').name}"


def test_a_run_that_starts_from_a_repository_resumes_from_the_same_commit(hub, tmp_path):
    shapes = {key: (dim,) for key, dim in OBS.items()}
    store = EpisodeStore.create(tmp_path / "demos.zarr", shapes, 2, {"env_id": "asd/Square-v0"})
    generator = np.random.default_rng(0)
    action = generator.uniform(-1, 1, size=(30, 2)).astype(np.float32)
    obs = {key: generator.normal(size=(30, dim)).astype(np.float32) for key, dim in OBS.items()}
    store.append(Demonstration(0, obs, action, action, 30))
    machine, out = Machine("cpu"), tmp_path / "run"
    settings = TrainSettings(steps=1, batch_size=4)
    begun = train.prepare(train.New(store.path, out, settings, init=Path("me/tiny"), machine=machine))
    commit = find_checkpoint("me/tiny").name
    assert RunInfo.load(out / "train.json").init == f"me/tiny@{commit}"
    other = tiny_checkpoint(tmp_path / "other", OBS, 2, down_dims=(16, 32))
    hub.commit("me/tiny", {file.name: file.read_bytes() for file in other.iterdir()})
    resumed = train.prepare(train.Resume(out, machine))
    expected = begun.trainer.net.state_dict()
    assert all((value == expected[name]).all() for name, value in resumed.trainer.net.state_dict().items())
