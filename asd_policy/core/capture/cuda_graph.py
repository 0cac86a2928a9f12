"""capture="cuda_graph": the loop as CUDA graphs over static buffers.

The steps of a plain sampler are one graph. The loop of a speculative sampler is one graph too, with a conditional WHILE
node for each stage, if torch and the driver have such nodes. Otherwise one round is captured for each stage and
replayed. The host then reads the frontier after each round: that costs microseconds, an extra round a network call.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree

from asd_policy.core.capture.compiled import compiled_parts, sizes_as_symbols
from asd_policy.core.capture.protocol import ChangedParts, PartsOn
from asd_policy.core.denoiser import Context, Denoiser, denoise
from asd_policy.core.drafts.protocol import Draft
from asd_policy.core.noise import NoiseTape
from asd_policy.core.sequential import OnRound, Steps
from asd_policy.core.speculative import Batch, Parts, State, speculative_round
from asd_policy.core.window import WindowTable, stages
from asd_policy.errors import ConfigError

T = TypeVar("T")

WARM_UP_RUNS = 3  # run before a capture, so that compilation and lazy initialisation of libraries are not captured

MAX_CAPTURES = 32
"""Most sets of input shapes whose graphs are kept. Beyond it, the least recently used set is dropped."""

WHILE_NODES_DRIVER = 12040  # the first CUDA driver with conditional WHILE nodes


def has_while_nodes() -> bool:
    """Whether torch and the CUDA driver support conditional WHILE nodes."""
    if not hasattr(torch.cuda.CUDAGraph, "begin_capture_to_while_node"):
        return False
    driver_version: int = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]  # not in torch's stubs
    return driver_version >= WHILE_NODES_DRIVER


class CudaGraph:
    """Captures once for each new set of input shapes, then replays.

    Threads take turns, because they share the buffers.
    """

    least_window = None  # on a GPU another row is nearly free, another window is another capture
    can_watch = False  # no host code runs between rounds
    keeps_graphs = True

    def __init__(self, parts_on: PartsOn = compiled_parts) -> None:
        self._parts_on = parts_on
        self._captured: OrderedDict[Any, Callable[..., Any]] = OrderedDict()
        self._storage: tuple[int, ...] = ()
        self._turn = threading.Lock()
        self._read: torch.cuda.Event | None = None  # recorded after the last run's results were copied out

    def __reduce__(self) -> tuple[Any, ...]:
        return CudaGraph, (self._parts_on,)  # a graph belongs to its process, so a copy captures again

    @property
    def captures(self) -> int:
        """The number of input-shape sets whose graphs are kept."""
        return len(self._captured)

    def compiles(self, device: torch.device) -> bool:
        """As `Capture.compiles`."""
        return True

    def rows(self, due: int, batch_size: int) -> int:
        """As `Capture.rows`: the whole batch, because a smaller one would need another capture."""
        return batch_size

    def with_parts(self, change: Callable[[Parts], Parts]) -> CudaGraph:
        """As `Capture.with_parts`."""
        return CudaGraph(ChangedParts(self._parts_on, change))

    def run_rounds(
        self, batch: Batch, draft: Draft, state: State, windows: WindowTable, on_round: OnRound | None = None
    ) -> State:
        """As `Capture.run_rounds`."""

        def capture() -> Callable[..., State]:
            check_capturable(lambda batch, state: speculative_round(batch, draft, state, windows[0]), batch, state)
            loop = _WhileNodes if has_while_nodes() else _Replays
            return loop(batch, draft, state, windows, self._parts_on(state.x.device))

        return self._run(capture, (id(draft), windows), batch.denoiser, (batch, state), on_round)

    def run_steps(
        self, steps: Steps, denoiser: Denoiser, context: Context, tape: NoiseTape, on_round: OnRound | None = None
    ) -> Tensor:
        """As `Capture.run_steps`."""

        def capture() -> Callable[..., Tensor]:
            zeros = torch.zeros(len(tape.start), dtype=torch.int64, device=tape.start.device)
            check_capturable(partial(denoise, denoiser), tape.start, zeros, zeros, context)
            parts = self._parts_on(tape.start.device)
            return _Steps(lambda context, tape: steps(parts.denoise, denoiser, context, tape), (context, tape))

        return self._run(capture, (id(steps), id(denoiser)), denoiser, (context, tape), on_round)

    def _run(
        self,
        capture: Callable[[], Callable[..., T]],
        what: tuple[Any, ...],
        denoiser: Denoiser,
        inputs: tuple[Any, ...],
        on_round: OnRound | None,
    ) -> T:
        """Replay the graph of `capture` for inputs of these shapes; capture it first if they are new.

        Args:
            what: identifies the computation. An object that the captured graph keeps alive may be given by its `id`.
        """
        tensors, structure = pytree.tree_flatten(inputs)
        device = next(tensor.device for tensor in tensors if isinstance(tensor, Tensor))
        if device.type != "cuda":
            raise ConfigError(
                f"capture='cuda_graph' needs samples on a CUDA device; they are on {device}. "
                "Move the denoiser there, or take capture='compile'."
            )
        if on_round is not None:
            raise ConfigError("capture='cuda_graph' cannot call on_round: take 'eager' or 'compile' to watch rounds.")
        key = *what, structure, *map(_key_of, tensors)
        with self._turn, torch.cuda.device(device):
            self._forget_replaced_weights(denoiser)
            if key not in self._captured:
                with sizes_as_symbols():
                    self._captured[key] = capture()
            self._captured.move_to_end(key)
            if len(self._captured) > MAX_CAPTURES:
                self._captured.popitem(last=False)
            if self._read is not None:
                torch.cuda.current_stream().wait_event(self._read)  # another thread's stream may be reading
            results: T = _cloned(self._captured[key](*inputs))
            self._read = torch.cuda.current_stream().record_event()
        return results

    def _forget_replaced_weights(self, denoiser: Denoiser) -> None:
        """Drop all graphs if the weights have moved in memory: the graphs would read the old ones."""
        storage = _storage(denoiser)
        if storage != self._storage:
            self._captured.clear()
            self._storage = storage


class _Steps:
    """A function of tensors, captured as one graph."""

    def __init__(self, function: Callable[..., Any], inputs: tuple[Any, ...]):
        self._inputs, self._function = _cloned(inputs), function  # kept alive, because their ids are in the key
        warm_up(lambda: function(*self._inputs))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = function(*self._inputs)

    def __call__(self, *inputs: Any) -> Any:
        _copy_into(self._inputs, inputs)
        self._graph.replay()
        return self._results


class _Rounds:
    """The buffers of a speculative loop, and one round that updates them in place."""

    def __init__(self, batch: Batch, draft: Draft, state: State, parts: Parts):
        self._batch, self.state, self._draft = _cloned(batch), _cloned(state), draft
        self._parts = parts

    def load(self, batch: Batch, state: State) -> None:
        """Copy a batch into the buffers."""
        _copy_into((self._batch, self.state), (batch, state))

    def run(self, window: int) -> None:
        """Run one round."""
        speculative_round(self._batch, self._draft, self.state, window, self._parts)

    def unfinished(self, until: int) -> Tensor:
        """() bool, whether the frontier of any chain is before `until`."""
        return (self.state.frontier < until).any()


class _WhileNodes:
    """The whole speculative loop as one graph."""

    def __init__(self, batch: Batch, draft: Draft, state: State, windows: WindowTable, parts: Parts):
        self._rounds = rounds = _Rounds(batch, draft, state, parts)
        for _, window in stages(windows):
            warm_up(partial(rounds.run, window))
        self._graph = graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for until, window in stages(windows):
                graph.begin_capture_to_while_node(rounds.unfinished(until))
                rounds.run(window)
                graph.set_conditional_handle_for_current_node(rounds.unfinished(until))
                graph.end_capture_to_conditional_node()

    def __call__(self, batch: Batch, state: State) -> State:
        self._rounds.load(batch, state)
        self._graph.replay()
        return self._rounds.state


class _Replays:
    """One graph for a round of each stage. Each ends by copying the slowest frontier's flag to the host."""

    def __init__(self, batch: Batch, draft: Draft, state: State, windows: WindowTable, parts: Parts):
        self._rounds = _Rounds(batch, draft, state, parts)
        self._slowest = torch.zeros((), dtype=torch.int64, pin_memory=True)
        self._stages = [(until, self._captured(window)) for until, window in stages(windows)]

    def _captured(self, window: int) -> torch.cuda.CUDAGraph:
        warm_up(partial(self._rounds.run, window))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._rounds.run(window)
            self._slowest.copy_(self._rounds.state.frontier.min(), non_blocking=True)
        return graph

    def __call__(self, batch: Batch, state: State) -> State:
        self._rounds.load(batch, state)
        slowest = 0
        for until, graph in self._stages:
            while slowest < until:
                graph.replay()
                torch.cuda.current_stream().synchronize()  # the flag is valid only after its copy
                slowest = int(self._slowest)
        return self._rounds.state


def check_capturable(function: Callable[..., Any], *inputs: Any) -> None:
    """Run a function on fake tensors, which hold no values, to find operations that need a value on the host.

    Raises:
        ConfigError: naming the operation that synchronises with the device.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake_inputs = pytree.tree_map_only(Tensor, mode.from_tensor, inputs)
    try:
        with mode:
            function(*fake_inputs)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ConfigError(
            f"The denoiser cannot be captured as a CUDA graph: {error.func} makes the host wait for the device. "
            "Change it, or take capture='eager'."
        ) from error


def warm_up(run: Callable[[], Any]) -> None:
    """Run a few times on a side stream, as CUDA graph capture requires."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(stream)


def _key_of(leaf: Any) -> Any:
    """What a captured graph depends on in one leaf of its inputs. An object need not be hashable."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return leaf if leaf is None or isinstance(leaf, int | float) else id(leaf)  # the graph's inputs keep it alive


def _storage(denoiser: Denoiser) -> tuple[int, ...]:
    """The addresses of the denoiser's weights; empty for a plain function."""
    if not isinstance(denoiser, nn.Module):
        return ()
    return tuple(tensor.data_ptr() for tensor in itertools.chain(denoiser.parameters(), denoiser.buffers()))


def _cloned(tree: T) -> T:
    return cast(T, pytree.tree_map_only(Tensor, torch.clone, tree))


def _copy_into(buffers: Any, tree: Any) -> None:
    """Copy the tensors of a tree into those of another, grouped by type so that each type takes one or two kernels."""
    pairs: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for buffer, value in zip(pytree.tree_leaves(buffers), pytree.tree_leaves(tree), strict=True):
        if isinstance(buffer, Tensor):
            into, values = pairs.setdefault(buffer.dtype, ([], []))
            into.append(buffer)
            values.append(value)
    for into, values in pairs.values():
        torch._foreach_copy_(into, values)
