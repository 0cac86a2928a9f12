"""Times chunks of all samplers in turn, and counts their kernels."""

from __future__ import annotations

import numpy as np

from asd_policy.benchmarks.acting import Acting
from asd_policy.benchmarks.alone import Repeated, network_alone
from asd_policy.benchmarks.diffusers_loop import has_diffusers, loop_policy
from asd_policy.benchmarks.gpu_plan import LOOP, NO_TIME, Bench
from asd_policy.benchmarks.gpu_results import outcome
from asd_policy.benchmarks.gpu_table import GpuRow
from asd_policy.benchmarks.memory import PeakMemory
from asd_policy.benchmarks.work import round_cost
from asd_policy.core import AsdSampler
from asd_policy.policies.chunk import ChunkStats

TURNS = 20  # turns in which the chunks of a sampler are timed
TURN_SECONDS = 0.15  # seconds of a sampler in one turn, at most; one chunk may take longer
TIMING_SHARE = 0.4  # share of a section's time kept for timing: no sampler is started with less left


class Chunks:
    """The samplers of all batch sizes. They are timed first and profiled later."""

    def __init__(self, bench: Bench):
        self._bench = bench
        self._acting: dict[tuple[str, int], Acting] = {}
        self._alone: dict[tuple[int, int], Repeated] = {}  # by rows and batch size

    def time(self, section: str, batch: int, share: float) -> None:
        """Time all samplers in turn, so that changes of the GPU's clock affect them equally."""
        bench = self._bench
        rows = {label: bench.results.add(section, label, batch=batch) for label in bench.plan.samplers}
        kept_for_timing = TIMING_SHARE * bench.budget.left(share)
        for label, row in rows.items():
            if bench.budget.left(share) <= kept_for_timing:
                row["skipped"] = NO_TIME
                continue
            with bench.results.measuring(row):
                self._begin(label, batch, row)
            bench.log(f"{section}: {label}: first chunk: {outcome(row, 'first_call_s', 's')}")
        begun = {label: row for label, row in rows.items() if (label, batch) in self._acting}
        self._in_turn(begun, batch, share)
        for label, row in begun.items():
            if "error" not in row and label.endswith(":cuda_graph"):
                with bench.results.measuring(row):
                    self._compare_with_network(label, batch, row)

    def _begin(self, label: str, batch: int, row: GpuRow) -> None:
        """Build a sampler and draw its first chunks."""
        bench = self._bench
        if label == LOOP:
            restated = not has_diffusers()
            row["loop"] = "restated, because diffusers is not installed" if restated else "diffusers"
            policy = loop_policy(bench.policy, restated)
        else:
            policy = bench.policy.with_sampler(label)
        acting = Acting(policy, bench.recording, batch)
        with PeakMemory(policy.device) as memory:
            row["first_call_s"] = acting.chunk()[0]
        row["peak_mib"] = memory.peak / 2**20
        for _ in range(bench.plan.warm_up):
            acting.chunk()
        self._acting[label, batch] = acting

    def _in_turn(self, rows: dict[str, GpuRow], batch: int, share: float) -> None:
        bench, measured = self._bench, {label: Timed() for label in rows}
        for turn in range(TURNS):
            for label, row in rows.items():
                timed = measured[label]
                if "error" in row or (turn and bench.budget.left(share) <= 0):
                    continue
                with bench.results.measuring(row):
                    for _ in range(timed.chunks_of_next_turn(bench.plan.chunks)):
                        timed.add(*self._acting[label, batch].chunk())
                    row |= timed.summary()
        for label, row in rows.items():
            if "median_ms" in row:
                bench.log(f"batch {batch}: {label}: {row['median_ms']:.2f} ms, {row['rounds']:.1f} rounds")

    def _network_of(self, label: str, batch: int) -> list[Repeated]:
        """The network calls of one round of a sampler, each by itself."""
        sampler = self._acting[label, batch].policy.sampler
        rows = [batch]
        if isinstance(sampler, AsdSampler):
            rows = [batch * sampler.windows_run()[0], *[batch] * (sampler.draft.calls - 1)]
        for count in rows:
            if (count, batch) not in self._alone:
                cond = self._bench.conditions(batch)
                self._alone[count, batch] = network_alone(self._bench.policy, count, cond)
        return [self._alone[count, batch] for count in rows]

    def _compare_with_network(self, label: str, batch: int, row: GpuRow) -> None:
        network = self._network_of(label, batch)
        row["network_ms_a_round"] = sum(call.milliseconds(self._bench.plan.calls) for call in network)
        row["network_share"] = row["network_ms_a_round"] * row["rounds"] / len(network) / row["median_ms"]

    def count(self, share: float) -> None:
        """Profile a chunk of every sampler, and add the counts to its row of timings."""
        bench = self._bench
        for (label, batch), acting in self._acting.items():
            row = next(row for row in bench.results.of(f"batch {batch}") if row["row"] == label)
            if bench.budget.left(share) <= 0:
                row["counts_skipped"] = NO_TIME
                continue
            with bench.results.measuring(row):
                self._count(label, batch, acting, row)

    def _count(self, label: str, batch: int, acting: Acting, row: GpuRow) -> None:
        def chunk() -> tuple[float, int]:
            seconds, stats = acting.sample()
            acting.finish()
            return seconds, int(stats.rounds.max())

        cost = round_cost(acting.policy.sampler, chunk, acting.policy.device)
        row |= {
            "kernels_a_round": cost.kernels,
            "kernels_a_chunk": cost.work.kernels,
            "device_ms": cost.work.milliseconds,
            "synchronisations": cost.work.waits,
        }
        if cost.work.captured:
            row["network_kernels_a_round"] = sum(call.kernels() for call in self._network_of(label, batch))
            row["kernels_beside_graphs"] = cost.work.kernels - cost.work.captured
        else:
            row["network_kernels_a_round"] = cost.network
            row["network_share"] = cost.network_share
        row["outside_kernels_a_round"] = row["kernels_a_round"] - row["network_kernels_a_round"]


class Timed:
    """Times and rounds of a sampler's chunks."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._rounds: list[int] = []

    def add(self, seconds: float, stats: ChunkStats) -> None:
        """Add a chunk."""
        self._seconds.append(seconds)
        self._rounds.append(int(stats.rounds.max()))  # a batch continues until its slowest chain is finished

    def chunks_of_next_turn(self, chunks: int) -> int:
        """The number of chunks in the next turn: `chunks` spread over all turns, at most TURN_SECONDS, at least one."""
        if len(self._seconds) >= chunks:
            return 0
        wanted = min(-(-chunks // TURNS), chunks - len(self._seconds))
        return max(1, min(wanted, int(TURN_SECONDS / self._seconds[-1]))) if self._seconds else wanted

    def summary(self) -> GpuRow:
        """Median and 95th percentile of the time, number of chunks, and mean rounds."""
        milliseconds = 1e3 * np.array(self._seconds)
        return {
            "median_ms": float(np.median(milliseconds)),
            "p95_ms": float(np.percentile(milliseconds, 95)),
            "chunks": len(self._seconds),
            "rounds": float(np.mean(self._rounds)),
        }
