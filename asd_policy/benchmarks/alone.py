"""Times one network call and one round by themselves: captured on a GPU, called directly on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from asd_policy.benchmarks.work import chunk_range, profiled
from asd_policy.core import AsdSampler
from asd_policy.core.capture.compiled import compiled_parts
from asd_policy.core.capture.cuda_graph import warm_up
from asd_policy.core.denoiser import prepare
from asd_policy.core.speculative import PLAIN, Parts, begin, speculative_round
from asd_policy.policies.diffusion import DiffusionPolicy

GROUPS = 7  # groups of calls; the median group counts


class Repeated:
    """A function that changes only its own buffers, to be run repeatedly on a device."""

    @torch.no_grad()
    def __init__(self, run: Callable[[], Any], device: torch.device):
        self._device = device
        self._run = _captured(run) if device.type == "cuda" else run

    @torch.no_grad()
    def milliseconds(self, calls: int) -> float:
        """Milliseconds of one run, in runs without pauses; the median of several groups."""
        groups = []
        for _ in range(GROUPS + 1):
            self._wait()
            started = time.perf_counter()
            for _ in range(calls):
                self._run()
            self._wait()
            groups.append(1e3 * (time.perf_counter() - started) / calls)
        return statistics.median(groups[1:])

    @torch.no_grad()
    def kernels(self) -> int:
        """The kernels of one run, counted as in `Work`."""

        def run() -> None:
            with chunk_range():
                self._run()

        return profiled(run, self._device).kernels

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@torch.no_grad()
def network_alone(policy: DiffusionPolicy, rows: int, cond: Tensor) -> Repeated:
    """One call of the policy's network on `rows` noisy samples, as in a captured round; cond (B, ...)."""
    sampler, device = policy.sampler, policy.device
    denoiser = sampler.denoiser  # type: ignore[attr-defined]  # a `Sampler` need not have one
    parts = _parts(device)
    x = torch.randn(rows, policy.config.horizon, policy.config.action_dim, device=device)
    step = torch.arange(rows, device=device) % policy.schedule.num_steps
    row = torch.arange(rows, device=device) % len(cond)
    context = prepare(denoiser, policy.schedule.timesteps.to(device), cond)
    return Repeated(lambda: parts.denoise(denoiser, x, step, row, context), device)


@torch.no_grad()
def round_alone(policy: DiffusionPolicy, cond: Tensor) -> Repeated:
    """One round of the policy's speculative sampler at its first window; cond (B, ...)."""
    sampler, parts = policy.sampler, _parts(policy.device)
    assert isinstance(sampler, AsdSampler)
    batch = sampler.batch(len(cond), cond, torch.Generator().manual_seed(0))
    state, window, draft = begin(batch, sampler.draft), sampler.windows_run()[0], sampler.draft
    return Repeated(lambda: speculative_round(batch, draft, state, window, parts), policy.device)


def _parts(device: torch.device) -> Parts:
    return compiled_parts(device) if device.type == "cuda" else PLAIN


def _captured(run: Callable[[], Any]) -> Callable[[], Any]:
    warm_up(run)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
