"""The temporal U-Net of Diffusion Policy (Chi et al., RSS 2023, arXiv 2303.04137).

Maths and state-dict names are those of https://github.com/real-stanford/diffusion_policy
(`model/diffusion/conditional_unet1d.py`), which robomimic shares, so their weights load as they are.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from asd_policy.errors import ConfigError
from asd_policy.nets.unet1d_channels_last import channels_last_trunk

FINAL_GROUPS = 8
"""Groups of the last GroupNorm: real-stanford, robomimic and lerobot do not hand their `n_groups` on to it."""


class SinusoidalEmbedding(nn.Module):
    """Sine and cosine features of a diffusion timestep: (N,) -> (N, dim)."""

    frequencies: Tensor

    def __init__(self, dim: int):
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, timestep: Tensor) -> Tensor:
        phase = timestep[:, None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


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
        return self.block(x)


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
        return self.blocks[1](h) + self.residual_conv(x)


class Film(NamedTuple):
    """The modulation of all residual blocks side by side, split into its two summands.

    Each block maps Mish(step embedding, condition) linearly, so its output is a sum of a part for each.
    """

    step: Tensor  # (K, F)
    cond: Tensor  # (B, F)


class Downsample(nn.Module):
    """Halves the length."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles the length."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.ConvTranspose1d(channels, channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ConditionalUnet1D(nn.Module):
    """Predicts the noise in an action chunk, given the timestep and a global condition.

    Args:
        input_dim: D, the size of one action.
        global_cond_dim: G, the size of the flattened observations.
        down_dims: channels of each level; each level but the last halves the length.
        kernel_size: odd kernel size of the convolutions.
        n_groups: groups of the GroupNorm layers but the last; divides every entry of `down_dims`.
        diffusion_step_embed_dim: size of the timestep embedding, even.
        cond_predict_scale: FiLM predicts a scale besides the bias.
    """

    down_modules: Any
    mid_modules: Any
    up_modules: Any
    final_conv: Any

    def __init__(
        self,
        input_dim: int,
        global_cond_dim: int,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
        diffusion_step_embed_dim: int = 256,
        cond_predict_scale: bool = True,
    ):
        super().__init__()
        self.input_dim, self.global_cond_dim = input_dim, global_cond_dim
        self.downsampling = 2 ** (len(down_dims) - 1)
        step_dim = diffusion_step_embed_dim
        cond_dim = step_dim + global_cond_dim

        def residual(in_channels: int, out_channels: int) -> ResidualBlock:
            return ResidualBlock(in_channels, out_channels, cond_dim, kernel_size, n_groups, cond_predict_scale)

        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalEmbedding(step_dim),
            nn.Linear(step_dim, 4 * step_dim),
            nn.Mish(),
            nn.Linear(4 * step_dim, step_dim),
        )
        last = len(down_dims) - 1
        levels = list(pairwise([input_dim, *down_dims]))
        self.down_modules = nn.ModuleList(
            nn.ModuleList(
                [residual(narrow, wide), residual(wide, wide), Downsample(wide) if i < last else nn.Identity()]
            )
            for i, (narrow, wide) in enumerate(levels)
        )
        self.mid_modules = nn.ModuleList([residual(down_dims[-1], down_dims[-1]) for _ in range(2)])
        self.up_modules = nn.ModuleList(
            nn.ModuleList([residual(2 * wide, narrow), residual(narrow, narrow), Upsample(narrow)])
            for narrow, wide in reversed(levels[1:])
        )
        self.final_conv = nn.Sequential(
            ConvBlock(down_dims[0], down_dims[0], kernel_size, FINAL_GROUPS),
            nn.Conv1d(down_dims[0], input_dim, 1),
        )

    def forward(self, sample: Tensor, timestep: Tensor, global_cond: Tensor) -> Tensor:
        """sample (N, T, D), timestep (N,) int64, global_cond (N, G) -> noise (N, T, D)."""
        self._check_shapes(sample, timestep, global_cond)
        cond = torch.cat([self.diffusion_step_encoder(timestep), global_cond], dim=-1)
        return self.trunk(sample, [block.cond_encoder(cond) for block in self.residual_blocks()])

    def prepare(self, timesteps: Tensor, global_cond: Tensor) -> Film:
        """What does not depend on the noisy sample, for all steps at once: timesteps (K,), global_cond (B, G)."""
        embedding = F.mish(self.diffusion_step_encoder(timesteps))
        linears = [block.cond_encoder[1] for block in self.residual_blocks()]
        weight, bias = (torch.cat([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
        of_step, of_cond = weight.split([embedding.shape[1], global_cond.shape[1]], dim=1)
        return Film(F.linear(embedding, of_step, bias), F.linear(F.mish(global_cond), of_cond))

    def predict(self, sample: Tensor, step: Tensor, row: Tensor, film: Film) -> Tensor:
        """`self(sample, timesteps[step], global_cond[row])` from what `prepare` made of the two: (N, T, D).

        sample (N, T, D), step (N,) int64 index into the K timesteps, row (N,) int64 index into the B conditions.
        """
        modulation = film.step[step] + film.cond[row]
        sizes = [block.cond_encoder[1].out_features for block in self.residual_blocks()]
        return self.trunk(sample, modulation.split(sizes, dim=-1))

    def residual_blocks(self) -> list[Any]:
        """The blocks in the order in which they run."""
        levels = [*self.down_modules, self.mid_modules, *self.up_modules]
        return [block for level in levels for block in level[:2]]

    def trunk_to(self, dtype: torch.dtype) -> None:
        """Keep the weights of all that runs at every evaluation in `dtype`; steps and conditions stay as they are."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.GroupNorm):
                module.to(dtype)

    def trunk(self, sample: Tensor, films: Sequence[Tensor]) -> Tensor:
        """sample (N, T, D), the modulation of each residual block -> noise (N, T, D)."""
        if torch.compiler.is_compiling() and sample.device.type == "cpu":
            return channels_last_trunk(self, sample, films)
        dtype = self.final_conv[1].weight.dtype
        film = (modulation.to(dtype) for modulation in films)
        x = rearrange(sample.to(dtype), "n t d -> n d t")
        skips = []
        for first, second, downsample in self.down_modules:
            x = second(first(x, next(film)), next(film))
            skips.append(x)
            x = downsample(x)
        for block in self.mid_modules:
            x = block(x, next(film))
        # The outermost skip is unused: there is one up level fewer than down levels, as in the original.
        for first, second, upsample in self.up_modules:
            x = torch.cat([x, skips.pop()], dim=1)
            x = upsample(second(first(x, next(film)), next(film)))
        return rearrange(self.final_conv(x), "n d t -> n t d").to(sample.dtype)

    def widen(self, n_obs_steps: int, obs_dim: int) -> None:
        """Let each of the `n_obs_steps` observations have `obs_dim` features: those it has, then new ones.

        The new ones have no weight yet, so that the network computes what it did.
        """
        known = self.global_cond_dim // n_obs_steps
        self.global_cond_dim = n_obs_steps * obs_dim
        for block in self.residual_blocks():
            linear = block.cond_encoder[1]
            step_dim = linear.in_features - n_obs_steps * known
            of_step, of_cond = linear.weight.data.split([step_dim, n_obs_steps * known], dim=1)
            of_cond = F.pad(of_cond.unflatten(1, (n_obs_steps, known)), (0, obs_dim - known)).flatten(1)
            linear.weight = nn.Parameter(torch.cat([of_step, of_cond], dim=1))
            linear.in_features = step_dim + self.global_cond_dim

    def _check_shapes(self, sample: Tensor, timestep: Tensor, global_cond: Tensor) -> None:
        n = sample.shape[0]
        if sample.ndim != 3 or sample.shape[2] != self.input_dim or sample.shape[1] % self.downsampling:
            raise ConfigError(
                f"sample has shape {tuple(sample.shape)}; expected (N, T, {self.input_dim}) "
                f"with T a multiple of {self.downsampling}."
            )
        if timestep.shape != (n,) or global_cond.shape != (n, self.global_cond_dim):
            raise ConfigError(
                f"timestep has shape {tuple(timestep.shape)} and global_cond {tuple(global_cond.shape)}; "
                f"expected ({n},) and ({n}, {self.global_cond_dim})."
            )
