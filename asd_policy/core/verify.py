"""The Gaussian rejection sampler: keep the draft's draw if possible; the result is always exact.

Reflection-maximal coupling of N(mhat, s^2 I) and N(m, s^2 I), as in De Bortoli et al. 2025
(https://arxiv.org/abs/2501.05370) and Algorithm 3 of Hu et al. 2025 (https://arxiv.org/abs/2505.03983).
"""

from __future__ import annotations

import torch
from torch import Tensor


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of events: x, y (B, W, *E) -> (B, W). An empty E is one number."""
    return (x * y).reshape(*x.shape[:2], -1).sum(dim=-1)


def gaussian_rejection(m: Tensor, mhat: Tensor, s: Tensor, xi: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the draft's draw mhat + s xi into a draw of N(m, s^2 I), changing it as rarely as possible.

    With d = (mhat - m) / s and e = d / |d|, the draw is kept if log u <= -<xi, d> - |d|^2 / 2. Otherwise it is replaced
    by its mirror image m + s (xi - 2 <xi, e> e). It is kept with probability 2 Phi(-|d| / 2). Where s = 0 the result is
    m. A draft mean that is not finite, or so far away that |d|^2 overflows, is never kept: the result is m + s xi. That
    is exact too, because m and mhat do not depend on xi.

    Args:
        m, mhat, xi: (B, W, *E) exact means, draft means and standard normal noise.
        s: (B, W) standard deviations.
        u: (B, W) uniform on [0, 1).

    Returns:
        (y, accepted): (B, W, *E) exact draws, and (B, W) bool, true where y is the draft's own draw.
    """
    s_event = s.view(s.shape + (1,) * (m.ndim - 2))
    d = (mhat - m) / torch.where(s_event > 0, s_event, 1.0)
    overlap, gap = inner(xi, d), inner(d, d)  # <xi, d>, |d|^2
    usable = gap.isfinite()
    accepted = usable & torch.where(s > 0, u.log() <= -overlap - gap / 2, gap == 0)
    mirror = 2 * overlap / gap.clamp(min=torch.finfo(gap.dtype).tiny)
    reflected = torch.where(usable.view_as(s_event), xi - mirror.view_as(s_event) * d, xi)
    keep = accepted.view_as(s_event)
    return torch.where(keep, mhat + s_event * xi, m + s_event * reflected), accepted
