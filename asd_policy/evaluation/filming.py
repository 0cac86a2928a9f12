"""Chooses recorded episodes, runs them again and films them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path

from asd_policy.errors import ConfigError
from asd_policy.evaluation.report import Video
from asd_policy.evaluation.results import Record
from asd_policy.evaluation.rollout import Policy
from asd_policy.evaluation.videos import film
from asd_policy.evaluation.worker import LoadedTask


def choose(records: Sequence[Record], wanted: Sequence[str]) -> list[Record]:
    """The episodes to film, task by task.

    Args:
        wanted: a number N for the first N successes and N failures of each sampler; or episode names, see `find`.

    Raises:
        ConfigError: naming an episode that does not exist or that raised an error.
    """
    if len(wanted) == 1 and re.fullmatch("[0-9]{1,9}", wanted[0]):
        whole = [record for record in records if record.error is None]
        cells: dict[tuple[str, str, bool], list[Record]] = {}
        for record in sorted(whole, key=lambda record: (record.env_seed, record.repeat)):
            cells.setdefault((record.task, record.sampler, record.success), []).append(record)
        chosen = [record for cell in cells.values() for record in cell[: int(wanted[0])]]
    else:
        chosen = [find(records, name) for name in wanted]
    return sorted(chosen, key=lambda record: record.task)


def find(records: Sequence[Record], name: str) -> Record:
    """The episode TASK:SAMPLER:SEED:REPEAT, or TASK:SAMPLER:SEED for repeat 0.

    Raises:
        ConfigError: if there is none, or it raised an error.
    """
    names = {f"{r.task}:{r.sampler}:{r.env_seed}": r for r in records if r.repeat == 0}
    names |= {f"{r.task}:{r.sampler}:{r.env_seed}:{r.repeat}": r for r in records}
    if name not in names:
        raise ConfigError(
            f"The results hold no episode {name!r}; expected TASK:SAMPLER:SEED[:REPEAT], such as {next(iter(names))}, "
            "or a number."
        )
    if names[name].error is not None:
        raise ConfigError(f"Episode {name} broke ({names[name].error}); there is nothing to film.")
    return names[name]


def films(
    chosen: Sequence[Record],
    load: Callable[[Record], LoadedTask],
    page: Path,
    started: Callable[[Record], object] = lambda record: None,
) -> Iterator[Video]:
    """Film the episodes one after the other.

    Args:
        load: makes the record's environment, with `render_mode="rgb_array"`, and policy. Called once for each task and
            setting.
        page: the report's page. The videos go to a folder beside it.
        started: called with each episode before it runs.
    """
    for _, group in groupby(chosen, key=lambda record: (record.task, record.checkpoint_sha256, record.settings)):
        records = list(group)
        parts, policies = load(records[0]), dict[str, Policy]()
        with closing(parts.make_env()) as env:
            for record in records:
                started(record)
                if record.sampler not in policies:
                    policies[record.sampler] = parts.make_policy(record.sampler)
                yield film(env, policies[record.sampler], record, page)
