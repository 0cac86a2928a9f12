"""The `Loop` protocol: where a library's live policy samples its chunks."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, NamedTuple, Protocol, Self

from torch import nn

from asd_policy.live.network import unwrapped
from asd_policy.live.sampling import LiveSampler


class Replacement(NamedTuple):
    """A method of a live object, and the function that takes its place."""

    owner: Any
    name: str
    function: Callable[..., Any]


class Loop(Protocol):
    """The sampling loop of one library's live policy.

    A library's loop is one class in one file, registered in `asd_policy.live.acceleration.LOOPS`.
    """

    @classmethod
    def find(cls, policy: Any, sampler: LiveSampler) -> Self | None:
        """The loop of a policy, which will draw its chunks from `sampler`; None if the policy is not the library's.

        A policy is recognised by its attributes and signatures. The library is not imported.

        Raises:
            ConfigError: if the policy is the library's, but of a kind that is not supported.
        """
        ...

    def owners(self) -> list[Any]:
        """The objects that get an attribute `asd`: the policy, and the objects around or inside it that users hold."""
        ...

    def replacements(self) -> list[Replacement]:
        """The methods to replace. The functions are bound methods of this object, so that a policy can be copied."""
        ...

    def check_ready(self) -> None:
        """Raise ConfigError if the policy is in training mode, or in the middle of a chunk."""
        ...

    def prepare(self) -> None:
        """Make the sampler for the policy's present network and scheduler. Raises ConfigError if that is impossible."""
        ...


def has(value: Any, *names: str) -> bool:
    """Whether an object has all these attributes."""
    return all(hasattr(value, name) for name in names)


def parameters_of(function: Any) -> frozenset[str]:
    """Names of the parameters of a function, or of a module's `forward` inside wrappers; empty if it has none."""
    if isinstance(function, nn.Module):
        function = unwrapped(function).forward
    try:
        found = signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(parameter.name for parameter in found if parameter.kind is not Parameter.VAR_KEYWORD)
