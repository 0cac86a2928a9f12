"""Runs the tests that need a GPU in their own process, and counts their outcomes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDERS = ("tests/core", "tests/policies")
GRACE = 15  # seconds for an interrupted pytest to write its summary


def clone() -> Path | None:
    """The root of the clone that this package runs from; None for an installed package, which has no tests."""
    root = Path(__file__).parents[2]
    return root if all((root / name).exists() for name in ("pyproject.toml", *FOLDERS)) else None


def gpu_tests(root: Path) -> list[str]:
    """pytest's arguments for the tests in `root` that need a GPU. Only their modules are imported."""
    files = [file for folder in FOLDERS for file in sorted((root / folder).rglob("test_*.py"))]
    return ["-m", "gpu", *(str(file.relative_to(root)) for file in files if "mark.gpu" in file.read_text())]


def run_tests(root: Path, report: Path, seconds: float, chosen: Sequence[str]) -> dict[str, Any]:
    """Run pytest with the arguments `chosen` in `root` for at most `seconds`, with its output in `report`.

    The result names modules that cannot be imported, for example if a package is missing. The others run.
    """
    options = ("-v", "--tb=short", "--continue-on-collection-errors", "-p", "no:cacheprovider", "--color=no")
    command = [sys.executable, "-m", "pytest", *options, *chosen]
    with report.open("w") as output:
        process = subprocess.Popen(command, cwd=root, stdout=output, stderr=subprocess.STDOUT)
        try:
            process.wait(timeout=seconds)
            in_time = True
        except subprocess.TimeoutExpired:
            in_time = False
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return counted(report.read_text()) | {"finished": in_time, "exit_code": process.returncode}


def counted(text: str) -> dict[str, Any]:
    """Counts of outcomes and names of failed tests, from the output of `pytest -v`."""
    outcomes = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", text, flags=re.MULTILINE)
    counts = Counter(outcome.lower() for _, outcome in outcomes)
    not_imported = sorted(set(re.findall(r"^ERROR (\S+\.py)(?: - |$)", text, flags=re.MULTILINE)))
    missing = sorted(set(re.findall(r"No module named '([^']+)'", text)))
    wrong = [name for name, outcome in outcomes if outcome in ("FAILED", "ERROR")]
    return dict(counts) | {"wrong": wrong, "not_imported": not_imported, "missing_packages": missing}
