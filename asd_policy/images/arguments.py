"""Checks of a pipeline and the arguments of its call, before anything is drawn."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from numbers import Number
from typing import Any

import torch
from torch import Tensor

from asd_policy.core import Asd, SamplerSpec
from asd_policy.core.window import Window
from asd_policy.errors import AsdPolicyError, ConfigError, UnknownNameError
from asd_policy.images.conditions import is_text_unet, pooled_width, text_width

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
SCHEDULERS_OPTIONS = ("eta", "num_steps", "use_clipped_model_output", "set_alpha_to_one")
"""Options of `Asd` that a pipeline takes from its scheduler and its calls."""


@contextmanager
def as_config_errors() -> Iterator[None]:
    """A context that turns diffusers' and torch's errors on bad arguments into ConfigError."""
    try:
        yield
    except (AsdPolicyError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError) as error:
        expected = isinstance(error, TypeError | ValueError)
        raise ConfigError(str(error) if expected else f"{type(error).__name__}: {error}") from error


def whole(name: str, value: Any, least: int = 1) -> int:
    """The argument `name` as an int. Raises ConfigError unless it is an integer of Python, NumPy or torch."""
    with suppress(TypeError):
        if not isinstance(value, bool) and operator.index(value) >= least:
            return operator.index(value)
    raise ConfigError(f"{name} is {value!r}; expected a whole number, {least} or more.")


def finite(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """The argument `name` as a float. Raises ConfigError unless it is a finite number within the bounds."""
    with suppress(TypeError, ValueError, RuntimeError):
        if not isinstance(value, str) and math.isfinite(float(value)) and least <= float(value) <= most:
            return float(value)
    bounds = "" if least == -math.inf else f", {least} or more" if most == math.inf else f", {least} to {most}"
    raise ConfigError(f"{name} is {value!r}; expected a finite number{bounds}.")


def image_size(sample_size: Any) -> tuple[int, int]:
    """(H, W) of a U-Net's `sample_size`, a number or two. Raises ConfigError if it is neither."""
    pair = tuple(sample_size) if isinstance(sample_size, list | tuple) else (sample_size, sample_size)
    if len(pair) != 2:
        raise ConfigError(f"The U-Net's sample_size is {sample_size!r}; expected a height and a width.")
    return whole("The U-Net's sample_size", pair[0]), whole("The U-Net's sample_size", pair[1])


def checked_window(window: Any) -> Window:
    """A window that needs no calibration: a number, a table with a number for each step, or None for all steps."""
    if isinstance(window, str):
        raise ConfigError(f"window is {window!r}; expected a number or None: image pipelines are not calibrated.")
    if window is None or isinstance(window, tuple | list):
        return None if window is None else tuple(window)
    return whole("window", window)


def without_calibration(spec: SamplerSpec) -> SamplerSpec:
    """The spec with a checked window. Raises ConfigError on window="auto", or options of DDIM with sampler "asd"."""
    if not isinstance(spec, Asd):
        return spec
    options = {name: getattr(spec, name) for name in SCHEDULERS_OPTIONS if getattr(spec, name) is not None}
    if options:
        raise ConfigError(
            f"Sampler 'asd' got {', '.join(f'{name}={value!r}' for name, value in options.items())}; a pipeline's law "
            "is that of its scheduler. Expected a DDIMScheduler with these settings, and eta and num_inference_steps "
            "in the call."
        )
    return replace(spec, window=checked_window(spec.window))


def check_name(kind: str, value: Any, available: Collection[str]) -> None:
    """Raise UnknownNameError, which lists `available`, unless `value` is one of them."""
    if value not in tuple(available):
        raise UnknownNameError(kind, value, available)


def check_pipeline(
    pipe: Any,
    kind: type[Any],
    components: Collection[str],
    methods: Collection[str],
    additions: Collection[str | None] = (),
) -> None:
    """Raise ConfigError unless `pipe` behaves like the diffusers pipeline `kind` and has all required components.

    Args:
        components: the required components.
        methods: methods that this package replaces. A subclass with its own versions is refused.
        additions: the `addition_embed_type`s of the U-Nets that the pipeline can feed; empty for a pipeline without
            text.
    """
    name = type(pipe).__name__
    if not issubclass(type(pipe), kind):
        raise ConfigError(f"Got a {name}; expected a {kind.__name__}.")
    changed = [method for method in methods if getattr(type(pipe), method) is not getattr(kind, method)]
    if changed:
        raise ConfigError(
            f"{name} has its own {', '.join(changed)}, which would not be used; expected {kind.__name__}'s."
        )
    missing = [component for component in components if getattr(pipe, component, None) is None]
    if missing:
        raise ConfigError(f"The pipeline has no {', '.join(missing)}; load it with all its components.")
    config = getattr(pipe.unet, "config", {})
    if is_text_unet(config) != bool(additions):
        wanted = "UNet2DConditionModel" if additions else "UNet2DModel"
        raise ConfigError(f"The U-Net of the {name} is a {type(pipe.unet).__name__}; expected a {wanted}.")
    if additions and config.get("addition_embed_type") not in additions:
        raise ConfigError(
            f"The U-Net of the {name} has addition_embed_type {config.get('addition_embed_type')!r}; expected "
            f"{' or '.join(map(repr, additions))}: a {kind.__name__} feeds its U-Net no other inputs."
        )


def check_attention_options(options: Any) -> None:
    """Raise ConfigError unless `cross_attention_kwargs` is None or holds plain values such as {"scale": 0.5}."""
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise ConfigError(f"cross_attention_kwargs is {options!r}; expected a dict or None.")
    other = [name for name, value in options.items() if not isinstance(value, Number | str | None)]
    if other:
        raise ConfigError(
            f"cross_attention_kwargs holds {', '.join(map(str, other))}, which is not a number, string or None. The "
            "U-Net gets many steps of an image in one batch, which tensors made for one step do not fit."
        )


def check_words(**texts: Any) -> None:
    """Raise ConfigError on a list that is empty or holds anything but strings. diffusers checks the rest."""
    for name, value in texts.items():
        if isinstance(value, list) and (not value or not all(isinstance(text, str) for text in value)):
            raise ConfigError(f"{name} is {value!r}; expected a str, or a list of one or more.")


def check_embeddings(config: Any, **embeddings: Any) -> None:
    """Raise ConfigError unless each is None or a tensor (B, L, D) with the width D of the U-Net's `config`."""
    _check_width("(B, L, D)", text_width(config), embeddings)


def check_pooled(config: Any, **embeddings: Any) -> None:
    """Raise ConfigError unless each is None or a tensor (B, P) with the pooled width P of the U-Net's `config`."""
    _check_width("(B, P)", pooled_width(config), embeddings)


def _check_width(shape: str, width: Any, embeddings: Mapping[str, Any]) -> None:
    for name, value in embeddings.items():
        if value is not None and (not isinstance(value, Tensor) or value.ndim != shape.count(",") + 1):
            raise ConfigError(f"{name} is {value!r:.200}; expected a tensor {shape} or None.")
        # Some U-Nets have one width for each block.
        if value is not None and isinstance(width, int) and value.shape[-1] != width:
            raise ConfigError(f"{name} has shape {tuple(value.shape)}; the U-Net expects {width} values at the end.")


REFUSED = {
    "sigmas": "diffusers' own DDPM, DDIM and Euler ancestral schedulers take none either",
    "denoising_end": "latents for a refiner still hold noise: use the plain pipeline",
    "ip_adapter_image": "U-Nets with IP adapters are not supported: use the plain pipeline",
    "ip_adapter_image_embeds": "U-Nets with IP adapters are not supported: use the plain pipeline",
    "callback": "diffusers has deprecated it: pass callback_on_step_end",
    "callback_steps": "diffusers has deprecated it: pass callback_on_step_end, which is called once per round",
}
"""Arguments of text-to-image pipelines' calls that must be None -> the reason."""


def refuse(arguments: Mapping[str, Any], call: Callable[..., Any]) -> None:
    """Raise ConfigError if one of `arguments` is unknown or, being one of REFUSED, is not None."""
    for name, value in arguments.items():
        if name not in REFUSED:
            known = [known for known in inspect.signature(call).parameters if known != "others"]
            raise UnknownNameError("argument", name, known)
        if value is not None:
            raise ConfigError(f"{name} is not supported: {REFUSED[name]}.")
