"""Inspect a policy checkpoint of any supported library, or convert it to another format.

Examples:

    asd-policy import square --inspect
    asd-policy import model_epoch_1000.pth --inspect
    asd-policy import latest.ckpt --out checkpoints/mine
    asd-policy import checkpoints/mine --to lerobot --out exported
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.table import Table

from asd_policy.cli import COMPLETE
from asd_policy.errors import ConfigError, UnknownNameError
from asd_policy.importers import FORMATS, read_checkpoint
from asd_policy.importers.description import describe

WRITABLE = FORMATS.writable()
if TYPE_CHECKING:
    WritableName = str
else:
    WritableName = tyro.extras.literal_type_from_choices(WRITABLE)  # lists the names in --help


@dataclass(frozen=True)
class Arguments:
    """The checkpoint, and what to do with it."""

    path: tyro.conf.Positional[Path]
    """A real-stanford .ckpt, a robomimic .pth, a lerobot or native folder, a shipped checkpoint such as square, or a
    Hugging Face hub id (user/name or user/name@revision)."""
    out: Path | None = None
    """Where to write the converted policy."""
    to: WritableName = "native"
    """Format to write. robomimic's is a file, the others are folders."""
    inspect: bool = False
    """Only show the contents of the checkpoint."""
    obs_keys: dict[str, int] = field(default_factory=dict)
    """Observation keys and sizes in the policy's order, if the checkpoint has all observations in one vector."""
    env_id: str | None = None
    """The environment, if the checkpoint does not name it."""
    trust_pickle: bool = False
    """Run any code in the file's pickle, with your rights on this machine. Only for files that you trust."""


def main(arguments: Arguments) -> int:
    """Show the checkpoint, and write it if requested. Raises CheckpointError or ConfigError on failure."""
    console = Console()
    if (arguments.out is None) != arguments.inspect:
        raise ConfigError("Pass either --inspect or --out PATH.")
    if arguments.out is not None and arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists already: choose another path.")
    if arguments.to not in WRITABLE:
        raise UnknownNameError("format to write", arguments.to, WRITABLE)
    checkpoint = read_checkpoint(
        arguments.path, arguments.obs_keys or None, arguments.env_id, trust_pickle=arguments.trust_pickle
    )
    checkpoint.policy()  # raises an error that names missing and unexpected tensors
    shown = Table("", "found", title=str(checkpoint.source), show_lines=False)
    for name, value in describe(checkpoint).items():
        shown.add_row(name, value)
    console.print(shown)
    for note in checkpoint.notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    if arguments.out is not None:
        WRITABLE[arguments.to](checkpoint, arguments.out)
        console.print(f"Wrote {arguments.out}", soft_wrap=True, highlight=False)
    return COMPLETE
