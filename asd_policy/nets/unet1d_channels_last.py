"""The U-Net's forward pass with the channels last, for training on a CPU.

Same parameters and same maths as `ConditionalUnet1D.forward`. Convolutions over a handful of steps become one matrix
product each and everything between two products runs along contiguous channels, which torch.compile fuses and
vectorises: about 1.5 times the speed of the plain network in bfloat16.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from asd_policy.nets.unet1d import ConditionalUnet1D, ConvBlock, ResidualBlock


def store_channels_last(net: ConditionalUnet1D) -> None:
    """Lay the convolutions' weights out in memory as `channels_last_forward` reads them. Their values stay."""
    for module in net.modules():
        if isinstance(module, nn.Conv1d):
            weight = module.weight
            weight.data = weight.data.transpose(1, 2).contiguous().transpose(1, 2)


def channels_last_forward(
    net: ConditionalUnet1D, sample: Tensor, timestep: Tensor, global_cond: Tensor, dtype: torch.dtype
) -> Tensor:
    """What `net(sample, timestep, global_cond)` returns, with activations kept in `dtype` between the layers.

    sample (N, T, D), timestep (N,) int64, global_cond (N, G) -> (N, T, D). Run it under autocast to `dtype`.
    """
    cond = torch.cat([net.diffusion_step_encoder(timestep).float(), global_cond], dim=-1)
    cond = _mish(cond).to(dtype)
    x, skips = sample.to(dtype), []
    for first, second, downsample in net.down_modules:
        x = _residual_block(second, _residual_block(first, x, cond), cond)
        skips.append(x)
        x = _downsample(x, downsample.conv) if not isinstance(downsample, nn.Identity) else x
    for block in net.mid_modules:
        x = _residual_block(block, x, cond)
    for first, second, upsample in net.up_modules:
        x = torch.cat([x, skips.pop()], dim=-1)
        x = _upsample(_residual_block(second, _residual_block(first, x, cond), cond), upsample.conv)
    block, last = net.final_conv
    return _convolve(_conv_block(block, x).to(dtype), last)


def _mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) with one exponential: tanh(log p) = (1 - q^2) / (1 + q^2) for p = 1 + e^x and q = 1 / p."""
    q2 = torch.sigmoid(-x).square()
    return x * (1 - q2) / (1 + q2)


def _group_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """x (N, L, C), float32.

    Sums run over the steps first, along contiguous channels; groups and channels are exchanged by tiny products,
    because an index such as `channel // 8` would keep the compiler from vectorising the rest.
    """
    channels = norm.num_channels // norm.num_groups
    members = torch.eye(norm.num_groups, device=x.device).repeat_interleave(channels, dim=1)  # (G, C)
    with torch.autocast(x.device.type, enabled=False):
        mean = x.mean(1) @ members.T / channels
        variance = x.square().mean(1) @ members.T / channels - mean.square()
        rstd = torch.rsqrt(variance.relu() + norm.eps)
        scale = (rstd @ members) * norm.weight
        shift = norm.bias - ((mean * rstd) @ members) * norm.weight
        return x * scale[:, None] + shift[:, None]


def _convolve(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A convolution that keeps the length: x (N, L, C_in) -> (N, L, C_out)."""
    width, length = conv.kernel_size[0], x.shape[1]
    padded = F.pad(x, (0, 0, width // 2, width // 2))
    taps = torch.cat([padded[:, i : i + length] for i in range(width)], dim=-1)
    return F.linear(taps, rearrange(conv.weight, "o i k -> o (k i)"), conv.bias)


def _conv_block(block: ConvBlock, x: Tensor) -> Tensor:
    conv, norm, _ = block.block
    return _mish(_group_norm(_convolve(x, conv).float(), norm))


def _residual_block(block: ResidualBlock, x: Tensor, cond: Tensor) -> Tensor:
    """x (N, L, C_in), cond (N, cond_dim) after its Mish -> (N, L, C_out)."""
    film = block.cond_encoder[1](cond).float()
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
    return F.linear(taps, rearrange(conv.weight, "o i k -> o (k i)"), conv.bias)


def _upsample(x: Tensor, conv: nn.ConvTranspose1d) -> Tensor:
    """Kernel 4, stride 2, padding 1: y[2l] = w[3] x[l-1] + w[1] x[l] and y[2l+1] = w[2] x[l] + w[0] x[l+1]."""
    w0, w1, w2, w3 = conv.weight.unbind(-1)  # (C_in, C_out) each
    length = x.shape[1]
    padded = F.pad(x, (0, 0, 1, 1))
    before, after = padded[:, :length], padded[:, 2:]
    even = torch.cat([before, x], dim=-1) @ torch.cat([w3, w1])
    odd = torch.cat([x, after], dim=-1) @ torch.cat([w2, w0])
    y = torch.stack([even, odd], dim=2)
    if conv.bias is not None:
        y = y + conv.bias
    return rearrange(y, "n l two c -> n (l two) c").to(x.dtype)
