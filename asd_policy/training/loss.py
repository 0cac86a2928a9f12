"""The loss of networks that predict the noise, the clean sample or the velocity.

Ho et al. 2020, eq. 14 (https://arxiv.org/abs/2006.11239).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

TARGETS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda clean, noise, abar: noise,
    "sample": lambda clean, noise, abar: clean,
    "v_prediction": lambda clean, noise, abar: abar.sqrt() * noise - (1 - abar).sqrt() * clean,
}
"""The network's training target by diffusers' `prediction_type`: the inverses of `asd_policy.core.DENOISERS`."""


def noise_prediction_loss(
    net: Callable[[Tensor, Tensor, Any], Tensor],
    condition: Any,
    clean: Tensor,
    alphas_cumprod: Tensor,
    generator: torch.Generator,
    prediction_type: str = "epsilon",
    batch: int | None = None,
    part: slice = slice(None),
) -> Tensor:
    """Mean squared error of the network's prediction of the noise, or of another target given by `prediction_type`.

    Args:
        net: (sample (b, *E), timestep (b,), condition) -> prediction (b, *E).
        condition: the condition of the b samples, passed to `net`.
        clean: (b, *E) clean samples; for a policy, chunks (b, H, A).
        alphas_cumprod: (T,) float32.
        generator: draws the timesteps and the noise of the whole batch.
        prediction_type: what `net` predicts, a key of `TARGETS`.
        batch: B, the size of the whole batch; by default b.
        part: the samples' part of the batch.
    """
    batch, total = batch or len(clean), len(alphas_cumprod)
    # One timestep from each of B equal slices of the schedule: less variance than independent draws.
    slices = torch.arange(batch, device=clean.device)
    jitter = torch.rand(batch, generator=generator, device=clean.device)
    timestep = ((slices + jitter) * (total / batch)).long().clamp(max=total - 1)[part]
    noise = torch.randn((batch, *clean.shape[1:]), generator=generator, device=clean.device)[part]
    abar = alphas_cumprod[timestep].view((-1,) + (1,) * (clean.ndim - 1))
    noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    target = TARGETS[prediction_type](clean, noise, abar)
    return nn.functional.mse_loss(net(noisy, timestep, condition).float(), target)
