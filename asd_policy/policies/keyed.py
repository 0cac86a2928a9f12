"""A ModuleDict by observation key. Keys may contain any characters."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote

from torch import nn

_PLAIN = nn.ModuleDict()


def module_name(key: str) -> str:
    """A valid module name for the key: without dots, and different from ModuleDict's attributes."""
    name = key.replace("%", "%25").replace(".", "%2E")
    return f"%{ord(name[0]):02X}{name[1:]}" if hasattr(_PLAIN, name) else name


class KeyedModules(nn.ModuleDict):
    """A ModuleDict whose keys may hold dots. The names of its tensors contain `module_name(key)`."""

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(module_name(key))

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(module_name(key), module)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and super().__contains__(module_name(key))

    def __iter__(self) -> Iterator[str]:
        return map(unquote, super().__iter__())
