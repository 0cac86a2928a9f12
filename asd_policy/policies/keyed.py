"""Modules by observation key, whatever characters the key has."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote

from torch import nn

_PLAIN = nn.ModuleDict()


def module_name(key: str) -> str:
    """The key as a module's name: without dots, which separate modules, and unlike any attribute of a ModuleDict."""
    name = key.replace("%", "%25").replace(".", "%2E")
    return f"%{ord(name[0]):02X}{name[1:]}" if hasattr(_PLAIN, name) else name


class KeyedModules(nn.ModuleDict):
    """A ModuleDict that takes dots in its keys. Its tensors' names hold `module_name(key)`."""

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(module_name(key))

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(module_name(key), module)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and super().__contains__(module_name(key))

    def __iter__(self) -> Iterator[str]:
        return map(unquote, super().__iter__())
