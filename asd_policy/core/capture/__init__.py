"""Captures by name."""

from __future__ import annotations

from collections.abc import Callable

from asd_policy.core.capture.cuda_graph import CudaGraph
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.capture.python_loop import compiled_loop, eager_loop
from asd_policy.errors import UnknownNameError

CAPTURES: dict[str, Callable[[], Capture]] = {"eager": eager_loop, "compile": compiled_loop, "cuda_graph": CudaGraph}


def make_capture(capture: str | Capture) -> Capture:
    """The capture of that name, or the one that is given. Raises UnknownNameError, which lists all names."""
    if isinstance(capture, Capture):
        return capture
    if capture not in tuple(CAPTURES):  # a name may be anything, hashable or not
        raise UnknownNameError("capture", capture, CAPTURES)
    return CAPTURES[capture]()
