"""Captures for pipelines: the requirements on a U-Net, and samplers kept between calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from asd_policy.core import Denoiser
from asd_policy.core.capture import make_capture
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.denoiser import Context, Evaluate
from asd_policy.core.spec import object_word
from asd_policy.core.speculative import Parts
from asd_policy.errors import ConfigError
from asd_policy.images.arguments import as_config_errors
from asd_policy.images.fingerprint import fingerprint
from asd_policy.images.laws import Law
from asd_policy.images.unet import UnetNetwork

MAX_SAMPLERS = 4
"""Most samplers with CUDA graphs that a pipeline keeps. Beyond it, the least recently used one is dropped."""

S = TypeVar("S")


class PipelineSamplers(Generic[S]):
    """Makes a pipeline's samplers, and keeps those with CUDA graphs.

    Samplers with other captures are made anew at each call. torch keeps the code compiled by "compile", and checks it
    against the present network.

    Args:
        capture: a name in CAPTURES or a capture; see `AsdSampler`.
        max_states: most rows in one call of the U-Net, as in `UnetNetwork`. A larger batch is split inside the captured
            code.

    Raises:
        ConfigError: on an unknown or incomplete capture.
    """

    def __init__(self, capture: str | Capture, max_states: int | None):
        self._asked, self._max_states = capture, max_states
        self._can = make_capture(capture)  # for its properties; each sampler has its own capture
        self._name = object_word(capture)
        self._kept: OrderedDict[Hashable, S] = OrderedDict()

    @property
    def watched(self) -> bool:
        """Whether `on_round` can be called after each round."""
        return self._can.can_watch

    def check_watcher(self, name: str, watcher: object) -> None:
        """Raise ConfigError if the argument `name` is given but rounds cannot be watched."""
        if watcher is not None and not self.watched:
            raise ConfigError(
                f"{name} is called after each round, and capture={self._name!r} runs all rounds at once: "
                "leave it out, or take capture='eager' or 'compile'."
            )

    def get(
        self,
        network: UnetNetwork,
        law: Law,
        event_shape: tuple[int, ...],
        device: torch.device,
        make: Callable[[Denoiser, Capture], S],
    ) -> S:
        """The sampler that `make` makes from a denoiser and a capture, or the kept one if nothing has changed since.

        Raises:
            ConfigError: on a U-Net that cannot be captured, and as `law.denoiser` and `make`.
        """

        def sampler() -> S:
            with as_config_errors():
                return make(law.denoiser(network).to(device), self._capture())

        if self._can.compiles(device):
            check_forward(network.unet, self._name)
        if not self._can.keeps_graphs:
            return sampler()
        autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        key = law.chain, fingerprint((network, law.settings, event_shape, device, autocast))
        if key not in self._kept:
            self._kept[key] = sampler()
        self._kept.move_to_end(key)
        if len(self._kept) > MAX_SAMPLERS:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _capture(self) -> Capture:
        capture = make_capture(self._asked)
        return capture if self._max_states is None else capture.with_parts(partial(cut_parts, self._max_states))


def cut_parts(max_states: int, parts: Parts) -> Parts:
    """The parts of a round, with at most `max_states` rows in one call of the network, guidance included."""
    return parts._replace(denoise=partial(denoise_cut, parts.denoise, max_states))


def denoise_cut(
    evaluate: Evaluate,
    max_states: int,
    denoiser: Denoiser,
    x: Tensor,
    step: Tensor,
    row: Tensor,
    context: Context,
) -> Tensor:
    """As `evaluate`, in calls of at most `max_states` rows each. A state has one row for each half of its condition."""
    size = max(1, max_states // (1 if context.cond is None else context.cond.shape[1]))
    cut = zip(torch.split(x, size), torch.split(step, size), torch.split(row, size), strict=True)
    return torch.cat([evaluate(denoiser, x, step, row, context) for x, step, row in cut])


def check_forward(unet: nn.Module, capture: str) -> None:
    """Raise ConfigError if a call of the U-Net does more than its own code: a capture would not follow that."""
    hooks = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    found = "hooks on every module" if any(hooks) else None
    for name, part in unet.named_modules():
        found = found or _beside_forward(name or "the U-Net itself", part)
    if found is not None:
        raise ConfigError(
            f"capture={capture!r} runs only the code of the U-Net, but there is {found}, as offloading, caching and "
            "wrappers add it. Remove it, or take capture='eager'."
        )


def _beside_forward(name: str, part: Any) -> str | None:
    """In words, what a call of a module does besides its class's `forward`; None if nothing."""
    if part._forward_hooks or part._forward_pre_hooks or hasattr(part, "_hf_hook"):
        return f"a hook on the calls of {name}"
    if "forward" in vars(part):
        return f"another `forward` in place of that of {name}"
    return None
