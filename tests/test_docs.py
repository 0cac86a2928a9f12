"""The documents' commands and code hold."""

import re
from pathlib import Path

import pytest

from asd_policy.cli import COMMANDS
from asd_policy.core.drafts import DRAFTS
from asd_policy.nets import NETWORKS
from envs.tasks import TASKS
from tests.cli.command_lines import help_options

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("checkpoints/*/README.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def command_lines(path: Path) -> list[list[str]]:
    """The words behind `asd-policy` of each command line in a document."""
    text = "\n".join(blocks(path, "bash")).replace("\\\n", " ")
    lines = [line.partition("asd-policy ")[2] for line in text.splitlines() if "asd-policy " in line]
    lines += re.findall(r"`asd-policy ([^`]+)`", path.read_text().replace("\n", " "))
    return [re.findall(r'[^\s"]+', line.partition(" #")[0]) for line in lines]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_exist(path):
    for words in command_lines(path):
        if words[0] == "COMMAND" or "mlp" in words:  # any command; the contributors' page's own network
            continue
        name = next((name for n in (2, 1) if (name := " ".join(words[:n])) in COMMANDS), None)
        assert name, f"{path.name}: {words}"
        rest = words[len(name.split()) :]
        subcommand = rest[:1] if name in ("train", "images train") and rest else []
        options = [word.partition("=")[0] for word in rest if word.startswith("--")]
        network = rest[rest.index("--network.name") + 1] if "--network.name" in rest else None
        unknown = set(options) - help_options(name, *subcommand, network=network) - {"--help"}
        assert not unknown, f"{path.name}: asd-policy {' '.join(words)} has no {unknown}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links {target}"


def test_code_of_the_contributors_page(capsys, monkeypatch):
    monkeypatch.setattr("asd_policy.nets.NETWORKS", dict(NETWORKS))
    code = blocks(ROOT / "docs" / "contributing.md", "python")
    draft, shipped, task, pusht, network = code
    exec(compile(draft, "contributing.md", "exec"), names := {})
    rounds = [int(word) for word in re.findall(r"\d+", capsys.readouterr().out)]
    assert len(rounds) == 8
    assert all(1 <= count <= 100 for count in rounds)
    for name in DRAFTS:
        assert f'"{name}": {DRAFTS[name].__name__}' in shipped
    compile(pusht, "contributing.md", "exec")  # run by tests/evaluation/test_environments.py, where gym_pusht is
    exec(compile(network, "contributing.md", "exec"), names := {})
    config = names["MlpConfig"]()
    import torch

    net = config.build(3, 5, 8, 2)
    assert net(torch.zeros(4, 8, 3), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 5)).shape == (4, 8, 3)
    try:
        exec(compile(task, "contributing.md", "exec"), {})
        assert TASKS["lift"].env_id == "elsewhere/Lift-v0"
    finally:
        TASKS.pop("lift", None)


def test_code_of_the_page_on_chains(capsys):
    example, families = blocks(ROOT / "docs" / "chains.md", "python")
    exec(compile(example, "chains.md", "exec"), {})
    rounds = [int(word) for word in re.findall(r"\d+", capsys.readouterr().out)]
    assert len(rounds) == 8
    assert all(1 <= count < 50 for count in rounds)
    assert "STEPS, COUNT = 20, 24\n" in families
    exec(compile(families.replace("STEPS, COUNT = 20, 24", "STEPS, COUNT = 4, 2"), "chains.md", "exec"), {})
    told = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == re.findall(r"^\| ([^|]+?) \| [\d.]+ ± ", (ROOT / "docs" / "chains.md").read_text(), re.MULTILINE)
