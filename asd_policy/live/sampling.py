"""Draws the chunks of a live policy, with its present network and scheduler."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from asd_policy.core import Asd, AsdSampler, Ddim, NoiseTape, Sampler, SamplerSpec
from asd_policy.core.denoiser import device_of
from asd_policy.errors import ConfigError
from asd_policy.live.network import Known, LiveNetwork, check_not_random, dtype_of, packed, unwrapped
from asd_policy.live.scheduler import Chain, chain_of, fingerprint
from asd_policy.policies.chunk import ChunkStats, warm_start


class Request(NamedTuple):
    """A batch of chunks that a live policy asks for."""

    net: nn.Module  # the noise predictor: net(x (N, T, D), t (N,), **conditions)
    scheduler: Any
    num_steps: int  # K
    shape: tuple[int, int, int]  # (B, T, D)
    conditions: Mapping[str, Tensor]  # by the name of the network's parameter, each (B, ...)
    known: Known | None = None
    start: Tensor | None = None  # (B, T, D), the pure noise that the library has drawn already
    generator: Generator | None = None  # the library's own argument


class LiveSampler:
    """Draws chunks, and keeps what the next one's warm start needs.

    The sampler is made again when the policy's network, scheduler, device, type or sizes have changed.

    Args:
        spec: the sampler.
        generator: the source of all noise; None takes what the library would: torch's global generator.
        warm: whether chunks are warm-started from the one before.
        as_ddpm: as `chain_of`.

    Attributes:
        stats: the cost of the last chunk, None before the first.
    """

    def __init__(self, spec: SamplerSpec, generator: Generator | None, warm: bool, as_ddpm: bool):
        self._spec, self._generator, self._warm, self._as_ddpm = spec, generator, warm, as_ddpm
        self._made: _Made | None = None
        self._left: Tensor | None = None  # (B, K, T, D), the predictions of the last chunk
        self.stats: ChunkStats | None = None

    @property
    def sampler(self) -> Sampler | None:
        """The sampler of the last chunk, None before the first."""
        return None if self._made is None else self._made.sampler

    @property
    def has_own_generator(self) -> bool:
        """Whether all noise comes from a generator of the user's; noise that the library has drawn is then unused."""
        return self._generator is not None

    def forget(self) -> None:
        """Begin an episode: the next chunk starts cold."""
        self._left = None

    def check(self, net: nn.Module, scheduler: Any, num_steps: int) -> None:
        """Raise the ConfigError now that the first chunk would raise, as `draw`."""
        net = unwrapped(net)
        check_not_random(net)
        self._build(chain_of(scheduler, num_steps, self._as_ddpm), net, (1,))

    @torch.no_grad()
    def draw(self, request: Request, executed: int | None = None, keep: bool = True) -> Tensor:
        """Chunks (B, T, D), in the network's type and on its device.

        Args:
            executed: the number of steps since the chunk before, whose predictions warm-start this one; None if that is
                unknown, or there is none.
            keep: whether this is the chunk before the next one.

        Raises:
            ConfigError: as `chain_of`; on a network in training mode, or options that do not fit the chain.
            NumericalError: if the network returned NaN or infinity.
        """
        started, known, batch_size = time.perf_counter(), request.known, request.shape[0]
        made = self._made_for(request)
        fits = executed is not None and self._left is not None and len(self._left) == batch_size
        warm = warm_start(self._left, executed) if fits and executed is not None else None
        if warm is not None and known is not None:
            warm = known.take(warm)
        noise = self._noise(request, made)
        drawn = made.sampler.draw(batch_size, packed(request.conditions, known), noise, warm)
        if keep and self._warm:
            left = drawn.predictions
            self._left = left if left is None or known is None else known.fill(left)
        cost = drawn.stats
        self.stats = ChunkStats(time.perf_counter() - started, cost.rounds, cost.evaluations, cost.acceptance)
        return (drawn.x if known is None else known.fill(drawn.x)).to(dtype_of(request.net))

    def _made_for(self, request: Request) -> _Made:
        """The sampler of the policy's present network and scheduler."""
        net, known, shape = unwrapped(request.net), request.known, request.shape[1:]
        check_not_random(net)
        device = device_of(net)
        sizes = {name: tuple(value.shape[1:]) for name, value in request.conditions.items()}
        mask = None if known is None else known.mask.flatten().tolist()
        chain_key = fingerprint(request.scheduler, request.num_steps)
        key: tuple[Any, ...] = (net, device, dtype_of(net), shape, sizes, mask, chain_key)
        if self._made is None or key != self._made.key:
            self._left = None
            chain = chain_of(request.scheduler, request.num_steps, self._as_ddpm)
            network = LiveNetwork(net, shape, sizes, None if known is None else known.free)
            event_shape = shape if known is None else (len(known.free),)
            sampler = self._build(chain, network.to(device), event_shape)
            self._made = _Made(key, sampler, tuple(chain.schedule.timesteps.tolist()))
        return self._made

    def _build(self, chain: Chain, network: nn.Module, event_shape: tuple[int, ...]) -> Sampler:
        """The spec's sampler. Raises ConfigError unless it takes the steps of the chain, and is no DDIM."""
        denoiser = chain.denoiser(network).to(device_of(network))
        sampler = self._spec.build(denoiser, chain.schedule, event_shape)
        if sampler.num_steps != chain.schedule.num_steps:
            raise ConfigError(
                f"The sampler {self._spec.label!r} takes {sampler.num_steps} steps; the policy's chain has "
                f"{chain.schedule.num_steps}. Expected 'asd' or 'ddpm', which keep the policy's law."
            )
        if isinstance(self._spec, Ddim) or (isinstance(self._spec, Asd) and self._spec.eta is not None):
            raise ConfigError(
                f"The sampler {self._spec.label!r} draws from a DDIM's law (eta is {self._spec.eta}); the policy's "
                "chain is a DDPM. Expected 'asd' without eta, or 'ddpm', which keep the policy's law."
            )
        return sampler

    def _noise(self, request: Request, made: _Made) -> NoiseTape:
        """The noise tape, from the draws of the library's loop in their order: the start, then each step's noise.

        So a plain sampler ("ddpm") draws the library's own chunks, and leaves the generator as the library does.
        """
        device, dtype = device_of(request.net), dtype_of(request.net)
        generator = request.generator if request.generator is not None else self._generator
        source = device if generator is None else generator.device

        def normal() -> Tensor:
            drawn = torch.randn(request.shape, generator=generator, device=source, dtype=dtype)
            return drawn.to(device, torch.float32)

        start = normal() if request.start is None else request.start.to(device, torch.float32)
        rows = [normal() if t > 0 else torch.zeros_like(start) for t in made.timesteps]  # diffusers draws none at 0
        xi, tests = torch.stack(rows, dim=1), (request.shape[0], len(rows))
        if isinstance(made.sampler, AsdSampler):
            u = torch.rand(tests, generator=generator, device=source, dtype=torch.float32).to(device)
        else:
            u = torch.zeros(tests, device=device)
        if request.known is not None:
            start, xi = request.known.take(start), request.known.take(xi)
        return NoiseTape(start, xi, u)


class _Made(NamedTuple):
    """A sampler, and what it was made for."""

    key: tuple[Any, ...]
    sampler: Sampler
    timesteps: tuple[int, ...]  # (K,)
