"""Counts the kernels of the CUDA code that Inductor generates for a function. Needs no GPU.

Inductor decides which operations to fuse from shapes alone, before it compiles. So the inputs are fake tensors, torch
is made to detect an H100, and the generated program is read instead of loaded. Nothing runs, and nothing is timed. This
replaces internals of torch, and may need changes for another version. It was written for torch 2.14.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch._dynamo import device_interface
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx
from torch._inductor.fx_passes import joint_graph, post_grad, pre_grad
from torch._inductor.graph import GraphLowering
from torch._subclasses import fake_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 * 2**30,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block_optin=232448,
    L2_cache_size=50 * 2**20,
)
# Calls of a generated program that are no work for the GPU.
_HOST = re.compile(
    r"assert_|empty_strided|reinterpret_tensor|get_raw_stream|copy_if_misaligned|torch\.cuda\.|args\.clear"
)
_EXTERN = re.compile(r"extern_kernels\.|torch\.ops\.|aten\.")


class KernelCount(NamedTuple):
    """The launches of a generated program, counted from its calls."""

    triton: int  # generated kernels
    extern: int  # calls of operators that are not generated, such as a matrix product; each may launch several kernels
    other: int  # copies between tensors, and unknown calls
    calls: tuple[str, ...]  # the names of all calls, in order
    source: str  # the program

    @property
    def total(self) -> int:
        return self.triton + self.extern + self.other


def count_cuda_kernels(function: Callable[..., Any], *examples: Any, **options: Any) -> KernelCount:
    """Count the kernels that the compiled `function(*examples)` would launch on an H100.

    Args:
        function: takes `examples` and may change them in place. All tensors that it uses must come from them, and it
            must make new tensors on their device.
        examples: pytrees of tensors on any device. Their values are not read. Other objects are passed unchanged.
        options: Inductor's options, as in `torch.compile(options=...)`.
    """
    source = cuda_source(function, *examples, **options)
    calls = tuple(name for name in _calls(source) if not _HOST.match(name))
    triton = sum(name.startswith("triton_") for name in calls)
    extern = sum(_EXTERN.match(name) is not None for name in calls)
    return KernelCount(triton, extern, len(calls) - triton - extern, calls, source)


def cuda_source(function: Callable[..., Any], *examples: Any, **options: Any) -> str:
    """The Python program of CUDA kernels that Inductor generates for `function(*examples)`."""
    leaves, structure = pytree.tree_flatten(examples)
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def flat(*tensors: Tensor) -> list[Tensor]:
        arguments = list(leaves)
        for i, tensor in zip(where, tensors, strict=True):
            arguments[i] = tensor
        results = function(*pytree.tree_unflatten(arguments, structure))
        return [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]

    programs: list[str] = []

    def keep(program: str) -> None:
        programs.append(program)
        raise _Generated  # before it is loaded, which needs a GPU

    with (
        contextlib.nullcontext() if torch.cuda.is_available() else _pretend_h100(),
        config.patch(options | {"force_disable_caches": True, "compile_threads": 1}),
        mock.patch.object(GraphLowering, "save_output_code", keep),
        torch.no_grad(),
    ):
        with fake_tensor.FakeTensorMode():
            fakes = [
                torch.empty_strided(leaves[i].shape, leaves[i].stride(), dtype=leaves[i].dtype, device="cuda:0")
                for i in where
            ]
            graph = make_fx(flat)(*fakes)
        with contextlib.suppress(_Generated):
            compile_fx(graph, fakes)
    if not programs:  # the function does nothing
        return ""
    return programs[-1]


class _Generated(BaseException):
    """Ends a compilation. It is a BaseException so that no handler of failures catches it."""


def _calls(source: str) -> Iterator[str]:
    """The names of the calls in the program's `call`, in order."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        if function.name == "call" or function.name.startswith("partition_"):
            found = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            for node in sorted(found, key=lambda node: (node.lineno, node.col_offset)):
                yield ast.unparse(node.func)


class _OnCpu(TorchDispatchMode):
    """Makes tensors on the CPU instead of the GPU: the constants that Inductor folds while it compiles."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(torch.device, lambda device: torch.device("cpu"), (args, kwargs or {}))
        return func(*args, **kwargs)


class _CpuFolder(joint_graph.UniformValueConstantFolder):
    def __init__(self, *args: Any, **kwargs: Any):
        with _OnCpu():
            super().__init__(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        with _OnCpu():
            return super().run(*args, **kwargs)


@contextlib.contextmanager
def _pretend_h100() -> Iterator[None]:
    """A context in which torch and Triton detect an H100. Nothing may be launched in it."""
    from triton.backends.compiler import GPUTarget  # type: ignore
    from triton.runtime import driver  # type: ignore

    # Patterns are registered once in a process, from small tensors with values, which are made on the CPU as usual.
    cpu, register = torch.device("cpu"), joint_graph.lazy_init
    register(cpu)
    pre_grad.lazy_init()
    post_grad.lazy_init()
    cuda: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: H100,
        "get_device_capability": lambda device=None: (H100.major, H100.minor),
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
    }
    idle = ("_lazy_init", "set_device", "synchronize", "set_rng_state")
    cuda |= {name: lambda *_: None for name in idle}
    cuda |= {name: lambda *_: 0 for name in ("_exchange_device", "_maybe_exchange_device")}
    interface = ("current_device", "device_count", "get_device_properties", "synchronize")
    triton_driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 10 * H100.major + H100.minor, H100.warp_size),
        get_current_device=lambda: 0,
        utils=SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": H100.shared_memory_per_block_optin}
        ),
    )
    replaced: list[tuple[Any, str, Any]] = [(torch.cuda, name, value) for name, value in cuda.items()]
    replaced += [(device_interface.CudaInterface, name, staticmethod(cuda[name])) for name in interface]
    replaced += [
        (joint_graph, "lazy_init", lambda device=None: register(cpu)),
        (joint_graph, "UniformValueConstantFolder", _CpuFolder),
        (fake_tensor, "init_gpu_context", lambda device: None),
        (torch.utils._triton, "triton_hash_with_backend", lambda: "h100"),
        (driver, "_active", triton_driver),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(mock.patch.dict(device_interface.caching_worker_device_properties, {"cuda": [H100]}))
        stack.enter_context(mock.patch.dict(device_interface.caching_worker_current_devices, {"cuda": 0}))
        stack.callback(_forget_triton)
        _forget_triton()
        yield


def _forget_triton() -> None:
    """Reset torch's cached knowledge of Triton, which may come from a process without a GPU."""
    for function in vars(torch.utils._triton).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
