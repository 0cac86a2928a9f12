"""diffusers' callback_on_step_end, called after each round. The callback may stop a run but not change it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from asd_policy.core import OnRound
from asd_policy.errors import ConfigError
from asd_policy.images.arguments import check_name

StepEnd = Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor] | None]
"""(pipeline, step, timestep, tensors) -> the same tensors, or None."""
FIXED = ("guidance_scale", "guidance_rescale", "cross_attention_kwargs", "unet", "scheduler")
"""Attributes of the pipeline that diffusers reads at every step."""


class Interrupted(Exception):  # noqa: N818  # no error: a callback asked for it
    """The run was stopped. `latents` (B, C, H, W) is its state."""

    def __init__(self, latents: Tensor):
        super().__init__()
        self.latents = latents


def check_callback(callback: Any, inputs: Any, available: Collection[str]) -> None:
    """Raise ConfigError unless `callback` is a function that can be called after rounds with the tensors `inputs`."""
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        raise ConfigError(
            f"callback_on_step_end is a {type(callback).__name__}, which changes the run at one step: rounds finish "
            "many steps at once and would skip it. Pass a function that only watches, or use the plain pipeline."
        )
    if callback is not None and not callable(callback):
        raise ConfigError(f"callback_on_step_end is {callback!r}; expected a function or None.")
    if not isinstance(inputs, list | tuple):
        raise ConfigError(f"callback_on_step_end_tensor_inputs is {inputs!r}; expected a list of names.")
    for name in inputs:
        check_name("callback_on_step_end_tensor_inputs entry", name, available)


def watch(
    pipe: DiffusionPipeline,
    callback: StepEnd | None,
    inputs: Sequence[str],
    texts: Mapping[str, Tensor | None],
    timesteps: Sequence[float],
) -> OnRound:
    """Make the function to call after each round: it calls `callback`, and stops if the pipeline was interrupted.

    Args:
        inputs: names of the tensors that the callback gets: "latents", or one of `texts`.
        timesteps: (K,) the timestep of each step.

    The function raises:
        ConfigError: if the callback changed a tensor or a setting.
        Interrupted: if `pipe.interrupt` is set.
    """

    def on_round(frontier: Tensor, x: Tensor) -> None:
        if callback is not None:
            step = int(frontier.min()) - 1
            tensors = {"latents": x, **texts}
            _tell(pipe, callback, step, timesteps[step], {name: tensors[name] for name in inputs})
        if pipe.interrupt:
            raise Interrupted(x)

    return on_round


def _tell(
    pipe: DiffusionPipeline, callback: StepEnd, step: int, timestep: float, tensors: Mapping[str, Tensor | None]
) -> None:
    given: dict[str, Any] = {name: None if value is None else value.clone() for name, value in tensors.items()}
    before = {name: getattr(pipe, name) for name in FIXED}
    returned = callback(pipe, step, timestep, dict(given))
    if returned is not None and not isinstance(returned, dict):
        raise ConfigError(f"callback_on_step_end returned a {type(returned).__name__}; expected a dict or None.")
    after = {**given, **(returned or {})}
    changed = [name for name, value in after.items() if not _same(value, tensors.get(name))]
    changed += [name for name in FIXED if getattr(pipe, name) != before[name]]
    if changed:
        raise ConfigError(
            f"callback_on_step_end changed or returned other {', '.join(changed)} than it was given. Changing a run "
            "on its way gives samples of another law: use the plain pipeline for that."
        )


def _same(value: Any, tensor: Tensor | None) -> bool:
    if not isinstance(value, Tensor) or tensor is None:
        return value is tensor
    return value.shape == tensor.shape and torch.equal(value.to(tensor), tensor)
