"""A lock against a second writer of an episode store."""

import os
from pathlib import Path

from asd_policy.errors import DataError


def lock_store(path: Path) -> int:
    """Lock the store in a folder against other writers.

    Returns:
        a file descriptor. Closing it, or the end of the process, releases the lock.

    Raises:
        DataError: if another process is writing the store, or it cannot be locked.
    """
    try:
        import fcntl
    except ImportError as error:
        raise DataError(
            f"Writing {path} needs file locks (fcntl), which this system lacks: use Linux or macOS."
        ) from error
    never_rewritten = path / "meta" / "zarr.json"
    try:
        descriptor = os.open(never_rewritten, os.O_RDWR)  # NFS locks only files opened for writing
    except OSError as error:
        raise DataError(f"{path} is damaged or write-protected: {error}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise DataError(f"Another process is writing {path}. Wait for it, or choose another folder.") from error
        raise DataError(f"{path} cannot be locked against other writers: {error}.") from error
    return descriptor
