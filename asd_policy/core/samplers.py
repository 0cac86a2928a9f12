"""The samplers by name, behind one call: "ddpm" and "asd" are exact, "ddim" has another law."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, Unpack, cast

from asd_policy.core.plain import Ddim, Ddpm
from asd_policy.core.sampler import Asd
from asd_policy.core.spec import SamplerOptions, SamplerSpec
from asd_policy.errors import ConfigError, UnknownNameError
from asd_policy.plugins import check_members

S = TypeVar("S", bound=SamplerSpec)

SAMPLERS: dict[str, type[SamplerSpec]] = {Ddpm.name: Ddpm, Ddim.name: Ddim, Asd.name: Asd}
"""Name -> class of specs. Add an entry to use a sampler of your own by name."""


def parse_sampler(text: str) -> SamplerSpec:
    """The spec of a sampler as command lines write it: `ddpm`, `ddim:10:compile`, `asd:reuse:24`, `asd:path:auto`.

    Raises:
        UnknownNameError: on a name of a sampler, draft or capture that does not exist. The message lists those that do.
        ConfigError: on words that do not fit the sampler. The message lists the forms.
    """
    name, *words = text.split(":")
    if name not in SAMPLERS:
        raise UnknownNameError("sampler", name, SAMPLERS, f"As text, expected {_forms()}.")
    try:
        return SAMPLERS[name].parse(words)
    except UnknownNameError:
        raise
    except ConfigError as error:
        raise ConfigError(f"Unknown sampler {text!r:.80}: {error}; expected {_forms()}.") from None


def as_spec(sampler: str | SamplerSpec, **options: Unpack[SamplerOptions]) -> SamplerSpec:
    """The spec of a name, of a command line's text, or one that is given; with the options replaced.

    Raises:
        UnknownNameError: on a sampler or an option that does not exist. The message lists those that do.
        ConfigError: on text as `parse_sampler`, or an object that lacks members of `SamplerSpec`.
    """
    if isinstance(sampler, str):
        return with_options(parse_sampler(sampler), **options)
    check_members("sampler", sampler, SamplerSpec, SAMPLERS)
    if not is_dataclass(sampler):
        raise ConfigError(f"sampler is a {type(sampler).__name__}; expected a dataclass, with the options as fields.")
    return with_options(sampler, **options)


def with_options(spec: S, **options: Unpack[SamplerOptions]) -> S:
    """The spec with some of its options replaced.

    Raises:
        UnknownNameError: on an option that the sampler does not have. The message lists those that it has.
    """
    known = [field.name for field in fields(cast(Any, spec))]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of sampler {spec.name!r}", option, known)
    return cast(S, replace(cast(Any, spec), **options))


def _forms() -> str:
    """The forms of all samplers on a command line."""
    *some, last = (spec.form for spec in SAMPLERS.values())
    return f"{', '.join(some)} or {last}"
