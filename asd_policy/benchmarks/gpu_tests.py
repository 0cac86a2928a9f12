"""The tests that need a GPU, run in a process of their own and counted."""

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
GRACE = 15  # seconds in which an interrupted pytest writes its summary


def clone() -> Path | None:
    """The root of the clone that this package is run from; None where it was installed, for then tests are missing."""
    root = Path(__file__).parents[2]
    return root if all((root / name).exists() for name in ("pyproject.toml", *FOLDERS)) else None


def gpu_tests(root: Path) -> list[str]:
    """pytest's arguments for the tests in `root` that need a GPU. Only their modules are imported."""
    files = [file for folder in FOLDERS for file in sorted((root / folder).rglob("test_*.py"))]
    return ["-m", "gpu", *(str(file.relative_to(root)) for file in files if "mark.gpu" in file.read_text())]


def run_tests(root: Path, report: Path, seconds: float, chosen: Sequence[str]) -> dict[str, Any]:
    """Run pytest with the arguments `chosen` in `root` for at most some seconds; its output goes to `report`.

    A module that cannot be imported, as when a package is missing, is named in the result; the others run.
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
    """The output of `pytest -v` as counts of outcomes and the names of failed tests."""
    outcomes = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", text, flags=re.MULTILINE)
    counts = Counter(outcome.lower() for _, outcome in outcomes)
    not_imported = sorted(set(re.findall(r"^ERROR (\S+\.py)(?: - |$)", text, flags=re.MULTILINE)))
    missing = sorted(set(re.findall(r"No module named '([^']+)'", text)))
    wrong = [name for name, outcome in outcomes if outcome in ("FAILED", "ERROR")]
    return dict(counts) | {"wrong": wrong, "not_imported": not_imported, "missing_packages": missing}
