"""What a network must offer, and what it may offer."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from asd_policy.checks import is_count
from asd_policy.errors import ConfigError
from asd_policy.plugins import check_members


@runtime_checkable
class Architecture(Protocol):
    """A network's configuration: a frozen dataclass whose fields are JSON values or tuples of them."""

    @property
    def name(self) -> str:
        """The architecture's key in `asd_policy.nets.NETWORKS`, by which `config.json` names it."""
        ...

    @property
    def downsampling(self) -> int:
        """The horizon must be a multiple of this."""
        ...

    def describe(self) -> str:
        """The sizes in one line."""
        ...

    def build(self, input_dim: int, cond_dim: int, horizon: int, n_obs_steps: int) -> nn.Module:
        """The network with fresh weights.

        It maps sample (N, horizon, input_dim), timestep (N,) int64 and condition (N, cond_dim) to a prediction
        (N, horizon, input_dim). The condition holds `n_obs_steps` observations of equal size, oldest first. A network
        that also has `prepare` and `predict` (see `asd_policy.core.denoiser.PreparedNetwork`) computes once per chunk
        what depends on the timestep and the condition alone.
        """
        ...


@runtime_checkable
class HasInferenceForm(Protocol):
    """A network with `prepare` and `predict` that samplers run in another form than the one that is trained."""

    def for_inference(self, dtype: torch.dtype, compiled_on_cpu: bool) -> nn.Module:
        """The network as a sampler runs it: itself, or a module that follows its weights from chunk to chunk.

        Args:
            dtype: of the weights that run at every evaluation.
            compiled_on_cpu: torch.compile compiles it for a CPU.
        """
        ...


@runtime_checkable
class HasCompiledLayout(Protocol):
    """A network whose weights lie in memory in another order when torch.compile compiles it for a CPU."""

    def store_for_compiled_cpu(self) -> None:
        """Change the order in memory. Values stay."""
        ...


@runtime_checkable
class CanWiden(Protocol):
    """A network that takes more features per observation after it was trained."""

    def widen(self, n_obs_steps: int, obs_dim: int) -> None:
        """Let each of the `n_obs_steps` observations have `obs_dim` features: the old ones first, then new ones.

        The new features have zero weight at first: the network computes what it did.
        """
        ...


def check_architecture(network: object) -> None:
    """Raise ConfigError, naming what is missing or wrong, unless the object is an `Architecture`."""
    check_members("network", network, Architecture)
    assert isinstance(network, Architecture)
    if not is_dataclass(network):
        raise ConfigError(f"network is {network!r:.80}; expected an object of a dataclass, which config.json can hold.")
    if not isinstance(network.name, str) or not is_count(network.downsampling):
        raise ConfigError(
            f"network is a {type(network).__name__} with name {network.name!r} and downsampling "
            f"{network.downsampling!r}; expected a string and a positive integer."
        )
