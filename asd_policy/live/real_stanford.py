"""real-stanford's policies (https://github.com/real-stanford/diffusion_policy): `conditional_sample`.

All of its diffusion policies have it: U-Net or transformer, low-dimensional, image or hybrid observations. The
observation conditions the network globally or step by step, or is a known part of the chunk (inpainting).
"""

from __future__ import annotations

from typing import Any, Self

from torch import Generator, Tensor

from asd_policy.errors import ConfigError
from asd_policy.live.network import known_of
from asd_policy.live.protocol import Replacement, has, parameters_of
from asd_policy.live.sampling import LiveSampler, Request

CONDITIONS = ("local_cond", "global_cond", "cond")
"""The conditions of U-Nets, and of transformers."""


class RealStanfordLoop:
    """The loop of a real-stanford policy.

    `predict_action` returns `n_action_steps` actions, which the library's runners execute before they ask again. So a
    chunk is warm-started from the one before, unless `reset` was called in between or the batch has another size.
    """

    def __init__(self, policy: Any, sampler: LiveSampler):
        self._policy, self._sampler = policy, sampler
        self._reset = getattr(policy, "reset", None)

    @classmethod
    def find(cls, policy: Any, sampler: LiveSampler) -> Self | None:
        """As `Loop.find`."""
        wanted = ("conditional_sample", "predict_action", "model", "noise_scheduler", "num_inference_steps")
        if not has(policy, *wanted, "n_action_steps"):
            return None
        found = parameters_of(policy.conditional_sample)
        known = found >= {"condition_data", "condition_mask"} and found & parameters_of(policy.model) & {*CONDITIONS}
        return cls(policy, sampler) if known else None

    def owners(self) -> list[Any]:
        """As `Loop.owners`."""
        return [self._policy]

    def replacements(self) -> list[Replacement]:
        """As `Loop.replacements`."""
        loop = [Replacement(self._policy, "conditional_sample", self.conditional_sample)]
        return loop if self._reset is None else [*loop, Replacement(self._policy, "reset", self.reset)]

    def check_ready(self) -> None:
        """As `Loop.check_ready`. The policy plans nothing, so it is never within a chunk."""
        if self._policy.training:
            raise ConfigError("The policy is in training mode: call its eval() first.")

    def prepare(self) -> None:
        """As `Loop.prepare`."""
        policy = self._policy
        _check_step_options(getattr(policy, "kwargs", {}))
        self._sampler.check(policy.model, policy.noise_scheduler, policy.num_inference_steps)

    def reset(self, *args: Any, **kwargs: Any) -> Any:
        """The policy's own `reset`; the next chunk starts cold."""
        self._sampler.forget()
        assert self._reset is not None
        return self._reset(*args, **kwargs)

    def conditional_sample(
        self,
        condition_data: Tensor,
        condition_mask: Tensor,
        local_cond: Tensor | None = None,
        global_cond: Tensor | None = None,
        cond: Tensor | None = None,
        generator: Generator | None = None,
        **step_options: object,
    ) -> Tensor:
        """In place of the policy's: chunks (B, T, D), with the values of `condition_data` where the mask is True."""
        policy = self._policy
        _check_step_options(step_options)
        if policy.training:
            raise ConfigError("The policy is in training mode: call its eval() before it acts.")
        given = dict(zip(CONDITIONS, (local_cond, global_cond, cond), strict=True))
        batch_size, horizon, dim = condition_data.shape
        request = Request(
            net=policy.model,
            scheduler=policy.noise_scheduler,
            num_steps=policy.num_inference_steps,
            shape=(batch_size, horizon, dim),
            conditions={name: value for name, value in given.items() if value is not None},
            known=known_of(condition_data, condition_mask),
            generator=generator,
        )
        return self._sampler.draw(request, policy.n_action_steps)


def _check_step_options(options: Any) -> None:
    """Raise ConfigError on keyword arguments that the policy passes to its scheduler's step."""
    if options:
        raise ConfigError(
            f"The policy passes {', '.join(map(repr, options))} to its scheduler's step, which is not supported."
        )
