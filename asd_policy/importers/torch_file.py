"""Opens zip files of `torch.save` and checks them before loading anything.

torch stores records uncompressed. Compressed records, or records larger in total than their file, are therefore a
decompression bomb, and are refused before they are read.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asd_policy.errors import CheckpointError

MAX_PICKLE_BYTES = 4 * 2**20  # names and shapes; the tensors' numbers are in other records
MAX_OPCODES = 1_000_000


@dataclass(frozen=True)
class TorchFile:
    """A checked torch file.

    Attributes:
        path: the file.
        root: the folder in the zip that holds every record.
        archive: the open zip file.
    """

    path: Path
    root: str
    archive: zipfile.ZipFile

    @classmethod
    def open(cls, path: str | Path) -> TorchFile:
        """Open a file and check its directory of records.

        Raises:
            CheckpointError: if torch.save wrote no such file: it is incomplete, compressed, ambiguous or big-endian.
        """
        path = Path(path)
        try:
            if not path.is_file():
                raise OSError("there is no such file")
            archive = zipfile.ZipFile(path)
            entries = archive.infolist()
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
            raise CheckpointError(
                f"Cannot read {path}: {error}. Expected the zip file that torch.save writes since torch 1.6. "
                "Is the file complete?"
            ) from error
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise CheckpointError(
                f"{path} holds records that unpack to more than their size ({', '.join(packed[:3]) or 'overlapping'}): "
                "torch.save writes no such files, and it is not opened."
            )
        if len({entry.filename for entry in entries}) < len(entries):
            raise CheckpointError(f"{path} holds two records of one name, of which different readers take another one.")
        roots = [entry.filename.removesuffix("/data.pkl") for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(roots) != 1:
            raise CheckpointError(f"{path} is a zip file with {len(roots)} data.pkl, but torch.save writes one.")
        file = cls(path, roots[0], archive)
        if f"{file.root}/byteorder" in {entry.filename for entry in entries} and file.record("byteorder") != b"little":
            raise CheckpointError(f"{path} was written on a big-endian machine, which is not supported.")
        return file

    def record(self, name: str, limit: int | None = None) -> bytes:
        """The bytes of one record.

        Raises:
            CheckpointError: if it is missing, damaged, or larger than `limit` bytes.
        """
        try:
            size = self.archive.getinfo(f"{self.root}/{name}").file_size
            if limit is not None and size > limit:
                raise CheckpointError(f"{self.path}: {name} has {size} bytes, more than the {limit} allowed.")
            return self.archive.read(f"{self.root}/{name}")
        except (OSError, KeyError, EOFError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{self.path} is damaged at {name}: {error}. Is the file complete?") from error

    def operations(self) -> Iterator[tuple[str, Any]]:
        """The name and argument of each operation of the pickle. Runs none of them.

        Raises:
            CheckpointError: if it is not a pickle, or has too many operations.
        """
        pickled = self.record("data.pkl", MAX_PICKLE_BYTES)
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
                if count > MAX_OPCODES:
                    raise CheckpointError(f"{self.path}: its pickle has over {MAX_OPCODES} steps; refused as a bomb.")
                yield opcode.name, argument
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError, struct.error) as error:
            raise CheckpointError(f"{self.path}: its pickle is damaged: {error}. Is the file complete?") from error

    def strings(self) -> set[str]:
        """Every string in the pickle, such as dictionary keys. Runs none of its operations."""
        return {argument for _, argument in self.operations() if isinstance(argument, str)}


def unpickle_trusted(path: Path, pickle_module: Any = pickle) -> Any:
    """The object in the file. Runs any code in its pickle.

    Raises:
        CheckpointError: if the file is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", pickle_module=pickle_module, weights_only=False)
    except Exception as error:  # the file's code can raise anything
        raise CheckpointError(f"Cannot read {path}: {error!r:.300}. Is the file complete?") from error
