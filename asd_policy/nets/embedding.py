"""The embedding of diffusion timesteps."""

import math

import torch
from torch import Tensor, nn


class SinusoidalEmbedding(nn.Module):
    """Sine and cosine features of a diffusion timestep: (N,) -> (N, dim), for an even dim of at least 4."""

    frequencies: Tensor

    def __init__(self, dim: int):
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, timestep: Tensor) -> Tensor:
        phase = timestep[:, None] * self.frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=-1)
