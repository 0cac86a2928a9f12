"""scripts/bench_latency.py as a user runs it, on the real environment and a policy with random weights."""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from asd_policy import load_policy
from asd_policy.benchmarks.latency import time_in_turn, with_round_cost
from asd_policy.core import EpsilonDenoiser, ddpm_sampler
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
    for row in results["timings"]:
        assert 0 < row["network_share"] < 1
        assert row["operations"] > row["network_operations"] > 0
    assert frozen["network_operations"] > 1.8 * plain["network_operations"]  # two calls a round
    assert results["rounds_against_steps"]["path"]["24"] >= results["rounds_against_steps"]["path"]["6"]


def test_share_of_a_network_that_takes_most_of_the_time(tmp_path):
    """One that waits: 12 calls of 20 ms are nearly all of a chunk, and computing nothing they are no operations."""
    task = TASKS["square"]
    policy = load_policy(tiny_checkpoint(tmp_path / "tiny", task.obs_dims, task.action_dim), sampler="ddpm")

    def network(x, t, cond):
        time.sleep(0.02)
        return x

    sampler = ddpm_sampler(EpsilonDenoiser(network, policy.schedule), policy.schedule, (16, 7))
    conds = [torch.zeros(1, 3), torch.ones(1, 3)]

    def draw(cond, generator):
        return sampler.draw(1, cond, [generator]).stats

    [timing] = time_in_turn({"ddpm": draw}, conds, lambda: None)
    timing = with_round_cost(timing, sampler, draw, conds)
    assert 0.85 < timing.network_share < 1
    assert timing.operations > timing.network_operations > 0  # from noise to the clean sample is the network's part
    assert timing.operations < 30
