"""Tasks x samplers x seeds x repeats: a plan, and the file that it fills however often it is interrupted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import takewhile
from typing import Any

from asd_policy.errors import ConfigError
from asd_policy.evaluation.backends import Backend
from asd_policy.evaluation.evaluate import parse_seeds
from asd_policy.evaluation.results import Job, Record, ResultsFile, check_same_settings
from asd_policy.evaluation.worker import EpisodeWorker, Parts, Wave

SEED_SETS: Mapping[str, tuple[str, int]] = {
    "smoke": ("100000-100002", 1),
    "dev": ("200000-200019", 1),
    "paper": ("100000-100099", 3),
}
"""Name -> environment seeds, and how often each is run."""


def parse_seed_set(text: str) -> tuple[list[int], int]:
    """Environment seeds and repeats of a name in SEED_SETS, or of seeds as `parse_seeds` reads them, run once.

    Raises:
        ConfigError: on anything else.
    """
    seeds, repeats = SEED_SETS.get(text, (text, 1))
    try:
        return parse_seeds(seeds), repeats
    except ConfigError as error:
        raise ConfigError(f"{error} Or a seed set: {', '.join(SEED_SETS)}.") from None


@dataclass(frozen=True)
class Plan:
    """Which episodes to run, and with what.

    Attributes:
        checkpoints: task -> SHA-256 of its policy.
        samplers: labels.
        repeats: how often each seed is run, with other noise each time.
        settings: device, threads, batch.

    Raises:
        ConfigError: if it is empty, or names anything twice.
    """

    checkpoints: Mapping[str, str]
    samplers: Sequence[str]
    env_seeds: Sequence[int]
    repeats: int
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in ("samplers", "env_seeds"):
            values = getattr(self, name)
            twice = sorted(value for value, count in Counter(values).items() if count > 1)
            if twice:
                raise ConfigError(f"{name} holds {twice} more than once; an episode is run once.")
        numbers = {"repeats": self.repeats, "batch": self.settings["batch"]}
        wrong = [f"{name} is {value}" for name, value in numbers.items() if value < 1]
        lacking = [f"no {name}" for name in ("checkpoints", "samplers", "env_seeds") if not getattr(self, name)]
        if wrong or lacking:
            raise ConfigError(f"There is nothing to run: {', '.join(wrong + lacking)}; expected at least 1.")

    @cached_property
    def jobs(self) -> list[Job]:
        """All episodes, in the order of the complete file."""
        return [job for task in self.checkpoints for sampler in self.samplers for job in self._cell(task, sampler)]

    def missing(self, records: Sequence[Record]) -> list[Job]:
        done = {record.job for record in records}
        return [job for job in self.jobs if job not in done]

    def waves(self, done: frozenset[Job]) -> Iterator[Wave]:
        """What is left to run, the samplers taking turns, so that a machine that slows down slows all alike.

        A wave comes whole if any of it is missing: what an episode is computed with may depend on the size of its wave.
        """
        size = self.settings["batch"]
        for task in self.checkpoints:
            cells = [self._cell(task, sampler) for sampler in self.samplers]
            for first in range(0, len(cells[0]), size):
                turn = (tuple(cell[first : first + size]) for cell in cells)
                yield from (wave for wave in turn if not done.issuperset(wave))

    def _cell(self, task: str, sampler: str) -> list[Job]:
        return [Job(task, sampler, seed, repeat) for seed in self.env_seeds for repeat in range(self.repeats)]


def sweep(
    plan: Plan,
    file: ResultsFile,
    backend: Backend,
    load: Callable[[str], Parts],
    stop_requested: Callable[[], bool] = lambda: False,
) -> Generator[Record, None, None]:
    """Run what the file lacks and yield each record when it is on disk; a complete file is put in the plan's order.

    Args:
        load: task -> its parts; picklable, for the backends that call it elsewhere.
        stop_requested: asked before each wave; those begun are finished.

    Raises:
        ConfigError: if the file was made with other checkpoints or settings.
        DataError: if a record cannot be written.
        WorkerError: if workers are lost whatever they are given.
    """
    check_same_settings(file.records, plan.checkpoints, plan.settings)
    done = {record.job for record in file.records}
    waves = takewhile(lambda _: not stop_requested(), plan.waves(frozenset(done)))
    make_worker = partial(EpisodeWorker, load, dict(plan.checkpoints), dict(plan.settings))
    with closing(backend.run(waves, make_worker)) as finished:
        for records in finished:
            for record in records:
                if record.job not in done:
                    file.append(record)
                    done.add(record.job)
                    yield record
    if not plan.missing(file.records):
        rank = {job: place for place, job in enumerate(plan.jobs)}
        file.order(lambda record: rank.get(record.job, len(rank)))
