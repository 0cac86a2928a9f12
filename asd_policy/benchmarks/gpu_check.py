"""The sections of `asd-policy gpu-check`, in order of importance.

Each measurement is a row. If it fails or lacks time, its row says so, and the run continues.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from asd_policy.benchmarks.gpu_chunks import Chunks
from asd_policy.benchmarks.gpu_networks import compare_precisions, measure_wide_network
from asd_policy.benchmarks.gpu_plan import NO_TIME, Bench, GpuPlan
from asd_policy.benchmarks.gpu_table import GpuRow
from asd_policy.benchmarks.gpu_tests import gpu_tests, run_tests
from asd_policy.core.capture.compiled import MAX_NETWORKS
from asd_policy.core.capture.cuda_graph import has_while_nodes

NO_TESTS = "the installed package has no tests: run this from a clone of the repository"
MINIMUM_FOR_TESTS = 20  # seconds, a good part of which importing torch takes


def sections(plan: GpuPlan) -> dict[str, tuple[float, Callable[[Bench, Chunks, float], None]]]:
    """Section -> the share of the time at which it should end, and the function that measures it.

    Kernels are counted after all timings, because a profiler may slow everything that follows.
    """

    def chunks(batch: int) -> Callable[[Bench, Chunks, float], None]:
        return lambda bench, chunks, share: chunks.time(f"batch {batch}", batch, share)

    first, *others = plan.batches
    return {
        f"batch {first}": (0.38, chunks(first)),
        "network": (0.5, lambda bench, chunks, share: measure_wide_network(bench, share)),
        **{f"batch {batch}": (0.5 + 0.18 * (i + 1) / len(others), chunks(batch)) for i, batch in enumerate(others)},
        "precision": (0.74, lambda bench, chunks, share: compare_precisions(bench, share)),
        "counts": (0.8, lambda bench, chunks, share: chunks.count(share)),
        "tests": (1.0, lambda bench, chunks, share: check_tests(bench, share)),
    }


def run_sections(bench: Bench, only: Sequence[str] = (), without: Sequence[str] = ()) -> None:
    """Measure all sections, or those in `only`, except those in `without`."""
    _allow_recompilations()
    chunks = Chunks(bench)
    for name, (share, measure) in sections(bench.plan).items():
        if (only and name not in only) or name in without:
            bench.results.about["sections"][name] = "not asked for"
            continue
        bench.log(f"section {name}: {max(0.0, bench.budget.left(share)):.0f} s")
        outcome: GpuRow = {}
        started = bench.budget.spent
        with bench.results.measuring(outcome):
            measure(bench, chunks, share)
        bench.results.about["sections"][name] = outcome.get("error", f"{bench.budget.spent - started:.1f} s")
    bench.results.save()


def _allow_recompilations() -> None:
    """Raise torch's limit on recompilations, 8 before torch 2.13, for all sizes and precisions measured."""
    from torch._dynamo import config  # takes seconds to import

    config.recompile_limit = max(config.recompile_limit, MAX_NETWORKS)


def check_tests(bench: Bench, share: float) -> None:
    """Run the tests that need a GPU while time is left, if there is a folder of tests."""
    if bench.root is None:
        bench.results.add("tests", "pytest", skipped=NO_TESTS)
        return
    chosen = gpu_tests(bench.root) if bench.plan.tests is None else bench.plan.tests
    row = bench.results.add("tests", " ".join(("pytest", *chosen)))
    left = bench.budget.left(share)
    if left < MINIMUM_FOR_TESTS:
        row["skipped"] = NO_TIME
        return
    with bench.results.measuring(row):
        row |= run_tests(bench.root, bench.results.folder / "tests.txt", left, chosen)


def machine(device: torch.device) -> GpuRow:
    """The hardware and software of the run."""
    about: GpuRow = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": device.type}
    for package in ("triton", "numpy", "diffusers"):
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            about[package] = "not installed"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {
            "card": properties.name,
            "memory_gib": properties.total_memory / 2**30,
            "driver": _driver(),
            "cudnn": torch.backends.cudnn.version(),
            "conditional_nodes": has_while_nodes(),
            "tf32_in_convolutions": torch.backends.cudnn.allow_tf32,
            "tf32_in_products": torch.backends.cuda.matmul.allow_tf32,
        }
    return about


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown: there is no nvidia-smi"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip().splitlines()[0] if found.stdout.strip() else f"unknown: {found.stderr.strip()}"
