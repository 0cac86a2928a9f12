"""`accelerate`: an exact, fast sampler in another library's live policy."""

from __future__ import annotations

from typing import Any, TypeVar, Unpack

from torch import Generator, nn

from asd_policy.core import Asd, Sampler, SamplerOptions, SamplerSpec, as_spec
from asd_policy.errors import ConfigError
from asd_policy.live.lerobot import LeRobotLoop
from asd_policy.live.protocol import Loop, Replacement
from asd_policy.live.real_stanford import RealStanfordLoop
from asd_policy.live.robomimic import RobomimicLoop
from asd_policy.live.sampling import LiveSampler
from asd_policy.policies.chunk import ChunkStats

P = TypeVar("P")

LOOPS: dict[str, type[Loop]] = {
    "lerobot": LeRobotLoop,
    "robomimic": RobomimicLoop,
    "real-stanford": RealStanfordLoop,
}
"""Library -> the loop of its policies. Add an entry to support another one."""

ATTRIBUTE = "asd"


class _Nothing:
    """What an object has in place of an attribute that only its class has. (Copies of a class are the class.)"""


class Acceleration:
    """A policy's replaced sampling loop, its attribute `asd`."""

    def __init__(self, loop: Loop, sampler: LiveSampler):
        self._loop, self._sampler = loop, sampler
        self._originals: list[tuple[Replacement, Any]] = []

    @property
    def stats(self) -> ChunkStats | None:
        """The cost of the last chunk; None before the first. `latency` is the time of the loop alone."""
        return self._sampler.stats

    @property
    def sampler(self) -> Sampler | None:
        """The sampler that drew the last chunk; None before the first."""
        return self._sampler.sampler

    def restore(self) -> None:
        """Give the policy its own loop back. It then acts as if it had never been accelerated."""
        for (owner, name, _), original in reversed(self._originals):
            if original is _Nothing:
                vars(owner).pop(name, None)
            else:
                setattr(owner, name, original)
        self._originals = []
        for owner in self._loop.owners():
            if vars(owner).get(ATTRIBUTE) is self:
                delattr(owner, ATTRIBUTE)

    def _replace(self) -> None:
        for replacement in self._loop.replacements():
            owner, name, function = replacement
            self._originals.append((replacement, vars(owner).get(name, _Nothing)))
            setattr(owner, name, function)
        for owner in self._loop.owners():
            setattr(owner, ATTRIBUTE, self)


def accelerate(
    policy: P,
    sampler: str | SamplerSpec = "asd",
    *,
    generator: Generator | None = None,
    warm_start: bool = True,
    as_ddpm: bool = False,
    **options: Unpack[SamplerOptions],
) -> P:
    """Replace the sampling loop of another library's diffusion policy, in place.

    The policy samples exactly the distribution that it sampled before, in fewer sequential network calls. Observation
    handling, normalisation, queues, averaged weights, devices and types stay the library's. `policy.asd.stats` has the
    cost of the last chunk, and `policy.asd.restore()` takes the change back.

    Args:
        policy: lerobot's DiffusionPolicy; robomimic's DiffusionPolicyUNet, or a RolloutPolicy around it; a diffusion
            policy of real-stanford's diffusion_policy. In evaluation mode, at the start of an episode.
        sampler: "asd", command-line text such as "asd:path:16", or a spec. "ddpm" takes every step, as the library
            does.
        generator: the source of all noise; None takes the library's source, torch's global generator.
        warm_start: guess a chunk from the predictions of the one before, where it is known which one that is. Guesses
            change the number of rounds, not the distribution.
        as_ddpm: replace a DDIM scheduler by the DDPM of its betas, in all training steps: another distribution.
        options: sampler options: `draft`, `window`, `capture`; see `AsdSampler`.

    Returns:
        The same policy.

    Raises:
        ConfigError: on an object that is no such policy, is in training mode, within a chunk or accelerated already; a
            scheduler that is no DDPM; or options that do not fit.
    """
    spec = as_spec(sampler, **options)
    if isinstance(spec, Asd) and spec.is_automatic:
        raise ConfigError("window='auto' needs windows calibrated for a checkpoint; choose a window.")
    if generator is not None and not isinstance(generator, Generator):
        raise ConfigError(f"generator is {generator!r:.80}; expected a torch.Generator or None.")
    _check_object(policy)
    live = LiveSampler(spec, generator, warm_start, as_ddpm)
    loop = _find_loop(policy, live)
    for owner in [policy, *loop.owners()]:
        if isinstance(getattr(owner, ATTRIBUTE, None), Acceleration):
            raise ConfigError("The policy is accelerated already: call its asd.restore() first.")
        if hasattr(owner, ATTRIBUTE):
            raise ConfigError(f"The {type(owner).__name__} has an attribute {ATTRIBUTE!r} of its own.")
    loop.check_ready()
    loop.prepare()
    Acceleration(loop, live)._replace()
    return policy


def _check_object(policy: object) -> None:
    """Raise ConfigError on classes, and on wrappers around a policy."""
    if isinstance(policy, type):
        raise ConfigError(f"policy is the class {policy.__name__}; expected an object.")
    if isinstance(policy, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise ConfigError(f"policy is a {type(policy).__name__} around a policy; pass its `module`.")
    if "_orig_mod" in getattr(policy, "_modules", {}):
        raise ConfigError(
            "policy is the result of torch.compile; pass its `_orig_mod`, and capture='compile' if wished."
        )


def _find_loop(policy: object, sampler: LiveSampler) -> Loop:
    """The loop of the first library that knows the policy. Raises ConfigError if none does."""
    for loop in LOOPS.values():
        found = loop.find(policy, sampler)
        if found is not None:
            return found
    raise ConfigError(
        f"Got a {type(policy).__name__}; expected a live diffusion policy of one of {', '.join(LOOPS)}. For a "
        "checkpoint file use load_policy; for a pipeline of diffusers, asd_policy.images.accelerate_pipeline."
    )
