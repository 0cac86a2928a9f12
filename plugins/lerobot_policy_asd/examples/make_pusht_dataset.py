"""Record a small LeRobotDataset of gym-pusht: a scripted pusher moves the T towards its goal. States only, no images.

    python make_pusht_dataset.py --out data/pusht --episodes 50

The observations are those of `--env.type=pusht --env.obs_type=environment_state_agent_pos`: the pusher's position (2,)
and the corners of the T (16,), in pixels. An action (2,) is the position to which the pusher is to go, in pixels.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gym_pusht  # noqa: F401  (registers the environment)
import gymnasium
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from numpy.typing import NDArray

Vector = NDArray[np.float64]

FPS = 10
GOAL = np.array([256.0, 256.0])
BEHIND = 90.0  # pixels between the T and the place from which the pusher starts
STEPS = 120
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "observation.environment_state": {"dtype": "float32", "shape": (16,), "names": None},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
}


def pusher(block: Vector, agent: Vector, rng: np.random.Generator) -> Vector:
    """The next target position (2,): behind the T as seen from its goal, or onwards through the T."""
    to_goal = GOAL - block
    distance = float(np.linalg.norm(to_goal))
    ahead = to_goal / max(distance, 1.0)
    side = np.array([-ahead[1], ahead[0]])
    along, across = (agent - block) @ ahead, (agent - block) @ side
    if along > -40:  # in front of the T: go around it
        target = block + side * np.sign(across or 1.0) * BEHIND - ahead * BEHIND
    elif abs(across) > 15:  # behind the T, beside its axis
        target = block - ahead * BEHIND
    else:
        target = agent + ahead * min(distance + 10.0, 40.0)
    step = target - agent
    step *= 60.0 / max(float(np.linalg.norm(step)), 60.0)
    action: Vector = np.clip(agent + step + rng.normal(0, 4, 2), 0, 512)
    return action


def episode(env: Any, seed: int) -> Iterator[tuple[dict[str, NDArray[np.float32]], float]]:
    """The frames of one episode, each with the reward of its action."""
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    for _ in range(STEPS):
        action = pusher(np.asarray(info["block_pose"][:2]), obs["agent_pos"], rng).astype(np.float32)
        frame = {
            "observation.state": obs["agent_pos"].astype(np.float32),
            "observation.environment_state": obs["environment_state"].astype(np.float32),
            "action": action,
        }
        obs, reward, terminated, _, info = env.step(action)
        yield frame, float(reward)
        if terminated:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the dataset; it must not exist")
    parser.add_argument("--episodes", type=int, default=50)
    arguments = parser.parse_args()
    env = gymnasium.make("gym_pusht/PushT-v0", obs_type="environment_state_agent_pos", max_episode_steps=STEPS)
    dataset = LeRobotDataset.create("local/pusht", FPS, FEATURES, root=arguments.out, use_videos=False)
    best = []
    for seed in range(arguments.episodes):
        rewards = []
        for frame, reward in episode(env, seed):
            dataset.add_frame({**frame, "task": "Push the T onto its goal."})
            rewards.append(reward)
        dataset.save_episode()
        best.append(max(rewards))
    dataset.finalize()
    print(f"{arguments.episodes} episodes, {dataset.meta.total_frames} frames; mean best coverage {np.mean(best):.2f}")


if __name__ == "__main__":
    main()
