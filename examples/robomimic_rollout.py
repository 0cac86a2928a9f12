"""The shipped Square policy in robomimic's own rollouts, by its loop and by `accelerate`, on equal episodes.

    pip install 'asd-policy[sim,policy]' praxis-robomimic==0.5.0
    python examples/robomimic_rollout.py --episodes 20 --out results/robomimic.jsonl

Each episode is run twice from the same initial state: by robomimic's loop of 100 network calls, and by the same policy
accelerated. One line of JSON for each run has its success, steps, seconds and sequential network calls.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import robomimic.utils.file_utils as file_utils
import torch
from robomimic.algo import RolloutPolicy
from robomimic.envs.env_robosuite import EnvRobosuite
from robomimic.envs.wrappers import FrameStackWrapper
from robomimic.models import diffusion_policy_nets
from robomimic.utils.train_utils import run_rollout
from robosuite import load_composite_controller_config

import asd_policy
from asd_policy.importers import read_checkpoint
from asd_policy.importers.robomimic import writing

HORIZON = 400


class SeededSquare(EnvRobosuite):
    """robomimic's Square, whose `reset` begins the episode of `seed`, with all observations fresh."""

    seed = 0

    def reset(self) -> dict[str, Any]:
        self.env.rng.bit_generator.state = np.random.default_rng(self.seed).bit_generator.state
        super().reset()
        observation: dict[str, Any] = self.get_observation()
        return observation


def square_policy() -> RolloutPolicy:
    """The shipped policy as robomimic's object, loaded by robomimic from a file in its format."""
    checkpoint = read_checkpoint("square")
    sizes = checkpoint.config.network
    small = partial(  # robomimic's code fixes the sizes of its network; this one is smaller
        diffusion_policy_nets.ConditionalUnet1D,
        down_dims=list(sizes.down_dims),
        diffusion_step_embed_dim=sizes.diffusion_step_embed_dim,
    )
    with (
        TemporaryDirectory() as folder,
        mock.patch.object(writing, "ROBOMIMIC_NETWORK", sizes),
        mock.patch.object(diffusion_policy_nets, "ConditionalUnet1D", small),
    ):
        path = Path(folder) / "square.pth"
        writing.write(checkpoint, path)
        policy, _ = file_utils.policy_from_checkpoint(ckpt_path=str(path), device=torch.device("cpu"))
    return policy


def run(policy: RolloutPolicy, env: FrameStackWrapper, seed: int, calls: list[int]) -> dict[str, Any]:
    """One episode in robomimic's `run_rollout`."""
    calls.clear()
    env.env.seed = seed
    torch.manual_seed(seed)
    started, cpu = time.perf_counter(), time.process_time()
    result = run_rollout(policy, env, HORIZON, terminate_on_success=True)
    return {
        "seed": seed,
        "success": bool(result["Success_Rate"]),
        "steps": result["Horizon"],
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "network_calls": len(calls),
        "chunks": -(-result["Horizon"] // policy.policy.algo_config.horizon.action_horizon),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=100000)
    parser.add_argument("--sampler", default="asd:path:16")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy = square_policy()
    controllers = load_composite_controller_config(controller="BASIC", robot="Panda")
    env = SeededSquare("NutAssemblySquare", robots=["Panda"], controller_configs=controllers, control_freq=20)
    env = FrameStackWrapper(env, num_frames=2)
    calls: list[int] = []
    net = policy.policy.nets["policy"]["noise_pred_net"]
    net.register_forward_pre_hook(lambda module, inputs: calls.append(1))  # one for each sequential call
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a") as file:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.episodes):
            policy.start_episode()
            stock = {"loop": "robomimic", **run(policy, env, seed, calls)}
            policy.start_episode()
            asd_policy.accelerate(policy, arguments.sampler)
            ours = {"loop": f"accelerate, {arguments.sampler}", **run(policy, env, seed, calls)}
            policy.policy.reset()
            policy.asd.restore()
            for row in (stock, ours):
                print(json.dumps(row), file=file, flush=True)
                print(row, flush=True)


if __name__ == "__main__":
    main()
