"""The commands around images, on a handful of digits and an untrained network."""

import json
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMPipeline
from PIL import Image

from asd_policy.benchmarks.images import ImageBenchmark
from asd_policy.cli import images_bench, images_classifier, images_draw, images_train
from asd_policy.errors import CheckpointError, ConfigError, DataError
from asd_policy.training.images import UnetSizes
from asd_policy.training.run import Machine
from asd_policy.training.settings import TrainSettings

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    images = np.random.default_rng(0).integers(0, 256, (200, 28, 28)).astype(np.uint8)
    np.savez(path, images=images, labels=np.arange(200).astype(np.uint8) % 10)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, data) -> Path:
    """A run of two steps, and of two more after it was resumed."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    settings = TrainSettings(steps=2, batch_size=4, warmup_steps=1)
    machine = Machine(device="cpu", threads=1)
    assert images_train.main(images_train.New(data, out, settings, UnetSizes((8, 16)), machine)) == 0
    values = json.loads((out / "train.json").read_text())
    values["settings"]["steps"] = 4
    (out / "train.json").write_text(json.dumps(values))
    assert images_train.main(images_train.Resume(out, machine)) == 0
    return out


@pytest.fixture(scope="module")
def model(run) -> Path:
    """Its last snapshot, with fewer steps: a thousand are slow."""
    folder = run / "ema_000004"
    scheduler = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text())
    assert config["num_train_timesteps"] == 1000
    scheduler.write_text(json.dumps({**config, "num_train_timesteps": STEPS, "beta_end": 0.4}))
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory, data) -> Path:
    path = tmp_path_factory.mktemp("features") / "features.safetensors"
    images_classifier.main(images_classifier.Arguments(data, path, steps=3))
    return path


def test_training(run):
    for step in (2, 4):
        assert DDPMPipeline.from_pretrained(run / f"ema_{step:06d}").unet.config.num_class_embeds == 11
        assert Image.open(run / f"ema_{step:06d}.png").size == (320, 64)
    assert (run / "loss.png").exists()
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [2, 4]
    with pytest.raises(ConfigError, match="exists already"):
        images_train.main(images_train.New(Path("nowhere"), run, TrainSettings(steps=2)))


def test_a_grid(model, tmp_path, capsys):
    path = tmp_path / "grid.png"
    options = {"sampler": "asd:path:4", "labels": (3, 7), "columns": 2, "batch_size": 2}
    images_draw.main(images_draw.Arguments(str(model), path, count=3, **options))
    assert "sequential network calls of an image" in " ".join(capsys.readouterr().out.split())
    assert Image.open(path).size == (64, 64)
    with pytest.raises(CheckpointError):
        images_draw.main(images_draw.Arguments(str(tmp_path), path))


@pytest.mark.parametrize(("scheduler", "eta"), [("euler_ancestral", 0.0), ("ddim", 0.5)])
def test_a_grid_of_another_chain(model, tmp_path, capsys, scheduler, eta):
    options = {"labels": (3,), "steps": 4, "scheduler": scheduler, "eta": eta}
    grids = []
    for sampler in ("ddpm", "asd:frozen:1"):
        path = tmp_path / "grid.png"
        images_draw.main(images_draw.Arguments(str(model), path, count=2, sampler=sampler, **options))
        grids.append(np.asarray(Image.open(path)).astype(int))
    images_draw.main(images_draw.Arguments(str(model), path, count=2, labels=(3,), steps=4, sampler="ddpm"))
    own = np.asarray(Image.open(path)).astype(int)
    assert np.abs(grids[0] - grids[1]).max() <= 1
    assert np.abs(grids[0] - own).max() > 1
    assert "calls of an image: 4.0" in " ".join(capsys.readouterr().out.split())


def arguments(model: Path, features: Path, out: Path, images: int = 6) -> images_bench.Arguments:
    choice = {"drafts": ("path",), "windows": ("4", "all"), "quality": ("ddpm", "paradigms:4:0.1", "ddim:3")}
    return images_bench.Arguments(model, features, out, **choice, seeds=2, images=images, repeats=2, batch_size=3)


def test_measurements_go_on_where_they_stopped(model, features, tmp_path):
    assert images_bench.main(arguments(model, features, tmp_path)) == 0
    record = tmp_path / "measurements.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 3 + 3 + 2 * 3
    rows = {(row["kind"], row["sampler"]): row for row in json.loads((tmp_path / "results.json").read_text())["rows"]}
    assert rows["cost", "ddpm"]["rounds"] == STEPS
    assert rows["cost", "asd:path:all"]["rounds"] < STEPS
    assert rows["memory", "asd:path:all"]["peak_bytes"] > max(2**20, rows["memory", "ddpm"]["peak_bytes"])
    assert rows["quality", "paradigms:4:0.1"]["count"] == 2
    assert rows["quality", "ddpm"]["frechet"] > 0
    assert (tmp_path / "speedup.png").exists()

    record.write_text("".join(lines[:12]) + lines[12][:10])  # as a kill leaves it
    assert images_bench.main(arguments(model, features, tmp_path)) == 0
    again = record.read_text().splitlines(keepends=True)
    assert again[:12] == lines[:12]
    first, second = ([json.loads(line).get("frechet") for line in some[1:]] for some in (lines, again))
    assert first == second  # the same noise for the same measurement, whenever it is made
    with pytest.raises(ConfigError, match="Choose another --out"):
        images_bench.main(arguments(model, features, tmp_path, images=7))


def test_samplers_that_do_not_exist_are_refused_first(model, features, tmp_path):
    for name in ("paradigms:4", "asd:path:x"):
        with pytest.raises(ConfigError, match="Unknown sampler"):
            images_bench.main(images_bench.Arguments(model, features, tmp_path, quality=(name,)))
    with pytest.raises(CheckpointError, match="train_digit_classifier"):
        images_bench.main(images_bench.Arguments(model, tmp_path / "missing", tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"columns": 0}, "columns is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"seed": 2**32 - 1, "count": 2}, "seed is 4294967295"),
        ({"seed": -1}, "seed is -1"),
        ({"out": Path("grid.txt")}, "ending of --out '.txt'"),
        ({"device": "gpu"}, "gpu"),
        ({"scheduler": "pndm"}, "Unknown scheduler 'pndm'"),
        ({"scheduler": "ddim"}, "ddim needs one above 0"),
        ({"eta": 0.5}, "ddim needs one above 0"),
        ({"scheduler": "ddim", "eta": 2.0}, "eta is 2.0"),
        ({"sampler": "asd:path:auto"}, "window is 'auto'"),
        ({"labels": (11,)}, "from 0 to 10"),
    ],
)
def test_grids_that_make_no_sense_are_refused_first(model, tmp_path, changes, message):
    arguments = {"model": str(model), "out": tmp_path / "grid.png", "count": 1, **changes}
    with pytest.raises(ConfigError, match=message):
        images_draw.main(images_draw.Arguments(**arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 1}, "images is 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seeds": -1}, "seeds is -1"),
        ({"quality": ("paradigms:0:0.1",)}, "WINDOW is 0"),
        ({"quality": ("ddim:5000",)}, "num_steps is 5000"),
        ({"quality": ("asd:path:4:graph",)}, "Did you mean .cuda_graph"),
        ({"quality": ("paradigms:4:nan",)}, "TOLERANCE is nan"),
    ],
)
def test_measurements_that_make_no_sense_are_refused_first(model, features, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        images_bench.main(images_bench.Arguments(model, features, tmp_path, **changes))


def test_damaged_measurements_are_named(model, features, tmp_path):
    arguments = ImageBenchmark(model, features, tmp_path, quality=("ddpm",))
    settings = json.dumps(arguments.settings())
    for lines, message in (
        ("{}\n{\n", "is not a JSON object"),
        (settings + '\n{"kind": "cost", "sampler": "ddpm", "repeat": 0, "rounds": 3.0}\n', "lacks evaluations"),
        (settings + '\n{"kind": "price", "sampler": "ddpm", "repeat": 0}\n', "kind is 'price'"),
        (settings + '\n{"kind": "memory", "sampler": "ddpm", "repeat": 0, "peak_bytes": "1"}\n', "peak_bytes"),
    ):
        (tmp_path / "measurements.jsonl").write_text(lines)
        with pytest.raises(DataError, match=rf"measurements\.jsonl, line 2.*{message}.*choose another --out"):
            images_bench.main(arguments)
        assert (tmp_path / "measurements.jsonl").read_text() == lines
