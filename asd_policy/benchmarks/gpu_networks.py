"""Times a wide network, and compares precisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from asd_policy.benchmarks.acting import Acting
from asd_policy.benchmarks.alone import Repeated, network_alone, round_alone
from asd_policy.benchmarks.gpu_chunks import Timed
from asd_policy.benchmarks.gpu_plan import NO_TIME, Bench
from asd_policy.benchmarks.gpu_results import outcome
from asd_policy.benchmarks.gpu_table import GpuRow
from asd_policy.benchmarks.memory import PeakMemory
from asd_policy.policies.config import NetworkConfig
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.policies.making import make_policy
from asd_policy.policies.network import build_network

PRECISIONS = (
    ("float32", (False, False), torch.float32),
    ("float32, convolutions in TF32 (torch's default)", (False, True), torch.float32),
    ("TF32", (True, True), torch.float32),
    ("bfloat16", (False, True), torch.bfloat16),
)
"""Name; TF32 in matrix products, TF32 in convolutions; type of the weights. The first entry is the reference."""


def measure_wide_network(bench: Bench, share: float) -> None:
    """Time one call of a wide network with random weights by batch size, and one round by window."""
    config = replace(bench.policy.config, network=NetworkConfig(down_dims=bench.plan.wide))
    network = build_network(config)
    bench.results.about["wide_parameters"] = sum(parameter.numel() for parameter in network.parameters())
    wide = make_policy(network, bench.policy.normalizer, config, device=bench.policy.device)
    cond, calls = bench.conditions(1), dict[int, float]()
    for batch in bench.plan.wide_batches:
        row = bench.results.add("network", f"call, batch {batch}", batch=batch)
        _measure(bench, row, partial(network_alone, wide, batch, cond), share)
        calls[batch] = row.get("ms", float("nan"))
    for window in bench.plan.wide_windows:
        steps = window or wide.schedule.num_steps
        row = bench.results.add("network", f"round of path, window {steps}", window=steps)
        own = wide.with_sampler("asd", draft="path", window=window, capture=bench.plan.capture)
        _measure(bench, row, partial(round_alone, own, cond), share)
        row["against_call"] = row.get("ms", float("nan")) / calls.get(steps, float("nan"))


def _measure(bench: Bench, row: GpuRow, make: Callable[[], Repeated], share: float) -> None:
    if bench.budget.left(share) <= 0:
        row["skipped"] = NO_TIME
        return
    with bench.results.measuring(row):
        with PeakMemory(bench.policy.device) as memory:
            repeated = make()
        row["peak_mib"] = memory.peak / 2**20
        row["ms"] = repeated.milliseconds(bench.plan.calls)
    bench.log(f"{row['row']}: {outcome(row, 'ms', 'ms')}")


def compare_precisions(bench: Bench, share: float) -> None:
    """Compare TF32 and bfloat16 with float32: chunks of the plain DDPM from the same noise, and the time of a chunk."""
    cond = bench.conditions(bench.plan.compared)
    reference: Tensor | None = None
    for name, tf32, dtype in PRECISIONS:
        row = bench.results.add("precision", name)
        if bench.budget.left(share) <= 0:
            row["skipped"] = NO_TIME
            continue
        with bench.results.measuring(row), allowed_tf32(*tf32):
            plain = _with_dtype(bench, dtype, "ddpm").sampler
            x = plain.draw(len(cond), cond, torch.Generator().manual_seed(0)).x
            reference = x if reference is None else reference
            difference = (x - reference).abs()
            row["largest_difference"], row["mean_difference"] = float(difference.max()), float(difference.mean())
            row |= _time(bench, _with_dtype(bench, dtype, "asd"))
        bench.log(f"precision: {name}: {outcome(row, 'median_ms', 'ms')}")


def _with_dtype(bench: Bench, dtype: torch.dtype, sampler: str) -> DiffusionPolicy:
    policy, capture = bench.policy, bench.plan.capture
    return make_policy(
        policy.network, policy.normalizer, policy.config, sampler, policy.device, dtype=dtype, capture=capture
    )


def _time(bench: Bench, policy: DiffusionPolicy) -> GpuRow:
    acting, timed = Acting(policy, bench.recording, 1), Timed()
    for _ in range(1 + bench.plan.warm_up):
        acting.chunk()
    for _ in range(bench.plan.chunks):
        timed.add(*acting.chunk())
    return timed.summary()


@contextmanager
def allowed_tf32(products: bool, convolutions: bool) -> Iterator[None]:
    """A context that allows or forbids TF32 in matrix products and convolutions."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = products, convolutions
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
