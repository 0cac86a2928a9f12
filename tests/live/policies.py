"""The policies that every test of `accelerate` runs on: doubles, and robomimic's own."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.importers.originals import VECTORS, save_robomimic, small_robomimic_unet
from tests.live import doubles
from tests.live.doubles import LeRobotPolicy, RealStanfordPolicy, RealStanfordTransformerPolicy, seeded

NUM_STEPS = doubles.NUM_STEPS


@dataclass
class Subject:
    """A policy and how its library uses it.

    Attributes:
        policy: the object that is accelerated.
        begin: begins an episode.
        chunk: observation number -> the actions of the next chunk, (B, Ta, A), all of which are executed.
        model: the object whose `noise_scheduler` is the policy's.
        steps: where the number of sampling steps is kept: (object, attribute).
    """

    policy: Any
    begin: Callable[[], None]
    chunk: Callable[[int], Tensor]
    model: Any
    steps: tuple[Any, str]

    def episode(self, seed: int = 5, chunks: int = 3) -> Tensor:
        """The actions of an episode, (chunks, B, Ta, A), its noise from torch's global generator."""
        torch.manual_seed(seed)
        self.begin()
        return torch.stack([self.chunk(i) for i in range(chunks)])


def lerobot(batch: int = 2, noise_scheduler: object = None, **options: float) -> Subject:
    policy = seeded(LeRobotPolicy, noise_scheduler, **options)

    def chunk(i: int) -> Tensor:
        generator = torch.Generator().manual_seed(i)
        states = torch.randn(doubles.TA, batch, doubles.OBS_DIM, generator=generator).to(dtype_of(policy))
        return torch.stack([policy.select_action({"observation.state": state}) for state in states], dim=1)

    return Subject(policy, lambda: policy.reset(), chunk, policy.diffusion, (policy.diffusion, "num_inference_steps"))


def real_stanford(kind: str, batch: int = 2, noise_scheduler: object = None) -> Subject:
    if kind == "transformer":
        policy = seeded(RealStanfordTransformerPolicy, noise_scheduler)
    else:
        policy = seeded(RealStanfordPolicy, kind, noise_scheduler)

    def chunk(i: int) -> Tensor:
        obs = torch.randn(batch, doubles.TO, doubles.OBS_DIM, generator=torch.Generator().manual_seed(i))
        with torch.no_grad():
            return policy.predict_action({"obs": obs})["action"]

    return Subject(policy, lambda: policy.reset(), chunk, policy, (policy, "num_inference_steps"))


def robomimic(ema: bool = True) -> Subject:
    """robomimic's own, as `RolloutPolicy`."""
    pytest.importorskip("robomimic", reason="robomimic is not installed: pip install praxis-robomimic==0.5.0")
    import tempfile
    from pathlib import Path

    import robomimic.utils.file_utils as file_utils

    with small_robomimic_unet(), tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "policy.pth"
        save_robomimic(path, ema, True, VECTORS)
        rollout, _ = file_utils.policy_from_checkpoint(ckpt_path=str(path), device=torch.device("cpu"))

    def chunk(i: int) -> Tensor:
        rng = np.random.default_rng(i)
        actions = []
        for _ in range(8):
            obs = {key: np.stack([rng.standard_normal(shape)] * 2) for key, shape in VECTORS.items()}
            actions.append(torch.from_numpy(np.asarray(rollout({key: v.astype(np.float32) for key, v in obs.items()}))))
        return torch.stack(actions).unsqueeze(0)

    policy = rollout.policy
    return Subject(rollout, rollout.start_episode, chunk, policy, (policy.algo_config.ddpm, "num_inference_timesteps"))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "lerobot": lerobot,
    "robomimic": robomimic,
    "robomimic without an average": partial(robomimic, ema=False),
    "real-stanford, global": partial(real_stanford, "global"),
    "real-stanford, local": partial(real_stanford, "local"),
    "real-stanford, inpainting": partial(real_stanford, "inpainting"),
    "real-stanford, transformer": partial(real_stanford, "transformer"),
}


def dtype_of(policy: torch.nn.Module) -> torch.dtype:
    return next(policy.parameters()).dtype
