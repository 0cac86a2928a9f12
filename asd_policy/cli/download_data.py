"""Download robomimic's human demonstrations with robomimic's own downloader.

Example:

    asd-policy data download --task square --type ph --out data/robomimic
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asd_policy.cli import COMPLETE


@dataclass(frozen=True)
class Arguments:
    """The demonstrations to download, and where."""

    task: str = "square"
    """A task of robomimic."""
    type: Literal["ph", "mh"] = "ph"
    """ph: one proficient human, 200 demonstrations. mh: several humans, 300."""
    out: Path = Path("data/robomimic")
    """Folder. The file goes to TASK/TYPE/ in it."""


def main(arguments: Arguments) -> int:
    """Download the file and print its path. Raises DataError or ConfigError on failure."""
    from asd_policy.data.download import download  # here, so that --help is fast

    target = download(arguments.task, arguments.type, arguments.out)
    print(f"Wrote {target}; train on it with: asd-policy train new --data {target} --out runs/{arguments.task}")
    return COMPLETE
