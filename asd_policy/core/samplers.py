"""The registry of samplers: "ddpm" and "asd" are exact, "ddim" has another law."""

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
"""Name -> class of specs. Add an entry to register a sampler of your own."""


def parse_sampler(text: str) -> SamplerSpec:
    """Read a sampler's spec from text: `ddpm`, `ddim:10:compile`, `asd:reuse:24`, `asd:path:auto`.

    Raises:
        UnknownNameError: on an unknown sampler, draft or capture. The message lists the known names.
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
    """Return the spec of a name or text, or the given spec, with `options` replaced.

    Raises:
        UnknownNameError: on an unknown sampler or option. The message lists the known ones.
        ConfigError: as `parse_sampler`, or on an object that lacks members of `SamplerSpec`.
    """
    if isinstance(sampler, str):
        return with_options(parse_sampler(sampler), **options)
    check_members("sampler", sampler, SamplerSpec, SAMPLERS)
    if not is_dataclass(sampler):
        raise ConfigError(f"sampler is a {type(sampler).__name__}; expected a dataclass, with the options as fields.")
    return with_options(sampler, **options)


def with_options(spec: S, **options: Unpack[SamplerOptions]) -> S:
    """Return the spec with some of its options replaced.

    Raises:
        UnknownNameError: on an option that the sampler lacks. The message lists its options.
    """
    known = [field.name for field in fields(cast(Any, spec))]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of sampler {spec.name!r}", option, known)
    return cast(S, replace(cast(Any, spec), **options))


def _forms() -> str:
    """The command-line forms of all samplers."""
    *some, last = (spec.form for spec in SAMPLERS.values())
    return f"{', '.join(some)} or {last}"
