"""The transformer of Diffusion Policy (Chi et al., RSS 2023, arXiv 2303.04137), conditioned on observations.

Maths and state-dict names are those of https://github.com/real-stanford/diffusion_policy
(`model/diffusion/transformer_for_diffusion.py`) with `time_as_cond`, `obs_as_cond` and no layers for the condition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from asd_policy.checks import expect, is_count
from asd_policy.errors import ConfigError
from asd_policy.nets.embedding import SinusoidalEmbedding

MAX_LAYERS = 1000


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer, `ConditionalTransformer`.

    Attributes:
        name: of the architecture.
        n_layer: decoder layers.
        n_head: attention heads; divides `n_emb`.
        n_emb: size of the embeddings, even.
        causal_attn: an action attends to earlier actions, and to observations up to its own step.
    """

    name: str = "transformer"
    n_layer: int = 8
    n_head: int = 4
    n_emb: int = 256
    causal_attn: bool = True

    def __post_init__(self) -> None:
        expect(self.name == "transformer", "network.name", self.name, "'transformer'")
        for name in ("n_layer", "n_head", "n_emb"):
            expect(is_count(getattr(self, name)), f"network.{name}", getattr(self, name), "a positive integer")
        expect(self.n_layer <= MAX_LAYERS, "network.n_layer", self.n_layer, f"at most {MAX_LAYERS}")
        fits = self.n_emb % self.n_head == 0 and self.n_emb % 2 == 0 and self.n_emb >= 4
        expect(fits, "network.n_emb", self.n_emb, f"even, 4 or more, and a multiple of n_head ({self.n_head})")

    @property
    def downsampling(self) -> int:
        """The horizon must be a multiple of this: it may be any."""
        return 1

    def describe(self) -> str:
        """The sizes in one line."""
        attention = "causal" if self.causal_attn else "full"
        sizes = f"{self.n_layer} layers, {self.n_head} heads, embedding {self.n_emb}"
        return f"{self.name}, {sizes}, {attention} attention"

    def build(self, input_dim: int, cond_dim: int, horizon: int, n_obs_steps: int) -> ConditionalTransformer:
        """The network with fresh weights, for chunks of `horizon` actions and `n_obs_steps` observations."""
        return ConditionalTransformer(
            input_dim, cond_dim, horizon, n_obs_steps, self.n_layer, self.n_head, self.n_emb, self.causal_attn
        )


class ConditionalTransformer(nn.Module):
    """Predicts the noise in an action chunk, attending to the timestep and the observations.

    Args:
        input_dim: D, the size of one action.
        global_cond_dim: To * G, the size of the flattened observations.
        horizon: T, actions in a chunk.
        n_obs_steps: To.
        n_layer: decoder layers.
        n_head: attention heads; divides `n_emb`.
        n_emb: size of the embeddings, even.
        causal_attn: an action attends to earlier actions, and to observations up to its own step.
    """

    mask: Tensor | None
    memory_mask: Tensor | None

    def __init__(
        self,
        input_dim: int,
        global_cond_dim: int,
        horizon: int,
        n_obs_steps: int,
        n_layer: int = 8,
        n_head: int = 4,
        n_emb: int = 256,
        causal_attn: bool = True,
    ):
        super().__init__()
        self.input_dim, self.global_cond_dim, self.horizon, self.n_obs_steps = (
            input_dim, global_cond_dim, horizon, n_obs_steps
        )  # fmt: skip
        self.input_emb = nn.Linear(input_dim, n_emb)
        self.pos_emb = nn.Parameter(0.02 * torch.randn(1, horizon, n_emb))
        self.time_emb = SinusoidalEmbedding(n_emb)
        self.cond_obs_emb = nn.Linear(global_cond_dim // n_obs_steps, n_emb)
        self.cond_pos_emb = nn.Parameter(0.02 * torch.randn(1, 1 + n_obs_steps, n_emb))
        self.encoder = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
        layer = nn.TransformerDecoderLayer(
            n_emb, n_head, 4 * n_emb, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, n_layer)
        step, memory = torch.arange(horizon), torch.arange(1 + n_obs_steps)
        # The memory's first token is the timestep, which every action sees.
        self.register_buffer("mask", _additive(step[:, None] >= step) if causal_attn else None)
        self.register_buffer("memory_mask", _additive(step[:, None] >= memory - 1) if causal_attn else None)
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, input_dim)

    def forward(self, sample: Tensor, timestep: Tensor, global_cond: Tensor) -> Tensor:
        """sample (N, T, D), timestep (N,) int64, global_cond (N, To * G) -> noise (N, T, D)."""
        expected = (len(sample), self.horizon, self.input_dim), (len(sample), self.global_cond_dim)
        if (tuple(sample.shape), tuple(global_cond.shape)) != expected:
            raise ConfigError(
                f"sample has shape {tuple(sample.shape)} and global_cond {tuple(global_cond.shape)}; expected "
                f"{expected[0]} and {expected[1]}."
            )
        obs = self.cond_obs_emb(rearrange(global_cond, "n (t g) -> n t g", t=self.n_obs_steps))
        tokens = torch.cat([self.time_emb(timestep)[:, None], obs], dim=1)
        memory = self.encoder(tokens + self.cond_pos_emb)
        # With `is_causal` given, torch does not read the masks' values, which would wait for the GPU.
        x = self.decoder(
            self.input_emb(sample) + self.pos_emb,
            memory,
            tgt_mask=self.mask,
            memory_mask=self.memory_mask,
            tgt_is_causal=False,
            memory_is_causal=False,
        )
        noise: Tensor = self.head(self.ln_f(x))
        return noise


def _additive(visible: Tensor) -> Tensor:
    """A mask to add to attention scores: 0 where visible, else -inf."""
    return torch.zeros(visible.shape, dtype=torch.float32).masked_fill(~visible, float("-inf"))
