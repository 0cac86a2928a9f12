"""The roll-out of a window as one Triton kernel; the loop over the window's steps runs in registers.

The numbers of an event do not depend on each other, so each thread follows one number of one chain through all W steps.
The plain torch loop launches five kernels for each step; this is one kernel for any W.
Some platforms lack Triton.
"""

from __future__ import annotations

import math

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore
from torch import Tensor

BLOCK = 64  # numbers of an event per program, one for each thread
PREFETCH = 4  # steps of the window whose inputs are loaded ahead

_SIZES = ("num_events", "num_steps", "clip")
_STRIDES = tuple(f"{name}_{axis}" for name in ("offset", "gain", "xi") for axis in ("row", "step", "event"))


# no size is specialised: one binary serves every window, batch and event
@triton.jit(do_not_specialize=_SIZES + _STRIDES)  # type: ignore[untyped-decorator]
def roll_out_kernel(  # type: ignore[no-untyped-def]
    x_ptr, offset_ptr, gain_ptr, a_ptr, b_ptr, s_ptr, xi_ptr, states_ptr, means_ptr,
    num_events, num_steps, clip,
    offset_row, offset_step, offset_event,
    gain_row, gain_step, gain_event,
    xi_row, xi_step, xi_event,
    BLOCK: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """Roll out BLOCK numbers of one chain's event. `num_events` and the strides count numbers."""
    blocks = (num_events + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    event = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    mask = event < num_events
    offset_ptr += row * offset_row + event * offset_event
    gain_ptr += row * gain_row + event * gain_event
    xi_ptr += row * xi_row + event * xi_event
    coefficient = row * num_steps + event * 0  # one address per thread: Triton prefetches only such loads
    out = row * num_steps * num_events + event
    y = tl.load(x_ptr + row * num_events + event, mask)
    for _ in tl.range(0, num_steps, num_stages=PREFETCH):
        guess = tl.load(offset_ptr, mask) + tl.load(gain_ptr, mask) * y
        guess = tl.where(guess > clip, clip, guess)  # the comparison is false for NaN, which stays NaN as in torch
        guess = tl.where(guess < -clip, -clip, guess)
        mean = tl.load(a_ptr + coefficient, mask) * y + tl.load(b_ptr + coefficient, mask) * guess
        tl.store(states_ptr + out, y, mask)
        tl.store(means_ptr + out, mean, mask)
        y = mean + tl.load(s_ptr + coefficient, mask) * tl.load(xi_ptr, mask)
        offset_ptr += offset_step
        gain_ptr += gain_step
        xi_ptr += xi_step
        coefficient += 1
        out += num_events


@torch.library.custom_op("asd_policy::roll_out", mutates_args=())
def roll_out_triton(
    x: Tensor,
    offset: Tensor,
    gain: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor,
    xi: Tensor,
    clip: float | None,
) -> tuple[Tensor, Tensor]:
    """`roll_out` in one kernel.

    The first call compiles; after it, a CUDA graph can capture the kernel. It is a custom operator of torch, so fake
    tensors and `torch.compile` can trace it. It has no gradient.
    Fused multiply-adds are disabled, so results round as torch's separate operations do.

    Args:
        x: (B, *E) float32, the state at each chain's frontier.
        offset, gain: of `Guess`, each of a shape that broadcasts to (B, W, *E), float32. Expanded tensors are read as
            they are, not copied.
        a, b, s: (B, W) float32, the coefficients of each step.
        xi: (B, W, *E) float32, the tape's noise.
        clip: the largest size of a guess, None for no bound.

    Returns:
        (states, means): each (B, W, *E); the speculated state at each step and the draft's mean of the next.
    """
    states, means = _outputs(xi)
    num_events = math.prod(xi.shape[2:])
    if xi.numel() == 0:
        return states, means
    strided = [t.expand(xi.shape).reshape(*a.shape, num_events) for t in (offset, gain, xi)]
    with torch.cuda.device_of(x):  # Triton launches on the current device
        roll_out_kernel[(len(x) * math.ceil(num_events / BLOCK),)](
            x.contiguous(), *strided[:2], a.contiguous(), b.contiguous(), s.contiguous(), strided[2], states, means,
            num_events, a.shape[1], math.inf if clip is None else clip, *(n for t in strided for n in t.stride()),
            BLOCK=BLOCK, PREFETCH=PREFETCH, num_warps=BLOCK // 32, enable_fp_fusion=False,
        )  # fmt: skip
    return states, means


@roll_out_triton.register_fake
def _(
    x: Tensor, offset: Tensor, gain: Tensor, a: Tensor, b: Tensor, s: Tensor, xi: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    return _outputs(xi)


def _outputs(xi: Tensor) -> tuple[Tensor, Tensor]:
    return xi.new_empty(xi.shape), xi.new_empty(xi.shape)
