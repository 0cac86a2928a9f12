"""Drafts and captures as objects and as entries of their registries: used as they are, or refused at construction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from asd_policy.core import CAPTURES, DRAFTS, Asd, AsdSampler, NoiseTape, ddpm_sampler, parse_sampler
from asd_policy.core.capture import make_capture
from asd_policy.core.capture.compiled import settle_into
from asd_policy.core.capture.cuda_graph import _key_of
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.capture.python_loop import PythonLoop, eager_loop
from asd_policy.core.drafts import make_draft
from asd_policy.core.drafts.protocol import Draft, Guess, constant
from asd_policy.core.drafts.reuse import ReuseDraft
from asd_policy.core.speculative import Parts, begin
from asd_policy.errors import ConfigError, UnknownNameError
from asd_policy.plugins import protocol_members
from tests.core import laws

MIXTURE = laws.GaussianMixture(12)
TAPE = NoiseTape.draw(3, 12, (2,), torch.Generator().manual_seed(0))


def sampler(**options) -> AsdSampler:
    return AsdSampler(MIXTURE, MIXTURE.schedule, (2,), **options)


class OwnDraft(ReuseDraft):
    """A draft of one's own."""


class OwnLoop:
    """A capture of one's own, around the eager loop."""

    least_window, can_watch, keeps_graphs = 1, True, False

    def __init__(self):
        self.inner, self.runs = eager_loop(), 0
        self.rows, self.with_parts = self.inner.rows, self.inner.with_parts

    def compiles(self, device):
        return False

    def run_rounds(self, *arguments):
        self.runs += 1
        return self.inner.run_rounds(*arguments)

    def run_steps(self, *arguments):
        self.runs += 1
        return self.inner.run_steps(*arguments)


@pytest.mark.parametrize("name", DRAFTS)
def test_every_draft_keeps_the_protocol(name):
    draft = make_draft(name)
    assert all(hasattr(draft, member) for member in protocol_members(Draft))
    assert draft.calls >= 1
    assert make_draft(draft) is draft


@pytest.mark.parametrize("name", CAPTURES)
def test_every_capture_keeps_the_protocol_and_says_what_it_can(name):
    capture = make_capture(name)
    assert all(hasattr(capture, member) for member in protocol_members(Capture))
    assert make_capture(capture) is capture
    assert capture.compiles(torch.device("cpu")) == (name != "eager")
    assert capture.can_watch != capture.keeps_graphs
    assert 2 <= capture.rows(2, 5) <= 5
    assert type(capture.with_parts(lambda parts: parts)) is type(capture)


def test_objects_are_used_as_they_are():
    draft, capture = OwnDraft(), OwnLoop()
    own = sampler(draft=draft, capture=capture)
    assert own.draft is draft
    assert own.capture is capture
    assert torch.equal(own.draw(3, None, TAPE).x, sampler(draft="reuse").draw(3, None, TAPE).x)
    plain = (ddpm_sampler(MIXTURE, MIXTURE.schedule, (2,), some).draw(3, None, TAPE).x for some in (capture, "eager"))
    assert torch.equal(*plain)
    assert capture.runs == 2


def test_names_of_ones_own_are_used_like_the_others(monkeypatch):
    monkeypatch.setitem(DRAFTS, "mine", OwnDraft)
    monkeypatch.setitem(CAPTURES, "own", OwnLoop)
    spec = parse_sampler("asd:mine:24:own")
    assert spec == Asd("mine", 24, "own")
    built = spec.build(MIXTURE, MIXTURE.schedule, (2,))
    assert type(built.draft) is OwnDraft
    assert type(built.capture) is OwnLoop
    with pytest.raises(UnknownNameError, match="Available: frozen, mine, path, reuse"):
        parse_sampler("asd:yours")


class NoGuess:
    """A draft that cannot guess, and whose `learn` is no method."""

    calls, learn = 1, None

    def begin(self, start, num_steps, warm):
        return start


def test_what_is_incomplete_is_refused_by_the_names_of_what_it_lacks():
    with pytest.raises(ConfigError, match="draft is a NoGuess, which lacks guess, learn, predictions, propose of the"):
        sampler(draft=NoGuess())
    with pytest.raises(ConfigError, match="draft is a NoGuess, which lacks guess"):
        Asd(NoGuess())
    broken = OwnLoop()
    del broken.rows
    for make in (lambda: sampler(capture=broken), lambda: Asd(capture=broken)):
        with pytest.raises(ConfigError, match="capture is a OwnLoop, which lacks rows of the protocol Capture"):
            make()
    with pytest.raises(ConfigError, match=r"draft is the class OwnDraft; expected an object, such as OwnDraft\(\)"):
        sampler(draft=OwnDraft)


class Pair(NamedTuple):
    """The last prediction and the one before it."""

    last: Tensor
    before: Tensor


class Averaging:
    """Guesses the mean of the last two predictions. Its memory aliases the tape, itself, and from round to round."""

    calls = 1

    def begin(self, start, num_steps, warm):
        return Pair(start, start.expand_as(start))

    def propose(self, memory, x, frontier, denoise):
        return memory

    def guess(self, memory, step):
        return constant((memory.last + memory.before) / 2, step)

    def learn(self, memory, verified):
        rows = torch.arange(len(memory.last), device=memory.last.device)
        return Pair(verified.x0[rows, (verified.advance - 1).clamp(min=0)], memory.last)

    def predictions(self, memory):
        return None


class Expanded(Averaging):
    """Its memory begins as one number for all, in one place of memory."""

    def begin(self, start, num_steps, warm):
        return Pair(*torch.zeros(2, 1, 1).expand(2, *start.shape))


def in_place() -> PythonLoop:
    """The eager loop, with each state written over the one before, as captures do."""
    loop = eager_loop()
    return loop.with_parts(replaced_settle)


def replaced_settle(parts: Parts) -> Parts:
    return parts._replace(settle=settle_into)


@pytest.mark.parametrize("draft", [Averaging, Expanded])
@pytest.mark.parametrize("capture", [in_place, lambda: "compile"], ids=["in place", "compile"])
def test_a_memory_that_aliases_gives_what_the_eager_loop_gives(draft, capture: Callable[[], str | Capture]):
    start = TAPE.start.clone()
    expected, draws = (sampler(draft=draft(), window=5, capture=c).draw(3, None, TAPE) for c in ("eager", capture()))
    torch.testing.assert_close(draws.x, expected.x, rtol=0, atol=1e-5)
    assert torch.equal(draws.stats.advance, expected.stats.advance)
    assert torch.equal(TAPE.start, start)


def test_no_tensor_of_the_first_state_shares_its_storage():
    batch = sampler().batch(3, None, TAPE)
    memory = begin(batch, Averaging()).memory
    pointers = {tensor.untyped_storage().data_ptr() for tensor in (*memory, TAPE.start)}
    assert len(pointers) == 3
    assert torch.equal(memory.last, TAPE.start)
    assert torch.equal(memory.before, TAPE.start)


@dataclass
class Unhashable(ReuseDraft):
    """Equal to others of the same strength, and therefore without a hash."""

    strength: float = 1.0

    def guess(self, memory, step):
        offset, gain = super().guess(memory, step)
        return Guess(self.strength * offset, gain)


def test_objects_without_a_hash_are_told_apart_by_identity():
    one, other = Unhashable(), Unhashable()
    assert one == other
    with pytest.raises(TypeError):
        hash(one)
    assert _key_of(one) == _key_of(one) != _key_of(other)
    assert _key_of(1.0) == _key_of(float("1"))
    assert _key_of(torch.zeros(2)) == _key_of(torch.ones(2)) != _key_of(torch.ones(3))


@pytest.mark.gpu
def test_a_draft_without_a_hash_is_captured():
    denoiser = laws.GaussianMixture(12).cuda()
    x, expected = (
        AsdSampler(denoiser, denoiser.schedule, (2,), draft=Unhashable(0.9), window=5, capture=capture)
        .draw(3, None, TAPE)
        .x
        for capture in ("cuda_graph", "eager")
    )
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


def test_with_windows_and_with_capture_leave_the_sampler_as_it_is():
    first = sampler(window="auto")
    second, third = first.with_windows(4), first.with_windows(4).with_capture(OwnLoop())
    assert (first.windows, second.windows) == (None, (4,) * 12)
    assert second.capture is first.capture is not third.capture
    assert torch.equal(second.draw(3, None, TAPE).x, third.draw(3, None, TAPE).x)
    with pytest.raises(ConfigError, match="window is 0"):
        first.with_windows(0)
