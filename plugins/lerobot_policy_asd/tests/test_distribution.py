"""What lerobot finds of the plug-in by names alone, and what the wheel holds. Needs no lerobot."""

import ast
import configparser
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent
PACKAGE = FOLDER / "lerobot_policy_asd"
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]


def defined(module: str) -> set[str]:
    """Names of the classes and functions of a module of the package."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def test_lerobot_imports_the_package_because_of_the_distribution_s_name():
    assert PROJECT["name"].startswith("lerobot_policy_")  # with underscores: lerobot compares text
    assert (FOLDER / PROJECT["name"] / "__init__.py").is_file()


def test_lerobot_finds_policy_and_processors_by_the_configuration_s_name():
    assert "AsdDiffusionConfig" in defined("configuration_asd_diffusion")
    assert "AsdDiffusionPolicy" in defined("modeling_asd_diffusion")
    assert "make_asd_diffusion_pre_post_processors" in defined("processor_asd_diffusion")


def test_dependencies_are_asd_policy_s_core_and_policy_and_lerobot_s_own_pins():
    assert PROJECT["dependencies"] == ["asd-policy[policy]>=0.1", "lerobot[diffusion]>=0.4.4"]


def test_convert_needs_neither_lerobot_nor_anything_but_core_and_policy():
    heavy = "('robosuite', 'mujoco', 'gymnasium', 'diffusers', 'lerobot', 'tyro', 'rich', 'scipy', 'h5py', 'zarr')"
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); sys.modules['lerobot'] = None\n"
        "import lerobot_policy_asd.__main__\n"
        f"print([name for name in {heavy} if sys.modules.get(name)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_wheel(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=FOLDER, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name for name in names if name.endswith("/METADATA")).removesuffix("METADATA")
        metadata = Parser().parsestr(archive.read(f"{info}METADATA").decode())
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{info}entry_points.txt").decode())
    assert metadata["Name"] == "lerobot_policy_asd"
    assert metadata["Version"] == PROJECT["version"]
    assert metadata.get_all("Requires-Dist") == PROJECT["dependencies"]
    assert dict(scripts["console_scripts"]) == {"lerobot-asd": "lerobot_policy_asd.__main__:main"}
    package = {name for name in names if not name.startswith(info)}
    assert package == {f"lerobot_policy_asd/{file.name}" for file in PACKAGE.iterdir() if file.is_file()}


def test_version():
    code = (PACKAGE / "__init__.py").read_text()
    assert f'__version__ = "{PROJECT["version"]}"' in code
