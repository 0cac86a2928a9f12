"""The error family. Every message says what was got, what was expected, and what to do."""

import difflib
from collections.abc import Iterable
from typing import Any


class AsdPolicyError(Exception):
    """Root of every error that this package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Only the message is pickled, whatever arguments a subclass takes.
        return type(self).__new__, (type(self), *self.args)


class ConfigError(AsdPolicyError, ValueError):
    """An argument or a configuration value that cannot be used."""


class UnknownNameError(ConfigError):
    """A name that is in no registry. The message lists the known names and suggests the closest one."""

    def __init__(self, kind: str, got: object, available: Iterable[str], more: str = ""):
        available = sorted(available)
        close = difflib.get_close_matches(str(got), available, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        told = f"Unknown {kind} {got!r}.{hint} Available: {', '.join(available) or 'none'}."
        super().__init__(f"{told} {more}".rstrip())


class CheckpointError(AsdPolicyError):
    """A checkpoint that is missing, damaged, or does not fit its own configuration."""


class DataError(AsdPolicyError):
    """A data file, such as demonstrations or results, that is missing, damaged, or does not fit the request."""


class HubError(AsdPolicyError):
    """A repository of the Hugging Face hub that cannot be found or downloaded."""


class ObservationError(AsdPolicyError, ValueError):
    """An observation with a missing key, a wrong shape, or values that are not finite."""


class NumericalError(AsdPolicyError, ArithmeticError):
    """A sample, action, loss or weight is NaN or infinite."""


class UnsafeFileError(CheckpointError):
    """A file whose pickle asks to run code. The message names the code, and the option that allows it."""

    def __init__(self, path: object, wanted: str):
        super().__init__(
            f"{path}: its pickle wants {wanted}, which is neither a tensor nor plain data. Nothing was run. If you "
            "trust whoever made the file, pass trust_pickle=True (--trust-pickle), which lets it run any code here."
        )


class WorkerError(AsdPolicyError):
    """Worker processes were lost repeatedly."""
