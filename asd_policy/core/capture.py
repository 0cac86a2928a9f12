"""How the loop of rounds is run: the backends behind `capture=`.

A backend takes the chain, the draft, the state before the first round and a window for each frontier, and returns the
last state. All chains of a batch share the window of the slowest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from asd_policy.core.cuda_graph import CudaGraph
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.sequential import OnRound
from asd_policy.core.speculative import Chain, State, speculative_round
from asd_policy.core.window import Windows, stages
from asd_policy.errors import ConfigError, UnknownNameError

MAX_SHAPES = 64
"""Batch sizes that one sampler may be compiled for before it is taken for a mistake."""


class Loop(Protocol):
    """One way of running the rounds."""

    def window_sizes(self, device: torch.device) -> Sequence[int] | None:
        """Lengths to which a window may be cut where fewer steps are left; None for any length."""
        ...

    def __call__(self, chain: Chain, draft: Draft, state: State, windows: Windows) -> State:
        """Run rounds until every chain is finished. The tensors returned are the caller's to keep."""
        ...


class Eager:
    """A Python loop: the reference. It reads the slowest chain's frontier before each round."""

    def window_sizes(self, device: torch.device) -> None:
        return None

    def __call__(
        self, chain: Chain, draft: Draft, state: State, windows: Windows, on_round: OnRound | None = None
    ) -> State:
        slowest = 0
        while slowest < len(windows):
            state = speculative_round(chain, draft, state, windows[slowest])
            slowest = int(state.frontier.min())
            if on_round is not None:
                on_round(state.frontier, state.x)
        return state


def while_rounds(chain: Chain, draft: Draft, state: State, windows: Windows) -> State:
    """The same loop as one program without host synchronisation: a `torch.while_loop` for each stage."""
    leaves, structure = pytree.tree_flatten(state)
    for until, window in stages(windows):

        def unfinished(*now: Tensor, until: int = until) -> Tensor:
            return (pytree.tree_unflatten(list(now), structure).frontier < until).any()

        def run_round(*now: Tensor, window: int = window) -> tuple[Tensor, ...]:
            after = speculative_round(chain, draft, pytree.tree_unflatten(list(now), structure), window)
            return tuple(pytree.tree_leaves(after))

        leaves = list(torch.while_loop(unfinished, run_round, tuple(leaves)))
    return pytree.tree_unflatten(leaves, structure)


class Compiled:
    """`while_rounds` through torch.compile, as one graph: recompiled for each new batch size, and for nothing else."""

    def __init__(self) -> None:
        try:
            self._run = torch.compile(  # type: ignore[call-overload]  # its stubs lag behind its signature
                while_rounds, fullgraph=True, dynamic=False, isolate_recompiles=True, recompile_limit=MAX_SHAPES
            )
        except TypeError as error:
            raise ConfigError(
                f"capture='compile' needs torch 2.13 or newer, this is {torch.__version__}: {error}. "
                "Take a newer one, or capture='eager', or on a GPU capture='cuda_graph'."
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Compiled, ()  # compiled code stays in its process: a copy compiles again

    def window_sizes(self, device: torch.device) -> Sequence[int]:
        # Each length is compiled for itself, so one must do; on a GPU the rows saved would be free anyway.
        return (8,) if device.type == "cpu" else ()

    def __call__(self, chain: Chain, draft: Draft, state: State, windows: Windows) -> State:
        from torch._dynamo import exc  # takes seconds to import

        try:
            return self._run(chain, draft, state, windows)
        except (exc.Unsupported, exc.UncapturedHigherOrderOpError) as error:
            raise ConfigError(
                f"The denoiser cannot be captured as one graph; change it, or take capture='eager'. {error}"
            ) from error


CAPTURES: dict[str, Callable[[], Loop]] = {"eager": Eager, "compile": Compiled, "cuda_graph": CudaGraph}


def make_loop(name: str) -> Loop:
    """The backend called `name`. Raises UnknownNameError, which lists them all."""
    if name not in tuple(CAPTURES):  # a name may be anything, hashable or not
        raise UnknownNameError("capture", name, CAPTURES)
    return CAPTURES[name]()
