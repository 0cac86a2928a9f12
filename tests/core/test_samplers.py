"""Samplers as command lines write them and as specs describe them: every entry of SAMPLERS keeps the contract."""

from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asd_policy.core import (
    DRAFTS,
    SAMPLERS,
    Asd,
    Ddim,
    Ddpm,
    Schedule,
    as_spec,
    ddim_sampler,
    parse_sampler,
    sample_ddim,
)
from asd_policy.core.spec import SamplerSpec
from asd_policy.errors import ConfigError, UnknownNameError

SCHEDULE = Schedule.from_betas(torch.linspace(0.01, 0.2, 10))
FORMS = r"expected ddpm\[:CAPTURE\], ddim\[:STEPS\[:CAPTURE\]\] or asd\[:DRAFT\[:WINDOW\[:CAPTURE\]\]\]"


def denoiser(x, t, cond):
    return 0.3 * x


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("ddpm", Ddpm()),
        ("ddpm:compile", Ddpm("compile")),
        ("ddpm:cuda_graph", Ddpm("cuda_graph")),
        ("ddim:10", Ddim(10)),
        ("ddim:10:compile", Ddim(10, capture="compile")),
        ("asd:path:24", Asd("path", 24)),
        ("asd:path:all", Asd("path", None)),
        ("asd:reuse:16", Asd("reuse", 16)),
        ("asd:path:auto:compile", Asd("path", "auto", "compile")),
    ],
)
def test_forms(text, spec):
    assert parse_sampler(text) == spec
    assert spec.label == text


@pytest.mark.parametrize(
    ("text", "spec", "label"),
    [
        ("ddim", Ddim(), "ddim:10"),
        ("asd", Asd(), "asd:path:24"),
        ("asd:frozen", Asd("frozen"), "asd:frozen:24"),
        ("asd:path:auto:eager", Asd("path", "auto", "eager"), "asd:path:auto"),
    ],
)
def test_short_forms_have_the_label_of_the_long_one(text, spec, label):
    assert parse_sampler(text) == spec
    assert spec.label == label


COUNTS = ["²", "٣", "1_0", "0", "-1", "+1", " 1", "1 ", "1\n", "007", "1.0", "1e1", "0x1", "", "9" * 5000]


@pytest.mark.parametrize("form", ["asd:path:{}", "asd:path:{}:eager", "ddim:{}"])
@pytest.mark.parametrize("count", COUNTS)
def test_what_only_looks_like_a_number(form, count):
    with pytest.raises(ConfigError, match=FORMS):
        parse_sampler(form.format(count))


@given(st.sampled_from(["asd:path:", "ddim:"]), st.text(max_size=4))
def test_only_positive_ascii_numbers_are_counts(form, text):
    try:
        spec = parse_sampler(form + text)
    except ConfigError:
        return
    assert text in ("all", "auto") or (form == "asd:path:" and ":" in text) or spec.label == form + text


@pytest.mark.parametrize("text", ["", "ddpm:eager:3", "ddim:x", "asd:reuse:-1", "asd:reuse:3:eager:4", "euler"])
def test_bad_forms(text):
    with pytest.raises(ConfigError, match=FORMS):
        parse_sampler(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("asd:frosen", "draft 'frosen'.*Available: frozen, path, reuse"),
        ("asd:path:8:cuda", "capture 'cuda'"),
        ("ddpm:8", "capture '8'"),
        ("dpm", "sampler 'dpm'. Did you mean 'ddpm'.*Available: asd, ddim, ddpm"),
    ],
)
def test_an_unknown_name_lists_what_exists(text, message):
    with pytest.raises(UnknownNameError, match=f"Unknown {message}"):
        parse_sampler(text)


@pytest.mark.parametrize("sampler", ["asd", "asd:path:16", Asd("path", 16)])
def test_options_replace_those_of_the_sampler(sampler):
    assert as_spec(sampler, window=3) == Asd("path", 3)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'window'.*Available: capture, draft, .*window"):
        as_spec(sampler, windw=3)


@pytest.mark.parametrize("sampler", [None, 3, ["asd"], object()])
def test_what_is_no_sampler_is_refused(sampler):
    with pytest.raises(UnknownNameError, match="Unknown sampler"):
        as_spec(sampler)
    with pytest.raises(ConfigError, match="is the class Asd"):
        as_spec(Asd)


@pytest.mark.parametrize("name", SAMPLERS)
class TestContract:
    """What every entry of SAMPLERS does."""

    def test_a_spec_is_frozen_named_and_reads_its_own_label(self, name):
        spec = parse_sampler(name)
        assert type(spec) is SAMPLERS[name]
        assert spec.name == name
        assert spec.form.split("[")[0] == name
        assert parse_sampler(spec.label) == spec
        assert hash(spec) == hash(parse_sampler(name))
        with pytest.raises(FrozenInstanceError):
            spec.capture = "compile"

    def test_it_builds_a_sampler_that_draws(self, name):
        sampler = as_spec(name, capture="eager").build(denoiser, SCHEDULE, (2,))
        draws = sampler.draw(3, None, torch.Generator().manual_seed(0))
        assert draws.x.shape == (3, 2)
        assert draws.stats.rounds.shape == (3,)
        assert sampler.rows(2, 3) in (2, 3)
        assert int(draws.stats.advance.sum()) == 3 * sampler.num_steps

    def test_captures_that_do_not_exist_are_refused(self, name):
        for capture in ("jit", None, []):
            with pytest.raises(UnknownNameError, match="capture"):
                as_spec(name, capture=capture)


@pytest.mark.parametrize("eta", ["0.5", None, -1, float("nan"), True])
def test_a_bad_eta_is_refused(eta):
    with pytest.raises(ConfigError, match="eta is"):
        as_spec("ddim", eta=eta)


def test_labels_tell_specs_apart_that_no_command_line_can_write():
    table, own = Asd(window=(3,) * 10), Asd(draft=DRAFTS["reuse"]())
    labels = [Ddim().label, Ddim(eta=0.5).label, Ddim(set_alpha_to_one=False).label, table.label, own.label]
    assert labels == [
        "ddim:10",
        "ddim:10,eta=0.5",
        "ddim:10,set_alpha_to_one=False",
        "asd:path:table",
        "asd:ReuseDraft:24",
    ]


def test_what_is_left_open_is_clipped_and_ends_at_the_clean_sample():
    open_, given = (
        spec.build(denoiser, SCHEDULE, (2,)).draw(2, None, torch.Generator().manual_seed(0)).x
        for spec in (Ddim(5), Ddim(5, use_clipped_model_output=True, set_alpha_to_one=True))
    )
    assert torch.equal(open_, given)
    assert torch.equal(open_, sample_ddim(denoiser, SCHEDULE, (2,), 2, None, torch.Generator().manual_seed(0), 5))


@dataclass(frozen=True)
class Half:
    """A sampler of one's own: DDIM in half of the steps."""

    capture: str = "eager"
    name: ClassVar[str] = "half"
    form: ClassVar[str] = "half"
    label: ClassVar[str] = "half"

    @classmethod
    def parse(cls, words):
        return cls(*words)

    def build(self, denoiser, schedule, event_shape, device=None):
        return ddim_sampler(
            denoiser, schedule, event_shape, schedule.num_steps // 2, capture=self.capture, device=device
        )


def test_a_sampler_of_ones_own_is_used_by_name_and_as_an_object(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "half", Half)
    for spec in (parse_sampler("half"), as_spec("half:eager"), as_spec(Half())):
        assert spec.build(denoiser, SCHEDULE, (2,)).num_steps == 5
    with pytest.raises(ConfigError, match="or half"):
        parse_sampler("ddim:x")


def test_an_incomplete_spec_is_refused():
    class Incomplete:
        name, form, label, capture = "some", "some", "some", "eager"

    with pytest.raises(ConfigError, match=f"lacks build, parse of the protocol {SamplerSpec.__name__}"):
        as_spec(Incomplete())
