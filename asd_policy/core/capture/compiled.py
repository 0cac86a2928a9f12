"""The parts of a round, compiled by torch.compile.

All samplers of a process share the compiled code. It serves every batch size and window, because these sizes are
symbols. torch.compile specialises a size of 1, so one row and several rows have code of their own.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from asd_policy.core.denoiser import Context, Denoiser, denoise
from asd_policy.core.drafts.protocol import Draft, Memory
from asd_policy.core.roll_out import Ahead, roll_out
from asd_policy.core.speculative import PLAIN, Batch, Parts, Speculated, State, look_ahead, settle
from asd_policy.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

MAX_NETWORKS = 256
"""Most networks of different structure that a process compiles. torch.compile's recompile limit is set to it."""


def compiled_parts(device: torch.device) -> Parts:
    """The parts of a round on `device`, compiled into few kernels. `settle` writes the new state over the old one.

    Without Triton, torch.compile cannot generate GPU code: then a GPU runs the parts in plain torch.
    """
    if device.type != "cuda":
        return Parts(compiled_look_ahead, roll_out, compiled_denoise, compiled_settle)
    if importlib.util.find_spec("triton") is None:
        return PLAIN._replace(settle=settle_into)
    from asd_policy.core.capture.roll_out_triton import roll_out_triton  # Triton is slow to import

    def in_one_kernel(x: Tensor, ahead: Ahead, clip: float | None) -> tuple[Tensor, Tensor]:
        rolled: tuple[Tensor, Tensor] = roll_out_triton(x, *ahead.guess, ahead.a, ahead.b, ahead.s, ahead.xi, clip)
        return rolled

    return Parts(compiled_look_ahead, in_one_kernel, compiled_denoise, compiled_settle)


def sizes_as_symbols() -> AbstractContextManager[Any]:
    """A context in which torch.compile gives every size a symbol of its own.

    By default torch.compile uses one symbol for two sizes that happen to be equal, such as a window and an event's
    length. It would compile again, in the middle of an episode, as soon as they differ.
    """
    from torch.fx.experimental import _config

    patch: AbstractContextManager[Any] = _config.patch(use_duck_shape=False)  # type: ignore[attr-defined]  # no stubs
    return patch


def settle_into(draft: Draft, state: State, speculated: Speculated, x0: Tensor) -> State:
    """`settle`, writing the new state over the old one."""
    before = pytree.tree_leaves(state)
    after = pytree.tree_leaves(settle(draft, state, speculated, x0))
    moved = [any(new is other for other in before if other is not old) for old, new in zip(before, after, strict=True)]
    if any(moved):
        # The draft has moved tensors of its memory. They must be read before anything is written. torch.compile drops a
        # clone and then reads the overwritten tensor, so they are recomputed under a condition that always holds.
        always = (state.frontier >= 0).all()
        pairs = zip(after, moved, strict=True)
        after = [torch.where(always, new, torch.zeros_like(new)) if is_moved else new for new, is_moved in pairs]
    for old, new in zip(before, after, strict=True):
        old.copy_(new)
    return state


def compiled_look_ahead(batch: Batch, draft: Draft, memory: Memory, frontier: Tensor, window: int) -> Ahead:
    """`look_ahead`, compiled."""
    return _run(look_ahead, batch, draft, memory, frontier, window)


def compiled_settle(draft: Draft, state: State, speculated: Speculated, x0: Tensor) -> State:
    """`settle_into`, compiled; the event's sizes and the number of steps are constants in it."""
    _mark(1, state, speculated.memory)
    _mark(2, speculated.ahead, speculated.y, speculated.mhat, x0)
    return _run(settle_into, draft, state, speculated, x0)


def compiled_denoise(denoiser: Denoiser, x: Tensor, step: Tensor, row: Tensor, context: Context) -> Tensor:
    """`denoise`, compiled; the event's sizes are constants in it."""
    _mark(1, x, step, row, context)
    return _run(denoise, denoiser, x, step, row, context)


def _mark(sizes: int, *trees: Any) -> None:
    """Mark the first `sizes` dimensions of the tensors as dynamic, except those of size 1."""
    from torch._dynamo import maybe_mark_dynamic  # takes seconds to import

    for tensor in pytree.tree_leaves(trees):
        if isinstance(tensor, Tensor):
            for dim, size in enumerate(tensor.shape[:sizes]):
                if size > 1:
                    maybe_mark_dynamic(tensor, dim)


def _run(function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    from torch._dynamo import exc

    try:
        return cast(R, _compiled(function)(*arguments, **options))
    except (exc.TorchDynamoException, exc.FailOnRecompileLimitHit) as error:
        raise ConfigError(
            f"The denoiser or draft cannot be captured as one graph; change it, or take capture='eager'. {error}"
        ) from error


@functools.cache
def _compiled(function: Any) -> Any:
    dynamic = True if function is look_ahead else None  # all sizes are symbols, or only the marked ones
    try:
        return torch.compile(  # type: ignore[call-overload]  # its stubs lag behind its signature
            function, fullgraph=True, dynamic=dynamic, recompile_limit=MAX_NETWORKS
        )
    except TypeError:  # before torch 2.13 the limit is global
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_NETWORKS)
        return torch.compile(function, fullgraph=True, dynamic=dynamic)
