"""How a pipeline's samplers are run: what a capture asks of a U-Net, and what is kept from one call to the next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from asd_policy.core import Denoiser, Schedule
from asd_policy.core.capture import make_capture
from asd_policy.core.capture.protocol import Capture
from asd_policy.core.denoiser import Context, Evaluate
from asd_policy.core.spec import object_word
from asd_policy.core.speculative import Parts
from asd_policy.errors import ConfigError
from asd_policy.images.arguments import as_config_errors
from asd_policy.images.fingerprint import fingerprint
from asd_policy.images.scheduler import make_denoiser
from asd_policy.images.unet import UnetNetwork

MAX_SAMPLERS = 4
"""Samplers whose CUDA graphs a pipeline keeps; beyond them the one that was not used for longest is dropped."""

S = TypeVar("S")


class PipelineSamplers(Generic[S]):
    """Makes a pipeline's samplers, and keeps those that CUDA graphs were captured for.

    Samplers of the other captures are made anew at each call. What "compile" has compiled is torch's to keep, and to
    check against the network as it is.

    Args:
        capture: a name in CAPTURES or a capture; see `AsdSampler`.
        max_states: rows that one call of the U-Net may have, as in `UnetNetwork`; a batch is cut before it reaches what
            is captured.

    Raises:
        ConfigError: on a capture that does not exist or is incomplete.
    """

    def __init__(self, capture: str | Capture, max_states: int | None):
        self._asked, self._max_states = capture, max_states
        self._can = make_capture(capture)  # asked what it can; each sampler has a capture of its own
        self._name = object_word(capture)
        self._kept: OrderedDict[Hashable, S] = OrderedDict()

    @property
    def watched(self) -> bool:
        """Whether rounds can be watched as they are run."""
        return self._can.can_watch

    def check_watcher(self, name: str, watcher: object) -> None:
        """Raise ConfigError if the argument `name` asks to watch rounds that cannot be watched."""
        if watcher is not None and not self.watched:
            raise ConfigError(
                f"{name} is called after each round, and capture={self._name!r} runs all rounds at once: "
                "leave it out, or take capture='eager' or 'compile'."
            )

    def get(
        self,
        network: UnetNetwork,
        scheduler: DDPMScheduler,
        schedule: Schedule,
        event_shape: tuple[int, ...],
        device: torch.device,
        make: Callable[[Denoiser, Capture], S],
    ) -> S:
        """The sampler that `make` makes of a denoiser and a capture, or the earlier one if nothing has changed since.

        Raises:
            ConfigError: on a U-Net that is not captured, and as `make_denoiser` and `make` do.
        """

        def sampler() -> S:
            denoiser = make_denoiser(network, scheduler, schedule).to(device)
            with as_config_errors():
                return make(denoiser, self._capture())

        if self._can.compiles(device):
            check_forward(network.unet, self._name)
        if not self._can.keeps_graphs:
            return sampler()
        autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        key = fingerprint((network, scheduler.config, schedule.timesteps.tolist(), event_shape, device, autocast))
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
    """The parts of a round, with the network asked about at most `max_states` rows at a time, guidance included."""
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
    """As `evaluate`, in calls of at most `max_states` rows each; a state has a row for each half of its condition."""
    size = max(1, max_states // (1 if context.cond is None else context.cond.shape[1]))
    cut = zip(torch.split(x, size), torch.split(step, size), torch.split(row, size), strict=True)
    return torch.cat([evaluate(denoiser, x, step, row, context) for x, step, row in cut])


def check_forward(unet: nn.Module, capture: str) -> None:
    """Raise ConfigError if a call of the U-Net does more than its own code, which a capture would miss or outlive."""
    hooks = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    found = "hooks on every module" if any(hooks) else None
    for name, part in unet.named_modules():
        found = found or _beside_forward(name or "the U-Net itself", part)
    if found is not None:
        raise ConfigError(
            f"capture={capture!r} runs the code of the U-Net, and there is {found}: offloading, caching and wrappers "
            "work that way. Take them off, or take capture='eager'."
        )


def _beside_forward(name: str, part: Any) -> str | None:
    """What a call of a module does beside its class's `forward`, in words."""
    if part._forward_hooks or part._forward_pre_hooks or hasattr(part, "_hf_hook"):
        return f"a hook on the calls of {name}"
    if "forward" in vars(part):
        return f"another `forward` in place of that of {name}"
    return None
