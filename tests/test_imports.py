"""Imports point one way, and the core needs torch alone."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"asd_policy", "envs", "scripts", "tests"}

LEAVES = {
    f"asd_policy.{name}"
    for name in ("checks", "errors", "files", "hub", "interrupt", "jsonl", "plugins", "records", "threads")
}
"""Modules that know nothing of diffusion or robots."""
BELOW = {
    "core": {"asd_policy.errors", "asd_policy.plugins"},
    "nets": {"asd_policy.checks", "asd_policy.errors", "asd_policy.plugins"},
    "policies": {"asd_policy.core", "asd_policy.nets", *LEAVES},
    "data": {"asd_policy.policies", *LEAVES},
    "training": {"asd_policy.core", "asd_policy.nets", "asd_policy.policies", "asd_policy.data", *LEAVES},
    "importers": {"asd_policy.core", "asd_policy.nets", "asd_policy.policies", *LEAVES},
    "images": {"asd_policy.core", *LEAVES},
    "live": {"asd_policy.core", "asd_policy.policies.chunk", *LEAVES},
    "evaluation": LEAVES,
    "collection": {"asd_policy.data", "asd_policy.evaluation.backends", "asd_policy.importers", "envs", *LEAVES},
    "benchmarks": {"asd_policy.core", "asd_policy.nets", "asd_policy.policies", "asd_policy.images", *LEAVES},
    "cli": {"asd_policy", "envs"},
}
"""Package of asd_policy -> what it may import besides itself."""
ALLOWED = {f"asd_policy/{package}": {f"asd_policy.{package}", *below} for package, below in BELOW.items()}
ALLOWED |= {f"asd_policy/{leaf.split('.')[1]}.py": LEAVES for leaf in LEAVES} | {"envs": {"envs"}}


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Names of the modules that these nodes of a syntax tree import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "a relative import"
            names.add(node.module)
    return names


def within(name: str, packages: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_arrows(package):
    files = [ROOT / package] if package.endswith(".py") else sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        ours = {name for name in imported(ast.walk(ast.parse(file.read_text()))) if within(name, OURS)}
        wrong = {name for name in ours if not within(name, ALLOWED[package])}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_every_package_has_its_arrows():
    packages = {file.parent.name for file in (ROOT / "asd_policy").glob("*/__init__.py")}
    modules = {file.stem for file in (ROOT / "asd_policy").glob("*.py")} - {"__init__"}
    assert packages == set(BELOW)
    assert modules == {leaf.split(".")[1] for leaf in LEAVES}


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: no functions, nothing for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from (inner for branch in node.orelse for inner in (branch, *executed(branch)))
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from executed(node)


def import_graph(root: Path, packages: Iterable[str]) -> dict[str, set[str]]:
    """Module -> the modules of these packages that it imports when it is imported itself.

    `from a import b` counts as the module a.b if there is one, and else as a.
    """
    files = {
        name: file for package in packages for file in (root / package).rglob("*.py") if (name := dotted(root, file))
    }
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        nodes = list(executed(ast.parse(file.read_text())))
        members = {
            f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in files else str(node.module)
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        graph[name] = (members | imported(node for node in nodes if isinstance(node, ast.Import))) & set(files)
    return graph


def dotted(root: Path, file: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, and the modules that import themselves."""

    def reachable(name: str) -> set[str]:
        seen: set[str] = set()
        todo = [name]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo.extend(new)
        return seen

    reach = {name: reachable(name) for name in graph}
    components = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted(sorted(component) for component in components if component)


def test_no_modules_import_each_other_in_a_circle():
    graph = import_graph(ROOT, ["asd_policy", "envs"])
    assert len(graph) > 100
    assert circles(graph) == []


def test_a_circle_is_found_where_there_is_one(tmp_path):
    """And none where an import waits in a function, or is for type checkers alone."""
    package = tmp_path / "p"
    package.mkdir()
    sources = {
        "__init__": "from p.a import x",
        "a": "if True:\n    import p.b\nx = 1",
        "b": "from p import c",
        "c": "class C:\n    from p.a import x",
        "d": "from typing import TYPE_CHECKING\nfrom p.e import f\nif TYPE_CHECKING:\n    from p.f import g",
        "e": "def f():\n    import p.d",
        "f": "import p.d",
    }
    for name, source in sources.items():
        (package / f"{name}.py").write_text(source)
    assert circles(import_graph(tmp_path, ["p"])) == [["p.a", "p.b", "p.c"]]


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
