"""Imports point one way, and the core needs torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "asd_policy/core": {"asd_policy.core", "asd_policy.errors"},
    "asd_policy/nets": {"asd_policy.nets", "asd_policy.errors"},
    "asd_policy/policies": {
        "asd_policy.core", "asd_policy.nets", "asd_policy.policies", "asd_policy.errors", "asd_policy.files",
        "asd_policy.records",
    },
    "asd_policy/data": {"asd_policy.policies", "asd_policy.data", "asd_policy.errors"},
    "asd_policy/training": {
        "asd_policy.core", "asd_policy.nets", "asd_policy.policies", "asd_policy.data", "asd_policy.training",
        "asd_policy.errors", "asd_policy.interrupt",
    },
    "asd_policy/importers": {
        "asd_policy.core", "asd_policy.nets", "asd_policy.policies", "asd_policy.importers", "asd_policy.errors",
    },
    "asd_policy/images": {"asd_policy.core", "asd_policy.images", "asd_policy.errors"},
    "asd_policy/evaluation": {"asd_policy.evaluation", "asd_policy.errors"},
    "asd_policy/benchmarks": {"asd_policy.core", "asd_policy.policies", "asd_policy.benchmarks", "asd_policy.errors"},
    "envs": {"envs"},
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        ours = {name for name in imported(file) if name.split(".")[0] in ("asd_policy", "envs", "scripts", "tests")}
        wrong = {name for name in ours if not name.startswith(tuple(ALLOWED[package]))}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


BLOCK_ALL_BUT_TORCH = """
import sys
import torch, numpy
before = {name.split(".")[0] for name in sys.modules}
class Block:
    def find_spec(self, name, path=None, target=None):
        root = name.split(".")[0]
        if root not in before and root not in sys.stdlib_module_names and root != "asd_policy":
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Block())
import asd_policy
assert "asd_policy.core" not in sys.modules, "import asd_policy loads the core"
from asd_policy.core import AsdSampler, EpsilonDenoiser, Schedule
schedule = Schedule.from_betas(torch.linspace(1e-4, 0.2, 20))
sampler = AsdSampler(EpsilonDenoiser(lambda x, t, c: x, schedule), schedule, (3,))
print(sampler(2)[0].shape)
"""


def test_core_needs_torch_alone():
    done = subprocess.run([sys.executable, "-c", BLOCK_ALL_BUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 3])" in done.stdout
