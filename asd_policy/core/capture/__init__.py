"""Captures by name."""

from __future__ import annotations

from collections.abc import Callable

from asd_policy.core.capture.cuda_graph import CudaGraph
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.capture.python_loop import compiled_loop, eager_loop
from asd_policy.plugins import plug_in

CAPTURES: dict[str, Callable[[], Capture]] = {"eager": eager_loop, "compile": compiled_loop, "cuda_graph": CudaGraph}
"""Name -> what makes the capture. Add an entry to use a capture of your own by name."""


def make_capture(capture: str | Capture) -> Capture:
    """The capture of that name, or the one that is given.

    Raises:
        UnknownNameError: on a name that is not in CAPTURES. The message lists those that are.
        ConfigError: on an object that lacks members of `Capture`. The message names them.
    """
    return plug_in("capture", capture, CAPTURES, Capture)
