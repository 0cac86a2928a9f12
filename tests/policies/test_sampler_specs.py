"""Samplers as command lines write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asd_policy.errors import ConfigError
from asd_policy.policies.samplers import SamplerSpec


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("ddpm", {}),
        ("ddim", {}),
        ("ddim:10", {"num_steps": 10}),
        ("ddim:10:compile", {"num_steps": 10, "capture": "compile"}),
        ("ddpm:cuda_graph", {"capture": "cuda_graph"}),
        ("asd", {}),
        ("asd:path:24", {"draft": "path", "window": 24}),
        ("asd:path:all", {"draft": "path", "window": None}),
        ("asd:path:auto:eager", {"draft": "path", "window": "auto", "capture": "eager"}),
    ],
)
def test_forms(text, options):
    assert SamplerSpec.parse(text).options == options


COUNTS = ["²", "٣", "1_0", "0", "-1", "+1", " 1", "1 ", "1\n", "007", "1.0", "1e1", "0x1", "", "9" * 5000]


@pytest.mark.parametrize("form", ["asd:path:{}", "asd:path:{}:eager", "ddim:{}"])
@pytest.mark.parametrize("count", COUNTS)
def test_what_only_looks_like_a_number(form, count):
    with pytest.raises(ConfigError, match=r"expected ddpm\[:CAPTURE\], ddim\[:STEPS\[:CAPTURE\]\] or asd"):
        SamplerSpec.parse(form.format(count))


@given(st.sampled_from(["asd:path:", "ddim:"]), st.text(max_size=4))
def test_only_positive_ascii_numbers_are_counts(form, text):
    try:
        options = SamplerSpec.parse(form + text).options
    except ConfigError:
        return
    assert text in ("all", "auto") or (form == "asd:path:" and ":" in text) or str(list(options.values())[-1]) == text
