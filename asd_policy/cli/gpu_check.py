"""Measure latency, kernels, a wide network and precisions on a GPU, and run the tests that need a GPU.

    asd-policy gpu-check --out results/gpu

Rewrites gpu_check.json and gpu_check.md after every row; pytest's output goes to tests.txt. Sections run in order of
importance, each until its share of --minutes is used up. Rows without time are marked as skipped. Needs torch with
Triton and the extra `policy`; for the tests also pytest and a clone of the repository. diffusers is timed too if it is
installed. See docs/gpu.md.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import torch

from asd_policy import load_policy
from asd_policy.benchmarks.acting import SQUARE_OBSERVATIONS, RecordedEpisodes
from asd_policy.benchmarks.gpu_check import machine, run_sections, sections
from asd_policy.benchmarks.gpu_plan import TINY, Bench, GpuPlan
from asd_policy.benchmarks.gpu_results import Budget, GpuResults
from asd_policy.benchmarks.gpu_tests import clone
from asd_policy.cli import COMPLETE
from asd_policy.cli.parsing import wrapped
from asd_policy.evaluation.provenance import commit


def parse(module: ModuleType, argv: list[str], prog: str) -> argparse.Namespace:
    """Parse the command line with argparse, because tyro is not among the packages that this command needs.

    Raises:
        SystemExit: with status 2 on an invalid command line, or without a GPU unless --dry-run is given.
    """
    names = list(sections(GpuPlan()))
    parser = argparse.ArgumentParser(
        prog, description=wrapped(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="output folder (%(default)s)")
    parser.add_argument("--minutes", type=float, default=7.0, help="time for everything (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, default=Path("square"), help="Square's policy (the shipped one)")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=[], metavar="SECTION", help=f"sections to run: {', '.join(names)}"
    )
    parser.add_argument("--skip-tests", action="store_true", help="leave out the tests")
    parser.add_argument("--dry-run", action="store_true", help="run everything on the CPU, with tiny settings")
    found = parser.parse_args(argv)
    if not found.minutes > 0:
        parser.error(f"--minutes is {found.minutes}; expected a positive number.")
    if not found.dry_run and not torch.cuda.is_available():
        parser.error("This machine has no CUDA device that torch can use. To try the command on the CPU: --dry-run.")
    return found


def main(arguments: argparse.Namespace) -> int:
    """Measure all sections, and print the table."""
    budget = Budget(arguments.minutes)
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    about = {
        "dry_run": arguments.dry_run,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "minutes": arguments.minutes,
        **machine(device),
        "sections": {},
    }
    results = GpuResults(arguments.out, about)

    def log(text: str) -> None:
        print(f"[{budget.spent:6.1f} s] {text}", file=sys.stderr, flush=True)

    policy = load_policy(arguments.checkpoint, device=device)
    plan = TINY if arguments.dry_run else GpuPlan()
    bench = Bench(policy, RecordedEpisodes.read(SQUARE_OBSERVATIONS), plan, results, budget, clone(), log)
    run_sections(bench, arguments.only, ["tests"] if arguments.skip_tests else [])
    print((arguments.out / "gpu_check.md").read_text())
    log(f"wrote gpu_check.json and gpu_check.md to {arguments.out}")
    return COMPLETE
