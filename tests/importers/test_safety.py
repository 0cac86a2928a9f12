"""Strangers' files: no code of theirs runs, and what cannot be read is refused with a reason, at once."""

import io
import json
import os
import pickle
import re
import shutil
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dill
import pytest
import torch

from asd_policy.errors import CheckpointError, ConfigError, UnsafeFileError
from asd_policy.importers import load_policy, read_checkpoint
from asd_policy.nets import TransformerConfig
from asd_policy.policies.image_keys import ImageKey
from tests.importers import real_stanford
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.timeout(30)  # nothing here may hang


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def attacks(marker: Path) -> dict[str, Any]:
    """Objects that create the marker when they are unpickled."""
    command = f"touch {marker}"
    return {
        "os.system": Call(os.system, command),
        "eval": Call(eval, f"__import__('os').system({command!r})"),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "torch.load": Call(torch.load, str(marker)),
        "open": Call(open, str(marker), "w"),
        "dill function": lambda: os.system(command),
        "shutil": Call(shutil.rmtree, str(marker)),
    }


ATTACKS = sorted(attacks(Path()))


def stanford_payload() -> dict[str, Any]:
    scales = {"obs": torch.ones(23), "action": torch.ones(10)}
    state = real_stanford.policy_state({}, scales, scales)
    return real_stanford.payload(real_stanford.configuration(10, 20), state)


def robomimic_payload(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("place", ["top", "cfg", "state_dicts"])
def test_malicious_ckpt(tmp_path, name, place):
    marker, path = tmp_path / "marker", tmp_path / "latest.ckpt"
    payload, attack = stanford_payload(), attacks(marker)[name]
    if place == "cfg":
        payload["cfg"]._set_flag("allow_objects", True)
        payload["cfg"]["attack"] = attack
    else:
        (payload if place == "top" else payload["state_dicts"])["attack"] = attack
    real_stanford.save_payload(path, payload)
    with pytest.raises(UnsafeFileError, match=r"Nothing was run.*--trust-pickle"):
        load_policy(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"dill function"}))
def test_malicious_pth(all_originals, tmp_path, name):
    marker, path = tmp_path / "marker", tmp_path / "model.pth"
    payload = robomimic_payload(all_originals["robomimic"].path)
    payload["variable_state"] = attacks(marker)[name]
    torch.save(payload, path)
    with pytest.raises(UnsafeFileError, match=r"Nothing was run.*--trust-pickle"):
        load_policy(path)
    assert not marker.exists()


def test_trusted_pth(all_originals, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "model.pth"
    payload = robomimic_payload(all_originals["robomimic"].path)
    payload["variable_state"] = attacks(marker)["os.system"]
    torch.save(payload, path)
    load_policy(path, trust_pickle=True)
    assert marker.exists()


def test_what_is_pickled_inside_is_never_opened(all_originals, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "latest.ckpt"
    payload = torch.load(all_originals["diffusion_policy"].path, pickle_module=dill, weights_only=False)
    payload["pickles"]["epoch"] = dill.dumps(attacks(marker)["os.system"])
    real_stanford.save_payload(path, payload)
    load_policy(path)
    assert not marker.exists()


def test_trust_is_the_only_way_past(all_originals, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "latest.ckpt"
    payload = torch.load(all_originals["diffusion_policy"].path, pickle_module=dill, weights_only=False)
    payload["extra"] = attacks(marker)["os.system"]
    real_stanford.save_payload(path, payload)
    with pytest.raises(UnsafeFileError, match=re.escape("posix.system")):
        load_policy(path)
    assert not marker.exists()
    trusted = read_checkpoint(path, trust_pickle=True)
    assert marker.exists()
    read = read_checkpoint(all_originals["diffusion_policy"].path)
    assert trusted.config == read.config
    assert all(torch.equal(trusted.tensors[name], value) for name, value in read.tensors.items())


def test_names_that_only_look_allowed(tmp_path):
    """A pickle may spell out a path through an allowed module."""
    for module, name in (
        ("omegaconf.nodes", "AnyNode.__init__"),
        ("torch", "Size.__class__"),
        ("omegaconf.base", "os"),
    ):
        pickled = b"\x80\x04" + short(module) + short(name) + b"\x93."
        with pytest.raises(UnsafeFileError, match=re.escape(f"{module}.{name}")):
            load_policy(torch_zip(tmp_path / "a.ckpt", marked(pickled)))


def test_attributes_set_on_stand_ins_do_not_outlive_the_file(all_originals, tmp_path):
    state = b"}(" + short("__setstate__") + b"Nu"
    for module, name in (("omegaconf.nodes", "AnyNode"), ("torch._utils", "_rebuild_tensor_v2")):
        pickled = b"\x80\x04" + short(module) + short(name) + b"\x93N" + state + b"\x86b."
        with pytest.raises(CheckpointError):
            load_policy(torch_zip(tmp_path / "a.ckpt", marked(pickled)))
        load_policy(all_originals["diffusion_policy"].path)


def short(text: str) -> bytes:
    """The opcode of a short string."""
    return b"\x8c" + bytes([len(text)]) + text.encode()


def marked(pickled: bytes) -> bytes:
    """The pickle after strings that make it look like real-stanford's."""
    head, body = pickled[:2], pickled[2:]
    return head + b"".join(short(word) + b"0" for word in ("cfg", "state_dicts", "pickles")) + body


def torch_zip(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in records.items():
            archive.writestr(f"archive/data/{name}", data)
    return path


def test_zip_bomb(tmp_path):
    pickled = marked(pickle.dumps({"cfg": 1}, 2))
    path = torch_zip(tmp_path / "bomb.ckpt", pickled, zipfile.ZIP_DEFLATED, zeros=bytes(300 * 2**20))
    assert path.stat().st_size < 2**20
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match="unpack to more than their size"):
        load_policy(path)
    assert time.perf_counter() - started < 2


def test_records_that_share_their_bytes(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", marked(pickle.dumps({}, 2)))
        archive.writestr("archive/data/0", bytes(10**6))
        archive.filelist.extend([archive.filelist[-1]] * 1000)
    with pytest.raises(CheckpointError, match="overlapping"):
        load_policy(path)


@pytest.mark.parametrize(
    "body",
    [
        b"}r\xff\xff\xff\x7f.",  # remember a value under a huge index
        b"\x8e" + struct.pack("<Q", 2**62),  # bytes that are not there
        b"(" * 2 * 10**6 + b".",
        b"}" + b"\x85" * 10**5 + b".",  # a hundred thousand tuples deep
        b".",
        b"garbage",
    ],
)
def test_pickle_bombs_and_garbage(tmp_path, body):
    with pytest.raises(CheckpointError):
        load_policy(torch_zip(tmp_path / "bomb.ckpt", marked(b"\x80\x04" + body)))


def test_tensor_larger_than_its_record(all_originals, tmp_path):
    payload = torch.load(all_originals["diffusion_policy"].path, pickle_module=dill, weights_only=False)
    ema = payload["state_dicts"]["ema_model"]
    ema["normalizer.params_dict.obs.scale"] = torch.ones(1).expand(10**12)
    real_stanford.save_payload(tmp_path / "a.ckpt", payload)
    with pytest.raises(CheckpointError, match="does not fit its 4 bytes"):
        load_policy(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "network",
    [
        {"down_dims": [2**40, 2**40]},
        {"down_dims": [2**20, 2**20]},
        {"name": "transformer", "n_layer": 10**9},
        {"name": "transformer", "n_emb": 2**40},
    ],
)
def test_networks_that_fit_into_no_memory(tmp_path, network):
    folder = tiny_checkpoint(tmp_path / "tiny", {"object": 5}, action_dim=2)
    config = json.loads((folder / "config.json").read_text())
    sizes = config["network"] if "down_dims" in network else asdict(TransformerConfig())
    config["network"] = sizes | network
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        (CheckpointError, ConfigError), match=r"does not fit its configuration|impossible size|at most 1000"
    ):
        load_policy(folder)


@pytest.mark.parametrize("image", [{"num_keypoints": 2**40}, {"num_keypoints": 2**30}, {"shape": [8, 8, 2**40]}])
def test_encoders_that_fit_into_no_memory(tmp_path, image):
    folder = tiny_checkpoint(tmp_path / "tiny", {"object": 5}, action_dim=2)
    config = json.loads((folder / "config.json").read_text())
    config["images"] = [asdict(ImageKey("object", (84, 84, 3))) | image]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        (CheckpointError, ConfigError), match=r"does not fit its configuration|impossible size|at most 8192"
    ):
        load_policy(folder)


def test_configuration_that_refers_to_itself(tmp_path):
    lists: list[Any] = [1]
    for _ in range(60):
        lists = [lists] * 10  # 10 ** 60 values, in a pickle of a few kilobytes
    loop: list[Any] = []
    loop.append(loop)
    for cfg, message in ((lists, "over 200000 values"), (loop, "contains itself")):
        payload = {"cfg": cfg, "state_dicts": {}, "pickles": {}}
        real_stanford.save_payload(tmp_path / "a.ckpt", payload)
        with pytest.raises(CheckpointError, match=message):
            load_policy(tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", ["robomimic", "diffusion_policy"])
def test_truncated(all_originals, tmp_path, name):
    whole = all_originals[name].path.read_bytes()
    path = tmp_path / "cut.bin"
    for keep in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match="Is the file complete"):
            load_policy(path)


def test_flipped_bytes_are_noticed(all_originals, tmp_path):
    whole = bytearray(all_originals["diffusion_policy"].path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(whole))) as archive:
        weights = max(archive.infolist(), key=lambda entry: entry.file_size)
    whole[weights.header_offset + 200] ^= 1
    (tmp_path / "a.ckpt").write_bytes(whole)
    with pytest.raises(CheckpointError, match="CRC"):
        load_policy(tmp_path / "a.ckpt")
