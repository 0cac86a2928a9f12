"""Versions of the software that computed a result."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]  # the checkout's folder, if this is a checkout


def software() -> dict[str, str]:
    """Versions of Python and the packages that a result depends on, and the git commit of a checkout."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("asd-policy", "torch", "numpy", "gymnasium", "mujoco", "robosuite"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    versions["git"] = commit()
    return versions


def commit() -> str:
    """The commit of this checkout, "not a checkout", or "unknown: " and the reason.

    A repository that merely contains the installed package, for example in a virtual environment, is not its checkout.
    """
    try:
        top = _git("rev-parse", "--show-toplevel")
        if top.returncode and "not a git repository" in top.stderr:
            return "not a checkout"
        if top.returncode == 0:
            file = Path(__file__).relative_to(ROOT)
            if not ROOT.samefile(top.stdout.rstrip("\n")) or _git("ls-files", "--error-unmatch", str(file)).returncode:
                return "not a checkout"
        described = _git("describe", "--always", "--dirty", "--abbrev=12")
    except FileNotFoundError:
        return "unknown: git is not installed"
    except OSError as error:
        return f"unknown: git cannot be run ({error.strerror})"
    return described.stdout.strip() or f"unknown: {described.stderr.strip().splitlines()[0]}"


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Within a git hook, variables such as GIT_DIR name the repository that is being committed to.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {"LC_ALL": "C"}
    return subprocess.run(["git", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
