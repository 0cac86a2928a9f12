"""What every format in the registry must do: recognise, read, write, and refuse what is damaged or hostile.

A new format is tested once it is in `FORMATS`. A sample of it is written by the format itself; one that cannot write
needs an entry in `SAMPLES`.
"""

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from asd_policy.errors import AsdPolicyError, CheckpointError, ConfigError, UnsafeFileError
from asd_policy.importers import FORMATS, Checkpoint, Format, detect_format, load_policy, read_checkpoint, robomimic
from asd_policy.importers.format import Formats
from asd_policy.policies.diffusion import DiffusionPolicy
from tests.importers.small import small_real_stanford
from tests.tiny import tiny_checkpoint

SAMPLES: dict[str, Callable[[Path], object]] = {"diffusion_policy": small_real_stanford}
"""Format that this package does not write -> writes a sample of it to a path."""

NAMES = sorted(FORMATS)
WRITABLE = sorted(FORMATS.writable())
OBS_KEYS = {"object": 5, "robot0_eef_pos": 3}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Iterator[Checkpoint]:
    """A small native checkpoint. robomimic's writer accepts its network meanwhile."""
    checkpoint = read_checkpoint(tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "native", OBS_KEYS, action_dim=7))
    with mock.patch.object(robomimic.writing, "ROBOMIMIC_NETWORK", checkpoint.config.network):
        yield checkpoint


@pytest.fixture(scope="module")
def samples(tiny, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint in each format, all of them without a file name's extension."""
    folder = tmp_path_factory.mktemp("samples")
    for name, item in FORMATS.items():
        write = SAMPLES.get(name) or (lambda path, write=item.write: write(tiny, path))
        write(folder / name)
    return {name: folder / name for name in FORMATS}


def copied(sample: Path, path: Path) -> Path:
    return Path((shutil.copytree if sample.is_dir() else shutil.copy)(sample, path))


def chunk(policy: DiffusionPolicy) -> np.ndarray:
    """Actions for a fixed observation and fixed noise, (T, A)."""
    rng = np.random.default_rng(0)
    obs = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in policy.config.obs_shapes.items()}
    policy.reset(seed=0)
    return np.stack([policy.act(obs) for _ in range(policy.config.n_action_steps)])


@pytest.mark.parametrize("name", NAMES)
def test_recognises_its_own_checkpoint_and_no_other(samples, name):
    found = {other: detect_format(path) for other, path in samples.items()}
    assert [other for other, detected in found.items() if detected == name] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_reads_a_policy_that_acts(samples, name):
    checkpoint = read_checkpoint(samples[name])
    assert (checkpoint.format, checkpoint.source) == (name, samples[name])
    actions = chunk(checkpoint.policy())
    assert actions.shape == (checkpoint.config.n_action_steps, checkpoint.config.env_action_dim)
    assert np.isfinite(actions).all()


@pytest.mark.parametrize("name", WRITABLE)
def test_what_is_written_acts_as_before(tiny, samples, name):
    again = read_checkpoint(samples[name])
    changed = {name: value for name, value in vars(again.config).items() if vars(tiny.config)[name] != value}
    assert changed.keys() <= {"scheduler"}  # of which DDIM's settings are each library's
    for sampler in ("ddpm", "asd"):
        np.testing.assert_allclose(chunk(again.policy(sampler)), chunk(tiny.policy(sampler)), atol=1e-5)


@pytest.mark.parametrize("name", WRITABLE)
def test_writing_does_not_change_the_checkpoint(tiny, tmp_path, name):
    before = {key: value.clone() for key, value in tiny.tensors.items()}
    FORMATS[name].write(tiny, tmp_path / "out")
    assert all(torch.equal(before[key], value) for key, value in tiny.tensors.items())


def spoiled(data: bytes) -> dict[str, bytes]:
    """Contents that no checkpoint has, given the contents of a file of one."""
    return {"empty": b"", "half": data[: len(data) // 2], "other": b"not a checkpoint" * 100, "list": b"[]"}


@pytest.mark.parametrize("how", ["empty", "half", "other", "list"])
@pytest.mark.parametrize("name", NAMES)
def test_refuses_damaged_files(samples, tmp_path, name, how):
    sample = samples[name]
    files = [file.relative_to(sample) for file in sample.rglob("*") if file.is_file()] if sample.is_dir() else [Path()]
    for number, file in enumerate(files):
        path = copied(sample, tmp_path / f"{number}")
        target = path / file if path.is_dir() else path
        target.write_bytes(spoiled(target.read_bytes())[how])
        with pytest.raises(AsdPolicyError):
            load_policy(path)


@pytest.mark.parametrize("name", [name for name in NAMES if FORMATS[name].place == "folder"])
def test_refuses_folders_that_lack_their_weights(samples, tmp_path, name):
    path = copied(samples[name], tmp_path / "a")
    for file in path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_policy(path)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", [name for name in NAMES if FORMATS[name].place == "file"])
def test_runs_no_code_in_a_pickle_unless_told_to(tmp_path, name):
    payload = dict.fromkeys(FORMATS[name].marks, Hostile(tmp_path / "made"))
    torch.save(payload, tmp_path / "a", pickle_module=pickle)
    with pytest.raises(UnsafeFileError, match="mkdir"):
        load_policy(tmp_path / "a")
    assert not (tmp_path / "made").exists()
    with pytest.raises(AsdPolicyError):  # nothing but marks is in it
        load_policy(tmp_path / "a", trust_pickle=True)
    assert (tmp_path / "made").exists() == (FORMATS[name].read_trusted is not None)


def test_marks_tell_formats_apart():
    """No format's marks are a part of another's, which would make every checkpoint of the other one ambiguous."""
    for one in FORMATS.values():
        others = [other for other in FORMATS.values() if other is not one and other.place == one.place]
        assert not [other.name for other in others if other.marks <= one.marks]


MEMBERS = {"name": "mine", "place": "folder", "marks": frozenset({"mine"}), "read": read_checkpoint}


@pytest.mark.parametrize("member", ["name", "place", "marks", "read", "read_trusted", "write"])
def test_an_object_that_lacks_a_member_is_refused(member):
    members = {**MEMBERS, "read_trusted": None, "write": None}
    formats = Formats()
    formats["mine"] = SimpleNamespace(**members)
    del members[member]
    with pytest.raises(ConfigError, match=rf"The format 'mine' \(SimpleNamespace\) lacks {member}; see"):
        formats["mine"] = SimpleNamespace(**members)


@pytest.mark.parametrize(
    ("member", "value", "expected"),
    [
        ("name", "yours", "its key"),
        ("place", "disk", "'folder' or 'file'"),
        ("marks", frozenset(), "at least one string"),
        ("marks", "mine", "at least one string"),
        ("read", None, "a function"),
        ("read_trusted", 1, "a function or None"),
        ("write", "yes", "a function or None"),
    ],
)
def test_an_object_with_a_wrong_member_is_refused(member, value, expected):
    with pytest.raises(ConfigError, match=rf"The format 'mine' .* has {member} = .*; expected .*{expected}"):
        Formats()["mine"] = Format(**{**MEMBERS, member: value})


def test_a_format_of_somebody_else_is_read(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(FORMATS, "data", dict(FORMATS.data))
    FORMATS["mine"] = Format("mine", "folder", frozenset({"mine"}), lambda path: tiny)
    (tmp_path / "config.json").write_text('{"mine": 1}')
    assert detect_format(tmp_path) == "mine"
    assert read_checkpoint(tmp_path) is tiny
