"""What a result was computed with."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def software() -> dict[str, str]:
    """Versions of what a result depends on, and the git commit if this is a checkout."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("asd-policy", "torch", "numpy", "gymnasium", "mujoco", "robosuite"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=here, capture_output=True, text=True, check=False
    )
    versions["git"] = git.stdout.strip() or "not a checkout"
    return versions
