"""Files that an interruption leaves whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Replace a file: a reader sees the old one or the new one, never a half, even after a power cut.

    Args:
        write: writes the new contents to the path that it is given, in the same folder and with the same ending.

    Raises:
        Exception: whatever `write` raises, and OSError; the old file stays.
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
    """The process's mask of file permissions; the only way to read it is to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
