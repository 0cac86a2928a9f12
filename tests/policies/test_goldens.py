"""Files written by earlier versions, kept in tests/goldens, are read with the values that they were written with."""

import json
from pathlib import Path

import pytest

from asd_policy.nets import NetworkConfig, TransformerConfig
from asd_policy.policies.actions import ActionPart
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.image_keys import ImageKey
from asd_policy.policies.quaternions import Quaternion
from asd_policy.policies.scheduler_config import SchedulerConfig

GOLDENS = Path(__file__).parent.parent / "goldens"
NAMES = ("square", "transport", "tool_hang", "transformer", "images")
LATER = {"action_parts": [], "quaternions": [], "images": [], "octaves": 0}
LATER_SCHEDULER = {
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "use_clipped_model_output": True,
}


@pytest.mark.parametrize("name", NAMES)
def test_configurations_keep_their_values(name):
    path = GOLDENS / f"config_{name}.json"
    written = json.loads(path.read_text())
    expected = LATER | written | {"scheduler": LATER_SCHEDULER | written["scheduler"]}
    read = PolicyConfig.load(path)
    assert json.loads(json.dumps(read.to_dict())) == expected
    assert list(read.obs_keys) == list(written["obs_keys"])


def test_configurations_are_read_as_the_objects_that_were_written():
    assert PolicyConfig.load(GOLDENS / "config_transformer.json") == PolicyConfig(
        "asd/Square-v0",
        {"robot0_eef_pos": 3, "object": 14},
        10,
        n_obs_steps=3,
        horizon=10,
        n_action_steps=4,
        action_bound=None,
        network=TransformerConfig(n_layer=3, n_head=2, n_emb=32, causal_attn=False),
        scheduler=SchedulerConfig(
            50, "linear", 0.001, 0.05, prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing",
            steps_offset=1, set_alpha_to_one=False, use_clipped_model_output=False,
        ),
        action_parts=(ActionPart("keep", 3), ActionPart("rot6d", 6), ActionPart("keep", 1)),
        quaternions=(Quaternion("object", 3, (0.0, 0.5, -0.5, 1.0)),),
        octaves=2,
    )  # fmt: skip
    assert PolicyConfig.load(GOLDENS / "config_images.json") == PolicyConfig(
        "asd/Square-v0",
        {"robot0_eef_pos": 3, "agentview_image": 64},
        7,
        network=NetworkConfig("unet1d", (32, 64), 3, 4, 16, False),
        images=(ImageKey("agentview_image", (84, 84, 3), (4, 4, 76, 76), (84, 84), "resnet34", "batch", 16),),
    )


def test_a_config_is_written_as_before(tmp_path):
    for name in ("transformer", "images"):
        PolicyConfig.load(GOLDENS / f"config_{name}.json").save(tmp_path / "config.json")
        assert (tmp_path / "config.json").read_bytes() == (GOLDENS / f"config_{name}.json").read_bytes()
