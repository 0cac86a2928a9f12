"""Normalisation statistics: not finite ones are refused, and what never moves means what its library makes of it."""

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.importers import FORMATS, Checkpoint, load_policy, read_checkpoint, robomimic
from asd_policy.importers.checkpoint import affine_field, field_name
from asd_policy.importers.lerobot.reading import Normalisation, _statistics
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.policies.normalizer import Affine
from tests.importers.small import (
    changed_lerobot,
    changed_robomimic,
    legacy_lerobot,
    small_real_stanford,
)
from tests.tiny import tiny_checkpoint

NAN, INF = float("nan"), float("inf")
WRONG = [("scale", NAN), ("scale", INF), ("scale", -1.0), ("offset", NAN), ("offset", -INF)]


def first_action(policy: DiffusionPolicy) -> np.ndarray:
    policy.reset(seed=0)
    return policy.act({key: np.zeros(shape, np.float32) for key, shape in policy.config.obs_shapes.items()})


def affine_of(checkpoint: Checkpoint, key: str) -> Affine:
    affine = Affine(len(checkpoint.affine(key)[0]))
    affine.load_state_dict({kind: checkpoint.tensors[field_name(key, kind)] for kind in ("scale", "offset", "center")})
    return affine


# ---- refused at load, naming the feature and the statistic


def full(dim: int, value: float) -> Tensor:
    """Zeros but for one entry."""
    values = torch.zeros(dim)
    values[1] = value
    return values


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("feature", "statistic", "dim", "mode"),
    [
        ("action", "max", 7, {}),
        ("action", "min", 7, {}),
        ("action", "std", 7, {"ACTION": "MEAN_STD"}),
        ("action", "mean", 7, {"ACTION": "MEAN_STD"}),
        ("observation.state", "min", 9, {}),
        ("observation.environment_state", "std", 14, {}),
    ],
)
def test_lerobots_statistics_are_finite(tmp_path, feature, statistic, dim, mode, value):
    modes = {"STATE": "MIN_MAX", "ENV": "MEAN_STD", "ACTION": "MIN_MAX"} | mode
    stats = {f"{feature}.{statistic}": full(dim, value)}
    for path in (
        changed_lerobot(tmp_path / "new", {"normalization_mapping": modes}, stats),
        legacy_lerobot(tmp_path / "legacy", stats, {"normalization_mapping": modes}),
    ):
        with pytest.raises(CheckpointError, match=f"{statistic} of '{feature}' is not finite"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ({"action.max": -10 * torch.ones(7)}, r"max - min of 'action' is -.* in entry 0"),
        (
            {"observation.environment_state.std": full(14, -1)},
            "std of 'observation.environment_state' is -1 in entry 1",
        ),
        ({"action.max": torch.ones(6)}, r"statistics of action have shape \(6,\)"),
        ({"action.max": torch.ones(7, dtype=torch.bool)}, "statistics of 'action' are not numbers"),
    ],
)
def test_lerobots_statistics_make_sense(tmp_path, stats, message):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(changed_lerobot(tmp_path / "a", stats=stats))


@pytest.mark.parametrize(("statistic", "value"), WRONG)
@pytest.mark.parametrize("group", ["obs", "action"])
def test_robomimics_statistics_are_finite(all_originals, tmp_path, group, statistic, value):
    key = "object" if group == "obs" else "action_dict/abs_pos"

    def edit(payload):
        payload[f"{group}_normalization_stats"][key][statistic][0][1] = value

    path = changed_robomimic(all_originals["robomimic"].path, tmp_path / "a.pth", edit)
    with pytest.raises(CheckpointError, match=f"{statistic} of '{key}' is"):
        read_checkpoint(path)


@pytest.mark.parametrize(("statistic", "value"), WRONG)
@pytest.mark.parametrize("field", ["obs", "action"])
def test_real_stanfords_statistics_are_finite(tmp_path, field, statistic, value):

    def edit(state):
        state[f"normalizer.params_dict.{field}.{statistic}"][1] = value

    small_real_stanford(tmp_path / "a.ckpt", state=edit)
    with pytest.raises(CheckpointError, match=f"{statistic} of '{field}' is"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", ["normalizer.fields.object.scale", "normalizer.fields.action.offset"])
def test_native_statistics_are_finite(tmp_path, name, value):
    folder = tiny_checkpoint(tmp_path / "tiny", {"object": 5}, action_dim=2)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][0] = value
    save_file(tensors, folder / "model.safetensors")
    _, _, field, statistic = name.split(".")
    with pytest.raises(CheckpointError, match=rf"normalisation of '{field}' \({statistic}\) is not finite"):
        read_checkpoint(folder)


@pytest.mark.parametrize("value", [NAN, INF, 1e39])
def test_weights_are_finite_in_float32(tmp_path, value):
    def weights(tensors):
        name = "diffusion.unet.final_conv.1.bias"
        tensors[name] = tensors[name].double()
        tensors[name][0] = value
        return tensors

    with pytest.raises(CheckpointError, match=r"the weight model\.final_conv\.1\.bias is not finite"):
        read_checkpoint(changed_lerobot(tmp_path / "a", weights=weights))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_read(tmp_path, dtype):
    ours = read_checkpoint(changed_lerobot(tmp_path / "a", weights=lambda w: {k: v.to(dtype) for k, v in w.items()}))
    theirs = read_checkpoint(changed_lerobot(tmp_path / "b"))
    name = "model.final_conv.1.bias"
    expected = theirs.tensors[name].to(dtype).float()
    assert torch.equal(ours.policy("ddpm").network.state_dict()[name.removeprefix("model.")], expected)


def test_integers_are_no_weights(tmp_path):
    name = "diffusion.unet.final_conv.1.bias"
    path = changed_lerobot(tmp_path / "a", weights=lambda w: w | {name: w[name].long()})
    with pytest.raises(CheckpointError, match=r"final_conv\.1\.bias is of torch\.int64"):
        load_policy(path)


# ---- what never moves


def test_an_action_of_deviation_zero_is_lerobots_mean(tmp_path):
    for mean in (0.25, 0.0, -3.7):
        stats = {"action.mean": torch.full((7,), mean), "action.std": torch.ones(7)}
        stats["action.std"][6] = 0
        modes = {"STATE": "MIN_MAX", "ENV": "MEAN_STD", "ACTION": "MEAN_STD"}
        path = changed_lerobot(tmp_path / f"{mean}", {"normalization_mapping": modes}, stats)
        action = first_action(load_policy(path, sampler="ddpm"))
        assert np.isfinite(action).all()
        assert action[6] == np.float32(mean)


def lerobots(mode: str, first: Tensor, second: Tensor, value: Tensor, inverse: bool, legacy: bool) -> Tensor:
    """lerobot's formulas (`_apply_transform`, and `Normalize` and `Unnormalize` before it), float32."""
    eps = 1e-8
    if mode == "MEAN_STD":
        return value * second + first if inverse else (value - first) / (second + eps)
    spread = second - first
    if legacy:
        return (value + 1) / 2 * spread + first if inverse else (value - first) / (spread + eps) * 2 - 1
    spread = torch.where(spread == 0, torch.tensor(eps), spread)
    return (value + 1) / 2 * spread + first if inverse else 2 * (value - first) / spread - 1


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(["MEAN_STD", "MIN_MAX"]),
    legacy=st.booleans(),
    first=st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3),
    spread=st.lists(st.sampled_from([0.0, 2.0**-20, 2.0**-10, 0.5, 3.0]), min_size=3, max_size=3),
    normalised=st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3),
)
def test_both_directions_are_lerobots(mode, legacy, first, spread, normalised):
    low = torch.tensor(first)
    second = torch.tensor(spread) if mode == "MEAN_STD" else low + torch.tensor(spread)
    kinds = ("mean", "std") if mode == "MEAN_STD" else ("min", "max")
    y = torch.tensor(normalised)
    x = low + y * torch.tensor(spread)
    for name, value, inverse in (("action", y, True), ("observation.state", x, False)):
        found = Normalisation({name: dict(zip(kinds, (low, second), strict=True))}, legacy=legacy)
        affine = Affine(3)
        values = affine_field("x", *_statistics(name, mode, 3, found, "here"))
        affine.load_state_dict({key.rpartition(".")[2]: tensor for key, tensor in values.items()})
        ours = affine.inverse(value) if inverse else affine(value)
        # What lerobot itself would compute with more digits: in float32 both lose some.
        exact = lerobots(mode, *(t.double() for t in (low, second, value)), inverse, legacy)
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=2e-5)


def test_an_observation_that_never_moved_is_exactly_minus_one_where_it_stays(tmp_path):
    low = torch.linspace(-2.3, 0.8, 9)
    for make in (changed_lerobot, legacy_lerobot):
        path = make(
            tmp_path / make.__name__, stats={"observation.state.min": low, "observation.state.max": low.clone()}
        )
        affine = affine_of(read_checkpoint(path), "state")
        assert affine(low).tolist() == [-1.0] * 9
        assert affine(low + 1e-3)[4] > 1e5  # lerobot stretches by 2e8 what moves after all


def test_an_action_that_never_moved_is_lerobots_minimum(tmp_path):
    low = torch.linspace(-2.3, 0.8, 7)
    for make in (changed_lerobot, legacy_lerobot):
        path = make(tmp_path / make.__name__, stats={"action.min": low, "action.max": low.clone()})
        action = first_action(load_policy(path, sampler="ddpm"))
        np.testing.assert_allclose(action, low.numpy(), atol=2e-8)


def test_lerobots_image_of_deviation_zero(all_originals, tmp_path):
    path = tmp_path / "rgb"
    shutil.copytree(all_originals["lerobot image"].path, path)
    for file in path.glob("*normalizer_processor.safetensors"):
        stats = load_file(file)
        name = next(key for key in stats if "image" in key and key.endswith("std"))
        stats[name] = torch.zeros_like(stats[name])
        save_file(stats, file)
    checkpoint = read_checkpoint(path)
    key = name.split(".")[-2]
    affine = affine_of(checkpoint, key)
    mean = stats[name.replace("std", "mean")].flatten()
    torch.testing.assert_close(affine(mean * 255), torch.zeros(3), atol=20, rtol=0)  # of 1 / 1e-8 a pixel's rounding
    assert affine.scale.tolist() == pytest.approx([1e8 / 255] * 3)
    assert np.isfinite(checkpoint.affine(key)[2]).all()


def test_an_action_of_scale_zero_is_robomimics_offset(all_originals, tmp_path):
    def edit(payload):
        payload["action_normalization_stats"]["action_dict/gripper"] = {"scale": [[0.0]], "offset": [[0.04]]}

    path = changed_robomimic(all_originals["robomimic"].path, tmp_path / "a.pth", edit)
    assert first_action(load_policy(path, sampler="ddpm"))[6] == np.float32(0.04)


def test_what_would_be_divided_by_zero_is_refused(all_originals, tmp_path):
    def still_object(payload):
        payload["obs_normalization_stats"]["object"]["scale"][0][2] = 0.0

    def stanford(state):
        state["normalizer.params_dict.action.scale"][2] = 0.0

    small_real_stanford(tmp_path / "a.ckpt", state=stanford)
    for path, feature in (
        (changed_robomimic(all_originals["robomimic"].path, tmp_path / "a.pth", still_object), "object"),
        (tmp_path / "a.ckpt", "action"),
    ):
        with pytest.raises(CheckpointError, match=f"scale of '{feature}' is 0 in entry 2; expected more than 0"):
            read_checkpoint(path)


def test_an_observation_of_scale_zero_is_real_stanfords_offset(tmp_path):
    def edit(state):
        state["normalizer.params_dict.obs.scale"][0] = 0.0
        state["normalizer.params_dict.obs.offset"][0] = 0.5

    small_real_stanford(tmp_path / "a.ckpt", cfg=lambda cfg: cfg.pop("task") and None, state=edit)
    affine = affine_of(read_checkpoint(tmp_path / "a.ckpt"), "obs")
    assert affine(torch.full((23,), 7.0)).tolist() == [0.5] + [7.0] * 22


def test_robomimics_ranges_far_from_zero_keep_their_digits(all_originals, tmp_path):
    def edit(payload):
        payload["obs_normalization_stats"]["object"] = {"scale": [[1e-5] * 14], "offset": [[0.8] * 14]}

    path = changed_robomimic(all_originals["robomimic"].path, tmp_path / "a.pth", edit)
    x = torch.full((14,), 0.8) + 3e-6
    expected = (x.double() - 0.8) / 1e-5
    torch.testing.assert_close(affine_of(read_checkpoint(path), "object")(x).double(), expected, atol=3e-3, rtol=0)


# ---- ways back, and files from before


@pytest.mark.parametrize("name", ["native", "lerobot"])
def test_constant_dimensions_survive_a_way_back(tmp_path, name):
    modes = {"STATE": "MIN_MAX", "ENV": "MEAN_STD", "ACTION": "MEAN_STD"}
    stats = {"action.std": full(7, 0.5), "action.mean": torch.linspace(-1, 1, 7)}
    stats |= {"observation.state.max": torch.ones(9), "observation.state.min": torch.ones(9)}
    original = read_checkpoint(changed_lerobot(tmp_path / "a", {"normalization_mapping": modes}, stats))
    FORMATS.writable()[name](original, tmp_path / "b")
    again = read_checkpoint(tmp_path / "b")
    for key in ("state", "environment_state", "action"):
        one, other = affine_of(original, key), affine_of(again, key)
        y = torch.linspace(-1, 1, len(one.scale))
        torch.testing.assert_close(other.inverse(y), one.inverse(y), rtol=1e-6, atol=1e-7)
        x = torch.ones(len(one.scale))
        torch.testing.assert_close(other(x), one(x), rtol=1e-6, atol=1e-5)
    assert np.array_equal(first_action(again.policy("ddpm"))[0], first_action(original.policy("ddpm"))[0])


def test_an_action_that_never_moves_survives_robomimics_format(all_originals, tmp_path):
    def edit(payload):
        payload["action_normalization_stats"]["action_dict/gripper"] = {"scale": [[0.0]], "offset": [[0.04]]}

    original = read_checkpoint(changed_robomimic(all_originals["robomimic"].path, tmp_path / "a.pth", edit))
    with mock.patch.object(robomimic.writing, "ROBOMIMIC_NETWORK", original.config.network):
        robomimic.write(original, tmp_path / "b.pth")
    assert first_action(read_checkpoint(tmp_path / "b.pth").policy("ddpm"))[6] == np.float32(0.04)


def without_centers(folder: Path) -> Path:
    """The folder as it was written before normalizers had a center."""
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.endswith(".center")}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for name in ("timestep_spacing", "steps_offset", "set_alpha_to_one", "use_clipped_model_output"):
        del config["scheduler"][name]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_folders_from_before_centers_act_as_they_did(tmp_path):
    new = tiny_checkpoint(tmp_path / "new", {"object": 5}, action_dim=2)
    old = without_centers(tiny_checkpoint(tmp_path / "old", {"object": 5}, action_dim=2))
    assert read_checkpoint(old).config == read_checkpoint(new).config
    for sampler in ("asd", "ddpm", "ddim"):
        one, other = (first_action(load_policy(path, sampler=sampler)) for path in (old, new))
        assert np.array_equal(one, other)


def test_a_folder_from_before_centers_whose_actions_cannot_be_mapped_back(tmp_path):
    folder = without_centers(tiny_checkpoint(tmp_path / "old", {"object": 5}, action_dim=2))
    tensors = load_file(folder / "model.safetensors")
    tensors["normalizer.fields.action.scale"][0] = 0
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="'action' has scale 0"):
        read_checkpoint(folder)
