"""The law: an accelerated robomimic policy draws from the distribution of its own loop, and a broken one does not."""

import pytest
import torch
from torch import Tensor

from asd_policy import accelerate
from asd_policy.core import AsdSampler, speculative
from asd_policy.core.verify import gaussian_rejection
from tests.core import laws
from tests.importers.originals import VECTORS
from tests.live.policies import Subject, robomimic

N = 1000
DRAFTS = [("path", None), ("frozen", 8)]


@pytest.fixture(scope="module")
def subject() -> Subject:
    made = robomimic()
    made.begin()
    return made


@pytest.fixture(scope="module")
def expected(subject: Subject) -> Tensor:
    return actions(subject, seed=1)


@pytest.fixture
def restored(subject: Subject):
    yield
    if hasattr(subject.policy, "asd"):
        subject.policy.asd.restore()


def actions(subject: Subject, seed: int) -> Tensor:
    """robomimic's actions (N, Ta, A) for N copies of one observation."""
    generator = torch.Generator().manual_seed(0)
    obs = {key: torch.randn(1, 2, *shape, generator=generator).expand(N, 2, *shape) for key, shape in VECTORS.items()}
    torch.manual_seed(seed)
    with torch.no_grad():
        return subject.model._get_action_trajectory(obs_dict=obs)


@pytest.mark.parametrize(("draft", "window"), DRAFTS)
def test_the_law_is_the_librarys(subject, expected, restored, draft, window):
    accelerate(subject.policy, draft=draft, window=window)
    x = actions(subject, seed=2)
    assert x.shape == expected.shape == (N, 8, 10)
    assert subject.policy.asd.stats.rounds.unique().numel() > 1
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5


def test_the_law_of_a_warm_start(subject, expected, restored):
    """Guesses of another observation's chunk, shifted."""
    warmth, draw = [], AsdSampler.draw
    accelerate(subject.policy, draft="path", window=None)
    actions(subject, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            AsdSampler, "draw", lambda self, *args: (warmth.append(args[3] is not None), draw(self, *args))[1]
        )
        x = actions(subject, seed=2)
    assert warmth == [True]
    assert laws.smallest_p(x, expected) > laws.ACCEPT
    assert laws.largest_z(x, expected) < 5


def test_control_a_broken_verifier_is_caught(subject, expected, restored, monkeypatch):
    def always_accepting(m, mhat, s, xi, u):
        return gaussian_rejection(m, mhat, s, xi, torch.zeros_like(u))

    monkeypatch.setattr(speculative, "gaussian_rejection", always_accepting)
    accelerate(subject.policy, draft="path", window=None)
    assert laws.smallest_p(actions(subject, seed=2), expected) < laws.REJECT
