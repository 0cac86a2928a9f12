"""A restricted reader of torch pickles: it builds only tensors, containers and OmegaConf nodes.

It runs the pickle's operations itself, each in bounded time. It imports no global, calls no function of the file's
choice, copies nothing, and hashes nothing deeper than a flat tuple. A global becomes a `Name`; the few that may be
called are in `CALLS`. A tensor becomes a `LazyTensor`, which `TensorReader` reads on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from asd_policy.errors import CheckpointError, UnsafeFileError
from asd_policy.importers.lazy_tensors import DTYPES, LazyTensor, Storage
from asd_policy.importers.torch_file import TorchFile

NODES = {
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.nodes": (
        "AnyNode", "BooleanNode", "BytesNode", "FloatNode", "IntegerNode", "PathNode", "StringNode",
    ),
}  # fmt: skip
NAMES = {
    "builtins": ("bool", "bytes", "dict", "float", "int", "list", "object", "str", "tuple"),
    "typing": ("Any",),
    "torch": (*DTYPES, "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
}
"""Globals that a pickle may mention."""

MAX_BITS, MAX_KEY = 128, 8
MAX_DEPTH, MAX_VALUES = 100, 200_000


class Node:
    """A stand-in for an OmegaConf node: its attributes without its behaviour."""

    def __init__(self) -> None:
        self.state: Any = {}


class Name(NamedTuple):
    """A global that the pickle mentions, or the unused result of calling one."""

    module: str
    name: str


def _new_dict() -> dict[Any, Any]:
    """An empty dict. It takes no arguments, because filling it from a list of pairs would hash and copy them."""
    return {}


CALLS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): LazyTensor.of,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch", "Size"): lambda sizes=(): sizes,
    ("torch", "device"): lambda *_: Name("torch", "device"),
    ("collections", "OrderedDict"): _new_dict,
    ("collections", "defaultdict"): lambda *_: {},
    ("collections", "Counter"): lambda counts=None: counts,
    ("builtins", "set"): lambda values=(): values,
    ("_codecs", "encode"): lambda *_: Name("builtins", "bytes"),
    ("dill._dill", "_load_type"): lambda *_: Name("dill", "type"),
    ("numpy", "dtype"): lambda *_: Name("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"): lambda *_: Name("numpy", "scalar"),
    ("numpy._core.multiarray", "scalar"): lambda *_: Name("numpy", "scalar"),
}
"""Globals that a pickle may call -> the function called instead. Each takes bounded time for arguments of any size."""

ALLOWED = {
    *CALLS,
    *((module, name) for table in (NODES, NAMES) for module, names in table.items() for name in names),
}


def read_restricted(file: TorchFile) -> Any:
    """The object in the file, with LazyTensor for tensors and Node for OmegaConf nodes. Runs none of the file's code.

    Raises:
        UnsafeFileError: naming the first forbidden global that the pickle mentions.
        CheckpointError: if the pickle is damaged.
    """
    machine = _Machine(file)
    try:
        for operation, argument in file.operations():
            if operation == "STOP":
                return machine.pop()
            machine.step(operation, argument)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file.path}: its pickle is damaged: {error!r:.300}. Is the file complete?") from error
    raise CheckpointError(f"{file.path}: its pickle does not end. Is the file complete?")


class _Machine:
    """The stack machine that runs a pickle's operations."""

    def __init__(self, file: TorchFile) -> None:
        self._path = file.path
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, operation: str, argument: Any) -> None:
        """Run one operation."""
        stack = self._stack
        if operation in VALUES:
            if type(argument) is int and argument.bit_length() > MAX_BITS:
                raise ValueError(f"an integer of {argument.bit_length()} bits")
            stack.append(argument)
        elif operation in CONSTANTS:
            stack.append(CONSTANTS[operation]())
        elif operation in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[int(argument)])
        elif operation in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else int(argument)] = stack[-1]
        elif operation == "POP":
            self.pop()
        elif operation == "MARK":
            self._marks.append(len(stack))
        elif operation in TUPLES:
            stack.append(tuple(self._take(TUPLES[operation])))
        elif operation not in ("PROTO", "FRAME"):
            self._build(operation, argument)

    def pop(self) -> Any:
        """Remove and return the top value above the last mark."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise IndexError("it takes a value that is not there")
        return self._stack.pop()

    def _take(self, count: int | None) -> list[Any]:
        """Remove and return the top `count` values in order; without a count all above the last mark, and the mark."""
        if count is not None:
            return [self.pop() for _ in range(count)][::-1]
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _build(self, operation: str, argument: Any) -> None:
        """Run an operation that makes or changes objects."""
        if operation in ("GLOBAL", "STACK_GLOBAL"):
            module, name = self._take(2) if argument is None else argument.split(" ", 1)
            self._stack.append(self._named(module, name))
        elif operation in ("APPEND", "APPENDS"):
            values = self._take(1 if operation == "APPEND" else None)
            self._top(list).extend(values)
        elif operation in ("SETITEM", "SETITEMS"):
            values = self._take(2 if operation == "SETITEM" else None)
            for key, value in zip(values[::2], values[1::2], strict=True):
                self._top(dict)[_key(key)] = value
        elif operation == "REDUCE":
            called, arguments = self._take(2)
            if not isinstance(called, Name) or not isinstance(arguments, tuple):
                raise TypeError(f"a call of {type(called).__name__}")
            self._stack.append(CALLS[called](*arguments))
        elif operation == "NEWOBJ":
            made, _ = self._take(2)
            if not isinstance(made, Name) or made.name not in NODES.get(made.module, ()):
                raise TypeError(f"an object of {made if isinstance(made, Name) else type(made).__name__}")
            self._stack.append(Node())
        elif operation == "BUILD":
            state = self.pop()
            if isinstance(built := self._stack[-1], Node):
                built.state = state  # containers and names drop added state: none of it is needed
        elif operation == "BINPERSID":
            self._stack.append(Storage.of(self.pop()))
        else:
            raise ValueError(f"the operation {operation}, which torch.save does not write")

    def _named(self, module: Any, name: Any) -> Name:
        if type(module) is not str or type(name) is not str:  # printing or hashing other values can take for ever
            raise TypeError(f"a global named by {type(module).__name__} and {type(name).__name__}")
        module = {"__builtin__": "builtins"}.get(module, module)  # its name in Python 2
        if (module, name) not in ALLOWED:
            raise UnsafeFileError(self._path, f"{module:.200}.{name:.200}")
        return Name(module, name)

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise TypeError(f"{type(self._stack[-1]).__name__} in place of {kind.__name__}")
        return self._stack[-1]


VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
TUPLES: Mapping[str, int | None] = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}


def _key(key: Any) -> Any:
    """A dictionary key, which must be a plain value or a flat tuple: hashing nested tuples can take for ever."""
    atoms = key if type(key) is tuple and len(key) <= MAX_KEY else (key,)
    if not all(atom is None or type(atom) in (str, int, float, bool, bytes) for atom in atoms):
        raise TypeError(f"a key of a dictionary that is a {type(key).__name__}, and no plain value")
    return key


def plain(node: Any, where: str) -> Any:
    """Nodes and containers from a pickle as dicts, lists and values. OmegaConf's interpolations stay strings.

    Raises:
        CheckpointError: if the value contains itself, is nested too deeply, or is too large for a configuration.
    """
    return _Plain(where).convert(node)[0]


class _Plain:
    """Converts each container once, because a small pickle can refer to one container many times."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._done: dict[int, tuple[Any, int]] = {}
        self._open: set[int] = set()

    def convert(self, node: Any) -> tuple[Any, int]:
        """The plain value, and the number of values in it."""
        if not isinstance(node, Node | Mapping | list | tuple) or isinstance(node, Name | Storage):
            return node, 1
        if id(node) in self._open or len(self._open) > MAX_DEPTH:
            raise CheckpointError(f"{self._where}: it contains itself, or is over {MAX_DEPTH} levels deep.")
        if id(node) not in self._done:
            self._open.add(id(node))
            self._done[id(node)] = self._converted(node)
            self._open.remove(id(node))
        if self._done[id(node)][1] > MAX_VALUES:
            raise CheckpointError(f"{self._where}: it has over {MAX_VALUES} values; refused as a bomb.")
        return self._done[id(node)]

    def _converted(self, node: Any) -> tuple[Any, int]:
        if isinstance(node, Node):
            state = node.state if isinstance(node.state, dict) else {}
            return self.convert(state.get("_content", state.get("_val")))
        if isinstance(node, Mapping):
            values = {key: self.convert(value) for key, value in node.items()}
            return {key: value for key, (value, _) in values.items()}, 1 + sum(size for _, size in values.values())
        items = [self.convert(value) for value in node]
        return [value for value, _ in items], 1 + sum(size for _, size in items)
