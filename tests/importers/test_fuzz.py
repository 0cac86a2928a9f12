"""Mutations of a file of each format: refused within the error family, or a policy whose actions are finite.

The slow run tries `ASD_FUZZ` inputs of each format (20,000 by default): `pytest -m slow tests/importers/test_fuzz.py`.
"""

import copy
import json
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import dill
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from asd_policy.importers import load_policy
from tests.fuzzing import findings, mutated_bytes, mutated_json, mutated_tensors
from tests.importers.originals import GOLDEN_LEROBOT, GOLDEN_STANFORD
from tests.importers.small import small_real_stanford
from tests.tiny import tiny_checkpoint

COUNT, SAMPLE = int(os.environ.get("ASD_FUZZ", "20000")), 150
FORMATS = ("native", "lerobot", "diffusion_policy", "diffusion_policy transformer", "robomimic")

Write = Callable[[Path, Random], None]
"""Writes one mutated file or folder."""


def mutated_folder(source: Path) -> Write:
    """Of a folder of JSON and safetensors: one file's bytes, its JSON or its tensors."""
    files = [file for file in source.iterdir() if file.name != "golden.safetensors"]
    texts = {file.name: json.loads(file.read_text()) for file in files if file.suffix == ".json"}
    tensors = {file.name: load_file(file) for file in files if file.suffix == ".safetensors"}

    def write(path: Path, rng: Random) -> None:
        path.mkdir()
        for file in files:
            shutil.copy(file, path)
        for name in rng.sample(sorted({**texts, **tensors}), rng.choice((1, 1, 2))):
            if rng.random() < 0.2:
                (path / name).write_bytes(mutated_bytes((path / name).read_bytes(), rng))
            elif name in texts:
                (path / name).write_text(json.dumps(mutated_json(texts[name], rng)))
            else:
                changed = mutated_tensors(tensors[name], rng)
                save_file({key: value.contiguous() for key, value in changed.items()}, path / name)
        if rng.random() < 0.02:
            (path / rng.choice(files).name).unlink()

    return write


def mutated_torch_file(source: Path, payload: dict[str, Any], state: str, pickle_module: Any) -> Write:
    """Of a torch file: its bytes, the bytes of a record, what is pickled, or the tensors that `state` leads to."""
    whole = source.read_bytes()
    with zipfile.ZipFile(source) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))

    def write(path: Path, rng: Random) -> None:
        kind = rng.randrange(8)
        if kind == 0:
            path.write_bytes(mutated_bytes(whole, rng))
        elif kind <= 3:  # with checksums that are right
            name = pickled if rng.random() < 0.9 else rng.choice(sorted(records))
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                for key, data in (records | {name: mutated_bytes(records[name], rng)}).items():
                    archive.writestr(key, data)
        else:
            changed = with_mutated_tensors(payload, state, rng) if kind <= 5 else with_mutated_values(payload, rng)
            torch.save(changed, path, pickle_module=pickle_module)

    return write


def with_mutated_tensors(payload: dict[str, Any], state: str, rng: Random) -> dict[str, Any]:
    parent, name = state.split(".")
    return payload | {parent: payload[parent] | {name: mutated_tensors(payload[parent][name], rng)}}


def with_mutated_values(payload: dict[str, Any], rng: Random) -> dict[str, Any]:
    """Anything but the weights; a JSON string's inside as well."""
    values = copy.deepcopy({key: value for key, value in payload.items() if key not in ("model", "state_dicts")})
    weights = {key: value for key, value in payload.items() if key not in values}
    if "config" in values and rng.random() < 0.5:
        values["config"] = json.dumps(mutated_json(json.loads(values["config"]), rng))
        return values | weights
    if "cfg" in values and rng.random() < 0.8:
        parts = {key: values["cfg"][key] for key in ("policy", "task", "training")}
        return values | {"cfg": values["cfg"] | mutated_json(parts, rng)} | weights
    changed = mutated_json(values, rng)
    return (changed if isinstance(changed, dict) else {"cfg": changed}) | weights


@pytest.fixture(scope="module")
def writers(all_originals, tmp_path_factory) -> dict[str, Write]:
    folder = tmp_path_factory.mktemp("fuzz")
    native = tiny_checkpoint(folder / "native", {"object": 5, "robot0_eef_pos": 3}, action_dim=2)
    stanford = small_real_stanford(folder / "small.ckpt")
    transformer = torch.load(GOLDEN_STANFORD / "transformer.ckpt", pickle_module=dill, weights_only=False)
    robomimic = torch.load(all_originals["robomimic"].path, weights_only=False)
    return {
        "native": mutated_folder(native),
        "lerobot": mutated_folder(GOLDEN_LEROBOT),
        "diffusion_policy": mutated_torch_file(folder / "small.ckpt", stanford, "state_dicts.ema_model", dill),
        "diffusion_policy transformer": mutated_torch_file(
            GOLDEN_STANFORD / "transformer.ckpt", plain_payload(transformer), "state_dicts.ema_model", dill
        ),
        "robomimic": mutated_torch_file(all_originals["robomimic"].path, robomimic, "model.ema", pickle),
    }


def plain_payload(payload: dict[str, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    cfg = OmegaConf.to_container(payload["cfg"], resolve=False)
    return {"cfg": cfg, "state_dicts": {"ema_model": payload["state_dicts"]["ema_model"]}, "pickles": {}}


def problems(write: Write, folder: Path, seeds: range) -> list[str]:
    """What goes wrong with the mutations of these seeds."""
    warnings.simplefilter("ignore")

    def check(seed: int) -> None:
        path = folder / f"{seed}"
        try:
            write(path, Random(seed))
            policy = load_policy(path, sampler="ddim", num_steps=2)
            policy.reset(seed=0)
            obs = {key: np.full(shape, 0.3, np.float32) for key, shape in policy.config.obs_shapes.items()}
            action = policy.act(obs)
            assert np.isfinite(action).all(), action
        finally:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    return findings(check, seeds)


@pytest.mark.parametrize("name", FORMATS)
def test_a_sample_of_mutations(writers, tmp_path, name):
    assert problems(writers[name], tmp_path, range(SAMPLE)) == []


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", FORMATS)
def test_mutations(writers, tmp_path, name):
    assert problems(writers[name], tmp_path, range(SAMPLE, SAMPLE + COUNT)) == []
