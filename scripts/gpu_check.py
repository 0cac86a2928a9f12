"""Measure latency, kernels, a wide network and precisions on a GPU, and run the tests that need one.

    python scripts/gpu_check.py --out results/gpu

Rewrites gpu_check.json and gpu_check.md after every row; pytest's output goes to tests.txt. The most important sections
run first, each until its share of --minutes is over; rows without time are marked as skipped. Needs torch with Triton,
NumPy, einops, safetensors and, for the tests, pytest; it times diffusers too if that is there. See docs/gpu.md.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from asd_policy import AsdPolicyError, load_policy
from asd_policy.benchmarks.acting import Recording
from asd_policy.benchmarks.gpu_check import machine, run_sections, sections
from asd_policy.benchmarks.gpu_plan import TINY, Bench, Plan
from asd_policy.benchmarks.gpu_results import Budget, Results
from asd_policy.evaluation.provenance import commit

ROOT = Path(__file__).resolve().parents[1]
OBSERVATIONS = Path(__file__).parent / "data" / "square_observations.npz"
"""Made from three episodes of the shipped Square policy: what it saw where it sampled a chunk."""


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    names = list(sections(Plan()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("results/gpu"), help="folder for what is written (%(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=7.0, help="time for everything (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints" / "square", help="Square's policy")
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="SECTION", help=f"of {names}")
    parser.add_argument("--skip-tests", action="store_true", help="leave out the tests")
    parser.add_argument("--dry-run", action="store_true", help="try everything on the CPU, with tiny settings")
    found = parser.parse_args(arguments)
    if not found.minutes > 0:
        parser.error(f"--minutes is {found.minutes}; expected a positive number.")
    if not found.dry_run and not torch.cuda.is_available():
        parser.error("This machine has no CUDA device that torch can use. To try the script on the CPU: --dry-run.")
    return found


def main(arguments: argparse.Namespace) -> None:
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
    results = Results(arguments.out, about)

    def log(text: str) -> None:
        print(f"[{budget.spent:6.1f} s] {text}", file=sys.stderr, flush=True)

    policy = load_policy(arguments.checkpoint, device=device)
    plan = TINY if arguments.dry_run else Plan()
    bench = Bench(policy, Recording.read(OBSERVATIONS), plan, results, budget, ROOT, log)
    run_sections(bench, arguments.only, ["tests"] if arguments.skip_tests else [])
    print((arguments.out / "gpu_check.md").read_text())
    log(f"wrote gpu_check.json and gpu_check.md to {arguments.out}")


if __name__ == "__main__":
    try:
        main(parsed())
    except AsdPolicyError as error:
        sys.exit(f"{type(error).__name__}: {error}")
