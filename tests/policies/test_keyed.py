"""Modules by observation key: any key, one name each, nothing lost on the way through a state dict."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from asd_policy.policies.keyed import KeyedModules, module_name
from asd_policy.policies.normalizer import LinearNormalizer

KEYS = ["a", "a.b", "a%2Eb", "observation.state", "type", "training", "values", "keys.", ".", "%", "é.x", "_modules"]


def test_any_key_is_taken_and_found_again():
    modules = KeyedModules({key: nn.Linear(1, 1) for key in KEYS})
    assert list(modules) == KEYS
    assert all(key in modules for key in KEYS)
    assert "b" not in modules
    assert len({name.rpartition(".")[0] for name in modules.state_dict()}) == len(KEYS)
    other = KeyedModules({key: nn.Linear(1, 1) for key in KEYS})
    other.load_state_dict(modules.state_dict())
    assert all(torch.equal(other[key].weight, modules[key].weight) for key in KEYS)


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8"), min_size=1))
def test_different_keys_have_different_names(one, other):
    assert "." not in module_name(one)
    assert (module_name(one) == module_name(other)) == (one == other)


@pytest.mark.parametrize("key", ["object", "robot0_eef_pos", "agentview_image"])
def test_plain_keys_stay_as_they_are(key):
    assert module_name(key) == key
    assert f"fields.{key}.scale" in LinearNormalizer({key: 2}).state_dict()
