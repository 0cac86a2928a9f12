"""Thousands of damaged replay buffers and LeRobotDatasets: refused with an error of ours, or read as finite numbers.

Videos and images are decoded by FFmpeg and Pillow, whose C code no check in Python contains.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from asd_policy.data.lazy_images import LazyImages
from asd_policy.errors import AsdPolicyError
from asd_policy.training.demonstrations import Demonstrations
from tests.data import dataset_files as files
from tests.fuzzing import findings, mutated_bytes, mutated_json

INPUTS = int(os.environ.get("ASD_FUZZ", "20000"))
BATCH = 500  # inputs to a child process


def of_lerobot(kind: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        pytest.importorskip("pyarrow", reason="LeRobotDataset needs pyarrow")
        pytest.importorskip("av", reason="videos need PyAV")
        return files.lerobot(path, kind)

    return make


MADE: dict[str, Callable[[Path], Path]] = {
    "buffer.zarr": files.replay_buffer,
    "buffer.zarr.zip": files.replay_buffer,
    **{kind: of_lerobot(kind) for kind in ("v3_video", "v3_image", "v21_video")},
}


def read(path: Path) -> None:
    """Read demonstrations and all their images; what is accepted is finite."""
    read = Demonstrations.read(path)
    steps = int(read.episode_ends[-1])
    for values in (*read.obs.values(), read.actions):
        assert len(values) == steps
        tensor = values.in_memory() if isinstance(values, LazyImages) else values
        assert tensor.isfinite().all()


def check_of(golden: Path, folder: Path) -> Callable[[int], None]:
    """A function that reads the dataset with the damage that a seed determines."""
    names = [""] if golden.is_file() else sorted(str(p.relative_to(golden)) for p in golden.rglob("*") if p.is_file())
    contents = {name: (golden / name).read_bytes() for name in names}

    def check(seed: int) -> None:
        rng = Random(seed)
        path = folder / f"{os.getpid()}-{golden.name}"
        if golden.is_file():
            path.write_bytes(mutated_bytes(contents[""], rng))
            return read(path)
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(golden, path)
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(names)
            kind = rng.randrange(8)
            if kind == 0:
                (path / name).unlink(missing_ok=True)
            elif kind == 1:
                (path / name).write_bytes(contents[rng.choice(names)])
            elif name.endswith((".json", ".zarray")) and kind < 7:
                (path / name).write_text(json.dumps(mutated_json(json.loads(contents[name]), rng)))
            else:
                (path / name).write_bytes(mutated_bytes(contents[name], rng))
        return read(path)

    return check


@pytest.mark.parametrize("count", [40, pytest.param(INPUTS, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
@pytest.mark.parametrize("name", MADE)
def test_damaged_datasets(name: str, tmp_path: Path, count: int) -> None:
    check = check_of(MADE[name](tmp_path / name), tmp_path)
    batches = (range(first, min(first + BATCH, count)) for first in range(0, count, BATCH))
    assert [found for batch in batches for found in findings(check, batch)] == []


@pytest.mark.parametrize("name", MADE)
def test_the_inputs_are_damaged_and_whole_ones_are_read(name: str, tmp_path: Path) -> None:
    """Neither is everything refused nor everything accepted, or the test above would show nothing."""
    check = check_of(MADE[name](tmp_path / name), tmp_path)
    refused = 0
    for seed in range(20):
        try:
            check(seed)
        except AsdPolicyError:
            refused += 1
    assert 3 < refused < 20
