"""The roll-out of a window as one GPU kernel: the loop over the window's steps runs in registers (Triton).

The event's numbers do not depend on each other, so each thread follows one number of one chain through all W steps.
The plain torch loop launches some ten kernels a step; this is one kernel whatever W.
Importing this file does not need Triton; `triton_rolls_out` says whether the kernel can be used.
"""

from __future__ import annotations

import importlib.util
import math

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None  # there is none for some platforms
BLOCK = 64  # numbers of an event that one program rolls out, a thread each
PREFETCH = 4  # steps of the window whose inputs are under way at once

if HAS_TRITON:
    import triton  # type: ignore
    import triton.language as tl  # type: ignore

    _SIZES = ("num_events", "num_steps", "clip")
    _STRIDES = tuple(f"{name}_{axis}" for name in ("x0", "gain", "at", "xi") for axis in ("row", "step", "event"))

    # None of the sizes is compiled in: one binary serves every window, batch and event.
    @triton.jit(do_not_specialize=_SIZES + _STRIDES)
    def roll_out_kernel(  # type: ignore[no-untyped-def]
        x_ptr, x0_ptr, gain_ptr, at_ptr, a_ptr, b_ptr, s_ptr, xi_ptr, states_ptr, means_ptr,
        num_events, num_steps, clip,
        x0_row, x0_step, x0_event,
        gain_row, gain_step, gain_event,
        at_row, at_step, at_event,
        xi_row, xi_step, xi_event,
        BLOCK: tl.constexpr, PREFETCH: tl.constexpr,
    ):  # fmt: skip
        """Roll out BLOCK numbers of one chain's event of `num_events` numbers; the strides count numbers too."""
        blocks = (num_events + BLOCK - 1) // BLOCK
        row = (tl.program_id(0) // blocks).to(tl.int64)
        event = (tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        mask = event < num_events
        x0_ptr += row * x0_row + event * x0_event
        gain_ptr += row * gain_row + event * gain_event
        at_ptr += row * at_row + event * at_event
        xi_ptr += row * xi_row + event * xi_event
        coefficient = row * num_steps + event * 0  # as many addresses as threads: only such loads are prefetched
        out = row * num_steps * num_events + event
        y = tl.load(x_ptr + row * num_events + event, mask)
        for _ in tl.range(0, num_steps, num_stages=PREFETCH):
            guess = tl.load(x0_ptr, mask) + tl.load(gain_ptr, mask) * (y - tl.load(at_ptr, mask))
            guess = tl.where(guess > clip, clip, guess)  # false for NaN, which stays, as in torch
            guess = tl.where(guess < -clip, -clip, guess)
            mean = tl.load(a_ptr + coefficient, mask) * y + tl.load(b_ptr + coefficient, mask) * guess
            tl.store(states_ptr + out, y, mask)
            tl.store(means_ptr + out, mean, mask)
            y = mean + tl.load(s_ptr + coefficient, mask) * tl.load(xi_ptr, mask)
            x0_ptr += x0_step
            gain_ptr += gain_step
            at_ptr += at_step
            xi_ptr += xi_step
            coefficient += 1
            out += num_events


def triton_rolls_out(x: Tensor) -> bool:
    """Whether `roll_out_triton` can roll out chains that start at `x`: float32 on a CUDA device, and Triton is here."""
    return HAS_TRITON and x.is_cuda and x.dtype == torch.float32


@torch.library.custom_op("asd_policy::roll_out", mutates_args=())
def roll_out_triton(
    x: Tensor,
    guess_x0: Tensor,
    guess_gain: Tensor,
    guess_at: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor,
    xi: Tensor,
    clip: float | None,
) -> tuple[Tensor, Tensor]:
    """Speculate along the window without the network, in one kernel.

    It can be captured in a CUDA graph, once it has run before: the first call compiles. It is an operator of torch,
    so that a trace without values (a fake tensor, `torch.compile`) can pass it. It has no gradient.
    Its results are those of separate torch kernels to the bit: Triton is told not to contract a product and a sum
    into one fused multiply-add, which rounds once where torch rounds twice. Inductor contracts, so what it compiles
    may differ in the last place.

    Args:
        x: (B, *E) float32, the state at each chain's frontier.
        guess_x0, guess_gain, guess_at: the prediction at a state y is guessed as x0 + gain (y - at), and clipped;
            each of a shape that broadcasts to (B, W, *E), float32. Expanded tensors are read as they are, not copied.
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
    strided = [t.expand(xi.shape).reshape(*a.shape, num_events) for t in (guess_x0, guess_gain, guess_at, xi)]
    with torch.cuda.device_of(x):  # Triton launches on the current device
        roll_out_kernel[(len(x) * math.ceil(num_events / BLOCK),)](
            x.contiguous(), *strided[:3], a.contiguous(), b.contiguous(), s.contiguous(), strided[3], states, means,
            num_events, a.shape[1], math.inf if clip is None else clip, *(n for t in strided for n in t.stride()),
            BLOCK=BLOCK, PREFETCH=PREFETCH, num_warps=BLOCK // 32, enable_fp_fusion=False,
        )  # fmt: skip
    return states, means


@roll_out_triton.register_fake
def _(
    x: Tensor, x0: Tensor, gain: Tensor, at: Tensor, a: Tensor, b: Tensor, s: Tensor, xi: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    return _outputs(xi)


def _outputs(xi: Tensor) -> tuple[Tensor, Tensor]:
    return xi.new_empty(xi.shape), xi.new_empty(xi.shape)
