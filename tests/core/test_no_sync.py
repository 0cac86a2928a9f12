"""A round never makes the host wait for the device: shown without a GPU, on tensors that have no values."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from asd_policy.core import DRAFTS, EpsilonDenoiser, NoiseTape, Schedule
from asd_policy.core.drafts import make_draft
from asd_policy.core.speculative import Chain, State, begin, speculative_round

K, B, W = 12, 3, 5


def run_rounds(draft_name: str, planted: bool = False) -> State:
    """Two rounds on a fake GPU."""
    schedule = Schedule.from_betas(torch.linspace(1e-4, 0.3, K))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):

        def net(x, t, cond):
            if planted:
                x = x * float(x.mean())
            return torch.tanh(x) + cond.mean()

        denoiser = EpsilonDenoiser(net, schedule).to("cuda")
        tape = NoiseTape(torch.randn(B, 4, 2), torch.randn(B, K, 4, 2), torch.rand(B, K))
        a, b, s = torch.rand(3, K).unbind()
        chain = Chain(denoiser, torch.randn(B, 7), tape, a, b, s, torch.arange(K))
        draft = make_draft(draft_name)
        state = begin(chain, draft)
        for _ in range(2):
            state = speculative_round(chain, draft, state, W)
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
