"""The layers of the temporal U-Net. Tensors are (N, C, L): channels, then the length of the chunk."""

from typing import Any

from einops import rearrange
from torch import Tensor, nn

FINAL_GROUPS = 8
"""Groups of the U-Net's last GroupNorm: real-stanford, robomimic and lerobot do not pass their `n_groups` on to it."""


class ConvBlock(nn.Module):
    """Conv1d -> GroupNorm -> Mish, keeping the length."""

    block: Any  # like every container below: torch types the entries of containers as bare Modules

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, n_groups: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, out_channels),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class ResidualBlock(nn.Module):
    """Two ConvBlocks with FiLM between them (Perez et al. 2018): `scale * h + bias`, or `h + bias` alone."""

    blocks: Any
    cond_encoder: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_dim: int,
        kernel_size: int,
        n_groups: int,
        cond_predict_scale: bool,
    ):
        super().__init__()
        self.cond_predict_scale = cond_predict_scale
        self.blocks = nn.ModuleList(
            [
                ConvBlock(in_channels, out_channels, kernel_size, n_groups),
                ConvBlock(out_channels, out_channels, kernel_size, n_groups),
            ]
        )
        film_channels = 2 * out_channels if cond_predict_scale else out_channels
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, film_channels))
        changes_width = in_channels != out_channels
        self.residual_conv = nn.Conv1d(in_channels, out_channels, 1) if changes_width else nn.Identity()

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """x (N, C_in, L), film (N, 2 C_out), or (N, C_out) without scale -> (N, C_out, L)."""
        h = self.blocks[0](x)
        if self.cond_predict_scale:
            scale, bias = rearrange(film, "n (two c) -> two n c 1", two=2)
            h = scale * h + bias
        else:
            h = h + rearrange(film, "n c -> n c 1")
        out: Tensor = self.blocks[1](h) + self.residual_conv(x)
        return out


class Downsample(nn.Module):
    """Halves the length."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Doubles the length."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out
