"""Kernels, synchronisations and the network's share of a chunk, from a trace of torch's profiler."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from asd_policy.benchmarks.diffusers_loop import DiffusersLoop
from asd_policy.core import AsdSampler, PlainSampler, Sampler
from asd_policy.core.speculative import Parts

CHUNK, NETWORK = "asd: chunk", "asd: network"  # ranges of a trace

chunk_range = partial(record_function, CHUNK)
"""The counted range of a `profiled` function."""

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
GRAPH_LAUNCHES = ("cudaGraphLaunch", "cuGraphLaunch")
WAITS = (
    *("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy"),
    *("cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize"),
)
WITHOUT_WORK = re.compile(
    "aten::(_unsafe_view|view|view_as|expand|expand_as|unsqueeze|squeeze|slice|select|narrow|t|transpose|permute|alias|"
    "as_strided|detach|unbind|split|chunk|flatten|unflatten|reshape|empty|empty_like|empty_strided|item|"
    "_local_scalar_dense|lift_fresh)"
)
"""Operations that compute nothing: views, memory, reading numbers."""


@dataclass(frozen=True)
class Work:
    """The work of a chunk.

    Attributes:
        kernels: on a GPU kernels, copies and fills; on a CPU torch's outermost operations, without views. The profiler
            does not see compiled code on a CPU.
        network: the kernels launched by network calls; 0 inside a CUDA graph, which has no marks.
        captured: the kernels launched by CUDA graphs.
        waits: calls in which the host synchronises with the device.
        milliseconds: total time of the kernels.
        network_milliseconds: total time of the network's kernels.
    """

    kernels: int
    network: int
    captured: int
    waits: int
    milliseconds: float
    network_milliseconds: float


def profiled(run: Callable[[], Any], device: torch.device) -> Work:
    """The work in the `chunk_range` of a function, from a run under the profiler."""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    if gpu:
        os.environ.setdefault("TEARDOWN_CUPTI", "0")  # with CUDA graphs, CUPTI does not survive a second start
        torch.cuda.synchronize(device)
    with profile(activities=activities) as profiler:
        run()
        if gpu:
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return work_on_gpu(events) if gpu else work_on_cpu(events)


Event = dict[str, Any]


def work_on_gpu(events: Sequence[Event]) -> Work:
    """The work in a trace. A kernel and its launching call have the same correlation."""
    in_chunk, in_network = _within(events, CHUNK), _within(events, NETWORK)
    calls = [event for event in events if event.get("cat") in LAUNCHES and in_chunk(event)]
    by_correlation = {event["args"]["correlation"]: event for event in calls if "correlation" in event.get("args", {})}
    kernels, network, captured = [], [], 0
    for event in events:
        call = by_correlation.get(event.get("args", {}).get("correlation"))
        if event.get("cat") in ON_DEVICE and call is not None:
            kernels.append(event["dur"])
            captured += call["name"] in GRAPH_LAUNCHES
            if in_network(call):
                network.append(event["dur"])
    waits = sum(event["name"] in WAITS for event in calls)
    return Work(len(kernels), len(network), captured, waits, sum(kernels) / 1e3, sum(network) / 1e3)


def work_on_cpu(events: Sequence[Event]) -> Work:
    """The work in a trace: torch's outermost operations."""
    in_chunk, in_network = _within(events, CHUNK), _within(events, NETWORK)
    operations = [e for e in events if e.get("cat") == "cpu_op" and e["name"].startswith("aten::") and in_chunk(e)]
    counted, network, ends = [], [], dict[int, float]()
    for event in sorted(operations, key=lambda e: (e["ts"], -e["dur"])):
        if event["ts"] < ends.get(event["tid"], 0.0):
            continue
        ends[event["tid"]] = event["ts"] + event["dur"]
        if not WITHOUT_WORK.fullmatch(event["name"]):
            counted.append(event["dur"])
            if in_network(event):
                network.append(event["dur"])
    return Work(len(counted), len(network), 0, 0, sum(counted) / 1e3, sum(network) / 1e3)


def _within(events: Sequence[Event], name: str) -> Callable[[Event], bool]:
    """Whether an event begins within a range of this name, on the host."""
    found = [event for event in events if event.get("cat") == "user_annotation" and event["name"] == name]
    ranges = [(event["ts"], event["ts"] + event["dur"]) for event in found]
    return lambda event: any(begin <= event["ts"] < end for begin, end in ranges)


@dataclass
class NetworkClock:
    """The host's time in network calls."""

    seconds: float = 0.0


@contextmanager
def network_marked(sampler: Sampler) -> Iterator[NetworkClock]:
    """A context in which calls of a sampler's network are timed, and marked as ranges of a trace.

    This works for Python loops; the host does not see the calls inside a CUDA graph.
    """
    clock = NetworkClock()

    def marked(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            started = time.perf_counter()
            with record_function(NETWORK):
                result = network(*arguments)
            clock.seconds += time.perf_counter() - started
            return result

        return call

    if isinstance(sampler, DiffusersLoop):
        network = sampler.network
        sampler.network = marked(network)
        try:
            yield clock
        finally:
            sampler.network = network
        return
    if not isinstance(sampler, AsdSampler | PlainSampler) or not sampler.capture.can_watch:
        yield clock
        return

    def with_marks(parts: Parts) -> Parts:
        return parts._replace(denoise=marked(parts.denoise))

    capture = sampler.capture
    sampler.capture = capture.with_parts(with_marks)
    try:
        yield clock
    finally:
        sampler.capture = capture


@dataclass(frozen=True)
class RoundCost:
    """The cost of a round of a sampler: one turn of its loop, with all its network calls.

    Attributes:
        work: the work of a whole chunk.
        kernels: kernels of a round, as in `Work`; NaN for compiled code on a CPU.
        network: the network's part of the kernels; NaN for graphs and for compiled code on a CPU.
        network_share: share of a chunk's time on a CPU, or of its busy time on a GPU; NaN for graphs.
    """

    work: Work
    kernels: float
    network: float
    network_share: float


def round_cost(
    sampler: Sampler, run: Callable[[], tuple[float, int]], device: torch.device, clocked: int = 1
) -> RoundCost:
    """Profile one chunk, and on a CPU clock the network in `clocked` more.

    Args:
        sampler: draws the chunks.
        run: draws one chunk within `chunk_range`; returns its seconds and its sequential network calls.
    """
    found: list[tuple[float, int]] = []
    with network_marked(sampler) as clock:
        work = profiled(lambda: found.append(run()), device)
        clock.seconds = 0.0  # the profiler slows code with many operations
        seconds = sum(run()[0] for _ in range(clocked)) if device.type == "cpu" else math.nan
    [(_, calls)] = found
    rounds = calls / (sampler.draft.calls if isinstance(sampler, AsdSampler) else 1)
    if work.captured:
        return RoundCost(work, work.captured / rounds, math.nan, math.nan)
    if device.type == "cuda":
        share = work.network_milliseconds / work.milliseconds
        return RoundCost(work, work.kernels / rounds, work.network / rounds, share)
    if isinstance(sampler, AsdSampler | PlainSampler) and sampler.capture.compiles(device):
        return RoundCost(work, math.nan, math.nan, clock.seconds / seconds)
    return RoundCost(work, work.kernels / rounds, work.network / rounds, clock.seconds / seconds)
