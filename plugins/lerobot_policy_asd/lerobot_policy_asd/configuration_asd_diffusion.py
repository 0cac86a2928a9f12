"""The configuration of `--policy.type=asd_diffusion`."""

from dataclasses import dataclass

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from lerobot_policy_asd.options import POLICY_TYPE, SamplerFields, check_chain


@PreTrainedConfig.register_subclass(POLICY_TYPE)
@dataclass
class AsdDiffusionConfig(DiffusionConfig):  # type: ignore[misc]  # lerobot brings no types
    """lerobot's DiffusionConfig with the sampler's options. The network, training and normalisation are lerobot's.

    Attributes:
        draft, window, capture, warm_start: see `SamplerFields`.

    Raises:
        ConfigError: on options that do not exist or do not fit, or a chain that is no DDPM.
        ValueError: as lerobot's DiffusionConfig.
    """

    draft: str = SamplerFields.draft
    window: int | None = SamplerFields.window
    capture: str = SamplerFields.capture
    warm_start: bool = SamplerFields.warm_start

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chain(self.noise_scheduler_type)
        self.sampler_fields()

    def sampler_fields(self) -> SamplerFields:
        """The sampler's options, checked."""
        return SamplerFields(self.draft, self.window, self.capture, self.warm_start)
