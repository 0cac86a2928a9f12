"""How the loop of rounds is run: the backends behind `capture=`.

A backend takes the chain, the draft, the state before the first round and the window, and returns the last state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.speculative import Chain, State, speculative_round
from asd_policy.errors import ConfigError, UnknownNameError

Loop = Callable[[Chain, Draft, State, int], State]

MAX_SHAPES = 64
"""Batch sizes that one sampler may be compiled for before it is taken for a mistake."""


def eager(chain: Chain, draft: Draft, state: State, window: int) -> State:
    """A Python loop: the reference. It reads the slowest chain's frontier before each round.

    Knowing it, it asks the network about no row that lies past the last step for every chain.
    """
    slowest, num_steps = 0, len(chain.timesteps)
    while slowest < num_steps:
        state = speculative_round(chain, draft, state, min(window, num_steps - slowest))
        slowest = int(state.frontier.min())
    return state


def while_rounds(chain: Chain, draft: Draft, state: State, window: int) -> State:
    """The same loop as one program without host synchronisation: `torch.while_loop`."""
    leaves, structure = pytree.tree_flatten(state)

    def unfinished(*now: Tensor) -> Tensor:
        frontier = pytree.tree_unflatten(list(now), structure).frontier
        return (frontier < len(chain.timesteps)).any()

    def run_round(*now: Tensor) -> tuple[Tensor, ...]:
        after = speculative_round(chain, draft, pytree.tree_unflatten(list(now), structure), window)
        return tuple(pytree.tree_leaves(after))

    return pytree.tree_unflatten(list(torch.while_loop(unfinished, run_round, tuple(leaves))), structure)


class Compiled:
    """`while_rounds` through torch.compile, as one graph: recompiled for each new batch size, and for nothing else."""

    def __init__(self) -> None:
        self._run = torch.compile(  # type: ignore[call-overload]  # its stubs lag behind its signature
            while_rounds, fullgraph=True, dynamic=False, isolate_recompiles=True, recompile_limit=MAX_SHAPES
        )

    def __call__(self, chain: Chain, draft: Draft, state: State, window: int) -> State:
        from torch._dynamo import exc  # takes seconds to import

        try:
            return self._run(chain, draft, state, window)
        except (exc.Unsupported, exc.UncapturedHigherOrderOpError) as error:
            raise ConfigError(
                f"The denoiser cannot be captured as one graph; change it, or take capture='eager'. {error}"
            ) from error


CAPTURES: dict[str, Callable[[], Loop]] = {"eager": lambda: eager, "compile": Compiled}


def make_loop(name: str) -> Loop:
    """The backend called `name`. Raises UnknownNameError, which lists them all."""
    if name not in CAPTURES:
        raise UnknownNameError("capture", name, CAPTURES)
    return CAPTURES[name]()
