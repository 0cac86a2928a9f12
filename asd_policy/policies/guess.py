"""A learned first guess: the mean chunk under a condition, from a small network kept beside the policy's weights.

A sampler's draft guesses the clean sample before its first network call. The policy's mean chunk is a good guess, and
it depends on the condition alone, so the samples keep their law (docs/algorithm.md, "The rule"), however bad it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from asd_policy.core import seeded_generator
from asd_policy.core.checks import as_seed
from asd_policy.errors import ConfigError, NumericalError

WIDTH = 128
"""Units in each of the two hidden layers."""
MIN_CONDITIONS = 64
"""Fewest conditions that a guess can be fitted to."""
MAX_UPDATES, BATCH, PEAK_RATE, WARM_UP, WEIGHT_DECAY = 3000, 256, 2e-3, 100, 1e-2
"""The optimizer's updates (at most one per condition), conditions in each, peak learning rate, updates up to it, and
AdamW's weight decay."""
JITTER = 0.2
"""Standard deviation of the noise on standardised features. Neighbouring observations of an episode are much alike;
without noise the fit follows the few episodes too closely."""
FARTHEST = 5.0
"""Conditions farther than this many standard deviations from the mean are pulled back to it: there is no data."""
CONSTANT_DEVIATION = 1e-4
"""A feature with a smaller standard deviation counts as constant. Dividing by it would amplify rounding errors."""


class ChunkGuess(nn.Module):
    """The mean chunk under a condition: a network of two hidden layers on standardised features; zero until fitted.

    Args:
        cond_dim: D, the size of a condition.
        event_shape: (H, A), the shape of a chunk.
        width: units in each hidden layer.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, cond_dim: int, event_shape: tuple[int, int], width: int = WIDTH):
        super().__init__()
        self.event_shape = event_shape
        self.register_buffer("center", torch.zeros(cond_dim, dtype=torch.float32, device="cpu"))
        self.register_buffer("scale", torch.ones(cond_dim, dtype=torch.float32, device="cpu"))
        self.first = _zero_layer(cond_dim, width)
        self.second = _zero_layer(width, width)
        self.last = _zero_layer(width, math.prod(event_shape))
        self.requires_grad_(False)

    def forward(self, cond: Tensor) -> Tensor:
        """Conditions (B, D) -> normalised chunks (B, H, A). Does not synchronise with a GPU."""
        x = ((cond - self.center) * self.scale).clamp(-FARTHEST, FARTHEST)
        x = nn.functional.silu(self.first(x))
        x = nn.functional.silu(self.second(x))
        chunks: Tensor = self.last(x).unflatten(-1, self.event_shape)
        return chunks


def fitting(guess: ChunkGuess, cond_dim: int, event_shape: tuple[int, int]) -> ChunkGuess:
    """The guess. Raises ConfigError unless it is a `ChunkGuess` of these sizes, D and (H, A)."""
    if not isinstance(guess, ChunkGuess):
        raise ConfigError(f"guess is a {type(guess).__name__}; expected a ChunkGuess, from fit_guess, or None.")
    got, expected = (len(guess.center), guess.event_shape), (cond_dim, event_shape)
    if got != expected:
        raise ConfigError(
            f"The first guess has conditions of {got[0]} and chunks {got[1]}; the policy has {expected[0]} and "
            f"{expected[1]}. Fit one for this policy."
        )
    return guess


def _zero_layer(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer of zeros, made without torch's global generator."""
    layer = nn.Linear(inputs, outputs, device="meta")
    for name, empty in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(torch.zeros(empty.shape, dtype=torch.float32, device="cpu")))
    return layer


def fit_guess(cond: Tensor, chunks: Tensor, seed: int = 0) -> ChunkGuess:
    """Fit a guess by least squares. The same arguments give the same guess; torch's global generator is not used.

    Args:
        cond: (N, D) conditions.
        chunks: (N, H, A) normalised chunks under them: draws of the policy, or demonstrations.
        seed: the seed of the initial weights and the batches.

    Raises:
        ConfigError: if there are fewer than `MIN_CONDITIONS` conditions, the shapes do not fit, or a number is not
            finite, or the seed is not an integer of at least 0.
        NumericalError: if the fit overflows, because of huge numbers.
    """
    cond, chunks = cond.detach().float().cpu(), chunks.detach().float().cpu()
    _check_data(cond, chunks)
    generator = seeded_generator(as_seed(seed))
    guess = ChunkGuess(cond.shape[1], (chunks.shape[1], chunks.shape[2]))
    deviation = cond.std(dim=0)
    guess.center.copy_(cond.mean(dim=0))
    guess.scale.copy_(torch.where(deviation < CONSTANT_DEVIATION, 0, 1 / deviation.clamp(min=CONSTANT_DEVIATION)))
    for layer in (guess.first, guess.second, guess.last):
        bound = layer.in_features**-0.5
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    guess.last.bias.copy_(chunks.mean(dim=0).flatten())
    _train(guess, cond, chunks, generator)
    if not all(bool(value.isfinite().all()) for value in guess.state_dict().values()):
        largest = max(cond.abs().max().item(), chunks.abs().max().item())
        raise NumericalError(
            f"The fit of the first guess is not finite. The largest number in its data is {largest:.3g}; expected "
            "normalised observations and actions, of about 1. Check the normalizer's statistics."
        )
    return guess


def _check_data(cond: Tensor, chunks: Tensor) -> None:
    if cond.ndim != 2 or chunks.ndim != 3 or len(cond) != len(chunks):
        raise ConfigError(
            f"Conditions are {tuple(cond.shape)} and chunks {tuple(chunks.shape)}; expected (N, D) and (N, H, A)."
        )
    if len(cond) < MIN_CONDITIONS:
        raise ConfigError(
            f"Got {len(cond)} observations to fit a first guess to; expected at least {MIN_CONDITIONS}, and some "
            "thousands for a good one. Record more, or give more demonstrations."
        )
    if not bool(cond.isfinite().all() and chunks.isfinite().all()):
        raise ConfigError("A condition or chunk to fit a first guess to is not finite; expected finite numbers.")


@torch.enable_grad()
def _train(guess: ChunkGuess, cond: Tensor, chunks: Tensor, generator: torch.Generator) -> None:
    """Minimise the mean squared error with AdamW, the learning rate falling along a cosine to zero."""
    updates = min(MAX_UPDATES, len(cond))
    jitter = torch.where(guess.scale == 0, 0, JITTER / guess.scale)
    guess.requires_grad_(True)
    optimizer = torch.optim.AdamW(guess.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY)
    for update in range(updates):
        rate = PEAK_RATE * min(1, (update + 1) / WARM_UP) * (1 + math.cos(math.pi * update / updates)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = torch.randint(len(cond), (BATCH,), generator=generator)
        noise = jitter * torch.randn(BATCH, cond.shape[1], generator=generator, dtype=cond.dtype)
        loss = nn.functional.mse_loss(guess(cond[chosen] + noise), chunks[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    guess.requires_grad_(False)


def guessed_start(chunk: Tensor, left: Tensor | None, executed: int, num_steps: int) -> Tensor:
    """The guess of each denoising step: the learned one, averaged with the mean of what the earlier chunk predicted.

    Args:
        chunk: (B, H, A) the learned guess.
        left: (B, K, H, A) or None, the predictions that an earlier chunk left. Rows of NaN have no earlier chunk.
        executed: the number of steps from the earlier chunk's observation to this one's, at least 0.
        num_steps: K.

    Returns:
        (B, K, H, A). Does not synchronise with a GPU.
    """
    if left is not None:
        kept = left[:, :, executed:].mean(dim=1).to(chunk.dtype)
        head, tail = chunk.split([kept.shape[1], chunk.shape[1] - kept.shape[1]], dim=1)
        chunk = torch.cat([torch.where(kept.isnan(), head, (head + kept) / 2), tail], dim=1)
    return chunk.unsqueeze(1).expand(-1, num_steps, -1, -1)
