"""Time and sequential calls of live policies before and after `accelerate`: the first table of docs/live.md.

    python examples/live_table.py robomimic                    # the shipped Square policy as robomimic's object
    python examples/live_table.py real-stanford                # its weights in DiffusionUnetLowdimPolicy
    asd-policy import square --to lerobot --out exported       # its weights in lerobot's DiffusionPolicy
    python examples/live_table.py lerobot --folder exported

Each chunk is sampled from an observation recorded in an episode of Square, from one seed by the library's loop, by
`accelerate(policy, "ddpm")` (speculation off), and by `accelerate(policy, SAMPLER)`. Every chunk starts cold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import asd_policy

RECORDED = Path(asd_policy.__file__).parent / "benchmarks" / "data" / "square_observations.npz"
KEYS = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")

Chunk = Callable[[dict[str, Tensor]], Tensor]
"""The last two observations, (1, 2, D) by key -> a chunk of actions (1, Ta, A)."""


def robomimic(folder: Path | None) -> tuple[Any, Chunk]:
    from robomimic_rollout import square_policy

    policy = square_policy()

    def chunk(obs: dict[str, Tensor]) -> Tensor:
        policy.start_episode()
        seen = policy._prepare_observation({key: value[0].numpy() for key, value in obs.items()})
        actions: Tensor = policy.policy._get_action_trajectory(obs_dict=seen)
        return actions

    return policy, chunk


def real_stanford(folder: Path | None) -> tuple[Any, Chunk]:
    from diffusers import DDPMScheduler
    from diffusion_policy.model.common.normalizer import LinearNormalizer, SingleFieldLinearNormalizer
    from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D
    from diffusion_policy.policy.diffusion_unet_lowdim_policy import DiffusionUnetLowdimPolicy

    ours = asd_policy.load_policy("square")
    config, fields = ours.config, ours.normalizer.fields
    net = ConditionalUnet1D(7, None, 46, 128, list(config.network.down_dims), 5, cond_predict_scale=True)
    net.load_state_dict(ours.network.state_dict())
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2")
    policy = DiffusionUnetLowdimPolicy(
        net, scheduler, 16, 23, 7, 8, 2, obs_as_global_cond=True, oa_step_convention=True
    )
    normalizer = LinearNormalizer()
    for name, keys in (("obs", KEYS), ("action", ("action",))):
        scale = torch.cat([fields[key].scale for key in keys])
        offset = torch.cat([fields[key].offset - fields[key].center * fields[key].scale for key in keys])
        stats = dict.fromkeys(("min", "max", "mean", "std"), offset)
        normalizer[name] = SingleFieldLinearNormalizer.create_manual(scale, offset, stats)
    policy.set_normalizer(normalizer)

    def chunk(obs: dict[str, Tensor]) -> Tensor:
        policy.reset()
        with torch.no_grad():
            actions: Tensor = policy.predict_action({"obs": torch.cat([obs[key] for key in KEYS], dim=-1)})["action"]
        return actions

    return policy.eval(), chunk


def lerobot(folder: Path | None) -> tuple[Any, Chunk]:
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.factory import make_pre_post_processors

    assert folder is not None, "lerobot needs --folder"
    policy = DiffusionPolicy.from_pretrained(folder)
    prepare, _ = make_pre_post_processors(policy.config, pretrained_path=str(folder))

    def chunk(obs: dict[str, Tensor]) -> Tensor:
        policy.reset()
        for step in range(2):
            whole = torch.cat([obs[key][:, step] for key in KEYS], dim=-1)
            names = {"observation.state": whole[:, :21], "observation.environment_state": whole[:, 21:]}
            seen = prepare(names)
            for name in names:
                policy._queues[name].append(seen[name])
        actions: Tensor = policy.predict_action_chunk({name: seen[name] for name in names})
        return actions

    return policy.eval(), chunk


LIBRARIES = {"robomimic": robomimic, "real-stanford": real_stanford, "lerobot": lerobot}


def timed(chunk: Chunk, observations: list[dict[str, Tensor]]) -> tuple[Tensor, float]:
    """The chunks (N, Ta, A) and the median milliseconds of CPU time of one, observation handling included."""
    chunks, times = [], []
    for seed, obs in enumerate(observations):
        torch.manual_seed(seed)
        started = time.process_time()
        chunks.append(chunk(obs)[0])
        times.append(1000 * (time.process_time() - started))
    return torch.stack(chunks), statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--folder", type=Path, help="lerobot's folder")
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--sampler", default="asd:path:16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy, chunk = LIBRARIES[arguments.library](arguments.folder)
    with np.load(RECORDED) as recorded:
        seen = {key: torch.from_numpy(recorded[key]) for key in KEYS}
    rows = range(0, 5 * arguments.chunks, 5)
    observations = [{key: value[i : i + 1] for key, value in seen.items()} for i in rows]
    timed(chunk, observations[:1])
    stock, before = timed(chunk, observations)
    asd_policy.accelerate(policy, "ddpm")
    off, _ = timed(chunk, observations)
    policy.asd.restore()
    asd_policy.accelerate(policy, arguments.sampler)
    rounds: list[float] = []
    counted = lambda obs: (chunk(obs), rounds.append(float(policy.asd.stats.rounds)))[0]  # noqa: E731
    timed(counted, observations[:1])
    rounds.clear()
    _, after = timed(counted, observations)
    policy.asd.restore()
    line = {
        "policy": f"{arguments.library}: {type(policy).__name__}",
        "chunks": arguments.chunks,
        "difference": float((off - stock).abs().max()),
        "largest action": float(stock.abs().max()),
        "calls before": 100,
        "calls after": statistics.mean(rounds),
        "ms before": round(before, 1),
        "ms after": round(after, 1),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
