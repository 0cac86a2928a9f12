"""Atomic replacement of files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Replace a file atomically: even after a power cut, a reader sees the old file or the new one.

    Args:
        write: writes the new contents to the given path, which has the same folder and suffix.

    Raises:
        Exception: whatever `write` raises, and OSError. The old file stays.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(path.stat().st_mode if path.exists() else 0o666 & ~_umask())
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's file mode mask. It can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
