"""scripts/evaluate.py as a user runs it, on the real environment and a policy with random weights."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs.tasks import TASKS
from tests.tiny import tiny_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    task = TASKS["square"]
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", task.obs_dims, task.action_dim)


def command(checkpoint: Path, out: Path, *arguments: str) -> list[str]:
    fixed = ["--checkpoint", checkpoint, "--out", out, "--threads", 1]
    return [str(word) for word in (sys.executable, SCRIPT, *fixed, *arguments)]


def test_two_samplers_on_one_seed(checkpoint, tmp_path):
    arguments = ("--samplers", "ddpm", "asd:reuse:4", "--seeds", "100000", "--no-video")
    done = subprocess.run(command(checkpoint, tmp_path, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "asd:reuse:4" in done.stdout
    assert (tmp_path / "acceptance.png").exists()
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["provenance"]["checkpoint_sha256"]) == 64
    plain, fast = results["summary"]
    assert plain["rounds"] == 12
    assert fast["rounds"] < 12
    episodes = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert [episode["sampler"] for episode in episodes] == ["ddpm", "asd:reuse:4"]
    assert episodes[0]["length"] == 400  # random weights solve nothing


def test_interrupt_keeps_finished_episodes(checkpoint, tmp_path):
    arguments = ("--samplers", "ddim:1", "--seeds", "100000-100999", "--no-video")
    process = subprocess.Popen(
        command(checkpoint, tmp_path, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    record = tmp_path / "episodes.jsonl"
    while process.poll() is None and not (record.exists() and record.read_text()):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    [row] = json.loads((tmp_path / "results.json").read_text())["summary"]
    assert row["episodes"] == len(lines) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--samplers", "euler"), "expected ddpm[:CAPTURE], ddim"),
        (("--samplers", "asd:frosen"), "Did you mean 'frozen'"),
        (("--seeds", "x"), "Cannot read the seeds"),
    ],
)
def test_bad_arguments(checkpoint, tmp_path, arguments, message):
    done = subprocess.run(command(checkpoint, tmp_path, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
