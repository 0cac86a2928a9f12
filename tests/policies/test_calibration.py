"""Calibrated windows hold for what they were measured with, and for nothing else."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from asd_policy import load_policy
from asd_policy.core import AsdSampler, Calibration
from asd_policy.core.drafts.reuse import ReuseDraft
from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.policies import windows
from asd_policy.policies.windows import Calibrated, WindowsFile, hash_of
from tests.tiny import tiny_checkpoint

OBSERVATIONS = [{"a": np.full(3, step, np.float32)} for step in range(4)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny", {"a": 3}, 2)


def act(policy, batch_size: int = 1):
    policy.reset(seeds=range(batch_size))
    return policy.act({"a": np.zeros((batch_size, 3), np.float32)})


def test_windows_are_used_for_their_batch_size_alone(checkpoint):
    load_policy(checkpoint, window="auto").calibrate(OBSERVATIONS, batch_size=2)
    policy = load_policy(checkpoint, window="auto")
    act(policy, 2)
    for batch_size in (1, 3):
        with pytest.raises(ConfigError, match=f"no windows for batches of {batch_size}.* batch_size={batch_size}"):
            act(policy, batch_size)
    policy.calibrate(OBSERVATIONS, batch_size=3)
    for batch_size in (2, 3, 2):
        act(policy, batch_size)


def test_windows_of_other_weights_are_not_used(checkpoint):
    policy = load_policy(checkpoint, window="auto")
    policy.calibrate(OBSERVATIONS)
    act(policy)
    with torch.no_grad():
        policy.network.final_conv[1].bias.add_(0.1)
    with pytest.raises(ConfigError, match="with these weights"):
        act(policy)
    act(load_policy(checkpoint, window="auto"))


@pytest.mark.parametrize("options", [{"draft": "reuse"}, {"dtype": torch.bfloat16}, {"capture": "compile"}])
def test_windows_of_other_options_are_not_used(checkpoint, options):
    load_policy(checkpoint, window="auto").calibrate(OBSERVATIONS)
    with pytest.raises(ConfigError, match="no windows"):
        act(load_policy(checkpoint, window="auto", **options))


def test_the_key_names_everything():
    one = {
        "weights": "ab", "batch_size": 1, "device": torch.device("cpu"), "dtype": torch.float32,
        "draft": "path", "capture": "eager",
    }  # fmt: skip
    other = {"weights": "cd", "batch_size": 2, "dtype": torch.bfloat16, "draft": "reuse", "capture": "compile"}
    keys = {Calibrated(**one).key, *(Calibrated(**(one | {name: value})).key for name, value in other.items())}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    keys.add(Calibrated(**one).key)
    torch.set_num_threads(threads)
    assert len(keys) == 2 + len(other)


def test_the_hash_sees_a_last_bit():
    net = torch.nn.Linear(3, 3)
    before = hash_of([net])
    assert hash_of([net]) == before
    net.weight.data[1, 1] = torch.nextafter(net.weight.data[1, 1], torch.tensor(9.0))
    assert hash_of([net]) != before


def test_an_interrupted_calibration_changes_nothing(checkpoint, monkeypatch):
    policy = load_policy(checkpoint, window="auto")
    policy.calibrate(OBSERVATIONS)
    expected, kept = act(policy), (checkpoint / "windows.json").read_text()
    draw, calls = AsdSampler.draw, []

    def interrupted(self, *args, **kwargs):
        calls.append(self.windows)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(AsdSampler, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        policy.calibrate(OBSERVATIONS)
    monkeypatch.undo()
    assert len(set(calls)) > 1
    assert np.array_equal(act(policy), expected)
    assert (checkpoint / "windows.json").read_text() == kept

    sampler = AsdSampler(lambda x, t, cond: x, policy.schedule, (3,), window=5)
    monkeypatch.setattr(AsdSampler, "draw", interrupted)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        sampler.calibrate(None)
    assert sampler.windows == (5,) * 12


def calibrated(batch_size: int) -> Calibrated:
    return Calibrated("ab", batch_size, torch.device("cpu"), torch.float32, "path", "eager")


def test_the_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    file, calibration = WindowsFile(tmp_path / "windows.json"), Calibration((4, 4), {4: 0.1}, (1.0, 0.5))
    file.keep(calibrated(1), calibration)
    old = file.path.read_text()

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        file.keep(calibrated(2), calibration)
    assert file.path.read_text() == old
    assert list(tmp_path.iterdir()) == [file.path]
    assert file.find(calibrated(2), 2) == (2, 2)  # from memory, and no longer than there are steps


def test_calibrations_at_the_same_time_are_all_kept(tmp_path, monkeypatch):
    path, write = tmp_path / "windows.json", windows.write_atomically

    def slowly(path, text):
        time.sleep(0.02)  # others read in the meantime
        write(path, text)

    def keep(batch_size: int) -> None:
        WindowsFile(path).keep(calibrated(batch_size), Calibration((batch_size,), {4: 0.1}, (1.0,)))

    monkeypatch.setattr(windows, "write_atomically", slowly)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(keep, range(1, 17)))
    assert len(json.loads(path.read_text())) == 16


def test_windows_of_drafts_that_are_objects(checkpoint):
    """They are told apart by their settings, and found again in another process if their `repr` is the same."""

    @dataclass(frozen=True)
    class Own(ReuseDraft):
        strength: float = 1.0

    load_policy(checkpoint, window="auto", draft=Own()).calibrate(OBSERVATIONS)
    act(load_policy(checkpoint, window="auto", draft=Own()))
    for draft in (Own(2.0), "reuse"):
        with pytest.raises(ConfigError, match="no windows"):
            act(load_policy(checkpoint, window="auto", draft=draft))


@pytest.mark.parametrize("entry", [None, [], {}, {"windows": None}, {"windows": [0] * 12}, {"windows": [4]}, 3])
def test_entries_that_are_none_are_refused(checkpoint, entry):
    policy = load_policy(checkpoint, window="auto")
    policy.calibrate(OBSERVATIONS)
    file = checkpoint / "windows.json"
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: entry}))
    with pytest.raises(CheckpointError, match=r"windows\.json.* Delete the file"):
        act(load_policy(checkpoint, window="auto"))


@pytest.mark.parametrize("text", ["", "[]", "3", "[" * 100_000])
def test_files_that_are_none_are_refused(checkpoint, text):
    (checkpoint / "windows.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"windows\.json.* Delete the file"):
        load_policy(checkpoint, window="auto")
    load_policy(checkpoint, window=4)  # which does not read it


@pytest.mark.parametrize("capture", ["eager", "compile"])
def test_a_plain_ddpm_has_nothing_to_calibrate(checkpoint, capture):
    with pytest.raises(ConfigError, match="sampler='asd'"):
        load_policy(checkpoint, sampler="ddpm", capture=capture).calibrate(OBSERVATIONS)
