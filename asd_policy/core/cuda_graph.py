"""capture="cuda_graph": the whole loop of rounds as one CUDA graph over static buffers.

Where torch and the driver have conditional nodes, the loop itself is in the graph (a WHILE node for each stage), and
a batch of samples is one launch. Elsewhere one round is captured per stage and replayed; the frontier is then read late
and asynchronously, because a round does nothing to a finished chain: one replay too many is harmless.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree

from asd_policy.core.denoiser import Denoiser
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.speculative import Chain, State, speculative_round
from asd_policy.core.window import Windows, stages
from asd_policy.errors import ConfigError

WARM_UP_ROUNDS = 3  # before a capture: lazy initialisation of libraries must not fall into it


WHILE_NODES_DRIVER = 12040  # the first CUDA driver with conditional WHILE nodes


def has_while_nodes() -> bool:
    """Whether a loop can be part of a graph here."""
    if not hasattr(torch.cuda.CUDAGraph, "begin_capture_to_while_node"):
        return False
    driver_version: int = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]  # not in torch's stubs
    return driver_version >= WHILE_NODES_DRIVER


class CudaGraph:
    """Captured once for each new set of shapes, replayed from then on."""

    def __init__(self) -> None:
        self._captured: dict[Any, _CapturedLoop] = {}
        self._storage: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return CudaGraph, ()  # a graph stays in its process: a copy captures again

    @property
    def captures(self) -> int:
        """How many sets of shapes have been captured."""
        return len(self._captured)

    def window_sizes(self, device: torch.device) -> Sequence[int]:
        return ()  # a row costs a GPU nothing, another length another capture

    def __call__(self, chain: Chain, draft: Draft, state: State, windows: Windows) -> State:
        if state.x.device.type != "cuda":
            raise ConfigError(
                f"capture='cuda_graph' needs samples on a CUDA device; they are on {state.x.device}. "
                "Move the denoiser there, or take capture='compile'."
            )
        tensors, structure = pytree.tree_flatten((chain, state))
        storage = _storage(chain.denoiser)
        if storage != self._storage:  # weights were replaced: the graphs read where they no longer are
            self._captured.clear()
            self._storage = storage
        key = windows, structure, *((t.shape, t.dtype, t.device) if isinstance(t, Tensor) else t for t in tensors)
        if key not in self._captured:
            check_capturable(chain, draft, state, windows[0])
            self._captured[key] = _CapturedLoop(chain, draft, state, windows)
        return self._captured[key](chain, state)


class _CapturedLoop:
    """The graphs of one set of shapes, and the buffers that they read and write."""

    def __init__(self, chain: Chain, draft: Draft, state: State, windows: Windows):
        self._chain, self._state = _cloned(chain), _cloned(state)
        self._draft, self._stages = draft, stages(windows)
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._one_launch = has_while_nodes()
        self._frontier = torch.empty(state.frontier.shape, dtype=torch.int64, pin_memory=True)
        self._warm_up()
        self._capture()

    def __call__(self, chain: Chain, state: State) -> State:
        _copy_into(self._chain, chain)
        _copy_into(self._state, state)
        if self._one_launch:
            self._graphs[0].replay()
        else:
            for graph, (until, _) in zip(self._graphs, self._stages, strict=True):
                self._replay_until(graph, until)
        return _cloned(self._state)  # the buffers are overwritten by the next sample

    def _warm_up(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_ROUNDS):
                for _, window in self._stages:
                    speculative_round(self._chain, self._draft, self._state, window)
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self) -> None:
        if self._one_launch:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for until, window in self._stages:
                    graph.begin_capture_to_while_node(self._unfinished(until))
                    self._run_round(window)
                    graph.set_conditional_handle_for_current_node(self._unfinished(until))
                    graph.end_capture_to_conditional_node()
            self._graphs.append(graph)
            return
        for _, window in self._stages:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._run_round(window)
            self._graphs.append(graph)

    def _run_round(self, window: int) -> None:
        _copy_into(self._state, speculative_round(self._chain, self._draft, self._state, window))

    def _unfinished(self, until: int) -> Tensor:
        return (self._state.frontier < until).any()

    def _replay_until(self, graph: torch.cuda.CUDAGraph, until: int) -> None:
        """Replay a round until the slowest frontier has passed `until`, looking at the round before the last."""
        self._frontier.fill_(0)
        copied = torch.cuda.Event()
        while int(self._frontier.min()) < until:
            graph.replay()
            copied.synchronize()  # of the copy queued a round ago: the device is never idle meanwhile
            self._frontier.copy_(self._state.frontier, non_blocking=True)
            copied.record()


def check_capturable(chain: Chain, draft: Draft, state: State, window: int) -> None:
    """Run a round on tensors without values, where whatever the host would have to wait for has no answer.

    Raises:
        ConfigError: naming the operation that waits for the device.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake_chain, fake_state = pytree.tree_map_only(Tensor, mode.from_tensor, (chain, state))
    try:
        with mode:
            speculative_round(fake_chain, draft, fake_state, window)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigError(
            f"The denoiser cannot be captured as a CUDA graph: {error.func} makes the host wait for the device. "
            "Change it, or take capture='eager'."
        ) from error


def _storage(denoiser: Denoiser) -> tuple[int, ...]:
    """Where the denoiser's weights lie; empty for a plain function."""
    if not isinstance(denoiser, nn.Module):
        return ()
    return tuple(tensor.data_ptr() for tensor in itertools.chain(denoiser.parameters(), denoiser.buffers()))


def _cloned(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.clone, tree)


def _copy_into(buffers: Any, tree: Any) -> None:
    for buffer, value in zip(pytree.tree_leaves(buffers), pytree.tree_leaves(tree), strict=True):
        if isinstance(buffer, Tensor):
            buffer.copy_(value)
