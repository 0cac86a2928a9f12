"""The U-Net's trunk with the channels last, for torch.compile on a CPU.

Same parameters and same maths as `ConditionalUnet1D.trunk`. Each convolution becomes one matrix product. All operations
between two products run along contiguous channels, so that torch.compile fuses and vectorises them. Without
torch.compile it is slower than the plain trunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from asd_policy.nets.unet1d.blocks import ConvBlock, ResidualBlock
    from asd_policy.nets.unet1d.network import ConditionalUnet1D


def store_channels_last(net: ConditionalUnet1D) -> None:
    """Lay the convolutions' weights out in memory in the order in which `channels_last_trunk` reads them."""
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            weight = module.weight
            weight.data = weight.data.transpose(1, 2).contiguous().transpose(1, 2)


def channels_last_trunk(net: ConditionalUnet1D, sample: Tensor, films: Sequence[Tensor]) -> Tensor:
    """The same as `net.trunk(sample, films)`: (N, T, D).

    Activations between layers have the type in which the matrix products compute.
    """
    head, last = net.final_conv
    autocast = torch.is_autocast_enabled(sample.device.type)
    dtype = torch.get_autocast_dtype(sample.device.type) if autocast else last.weight.dtype
    film = iter(films)
    x, skips = sample.to(dtype), []
    for first, second, downsample in net.down_modules:
        x = _residual_block(second, _residual_block(first, x, next(film)), next(film))
        skips.append(x)
        x = _downsample(x, downsample.conv) if hasattr(downsample, "conv") else x
    for block in net.mid_modules:
        x = _residual_block(block, x, next(film))
    for first, second, upsample in net.up_modules:
        x = torch.cat([x, skips.pop()], dim=-1)
        x = _upsample(_residual_block(second, _residual_block(first, x, next(film)), next(film)), upsample.conv)
    return _convolve(_conv_block(head, x).to(dtype), last).to(sample.dtype)


def _mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) with one exponential and one division: tanh(log p) = 1 - 2 / (p^2 + 1) for p = 1 + e^x.

    Each intermediate value is used once, so that the compiler stores none. Above x = 20 the factor is 1 in float32.
    """
    return x * (1 - 2 / ((1 + x.clamp(max=20).exp()).square() + 1))


def _group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """GroupNorm of x (N, L, C), float32.

    Groups have their own axis: an index such as `channel // 8` would keep the compiler from vectorising.
    """
    x = x.unflatten(-1, (norm.num_groups, -1))  # (N, L, G, C / G)
    mean = x.mean((1, 3), keepdim=True)
    variance = x.square().mean((1, 3), keepdim=True) - mean.square()
    rstd = torch.rsqrt(variance.relu() + norm.eps)
    weight, bias = (parameter.view(x.shape[2:]) for parameter in (norm.weight, norm.bias))
    return ((x - mean) * rstd * weight + bias).flatten(-2)


def _convolve(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A convolution that keeps the length: x (N, L, C_in) -> (N, L, C_out)."""
    width, length = conv.kernel_size[0], x.shape[1]
    padded = F.pad(x, (0, 0, width // 2, width // 2))
    taps = torch.cat([padded[:, i : i + length] for i in range(width)], dim=-1)
    return F.linear(taps, conv.weight.transpose(1, 2).flatten(1), conv.bias)


def _conv_block(block: ConvBlock, x: Tensor) -> Tensor:
    conv, norm, _ = block.block
    return _mish(_group_norm(_convolve(x, conv).float(), norm))


def _residual_block(block: ResidualBlock, x: Tensor, film: Tensor) -> Tensor:
    """x (N, L, C_in), film (N, 2 C_out), or (N, C_out) without scale -> (N, L, C_out)."""
    film = film.float()
    h = _conv_block(block.blocks[0], x)
    if block.cond_predict_scale:
        scale, bias = film.chunk(2, dim=-1)
        h = scale[:, None] * h + bias[:, None]
    else:
        h = h + film[:, None]
    h = _conv_block(block.blocks[1], h.to(x.dtype))
    residual = x if isinstance(block.residual_conv, nn.Identity) else _convolve(x, block.residual_conv)
    return (h + residual).to(x.dtype)


def _downsample(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Kernel 3, stride 2, padding 1: y[l] = sum over k of w[k] x[2l + k - 1]."""
    even, odd = x[:, 0::2], x[:, 1::2]
    before = F.pad(odd, (0, 0, 1, 0))[:, :-1]
    taps = torch.cat([before, even, odd], dim=-1)
    return F.linear(taps, conv.weight.transpose(1, 2).flatten(1), conv.bias)


def _upsample(x: Tensor, conv: nn.ConvTranspose1d) -> Tensor:
    """Kernel 4, stride 2, padding 1: y[2l] = w[3] x[l-1] + w[1] x[l] and y[2l+1] = w[2] x[l] + w[0] x[l+1]."""
    products = x @ conv.weight.transpose(1, 2).flatten(1)  # by all four at once: (N, L, 4 C_out)
    x0, x1, x2, x3 = products.chunk(4, dim=-1)
    even = F.pad(x3, (0, 0, 1, 0))[:, :-1] + x1
    odd = x2 + F.pad(x0, (0, 0, 0, 1))[:, 1:]
    y = torch.stack([even, odd], dim=2)
    if conv.bias is not None:
        y = y + conv.bias
    return y.flatten(1, 2).to(x.dtype)
