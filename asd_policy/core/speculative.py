"""One round of autospeculative decoding: propose, roll out, verify (Hu et al. 2025, Algorithms 1-3).

Shapes are static and the host never synchronises: indices are clamped and finished chains masked, so a capture can
record a round. W is the window (the paper's theta). The frontier of a chain is its first step that is not yet certain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from asd_policy.core.denoiser import Context, Denoiser, Evaluate, denoise
from asd_policy.core.drafts.protocol import Draft, Memory, Verified
from asd_policy.core.noise import NoiseTape
from asd_policy.core.roll_out import Ahead, per_event, roll_out
from asd_policy.core.verify import gaussian_rejection


class Batch(NamedTuple):
    """The constants of a batch of chains."""

    denoiser: Denoiser
    context: Context
    tape: NoiseTape
    a: Tensor  # (K,) float32, as in GaussianChain
    b: Tensor  # (K,)
    s: Tensor  # (K,)
    clip: float | None = None  # the denoiser's clip, for guesses too
    start_std: float = 1.0  # as in GaussianChain


class State(NamedTuple):
    """The state of a batch, updated by each round."""

    frontier: Tensor  # (B,) int64
    x: Tensor  # (B, *E) the state at the frontier
    memory: Memory  # the draft's memory
    since: Tensor  # (B, K) int64, the frontier of the round in which each step became certain
    accepted: Tensor  # (B, K) bool, whether each step kept its draft
    evaluations: Tensor  # (B,) int64, states that the network has evaluated


def begin(batch: Batch, draft: Draft, warm: Tensor | None = None) -> State:
    """The state before the first round; `warm` (B, K, *E) as in `Draft.begin`, with 0 in place of non-finite values."""
    start, u = batch.tape.start, batch.tape.u
    warm = None if warm is None else warm.to(start).nan_to_num(posinf=0, neginf=0)  # type and device of the chain
    zeros = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    return State(
        frontier=zeros,
        x=batch.start_std * start,
        memory=separate(draft.begin(start, u.shape[1], warm), start),
        since=torch.zeros_like(u, dtype=torch.int64),
        accepted=torch.zeros_like(u, dtype=torch.bool),
        evaluations=zeros.clone(),
    )


def separate(memory: Memory, start: Tensor) -> Memory:
    """Copy the tensors of a draft's memory that share storage with each other or with the tape's start.

    A capture copies the next memory over this one, tensor by tensor. No copy may change another tensor.
    """
    seen = [start]

    def separated(tensor: Tensor) -> Tensor:
        overlaps = any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        if overlaps or any(share_storage(tensor, other) for other in seen):  # the first: an expanded tensor
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.append(tensor)
        return tensor

    return pytree.tree_map_only(Tensor, separated, memory)


def share_storage(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share storage, even without overlap. Works for fake tensors too."""
    shared: bool = torch._C._is_alias_of(one, other)  # type: ignore[attr-defined]  # not in torch's stubs
    return shared


class Parts(NamedTuple):
    """The functions of a round's parts. A capture replaces the plain ones by compiled ones."""

    look_ahead: Callable[[Batch, Draft, Memory, Tensor, int], Ahead]
    roll_out: Callable[[Tensor, Ahead, float | None], tuple[Tensor, Tensor]]
    denoise: Evaluate
    settle: Callable[[Draft, State, Speculated, Tensor], State]


class Speculated(NamedTuple):
    """A window before it is verified."""

    ahead: Ahead
    y: Tensor  # (B, W, *E) speculated states
    mhat: Tensor  # (B, W, *E) draft means
    memory: Memory  # the draft's memory after `propose`


def speculative_round(batch: Batch, draft: Draft, state: State, window: int, parts: Parts | None = None) -> State:
    """Advance every unfinished chain by at least one and at most `window` steps. `parts` None takes the plain ones."""
    parts = parts or PLAIN

    def network(x: Tensor, step: Tensor, row: Tensor) -> Tensor:
        x0 = parts.denoise(batch.denoiser, x.flatten(0, 1), step.flatten(), row.flatten(), batch.context)
        return x0.view(*step.shape, *x0.shape[1:])

    def look_again(x: Tensor, step: Tensor) -> Tensor:
        row = torch.arange(len(x), device=x.device).unsqueeze(1).expand_as(step)
        return network(x, step.clamp(max=len(batch.s) - 1), row)  # a finished chain's frontier is past the last step

    memory = draft.propose(state.memory, state.x, state.frontier, look_again)
    ahead = parts.look_ahead(batch, draft, memory, state.frontier, window)
    y, mhat = parts.roll_out(state.x, ahead, batch.clip)
    x0 = network(y, ahead.step, ahead.row)
    return parts.settle(draft, state, Speculated(ahead, y, mhat, memory), x0)


def look_ahead(batch: Batch, draft: Draft, memory: Memory, frontier: Tensor, window: int) -> Ahead:
    """Gather the inputs of the roll-out from the frontier (B,), so that the roll-out is elementwise over the event."""
    rows = torch.arange(len(frontier), device=frontier.device).unsqueeze(1)
    steps = frontier.unsqueeze(1) + torch.arange(window, device=frontier.device)
    step = steps.clamp(max=len(batch.s) - 1)  # (B, W)
    return Ahead(
        step=step,
        row=rows.expand_as(step).contiguous(),
        a=batch.a[step],
        b=batch.b[step],
        s=batch.s[step],
        xi=batch.tape.xi[rows, step],
        u=batch.tape.u[rows, step],
        guess=draft.guess(memory, step),
    )


def settle(draft: Draft, state: State, speculated: Speculated, x0: Tensor) -> State:
    """Verify a window in order, given the network's predictions x0 (B, W, *E) at its states (Algorithm 3)."""
    ahead, y, mhat, memory = speculated
    num_steps, window = state.accepted.shape[1], ahead.step.shape[1]
    offsets = torch.arange(window, device=x0.device)
    m = per_event(ahead.a, y) * y + per_event(ahead.b, y) * x0
    draws, accepted = gaussian_rejection(m, mhat, ahead.s, ahead.xi, ahead.u)

    # The first rejected step gets an exact draw too, so the frontier moves past it.
    kept = torch.where(accepted, window, offsets).amin(dim=1)  # (B,) steps before the first rejected one
    remaining = (num_steps - state.frontier).clamp(max=window)  # (B,) steps of the window before the chain's end
    advance = torch.minimum(kept + 1, remaining)  # (B,), 0 for a finished chain
    rows = torch.arange(len(x0), device=x0.device)
    x = torch.where(per_event(advance > 0, state.x), draws[rows, (advance - 1).clamp(min=0)], state.x)

    # Each step's place in this window.
    position = torch.arange(num_steps, device=x.device) - state.frontier.unsqueeze(1)  # (B, K)
    fresh = (position >= 0) & (position < advance.unsqueeze(1))
    return State(
        frontier=state.frontier + advance,
        x=x,
        memory=draft.learn(memory, Verified(ahead.step, y, x0, advance)),
        since=torch.where(fresh, state.frontier.unsqueeze(1), state.since),
        # A step that became certain kept its draft, unless it is the first rejected one.
        accepted=torch.where(fresh, position < kept.unsqueeze(1), state.accepted),
        evaluations=state.evaluations + torch.where(advance > 0, remaining + draft.calls - 1, 0),
    )


PLAIN = Parts(look_ahead, roll_out, denoise, settle)
