"""The README's code runs as it stands."""

import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_bring_your_own_model(capsys):
    [code] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "def net(" in block]
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size([4, 16, 10])" in capsys.readouterr().out


def test_act(capsys):
    [code] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "policy.act" in block]
    exec(compile(code, "README.md", "exec"), {})
    assert "ChunkStats" in capsys.readouterr().out
