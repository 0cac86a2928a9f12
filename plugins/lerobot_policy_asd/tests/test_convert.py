"""`lerobot-asd convert`: a folder of lerobot's becomes one of asd_diffusion. Needs no lerobot."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot_policy_asd import convert as module
from lerobot_policy_asd.__main__ import main
from lerobot_policy_asd.convert import convert
from lerobot_policy_asd.options import SamplerFields
from safetensors.torch import load_file, save_file

from asd_policy import load_policy
from asd_policy.errors import CheckpointError, ConfigError, UnknownNameError

GOLDEN = Path(__file__).parents[3] / "tests" / "importers" / "golden" / "lerobot"
"""A folder that lerobot 0.6.1 wrote."""
STATE = "policy_preprocessor_step_3_normalizer_processor.safetensors"
FILES = {
    "config.json",
    "model.safetensors",
    "policy_preprocessor.json",
    "policy_postprocessor.json",
    STATE,
    "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "pretrained_model"))


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_the_folder(folder, tmp_path):
    out = tmp_path / "out"
    names = convert(folder, out, SamplerFields(draft="reuse", window=None, warm_start=False))
    assert set(names) == {file.name for file in out.iterdir()} == FILES
    for name in FILES - {"config.json"}:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    before, after = (json.loads((place / "config.json").read_text()) for place in (folder, out))
    told = {"type": "asd_diffusion", "draft": "reuse", "window": None, "capture": "eager", "warm_start": False}
    assert after == {**before, **told}


def test_a_converted_folder_takes_other_options(folder, tmp_path):
    convert(folder, tmp_path / "once")
    convert(tmp_path / "once", tmp_path / "twice", SamplerFields(window=8))
    once, twice = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("once", "twice"))
    assert twice == {**once, "window": 8}


def test_asd_policy_itself_reads_the_folder(folder, tmp_path):
    convert(folder, tmp_path / "out")
    one, other = (load_policy(place) for place in (folder, tmp_path / "out"))
    assert one.config == other.config
    x, y = (policy.network.state_dict() for policy in (one, other))
    assert all(torch.equal(x[name], y[name]) for name in x)


def test_ddim_is_sampled_as_ddpm_only_where_asked(folder, tmp_path):
    edit_json(folder / "config.json", lambda c: c.update(noise_scheduler_type="DDIM", num_inference_steps=10))
    with pytest.raises(ConfigError, match=r"noise_scheduler_type is 'DDIM'.*--as-ddpm"):
        convert(folder, tmp_path / "out")
    convert(folder, tmp_path / "out", as_ddpm=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["noise_scheduler_type"] == "DDPM"
    assert config["num_inference_steps"] is None


def test_a_shorter_ddpm_chain_keeps_its_steps(folder, tmp_path):
    edit_json(folder / "config.json", lambda c: c.update(num_inference_steps=10))
    convert(folder, tmp_path / "out", as_ddpm=True)  # nothing to replace
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_inference_steps"] == 10


def retype(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.update(type="act"))


def without_type(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c.pop("type"))


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def other_network(folder: Path) -> None:
    save_file({"model.weight": torch.zeros(2)}, folder / "model.safetensors")


def before_processors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["normalize_inputs.buffer_observation_state.min"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")


def state_file(name: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit_json(folder / "policy_preprocessor.json", lambda p: p["steps"][-1].update(state_file=name))

    return change


def unlink(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (retype, "of type 'act'; expected 'diffusion'"),
        (without_type, "type"),
        (truncated, r"Cannot read the weights .*complete\?"),
        (other_network, r"no tensors diffusion\.unet"),
        (before_processors, "migrate_policy_normalization"),
        (unlink("config.json"), "no such file"),
        (unlink("model.safetensors"), "model.safetensors is missing"),
        (unlink("policy_preprocessor.json"), "policy_preprocessor.json is missing.*not normalised"),
        (unlink("policy_postprocessor.json"), "policy_postprocessor.json is missing"),
        (unlink(STATE), f"{STATE} is missing"),
        (state_file("../elsewhere.safetensors"), "its own folder"),
        (state_file(7), "its own folder"),
        (shutil.rmtree, "is no folder"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "no JSON object"),
    ],
)
def test_a_damaged_folder_is_refused_and_nothing_is_written(folder, tmp_path, damage, told):
    damage(folder)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=told):
        convert(folder, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_overwritten(folder, tmp_path):
    (tmp_path / "out").mkdir()  # even an empty folder
    with pytest.raises(ConfigError, match="exists"):
        convert(folder, tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="exists"):
        convert(folder, tmp_path / "link")
    with pytest.raises(ConfigError, match="is no folder"):
        convert(folder, tmp_path / "missing" / "out")
    assert not any((tmp_path / "out").iterdir())


def test_nothing_half_written_stays(folder, tmp_path, monkeypatch):
    def full(source: Path, target: Path) -> None:
        if Path(source).name == STATE:
            raise OSError("No space left on device")
        Path(target).write_bytes(b"")

    monkeypatch.setattr(module.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        convert(folder, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"draft": "pth"}, UnknownNameError, "Did you mean 'path'"),
        ({"capture": "cudagraph"}, UnknownNameError, "Did you mean 'cuda_graph'"),
        ({"draft": 3}, ConfigError, "draft is 3; expected a name"),
        ({"window": 0}, ConfigError, "window is 0; expected a positive integer"),
        ({"window": True}, ConfigError, "window is True"),
        ({"window": "auto"}, ConfigError, "window is 'auto'"),
        ({"warm_start": 1}, ConfigError, "warm_start is 1; expected true or false"),
    ],
)
def test_options(options, error, told):
    with pytest.raises(error, match=told):
        SamplerFields(**options)


def test_command(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(folder), str(out), "--window", "all", "--no-warm-start"]) == 0
    assert f"--policy.path={out}" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert (config["window"], config["warm_start"]) == (None, False)
    for wrong in (["--draft", "pth"], ["--window", "0"], ["--window", "many"], []):
        assert main(["convert", str(folder), str(out if not wrong else tmp_path / "new"), *wrong]) == 1
        assert capsys.readouterr().err.count("\n") == 1  # a sentence, no traceback
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(folder), str(out), "--drfat", "path"])
