"""Policies sampled by ASD from the law of their DDIM with noise."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from asd_policy import load_policy
from asd_policy.core import DRAFTS, Asd, NoiseTape, as_spec, sample_chain
from asd_policy.errors import ConfigError
from tests.core import laws
from tests.tiny import tiny_checkpoint

OBS_KEYS = {"object": 5, "robot0_eef_pos": 3}
LAW = {"eta": 0.8, "num_steps": 6}


@pytest.fixture(scope="module", params=[True, False], ids=["clipped", "unclipped"])
def checkpoint(tmp_path_factory, request) -> Path:
    """A model that was trained with both of DDIM's settings at true, or at false."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", OBS_KEYS, action_dim=2)
    values = json.loads((folder / "config.json").read_text())
    values["scheduler"] |= {"use_clipped_model_output": request.param, "set_alpha_to_one": request.param}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def observation(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {key: rng.standard_normal(dim) for key, dim in OBS_KEYS.items()}


def samplers(checkpoint, **options):
    """The policies' samplers and a condition: ASD's, and that of plain DDIM."""
    asd, ddim = load_policy(checkpoint, "asd", **LAW, **options), load_policy(checkpoint, "ddim", **LAW)
    return asd.sampler, ddim.sampler, asd.condition([observation(0)])


def test_without_speculation_it_is_ddim_on_the_same_noise(checkpoint):
    asd, ddim, cond = samplers(checkpoint)
    tape = NoiseTape.draw(16, 6, asd.event_shape, torch.Generator().manual_seed(0))
    cond = cond.expand(16, -1)
    x = sample_chain(asd.denoiser, asd.schedule, asd.event_shape, 16, cond, tape)
    torch.testing.assert_close(x, ddim.draw(16, cond, tape).x, rtol=0, atol=1e-5)


def test_the_models_own_settings_matter(checkpoint):
    """The other settings are another law: the comparisons here would see them."""
    asd, ddim, cond = samplers(checkpoint)
    other = "use_clipped_model_output" if asd.denoiser.clip is None else "set_alpha_to_one"
    [flipped, *_] = samplers(checkpoint, **{other: asd.denoiser.clip is None})
    tape = NoiseTape.draw(16, 6, asd.event_shape, torch.Generator().manual_seed(0))
    cond = cond.expand(16, -1)
    x = sample_chain(flipped.denoiser, flipped.schedule, asd.event_shape, 16, cond, tape)
    assert float((x - ddim.draw(16, cond, tape).x).abs().max()) > 1e-3


@pytest.mark.parametrize("draft", DRAFTS)
def test_law(checkpoint, draft):
    n = 1500
    asd, ddim, cond = samplers(checkpoint, draft=draft)
    cond = cond.expand(n, -1)
    expected = ddim.draw(n, cond, torch.Generator().manual_seed(1)).x
    x = asd.draw(n, cond, torch.Generator().manual_seed(2)).x
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5
    plain = load_policy(checkpoint, "ddpm").sampler.draw(n, cond, torch.Generator().manual_seed(2)).x
    assert laws.largest_z(plain, expected) > 7  # DDPM's law is another one


def test_it_acts_in_fewer_calls(checkpoint):
    policy = load_policy(checkpoint, sampler="asd", eta=1.0, num_steps=10)
    policy.reset(seed=0)
    policy.act(observation(0))
    assert policy.stats.acceptance.shape == (10,)
    assert 1 <= int(policy.stats.rounds) < 10
    assert policy.spec.label == "asd:path:24,num_steps=10,eta=1.0"


def test_the_number_of_steps_is_the_schedules_own_if_it_is_left_open(checkpoint):
    assert load_policy(checkpoint, "asd", eta=0.5).sampler.num_steps == 12


def test_windows_are_calibrated_for_each_law(checkpoint):
    ddpm = load_policy(checkpoint, "asd:path:auto")
    ddim = ddpm.with_sampler("asd:path:auto", **LAW)
    for policy, steps in ((ddpm, 12), (ddim, 6)):
        policy.calibrate([observation(step) for step in range(4)])
        assert len(policy.sampler.windows) == steps
        policy.reset(seed=0)
        policy.act(observation(0))
    for options, steps in (({}, 12), (LAW, 6)):  # both are found again
        policy = load_policy(checkpoint, "asd:path:auto", **options)
        policy.reset(seed=0)
        policy.act(observation(0))
        assert len(policy.sampler.windows) == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0}, "eta is 0: DDIM then draws no noise.*every step costs a round.*sampler 'ddim' draws with eta 0"),
        ({"eta": 0.0, "num_steps": 10}, "eta is 0"),
        ({"eta": -0.5}, r"eta is -0\.5"),
        ({"eta": "1"}, "eta is '1'"),
        ({"num_steps": 10}, "num_steps is 10 without eta: the DDPM has as many steps as its schedule"),
    ],
)
def test_what_is_no_law_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        as_spec("asd", **options)


def test_steps_that_the_schedule_does_not_have_are_refused(checkpoint):
    for steps in (13, 0, 2.5):
        with pytest.raises(ConfigError, match="num_steps is"):
            load_policy(checkpoint, "asd", eta=1.0, num_steps=steps)


def test_labels_tell_the_laws_apart():
    assert Asd(eta=1.0).label == "asd:path:24,eta=1.0"
    assert Asd("path", 8, "compile", 50, 0.5, False).label == (
        "asd:path:8:compile,num_steps=50,eta=0.5,use_clipped_model_output=False"
    )
    assert Asd(use_clipped_model_output=False).label == "asd:path:24"
