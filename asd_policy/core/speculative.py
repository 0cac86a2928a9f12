"""One round of autospeculative decoding: propose, roll out, verify (Hu et al. 2025, Algorithms 1-3).

Static shapes and no host synchronisation: indices are clamped, finished chains are masked, so a round can be captured.
W is the window (the paper's theta), the frontier of a chain is its first step that is not yet certain.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from asd_policy.core.denoiser import Context, Denoiser, denoise
from asd_policy.core.drafts.protocol import Draft, Memory, Verified
from asd_policy.core.noise import NoiseTape
from asd_policy.core.verify import gaussian_rejection


class Chain(NamedTuple):
    """What stays fixed while a batch of chains is sampled."""

    denoiser: Denoiser
    context: Context
    tape: NoiseTape
    a: Tensor  # (K,) float32, as in Schedule
    b: Tensor  # (K,)
    s: Tensor  # (K,)
    clip: float | None = None  # the denoiser's, for guesses to lie where predictions do

    def denoise(self, x: Tensor, step: Tensor) -> Tensor:
        """x (B, W, *E), step (B, W) -> x0 (B, W, *E) in one network call."""
        row = torch.arange(len(x), device=x.device).unsqueeze(1).expand_as(step)
        x0 = denoise(self.denoiser, x.flatten(0, 1), step.flatten(), row.flatten(), self.context)
        return x0.unflatten(0, step.shape)


class State(NamedTuple):
    """What a round changes."""

    frontier: Tensor  # (B,) int64
    x: Tensor  # (B, *E) the state at the frontier
    memory: Memory  # the draft's
    round: Tensor  # () int64, rounds done
    verified_in: Tensor  # (B, K) int64, the round in which each step became certain
    accepted: Tensor  # (B, K) bool, whether it kept its draft
    evaluations: Tensor  # (B,) int64, states that the network has been asked about


def begin(chain: Chain, draft: Draft, warm: Tensor | None = None) -> State:
    """The state before the first round; `warm` (B, K, *E) as in `Draft.begin`, 0 where it is not finite."""
    start, u = chain.tape.start, chain.tape.u
    warm = None if warm is None else warm.to(start).nan_to_num(posinf=0, neginf=0)  # where and as the chain is
    zeros = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    return State(
        frontier=zeros,
        x=start,
        memory=draft.begin(start, u.shape[1], warm),
        round=zeros.new_zeros(()),
        verified_in=torch.zeros_like(u, dtype=torch.int64),
        accepted=torch.zeros_like(u, dtype=torch.bool),
        evaluations=zeros.clone(),
    )


def speculative_round(chain: Chain, draft: Draft, state: State, window: int) -> State:
    """Advance every unfinished chain by at least one and at most `window` steps."""
    num_steps = len(chain.s)
    rows = torch.arange(len(state.x), device=state.x.device)
    ahead = state.frontier.unsqueeze(1) + torch.arange(window, device=state.x.device)
    remaining = (num_steps - state.frontier).clamp(max=window)  # (B,) steps of the window that exist
    step = ahead.clamp(max=num_steps - 1)  # (B, W)

    memory = draft.propose(state.memory, state.x, step[:, 0], chain.denoise)
    y, mhat, xi = _roll_out(chain, draft, memory, state.x, step)
    x0 = chain.denoise(y, step)
    m = _per_event(chain.a[step], y) * y + _per_event(chain.b[step], y) * x0
    u = chain.tape.u.gather(1, step)
    draws, accepted = gaussian_rejection(m, mhat, chain.s[step], xi, u)

    # The first rejected step's draw is exact too, so the frontier passes it.
    kept = accepted.long().cumprod(dim=1).sum(dim=1)
    advance = torch.minimum(kept + 1, remaining)  # (B,), 0 for a finished chain
    x = torch.where(_per_event(advance > 0, state.x), draws[rows, (advance - 1).clamp(min=0)], state.x)

    # Where each of the K steps lies in this window, for the record.
    position = torch.arange(num_steps, device=x.device) - state.frontier.unsqueeze(1)  # (B, K)
    fresh = (position >= 0) & (position < advance.unsqueeze(1))
    outcome = accepted.gather(1, position.clamp(0, window - 1))
    return State(
        frontier=state.frontier + advance,
        x=x,
        memory=draft.learn(memory, Verified(step, y, x0, advance)),
        round=state.round + 1,
        verified_in=torch.where(fresh, state.round, state.verified_in),
        accepted=torch.where(fresh, outcome, state.accepted),
        evaluations=state.evaluations + torch.where(advance > 0, remaining + draft.calls - 1, 0),
    )


def _roll_out(chain: Chain, draft: Draft, memory: Memory, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Speculate along the window without the network (Algorithm 2).

    x (B, *E), step (B, W) -> states y, draft means mhat, and the tape's noise xi, each (B, W, *E).
    """
    rows = torch.arange(len(x), device=x.device).unsqueeze(1)
    xi = chain.tape.xi[rows, step]
    a, b, s = (_per_event(coefficient[step], xi) for coefficient in (chain.a, chain.b, chain.s))
    y, states, means = x, [], []
    for j in range(step.shape[1]):
        guess = draft.guess(memory, step[:, j], y)
        if chain.clip is not None:
            guess = guess.clamp(-chain.clip, chain.clip)
        mean = a[:, j] * y + b[:, j] * guess
        states.append(y)
        means.append(mean)
        y = mean + s[:, j] * xi[:, j]
    return torch.stack(states, dim=1), torch.stack(means, dim=1), xi


def _per_event(value: Tensor, like: Tensor) -> Tensor:
    """Append singleton dimensions until `value` (B,) or (B, W) broadcasts against `like` (B, [W,] *E)."""
    return value.view(value.shape + (1,) * (like.ndim - value.ndim))
