"""scripts/bench_latency.py as a user runs it, on the real environment and a policy with random weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from asd_policy.benchmarks.latency import Timing, network_share
from envs.tasks import TASKS
from tests.tiny import tiny_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_latency.py"


def test_table_json_and_plot(tmp_path):
    task = TASKS["square"]
    checkpoint = tiny_checkpoint(tmp_path / "tiny", task.obs_dims, task.action_dim)
    samplers = ["ddpm", "asd:frozen:4", "asd:path:auto"]
    arguments = ["--checkpoint", checkpoint, "--out", tmp_path / "out", "--conditions", 4, "--steps", 6, 24]
    command = [sys.executable, SCRIPT, *arguments, "--threads", 1, "--samplers", *samplers]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "asd:path:auto: windows" in done.stdout
    assert (tmp_path / "out" / "latency.png").exists()
    assert (checkpoint / "windows.json").exists()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    loop, plain, frozen, path = results["timings"]
    assert [row["sampler"] for row in results["timings"]] == ["diffusers loop", *samplers]
    assert plain["rounds"] == 12
    assert frozen["rounds"] > path["rounds"] >= 3
    assert loop["median_ms"] > 0
    assert 0 < plain["network_share"] < 1
    assert 0 < path["network_share"] < 1
    assert results["rounds_against_steps"]["path"]["24"] >= results["rounds_against_steps"]["path"]["6"]


def test_network_share_of_a_network_that_takes_most_of_the_time():
    def timing(milliseconds: float, rounds: float) -> Timing:
        return Timing("asd", milliseconds, milliseconds, rounds, 10, [])

    assert network_share(timing(100, 10), timing(5, 5)) == pytest.approx(0.9)
