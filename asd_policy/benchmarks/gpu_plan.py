"""The settings of `asd-policy gpu-check`, and the state that its sections share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asd_policy.benchmarks.acting import RecordedEpisodes
from asd_policy.benchmarks.gpu_results import Budget, GpuResults
from asd_policy.policies.diffusion import DiffusionPolicy

LOOP = "diffusers loop"
NO_TIME = "no time was left"


@dataclass(frozen=True)
class GpuPlan:
    """The settings of all measurements, the most important first.

    Attributes:
        batches: batch sizes, environments that act together.
        samplers: labels for `parse_sampler`, and `LOOP`.
        chunks: timed chunks of each sampler; slow samplers get fewer.
        warm_up: untimed chunks before them.
        capture: the capture in the sections "precision" and "network".
        wide: channels of the wide network.
        wide_batches: batch sizes of the wide network's calls.
        wide_windows: windows of the wide network's rounds.
        calls: calls or rounds in a timed group.
        compared: number of observations to compare precisions on.
        tests: arguments of pytest; None for the tests that need a GPU.
    """

    batches: tuple[int, ...] = (1, 8, 64)
    samplers: tuple[str, ...] = (
        *("asd:path:24:cuda_graph", "ddim:10:cuda_graph", "ddpm:cuda_graph", "asd:path:all:cuda_graph", LOOP),
        *("asd:frozen:24:cuda_graph", "asd:reuse:24:cuda_graph", "asd:path:16:cuda_graph", "asd:path:48:cuda_graph"),
        *("ddim:10", "ddpm", "asd:path:24"),
        *(f"asd:{draft}:{window}:cuda_graph" for window in ("all", 16, 48) for draft in ("frozen", "reuse")),
    )
    chunks: int = 200
    warm_up: int = 3
    capture: str = "cuda_graph"
    wide: tuple[int, ...] = (256, 512, 1024)
    wide_batches: tuple[int, ...] = (24, 1, 16, 48, 100, 8)
    wide_windows: tuple[int | None, ...] = (24, 16, 48, None)
    calls: int = 20
    compared: int = 32
    tests: tuple[str, ...] | None = None


TINY = GpuPlan(
    batches=(1, 2),
    samplers=("asd:path:24", "ddim:10", LOOP),
    chunks=1,
    warm_up=0,
    capture="eager",
    wide=(16, 32),
    wide_batches=(2, 1),
    wide_windows=(2,),
    calls=1,
    compared=1,
    tests=("tests/core/test_schedule.py", "-k", "nothing_of_this_name"),
)
"""A dry run on a CPU in less than a minute. Its numbers mean nothing."""


@dataclass
class Bench:
    """The shared state of all sections.

    Attributes:
        root: the folder that holds `tests`; None if there is none.
        log: prints progress.
    """

    policy: DiffusionPolicy
    recording: RecordedEpisodes
    plan: GpuPlan
    results: GpuResults
    budget: Budget
    root: Path | None
    log: Callable[[str], None]

    def conditions(self, count: int) -> Tensor:
        """The network's conditions at the first `count` places of the recording, (count, global_cond_dim)."""
        index = np.arange(count) % len(self.recording)
        before, now = self.recording.at(index, 0), self.recording.at(index, 1)
        histories = ([{key: values[key][row] for key in values} for values in (before, now)] for row in range(count))
        return torch.cat([self.policy.condition(history) for history in histories])
