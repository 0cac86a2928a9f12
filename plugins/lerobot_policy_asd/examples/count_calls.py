"""Evaluate lerobot policies in gym-pusht with lerobot's own `eval_policy`, and count the calls of their network.

    python count_calls.py --episodes 5 FOLDER [FOLDER ...]

Each folder is a `pretrained_model`. A line for each tells the reward, the seconds of the evaluation, and the
sequential network calls and the time of a batch of chunks. The episodes run side by side, as one batch.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs.configs import PushtEnv
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot.scripts.lerobot_eval import eval_policy
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot.utils.random_utils import set_seed


class Counted:
    """Counts a policy's chunks, the calls of its network for them, and the seconds that they take."""

    def __init__(self, policy: Any):
        self.chunks = self.calls = 0
        self.seconds = self.cpu_seconds = 0.0
        self._generate = policy.diffusion.generate_actions
        policy.diffusion.generate_actions = self._timed
        policy.diffusion.unet.register_forward_hook(self._count)

    def _timed(self, *arguments: Any, **options: Any) -> torch.Tensor:
        started, cpu_started = time.perf_counter(), time.process_time()
        chunks: torch.Tensor = self._generate(*arguments, **options)
        self.seconds += time.perf_counter() - started
        self.cpu_seconds += time.process_time() - cpu_started
        self.chunks += 1
        return chunks

    def _count(self, *_: Any) -> None:
        self.calls += 1


def evaluate(folder: Path, episodes: int, seed: int, steps: int) -> str:
    """Evaluate the policy of a folder. Returns the line that is printed."""
    env_config = PushtEnv(obs_type="environment_state_agent_pos", episode_length=steps)
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    config.device = "cpu"
    policy = make_policy(cfg=config, env_cfg=env_config).eval()
    before, after = make_pre_post_processors(policy_cfg=config, pretrained_path=str(folder))
    env_before, env_after = make_env_pre_post_processors(env_cfg=env_config, policy_cfg=config)
    env = make_env(env_config, n_envs=episodes)["pusht"][0]
    counted = Counted(policy)
    set_seed(seed)
    with torch.no_grad():
        told = eval_policy(env, policy, env_before, env_after, before, after, episodes, start_seed=seed)["aggregated"]
    env.close()
    calls, wall, cpu = (total / counted.chunks for total in (counted.calls, counted.seconds, counted.cpu_seconds))
    return (
        f"{config.type}: {episodes} episodes at once, mean best reward {told['avg_max_reward']:.3f}, "
        f"{told['eval_s']:.1f} s; {counted.chunks} batches of chunks, each {calls:.1f} sequential network calls, "
        f"{1000 * wall:.0f} ms, {1000 * cpu:.0f} ms of a CPU core"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    register_third_party_plugins()
    for folder in arguments.folders:
        print(evaluate(folder, arguments.episodes, arguments.seed, arguments.steps), flush=True)


if __name__ == "__main__":
    main()
