"""A round never makes the host wait for the device: shown without a GPU, on tensors that have no values."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import _pytree as pytree

from asd_policy.core import DRAFTS, EpsilonDenoiser, NoiseTape, Schedule
from asd_policy.core.capture.cuda_graph import check_capturable
from asd_policy.core.denoiser import Context
from asd_policy.core.drafts import make_draft
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.speculative import Batch, State, begin, speculative_round
from asd_policy.errors import ConfigError

K, B, W = 12, 3, 5
SCHEDULE = Schedule.from_betas(torch.linspace(1e-4, 0.3, K))


def make_batch(device: str, planted: bool = False) -> Batch:
    def net(x, t, cond):
        if planted:
            x = x * float(x.mean())
        return torch.tanh(x) + cond.mean()

    with torch.device(device):
        denoiser = EpsilonDenoiser(net, SCHEDULE).to(device)
        tape = NoiseTape(torch.randn(B, 4, 2), torch.randn(B, K, 4, 2), torch.rand(B, K))
        a, b, s = torch.rand(3, K).unbind()
        return Batch(denoiser, Context(torch.arange(K), torch.randn(B, 7)), tape, a, b, s)


def run_rounds(draft_name: str, planted: bool = False) -> State:
    """Two rounds on a fake GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        batch = make_batch("cuda", planted)
        draft = make_draft(draft_name)
        state = begin(batch, draft)
        for _ in range(2):
            state = speculative_round(batch, draft, state, W)
        return state


@pytest.mark.parametrize("draft", DRAFTS)
def test_round_does_not_wait_for_the_device(draft):
    state = run_rounds(draft)
    assert state.x.device.type == "cuda"
    assert state.x.shape == (B, 4, 2)


@pytest.mark.parametrize("draft", DRAFTS)
def test_control_planted_synchronisation_is_caught(draft):
    with pytest.raises(DataDependentOutputException):
        run_rounds(draft, planted=True)


@pytest.mark.parametrize("draft", DRAFTS)
def test_what_cannot_be_captured_is_named_beforehand(draft):
    """The check that capture='cuda_graph' makes, which needs no GPU."""
    draft = make_draft(draft)
    batch, waiting = make_batch("cpu"), make_batch("cpu", planted=True)

    def run(batch: Batch, state: State) -> State:
        return speculative_round(batch, draft, state, W)

    check_capturable(run, batch, begin(batch, draft))
    with pytest.raises(ConfigError, match=r"aten\._local_scalar_dense.* makes the host wait"):
        check_capturable(run, waiting, begin(waiting, draft))


class Round(nn.Module):
    """A round as a module, for torch.export."""

    def __init__(self, batch: Batch, draft: Draft):
        super().__init__()
        self.batch, self.draft = batch, draft

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        structure = pytree.tree_structure(begin(self.batch, self.draft))
        state = pytree.tree_unflatten(leaves, structure)
        return tuple(pytree.tree_leaves(speculative_round(self.batch, self.draft, state, W)))


@pytest.mark.parametrize("draft", DRAFTS)
def test_no_shape_of_a_round_depends_on_data(draft):
    batch, draft = make_batch("cpu"), make_draft(draft)
    leaves = pytree.tree_leaves(begin(batch, draft))
    exported = torch.export.export(Round(batch, draft), tuple(leaves), strict=False)
    assert not exported.range_constraints  # no symbol, bounded or not
    for ours, theirs in zip(Round(batch, draft)(*leaves), exported.module()(*leaves), strict=True):
        torch.testing.assert_close(ours, theirs)
