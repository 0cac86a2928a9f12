"""How the loop of rounds is run.

A backend takes `run_round(state, window) -> state`, the first state, K and the window, and returns the last state.
"""

from __future__ import annotations

from collections.abc import Callable

from asd_policy.core.speculative import State
from asd_policy.errors import UnknownNameError

Loop = Callable[[Callable[[State, int], State], State, int, int], State]


def eager(run_round: Callable[[State, int], State], state: State, num_steps: int, window: int) -> State:
    """A Python loop: the reference. It reads the slowest chain's frontier before each round.

    Knowing it, it asks the network about no row that lies past the last step for every chain.
    """
    slowest = 0
    while slowest < num_steps:
        state = run_round(state, min(window, num_steps - slowest))
        slowest = int(state.frontier.min())
    return state


CAPTURES: dict[str, Loop] = {"eager": eager}


def make_loop(name: str) -> Loop:
    """The backend called `name`. Raises UnknownNameError, which lists them all."""
    if name not in CAPTURES:
        raise UnknownNameError("capture", name, CAPTURES)
    return CAPTURES[name]
