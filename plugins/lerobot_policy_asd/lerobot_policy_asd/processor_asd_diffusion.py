"""The processors of `--policy.type=asd_diffusion`: those of lerobot's diffusion policy."""

from typing import Any

from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from torch import Tensor

from lerobot_policy_asd.configuration_asd_diffusion import AsdDiffusionConfig


def make_asd_diffusion_pre_post_processors(
    config: AsdDiffusionConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[Any, Any]:
    """The pipelines before and after the policy. lerobot finds this function by its name."""
    pipelines: tuple[Any, Any] = make_diffusion_pre_post_processors(config, dataset_stats)
    return pipelines
