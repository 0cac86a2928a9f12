"""Files that ask for more work or memory than they are worth: refused at once, whatever the payload."""

import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asd_policy.errors import AsdPolicyError, CheckpointError
from asd_policy.importers import load_policy, read_checkpoint
from tests.fuzzing import findings
from tests.importers.small import changed_lerobot, small_real_stanford
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.timeout(60)
MARKS = {
    "diffusion_policy": ("cfg", "state_dicts", "pickles"),
    "robomimic": ("algo_name", "shape_metadata", "env_metadata"),
}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def called(module: str, name: str, arguments: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + arguments + b"R"


def doubled(depth: int, join: bytes, first: bytes = b")", start: int = 0) -> bytes:
    """A container whose parts are twice the one before, and so on."""
    out = first + put(start)
    for level in range(start, start + depth):
        out += b"0" + join.replace(b"VALUE", get(level)) + put(level + 1)
    return out


TUPLES, LISTS, DICTS = b"VALUEVALUE\x86", b"](VALUEVALUEe", b"}(" + text("a") + b"VALUE" + text("b") + b"VALUEu"
NODE = b"comegaconf.dictconfig\nDictConfig\n)\x81"
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ"
REBUILD = ("torch._utils", "_rebuild_tensor_v2")

VALUES = {
    "tuples": doubled(60, TUPLES),
    "lists": doubled(60, LISTS),
    "dicts": doubled(60, DICTS, b"}"),
    "nodes": doubled(60, b"]" + b"(VALUEVALUEe", NODE),
    "a call of Size": called("torch", "Size", doubled(60, TUPLES) + b"\x85"),
    "a name of a type": called("dill._dill", "_load_type", doubled(60, TUPLES) + b"\x85"),
    "a set": called("builtins", "set", doubled(60, TUPLES) + b"\x85"),
    "a counter": called("collections", "Counter", doubled(60, TUPLES) + b"\x85"),
    "a dict of pairs": called("collections", "OrderedDict", b"]" + doubled(60, TUPLES) + b"N\x86a\x85"),
    "a call of a tuple": doubled(60, TUPLES) + b")R",
    "a global of a tuple": doubled(60, TUPLES) + text("x") + b"\x93",
    "a global named by a tuple": text("torch") + doubled(60, TUPLES) + b"\x93",
    "an object of a tuple": doubled(60, TUPLES) + b")\x81",
    "a bytearray": called("builtins", "bytearray", b"J\xff\xff\xff\x7f\x85"),
    "an odd encoding": called("_codecs", "encode", text("x" * 10**6) + text("utf-32") + b"\x86"),
    "bytes over and over": b"]("
    + text("x" * 10**6)
    + put(900)
    + b"0"
    + 10**4 * called("_codecs", "encode", get(900) + text("latin1") + b"\x86")
    + b"e",
    "a huge integer": b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6,
    "a long number": b"\x8a\xff" + b"\x7f" * 255,
    "a number in letters": b"L" + b"9" * 10**6 + b"L\n",
    "a tensor of many dimensions": called(
        *REBUILD, b"(" + STORAGE + b"K\x00(" + b"K\x01" * 10**5 + b"t" + put(1) + get(1) + b"\x89Nt"
    ),
    "a tensor of nested sizes": called(*REBUILD, b"(" + STORAGE + b"K\x00" + doubled(60, TUPLES) + get(60) + b"\x89Nt"),
    "states of nodes": b"}(" + b"".join(text(f"{i:05}") + b"N" for i in range(10**5)) + b"u" + put(1) + b"0" + b"]("
    + (NODE + get(1) + b"b") * 10**4
    + b"e",
    "a node that holds itself": NODE + put(1) + b"}" + text("_content") + get(1) + b"sb",
    "depth": b"]" + put(0) + b"]" * 10**5 + b"a" * 10**5,
    "many steps": b"N0" * 10**6 + b"N",
    "marks": b"(" * 10**6,
}  # fmt: skip

KEYS = {
    "tuples": doubled(60, TUPLES),
    "a tensor": called(*REBUILD, b"(" + STORAGE + b"K\x00" + doubled(60, TUPLES) + get(60) + b"\x89Nt"),
    "a long tuple": b"(" + b"K\x01" * 10**5 + b"t" + put(1),
    "a list": b"]",
}  # fmt: skip


def pickled_as(path: Path, kind: str, items: bytes) -> Path:
    """A torch file of the given kind: a dictionary with the entries that it must have, and more."""
    entries = b"".join(text(mark) + text("x") for mark in MARKS[kind])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + entries + items + b"u.")
        archive.writestr("archive/data/0", bytes(4))
    return path


def check_refused(*paths: Path) -> None:
    """Each is refused within the limits of the fuzz runs."""

    def check(index: int) -> None:
        with pytest.raises(AsdPolicyError):
            load_policy(paths[index])

    assert findings(check, range(len(paths))) == []


@pytest.mark.parametrize("kind", MARKS)
@pytest.mark.parametrize("place", ["beside", "cfg", "env_metadata", "state_dicts", "model"])
def test_values(tmp_path, kind, place):
    check_refused(*(pickled_as(tmp_path / name, kind, text(place) + value) for name, value in VALUES.items()))


@pytest.mark.parametrize("kind", MARKS)
def test_keys(tmp_path, kind):
    check_refused(*(pickled_as(tmp_path / name, kind, key + text("v")) for name, key in KEYS.items()))


@pytest.mark.parametrize("depth", [18, 60, 10**4])
def test_a_key_that_is_a_tuple_doubled(tmp_path, depth):
    path = pickled_as(tmp_path / "a.ckpt", "diffusion_policy", doubled(depth, TUPLES) + text("v"))
    check_refused(path)
    with pytest.raises(CheckpointError, match="a key of a dictionary that is a tuple"):
        load_policy(path)


def test_tensors_that_share_one_record_many_times(tmp_path):
    payload = small_real_stanford(tmp_path / "a.ckpt")
    whole = torch.zeros(10**6)
    payload["state_dicts"]["ema_model"] |= {f"model.x{i}": whole for i in range(2000)}
    torch.save(payload, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="several times larger than the file"):
        read_checkpoint(tmp_path / "a.ckpt")
    check_refused(tmp_path / "a.ckpt")


def test_tensors_that_share_a_record_are_saved_apart(tmp_path):
    payload = small_real_stanford(tmp_path / "a.ckpt")
    state = payload["state_dicts"]["ema_model"]
    names = ("model.final_conv.0.block.1.weight", "model.final_conv.0.block.1.bias")
    state |= dict.fromkeys(names, state[names[0]])
    torch.save(payload, tmp_path / "a.ckpt")
    read_checkpoint(tmp_path / "a.ckpt").save(tmp_path / "native")
    saved = read_checkpoint(tmp_path / "native").tensors
    assert torch.equal(saved[names[0]], saved[names[1]])


# ---- JSON


def replaced(**values: str):
    """An edit of a JSON text."""

    def edit(text: str) -> str:
        for old, new in values.items():
            assert f'"{old}"' in text
            text = text.replace(f'"{old}"', new, 1)
        return text

    return edit


JSONS = {
    "nested": lambda text: "[" * 10**5,
    "nested within": replaced(horizon='"x": ' + "[" * 10**5 + "]" * 10**5 + ', "horizon"'),
    "twice": replaced(horizon='"horizon": 8, "horizon"'),
    "NaN": replaced(beta_end='"beta_end": NaN, "x"'),
    "Infinity": replaced(clip_sample_range='"clip_sample_range": Infinity, "x"'),
    "overflow": replaced(clip_sample_range='"clip_sample_range": 1e999, "x"'),
    "huge integer": replaced(horizon='"horizon": ' + "9" * 10**4 + ', "x"'),
    "large integer": replaced(horizon='"horizon": ' + "9" * 100 + ', "x"'),
    "a number": lambda text: "3",
    "null": lambda text: "null",
    "empty": lambda text: "",
    "no text": lambda text: "\x00\ud800",
}


@pytest.mark.parametrize("kind", ["native", "lerobot"])
def test_json(tmp_path, kind):
    for name, edit in JSONS.items():
        config = made(kind, tmp_path / name) / "config.json"
        config.write_bytes(edit(config.read_text()).encode(errors="surrogatepass"))
    check_refused(*(tmp_path / name for name in JSONS))


def made(kind: str, folder: Path) -> Path:
    """A sound folder."""
    return tiny_checkpoint(folder, {"object": 5}, action_dim=2) if kind == "native" else changed_lerobot(folder)


@pytest.mark.parametrize("name", ["nested", "NaN", "twice", "large integer"])
def test_json_within_a_pickle(all_originals, tmp_path, name):
    payload = torch.load(all_originals["robomimic"].path, weights_only=False)
    edits = {"NaN": replaced(beta_schedule='"x": NaN, "beta_schedule"'), "twice": replaced(algo='"algo": {}, "algo"')}
    edits |= {"large integer": replaced(num_train_timesteps='"num_train_timesteps": ' + "9" * 100 + ', "x"')}
    payload["config"] = edits.get(name, JSONS[name])(payload["config"])
    torch.save(payload, tmp_path / "a.pth")
    check_refused(tmp_path / "a.pth")


MANY = range(10_000)


def test_observations_without_end(tmp_path):
    """Each of them is looked up among all tensors, and has modules of its own."""
    native, lerobot = made("native", tmp_path / "native"), made("lerobot", tmp_path / "lerobot")
    config = json.loads((native / "config.json").read_text())
    (native / "config.json").write_text(json.dumps(config | {"obs_keys": {f"k{i}": 1 for i in MANY}}))
    config = json.loads((lerobot / "config.json").read_text())
    config["input_features"] |= {f"observation.images.{i}": {"type": "VISUAL", "shape": [3, 84, 84]} for i in MANY}
    (lerobot / "config.json").write_text(json.dumps(config | {"use_separate_rgb_encoder_per_camera": True}))
    for path in (lerobot / "model.safetensors", native / "model.safetensors"):
        save_file(load_file(path) | {f"x{i}": torch.zeros(1) for i in MANY}, path)
    shape_meta = {"obs": {f"k{i}": {"shape": [1]} for i in MANY}}
    target = "diffusion_policy.policy.DiffusionUnetHybridImagePolicy"
    small_real_stanford(
        tmp_path / "a.ckpt",
        cfg=lambda cfg: cfg["policy"].update(_target_=target, shape_meta=shape_meta),
        state=lambda state: state | {f"x{i}": state["normalizer.params_dict.obs.scale"] for i in MANY},
    )
    check_refused(native, lerobot, tmp_path / "a.ckpt")


# ---- safetensors, and what is no file


def lying(header: dict[str, object] | str, size: int | None = None, data: bytes = bytes(8)) -> bytes:
    raw = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def half(start: int) -> dict[str, object]:
    return entry(shape=[1], data_offsets=[start, start + 4])


TENSORS = {
    "header beyond the file": lying("{}", size=2**40),
    "no header": b"",
    "a short file": b"\x01\x00",
    "shape beyond the data": lying({"a": entry(shape=[2**40])}),
    "a shape that overflows": lying({"a": entry(shape=[2**40, 2**40])}),
    "offsets beyond the file": lying({"a": entry(data_offsets=[0, 2**60])}),
    "offsets backwards": lying({"a": entry(data_offsets=[8, 0])}),
    "a gap": lying({"a": entry(data_offsets=[4, 8], shape=[1])}),
    "a name twice": lying("{" + ", ".join(f'"a": {json.dumps(half(start))}' for start in (0, 4)) + "}"),
    "an unknown type": lying({"a": entry(dtype="F31")}),
    "a type of four bits": lying({"a": entry(dtype="F4", shape=[16])}),
    "nested": lying("[" * 10**5),
}  # fmt: skip


def test_safetensors(tmp_path):
    for name, data in TENSORS.items():
        (made("native", tmp_path / name) / "model.safetensors").write_bytes(data)
    check_refused(*(tmp_path / name for name in TENSORS))


def remade(path: Path, kind: str) -> None:
    """The file as something that is no file."""
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a link to itself":
        path.symlink_to(path)
    elif kind == "a link to nothing":
        path.symlink_to(path.with_suffix(".gone"))


NO_FILES = ("a folder", "a pipe", "a device", "a link to itself", "a link to nothing", "nothing")


@pytest.mark.parametrize("format", ["native", "lerobot"])
def test_what_is_no_file(tmp_path, format):
    folders = []
    for name in sorted(file.name for file in made(format, tmp_path / "sound").iterdir()):
        for kind in NO_FILES:
            folders.append(made(format, tmp_path / f"{name}, {kind}"))
            remade(folders[-1] / name, kind)
    check_refused(*folders)


def test_what_is_no_torch_file(tmp_path):
    for kind in NO_FILES:
        (tmp_path / kind).write_bytes(b"")
        remade(tmp_path / kind, kind)
    check_refused(*(tmp_path / kind for kind in NO_FILES))


def test_links_to_files_are_followed(tmp_path):
    """As in the hub's cache."""
    folder = tiny_checkpoint(tmp_path / "a", {"object": 5}, action_dim=2)
    linked = tmp_path / "b"
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    assert read_checkpoint(linked).config == read_checkpoint(folder).config


def test_a_trusted_pickle_that_is_damaged(tmp_path):
    small_real_stanford(tmp_path / "a.ckpt")
    data = (tmp_path / "a.ckpt").read_bytes()
    pickled = data.index(b"state_dicts")
    (tmp_path / "a.ckpt").write_bytes(data[:pickled] + b"\xff" + data[pickled + 1 :])
    with pytest.raises(CheckpointError):
        load_policy(tmp_path / "a.ckpt", trust_pickle=True)


def test_stranger_values_keep_their_type(tmp_path):
    """float8 weights are numbers too; complex ones are not."""
    folder = tiny_checkpoint(tmp_path / "a", {"object": 5}, action_dim=2)
    tensors = load_file(folder / "model.safetensors")
    name = "model.final_conv.1.bias"
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    load_policy(folder)
    save_file(tensors | {name: tensors[name].to(torch.complex64)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="complex"):
        load_policy(folder)
