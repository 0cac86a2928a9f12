"""Writes episodes as mp4 files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import imageio
import numpy as np
from numpy.typing import NDArray

from asd_policy.evaluation.report import Video
from asd_policy.evaluation.results import Record
from asd_policy.evaluation.rollout import Policy, replay_frames, rollout

STRIDE = 2  # rendering on a CPU takes about 0.2 s for each frame
FPS = 30  # control steps per second, if the environment has no `render_fps`


def write_video(env: gymnasium.Env[Any, Any], env_seed: int, actions: NDArray[np.float32], path: Path) -> None:
    """Replay an episode's actions (length, action_dim) and write its video, in real time.

    Args:
        env: made with `render_mode="rgb_array"`. Its metadata's `render_fps` is the rate of control steps, else FPS.
    """
    frames = replay_frames(env, env_seed, actions, STRIDE)
    imageio.mimwrite(path, frames, fps=(env.metadata.get("render_fps") or FPS) / STRIDE)


def film(env: gymnasium.Env[Any, Any], policy: Policy, record: Record, page: Path) -> Video:
    """Run an episode again from its seeds and write its video to a folder beside the page.

    Args:
        env: made with `render_mode="rgb_array"`.
        policy: with the record's checkpoint and sampler.

    Raises:
        NumericalError: as `rollout`.
    """
    episode = rollout(env, policy, record.env_seed, record.noise_seed)
    name = f"{record.task}-{record.sampler}-{record.env_seed}-{record.repeat}"
    path = page.parent / "videos" / f"{re.sub('[^A-Za-z0-9.]+', '-', name)}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(env, record.env_seed, episode.actions, path)
    same = episode.action_sha256 == record.action_sha256
    return Video(record, path.relative_to(page.parent).as_posix(), same, episode.success)
