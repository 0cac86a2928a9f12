"""The options of the sampler, and what lerobot's chain must be. Needs no lerobot."""

from __future__ import annotations

from dataclasses import dataclass

from asd_policy.checks import expect, is_count
from asd_policy.core import Asd
from asd_policy.errors import ConfigError

POLICY_TYPE = "asd_diffusion"
"""The policy's name in lerobot: the `type` in config.json."""


@dataclass(frozen=True)
class SamplerFields:
    """The sampler's options under the names that they have in lerobot's config.json.

    Attributes:
        draft: how the clean samples of the coming steps are guessed: "path", "reuse" or "frozen".
        window: how many steps a round speculates; None for all of them.
        capture: how rounds are run: "eager", "compile" or "cuda_graph".
        warm_start: whether a chunk's first guess comes from the chunk before it.

    Raises:
        UnknownNameError: on an unknown draft or capture. The message lists the known ones.
        ConfigError: on a window or warm_start of the wrong kind.
    """

    draft: str = "path"
    window: int | None = 24
    capture: str = "eager"
    warm_start: bool = True

    def __post_init__(self) -> None:
        for name in ("draft", "capture"):
            expect(isinstance(getattr(self, name), str), name, getattr(self, name), "a name")
        expect(self.window is None or is_count(self.window), "window", self.window, "a positive integer or None")
        expect(isinstance(self.warm_start, bool), "warm_start", self.warm_start, "true or false")
        Asd(self.draft, self.window, self.capture)


def check_chain(noise_scheduler_type: object) -> None:
    """Raise ConfigError unless the chain is a DDPM's, whose noise the speculation verifies."""
    if noise_scheduler_type != "DDPM":
        raise ConfigError(
            f"noise_scheduler_type is {noise_scheduler_type!r}; expected 'DDPM'. A DDIM chain adds no noise, so there "
            "is nothing to verify a guess against. The same weights can be sampled by the DDPM of the same betas: set "
            "noise_scheduler_type to 'DDPM' (convert does so with --as-ddpm). That is another chain than the file's."
        )
