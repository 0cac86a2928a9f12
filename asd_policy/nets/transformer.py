"""The transformer of Diffusion Policy (Chi et al., RSS 2023, arXiv 2303.04137), conditioned on observations.

Maths and state-dict names are those of https://github.com/real-stanford/diffusion_policy
(`model/diffusion/transformer_for_diffusion.py`) with `time_as_cond`, `obs_as_cond` and no layers for the condition.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from asd_policy.errors import ConfigError
from asd_policy.nets.unet1d import SinusoidalEmbedding


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
        causal_attn: an action sees those before it and the observations up to its own step.
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
        # Told so, torch does not look into the masks, which on a GPU would wait for it.
        x = self.decoder(
            self.input_emb(sample) + self.pos_emb,
            memory,
            tgt_mask=self.mask,
            memory_mask=self.memory_mask,
            tgt_is_causal=False,
            memory_is_causal=False,
        )
        return self.head(self.ln_f(x))


def _additive(visible: Tensor) -> Tensor:
    """A mask to add to attention scores: 0 where visible, else -inf."""
    return torch.zeros(visible.shape, dtype=torch.float32).masked_fill(~visible, float("-inf"))
