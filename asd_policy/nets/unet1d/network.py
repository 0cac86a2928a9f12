"""The temporal U-Net of Diffusion Policy (Chi et al., RSS 2023, arXiv 2303.04137).

Maths and state-dict names are those of https://github.com/real-stanford/diffusion_policy
(`model/diffusion/conditional_unet1d.py`), which robomimic shares, so their weights load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from asd_policy.checks import expect, is_count
from asd_policy.errors import ConfigError
from asd_policy.nets.embedding import SinusoidalEmbedding
from asd_policy.nets.unet1d.blocks import FINAL_GROUPS, ConvBlock, Downsample, ResidualBlock, Upsample
from asd_policy.nets.unet1d.channels_last import channels_last_trunk, store_channels_last
from asd_policy.nets.unet1d.inference import InferenceCopy

MAX_LEVELS = 16


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the temporal U-Net, `ConditionalUnet1D`.

    Attributes:
        name: of the architecture.
        down_dims: channels of each level; each level but the last halves the length.
        kernel_size: odd kernel size of the convolutions.
        n_groups: groups of the GroupNorm layers but the last; divides every entry of `down_dims`.
        diffusion_step_embed_dim: size of the timestep embedding, even.
        cond_predict_scale: FiLM predicts a scale besides the bias.
    """

    name: str = "unet1d"
    down_dims: tuple[int, ...] = (64, 128, 256)
    kernel_size: int = 5
    n_groups: int = 8
    diffusion_step_embed_dim: int = 128
    cond_predict_scale: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "down_dims", tuple(self.down_dims))
        expect(self.name == "unet1d", "network.name", self.name, "'unet1d'")
        expect(is_count(self.n_groups), "network.n_groups", self.n_groups, "a positive integer")
        levels = 0 < len(self.down_dims) <= MAX_LEVELS
        expect(
            levels and all(is_count(dim) and dim % self.n_groups == 0 for dim in self.down_dims),
            "network.down_dims",
            self.down_dims[: MAX_LEVELS + 1],
            f"1 to {MAX_LEVELS} multiples of n_groups ({self.n_groups})",
        )
        first = self.down_dims[0]
        expect(first % FINAL_GROUPS == 0, "network.down_dims[0]", first, f"a multiple of {FINAL_GROUPS}")
        odd = is_count(self.kernel_size) and self.kernel_size % 2 == 1
        expect(odd, "network.kernel_size", self.kernel_size, "odd")
        embed_dim = self.diffusion_step_embed_dim
        even = is_count(embed_dim, least=4) and embed_dim % 2 == 0
        expect(even, "network.diffusion_step_embed_dim", embed_dim, "an even integer, 4 or more")

    @property
    def downsampling(self) -> int:
        """The horizon must be a multiple of this."""
        return int(2 ** (len(self.down_dims) - 1))

    def describe(self) -> str:
        """The sizes in one line."""
        film = "scale and bias" if self.cond_predict_scale else "bias"
        sizes = f"kernel {self.kernel_size}, {self.n_groups} groups"
        return f"{self.name} {self.down_dims}, {sizes}, embedding {self.diffusion_step_embed_dim}, FiLM {film}"

    def build(self, input_dim: int, cond_dim: int, horizon: int, n_obs_steps: int) -> ConditionalUnet1D:
        """The network with fresh weights; it takes any horizon that is a multiple of `downsampling`."""
        return ConditionalUnet1D(
            input_dim,
            cond_dim,
            self.down_dims,
            self.kernel_size,
            self.n_groups,
            self.diffusion_step_embed_dim,
            self.cond_predict_scale,
        )


class Film(NamedTuple):
    """The FiLM modulation of all residual blocks side by side, as the sum of two parts.

    Each block's modulation is a linear map of Mish(step embedding, condition): a part of the step plus a part of the
    condition.
    """

    step: Tensor  # (K, F) for K timesteps
    cond: Tensor  # (B, F) for B conditions


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
        """The modulation of all timesteps (K,) and conditions (B, G); it does not depend on the noisy sample."""
        embedding = F.mish(self.diffusion_step_encoder(timesteps))
        linears = [block.cond_encoder[1] for block in self.residual_blocks()]
        weight, bias = (torch.cat([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
        of_step, of_cond = weight.split([embedding.shape[1], global_cond.shape[1]], dim=1)
        return Film(F.linear(embedding, of_step, bias), F.linear(F.mish(global_cond), of_cond))

    def predict(self, sample: Tensor, step: Tensor, row: Tensor, film: Film) -> Tensor:
        """`self(sample, timesteps[step], global_cond[row])`, (N, T, D), from what `prepare` returned.

        sample (N, T, D), step (N,) int64 index into the K timesteps, row (N,) int64 index into the B conditions.
        """
        modulation = film.step[step] + film.cond[row]
        sizes = [block.cond_encoder[1].out_features for block in self.residual_blocks()]
        return self.trunk(sample, modulation.split(sizes, dim=-1))

    def for_inference(self, dtype: torch.dtype, compiled_on_cpu: bool) -> ConditionalUnet1D | InferenceCopy:
        """The network as a sampler runs it: itself, or a copy in another type or memory layout."""
        if dtype == torch.float32 and not compiled_on_cpu:
            return self
        return InferenceCopy(self, dtype, channels_last=compiled_on_cpu)

    def store_for_compiled_cpu(self) -> None:
        """Lay the convolutions' weights out in memory as compiled code on a CPU reads them. Their values stay."""
        store_channels_last(self)

    def residual_blocks(self) -> list[Any]:
        """The blocks in the order in which they run."""
        levels = [*self.down_modules, self.mid_modules, *self.up_modules]
        return [block for level in levels for block in level[:2]]

    def trunk_to(self, dtype: torch.dtype) -> None:
        """Convert the weights of the trunk to `dtype`; those of steps and conditions, used once a chunk, stay."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.GroupNorm):
                module.to(dtype)

    def trunk(self, sample: Tensor, films: Sequence[Tensor]) -> Tensor:
        """sample (N, T, D) and the FiLM modulation of each residual block -> noise (N, T, D)."""
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
        noise: Tensor = rearrange(self.final_conv(x), "n d t -> n t d").to(sample.dtype)
        return noise

    def widen(self, n_obs_steps: int, obs_dim: int) -> None:
        """Let each of the `n_obs_steps` observations have `obs_dim` features: the old ones first, then new ones.

        The new features have zero weight at first: the network computes what it did.
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
