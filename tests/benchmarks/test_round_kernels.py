"""How many kernels of a captured round are not the network's, by Inductor's own CUDA code; no GPU is needed."""

from functools import partial

import pytest
import torch

from asd_policy.core import AsdSampler, Schedule
from asd_policy.core.capture.compiled import settle_into
from asd_policy.core.drafts import make_draft
from asd_policy.core.speculative import Speculated, begin, look_ahead, roll_out

pytest.importorskip("triton")
from asd_policy.benchmarks.cuda_codegen import count_cuda_kernels

SCHEDULE = Schedule.from_diffusers({"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"})
ROLL_OUT = 1  # one Triton kernel, whatever the window
MOST = 12


def kernels(draft: str, window: int, batch: int) -> int:
    sampler = AsdSampler(lambda x, t, cond: x, SCHEDULE, event_shape=(16, 7), draft=draft, window=window)
    chains = sampler.batch(batch, None, torch.Generator().manual_seed(0))
    state, rule = begin(chains, sampler.draft), make_draft(draft)
    ahead = look_ahead(chains, rule, state.memory, state.frontier, window)
    y, mhat = roll_out(state.x, ahead, 1.0)
    speculated = Speculated(ahead, y, mhat, state.memory)
    tensors = chains._replace(denoiser=None, context=None)
    before = count_cuda_kernels(
        lambda chain, memory, frontier: tuple(look_ahead(chain, rule, memory, frontier, window)),
        tensors, state.memory, state.frontier,
    )  # fmt: skip
    after = count_cuda_kernels(partial(settle_into, rule), state, speculated, y)
    return before.total + ROLL_OUT + after.total


@pytest.mark.parametrize(("window", "batch"), [(16, 1), (100, 1), (24, 8)])
@pytest.mark.parametrize("draft", ["path", "reuse"])
def test_few_kernels_of_a_round_are_not_the_network(draft, window, batch):
    assert kernels(draft, window, batch) <= MOST
