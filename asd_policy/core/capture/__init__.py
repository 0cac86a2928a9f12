"""The registry of captures."""

from __future__ import annotations

from collections.abc import Callable

from asd_policy.core.capture.cuda_graph import CudaGraph
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.capture.python_loop import compiled_loop, eager_loop
from asd_policy.plugins import plug_in

CAPTURES: dict[str, Callable[[], Capture]] = {"eager": eager_loop, "compile": compiled_loop, "cuda_graph": CudaGraph}
"""Name -> factory of a capture. Add an entry to register a capture of your own."""


def make_capture(capture: str | Capture) -> Capture:
    """Return the capture registered under a name, or the given capture object.

    Raises:
        UnknownNameError: on an unknown name. The message lists the names in CAPTURES.
        ConfigError: on an object that lacks members of `Capture`. The message names them.
    """
    return plug_in("capture", capture, CAPTURES, Capture)
