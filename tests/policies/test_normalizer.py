"""Normalisation: range, round trip, constants, ignored entries, the layout of the global condition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asd_policy.errors import ConfigError
from asd_policy.policies.normalizer import Affine, LinearNormalizer


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    dim=st.integers(1, 6),
    center=st.floats(-10, 10),
    spread=st.floats(0.01, 100),
)
def test_round_trip_and_range(seed: int, dim: int, center: float, spread: float) -> None:
    data = center + spread * torch.rand(50, dim, generator=torch.Generator().manual_seed(seed))
    normalizer = LinearNormalizer({"action": dim})
    normalizer.fit("action", data)
    normalized = normalizer.normalize("action", data)
    # float32 keeps 7 digits: a small spread far from zero costs some of them.
    tolerance = 1e-5 + 1e-6 * abs(center) / spread
    assert normalized.amin(0).tolist() == pytest.approx([-1] * dim, abs=10 * tolerance)
    assert normalized.amax(0).tolist() == pytest.approx([1] * dim, abs=10 * tolerance)
    back = normalizer.unnormalize("action", normalized)
    torch.testing.assert_close(back, data, rtol=1e-5, atol=1e-5 * (abs(center) + spread))


def test_a_constant_entry_is_centred_and_not_stretched() -> None:
    data = torch.tensor([[1.0, 5.0], [3.0, 5.0 + 1e-6]])
    normalizer = LinearNormalizer({"object": 2})
    normalizer.fit("object", data)
    assert normalizer.normalize("object", data)[:, 1].abs().max() < 1e-5
    assert normalizer.normalize("object", torch.tensor([2.0, 5.5]))[1] == pytest.approx(0.5, abs=1e-5)


def test_ignored_entries_do_not_reach_the_network() -> None:
    data = torch.rand(20, 3)
    normalizer = LinearNormalizer({"object": 3})
    normalizer.fit("object", data, ignored=[1])
    normalized = normalizer.normalize("object", data)
    assert (normalized[:, 1] == 0).all()
    assert normalized[:, 0].max() == pytest.approx(1, abs=1e-5)


def test_condition_is_time_major_in_the_order_of_the_keys() -> None:
    normalizer = LinearNormalizer({"a": 2, "b": 1})
    obs = {"b": torch.tensor([[[3.0], [6.0]]]), "a": torch.tensor([[[1.0, 2.0], [4.0, 5.0]]])}
    assert normalizer.global_condition(obs, ["a", "b"]).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert normalizer.global_condition(obs, ["b", "a"]).tolist() == [[3, 1, 2, 6, 4, 5]]


def test_octaves_accompany_the_values_of_each_step() -> None:
    normalizer = LinearNormalizer({"a": 2})
    x = torch.tensor([[[0.5, -0.25], [0.1, 0.0]]])
    condition = normalizer.global_condition({"a": x}, ["a"], octaves=2)
    waves = [np.sin(np.pi * x), np.cos(np.pi * x), np.sin(2 * np.pi * x), np.cos(2 * np.pi * x)]
    torch.testing.assert_close(condition, torch.cat([x, *waves], dim=2).float().flatten(1))


def test_state_travels_with_the_weights() -> None:
    fitted = LinearNormalizer({"a": 2})
    fitted.fit("a", torch.rand(10, 2))
    loaded = LinearNormalizer({"a": 2})
    loaded.load_state_dict(fitted.state_dict())
    assert sorted(fitted.state_dict()) == ["fields.a.center", "fields.a.offset", "fields.a.scale"]
    x = torch.rand(4, 2)
    assert torch.equal(loaded.normalize("a", x), fitted.normalize("a", x))


def test_a_state_from_before_centers_is_read() -> None:
    fitted = LinearNormalizer({"a": 2})
    fitted.fit("a", torch.rand(10, 2))
    old = {name: value for name, value in fitted.state_dict().items() if not name.endswith("center")}
    loaded = LinearNormalizer({"a": 2})
    loaded.fields["a"].center.fill_(3)
    loaded.load_state_dict(old)
    x = torch.rand(4, 2)
    assert torch.equal(loaded.normalize("a", x), fitted.normalize("a", x))
    assert torch.equal(loaded.unnormalize("a", x), fitted.unnormalize("a", x))


def test_a_scale_of_zero_is_finite_both_ways() -> None:
    affine = Affine(2)
    affine.scale[0], affine.offset[0], affine.center[0] = 0.0, 0.5, 0.25
    assert affine(torch.tensor([7.0, 7.0])).tolist() == [0.5, 7.0]
    assert affine.inverse(torch.tensor([7.0, 7.0])).tolist() == [0.25, 7.0]


def test_a_center_keeps_its_digits_under_a_large_scale() -> None:
    affine = Affine(1)
    affine.scale[0], affine.offset[0], affine.center[0] = 2e8, -1.0, 0.8
    assert affine(torch.tensor([0.8])).item() == -1.0
    assert affine.inverse(torch.tensor([-1.0])).item() == torch.tensor(0.8).item()


def test_an_unknown_field_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"No field 'rgb'.*a, b"):
        LinearNormalizer({"a": 1, "b": 1}).normalize("rgb", torch.zeros(1))
