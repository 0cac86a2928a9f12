"""The policy's configuration: exact round trip, and a refusal that names the field for everything else."""

from pathlib import Path
from typing import Any

import pytest

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.policies.config import NetworkConfig, PolicyConfig, SchedulerConfig
from asd_policy.policies.scheduler_config import SAMPLING

OBS_KEYS = {"object": 14, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}


def make_config(**changes: Any) -> PolicyConfig:
    return PolicyConfig(**{"env_id": "asd/Square-v0", "obs_keys": OBS_KEYS, "action_dim": 7, **changes})


def test_round_trip_through_a_file_keeps_the_order_of_keys(tmp_path: Path) -> None:
    reordered = dict(reversed(OBS_KEYS.items()))
    config = make_config(obs_keys=reordered, network=NetworkConfig(down_dims=(32, 64), kernel_size=3))
    config.save(tmp_path / "config.json")
    loaded = PolicyConfig.load(tmp_path / "config.json")
    assert loaded == config
    assert list(loaded.obs_keys) == list(reordered)


def test_sizes_of_the_condition() -> None:
    assert make_config().obs_dim == 23
    assert make_config().global_cond_dim == 46
    assert make_config(octaves=3).global_cond_dim == 7 * 46


@pytest.mark.parametrize("where", [(), ("network",), ("scheduler",)])
def test_unknown_and_missing_fields_are_named(where: tuple[str, ...]) -> None:
    for name in ("surprise", None):
        data = make_config().to_dict()
        target = data[where[0]] if where else data
        missing = next(iter(target))
        if name:
            target[name] = 1
        else:
            del target[missing]
        with pytest.raises(ConfigError, match=name or missing):
            PolicyConfig.from_dict(data)


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        ((), "format_version", 2),
        ((), "action_dim", 0),
        ((), "action_dim", True),
        ((), "octaves", -1),
        ((), "octaves", 17),
        ((), "octaves", 1.5),
        ((), "action_dim", "7"),
        ((), "env_id", 3),
        ((), "horizon", 14),
        ((), "n_action_steps", 16),
        ((), "obs_keys", {}),
        ((), "obs_keys", {"object": -1}),
        ((), "obs_keys", {"action": 1}),
        ((), "obs_keys", {"": 1}),
        ((), "network", 1),
        ((), "n_obs_steps", 17),
        ((), "n_obs_steps", 10**30),
        ((), "horizon", 8192),
        ((), "horizon", 10**400),
        ((), "action_dim", 2**20),
        ((), "obs_keys", {"object": 2**21}),
        ((), "action_bound", float("inf")),
        ((), "action_bound", float("nan")),
        ((), "action_bound", 10**30),
        ((), "quaternions", [{"key": "object", "first": 0, "towards": [0, 0, 0, 1]}] * 100),
        (("network",), "down_dims", [8] * 17),
        (("network",), "name", ["unet1d"]),
        (("scheduler",), "num_train_timesteps", 10**9),
        (("scheduler",), "clip_sample_range", float("inf")),
        (("scheduler",), "beta_start", float("nan")),
        (("scheduler",), "timestep_spacing", "middle"),
        (("scheduler",), "steps_offset", -1),
        (("scheduler",), "steps_offset", 100),
        (("scheduler",), "set_alpha_to_one", 1),
        (("scheduler",), "use_clipped_model_output", None),
        (("network",), "name", "mlp"),
        (("network",), "down_dims", [64, 100]),
        (("network",), "down_dims", []),
        (("network",), "down_dims", "64"),
        (("network",), "n_groups", 0),
        (("network",), "kernel_size", 4),
        (("network",), "diffusion_step_embed_dim", 5),
        (("network",), "cond_predict_scale", 1),
        (("scheduler",), "num_train_timesteps", 0),
        (("scheduler",), "prediction_type", "score"),
        (("scheduler",), "beta_schedule", "cosine"),
        (("scheduler",), "variance_type", "learned"),
        (("scheduler",), "beta_end", 2.0),
        (("scheduler",), "clip_sample_range", 0),
    ],
)
def test_an_unusable_value_names_its_field(where: tuple[str, ...], name: str, value: Any) -> None:
    data = make_config().to_dict()
    (data[where[0]] if where else data)[name] = value
    with pytest.raises(ConfigError, match=name):
        PolicyConfig.from_dict(data)


def test_whole_numbers_pass_for_floats() -> None:
    data = make_config().to_dict()
    data["scheduler"]["clip_sample_range"] = 1
    assert PolicyConfig.from_dict(data).scheduler == SchedulerConfig()


def test_files_from_before_the_settings_of_fewer_steps_are_read() -> None:
    data = make_config().to_dict()
    for name in SAMPLING:
        del data["scheduler"][name]
    assert PolicyConfig.from_dict(data) == make_config()


@pytest.mark.parametrize("text", [None, "{not json", "[" * 10**5, '{"horizon": ' + "9" * 10**4 + "}"])
def test_an_unreadable_file_is_a_checkpoint_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config.json"
    if text:
        path.write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        PolicyConfig.load(path)


def test_a_config_that_is_not_an_object_is_refused() -> None:
    with pytest.raises(ConfigError, match="JSON object"):
        PolicyConfig.from_dict([])  # type: ignore[arg-type]
