"""Sweeps: every task x sampler x seed x repeat, written to a file that an interrupted sweep continues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import takewhile
from typing import Any

from asd_policy.errors import ConfigError
from asd_policy.evaluation.backends import Backend, check_backend
from asd_policy.evaluation.results import EpisodeKey, Record, ResultsFile, check_same_settings
from asd_policy.evaluation.worker import EpisodeWorker, LoadedTask, Observer, Wave


@dataclass(frozen=True)
class Plan:
    """The episodes of a sweep and their settings.

    Attributes:
        checkpoints: task -> SHA-256 of its policy.
        samplers: the samplers' labels.
        repeats: runs of each seed, each with other noise.
        settings: device, threads, batch; and success and max_steps, if given.
        first_repeat: the number of the first repeat. The number chooses the noise.

    Raises:
        ConfigError: if it holds no episode, or one twice.
    """

    checkpoints: Mapping[str, str]
    samplers: Sequence[str]
    env_seeds: Sequence[int]
    repeats: int
    settings: Mapping[str, Any]
    first_repeat: int = 0

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
    def keys(self) -> list[EpisodeKey]:
        """All episodes, in the order of the complete file."""
        return [key for task in self.checkpoints for sampler in self.samplers for key in self._cell(task, sampler)]

    def missing(self, records: Sequence[Record]) -> list[EpisodeKey]:
        """The episodes without a record."""
        done = {record.key for record in records}
        return [key for key in self.keys if key not in done]

    def waves(self, done: frozenset[EpisodeKey]) -> Iterator[Wave]:
        """The remaining waves.

        The samplers take turns, and each turn begins with another one, so that a machine that slows down slows all
        alike. A wave with any missing episode is run in full, because rounding may depend on the wave's size.
        """
        size = self.settings["batch"]
        for task in self.checkpoints:
            cells = [self._cell(task, sampler) for sampler in self.samplers]
            for turn, first in enumerate(range(0, len(cells[0]), size)):
                begin = turn % len(cells)
                waves = (tuple(cell[first : first + size]) for cell in cells[begin:] + cells[:begin])
                yield from (wave for wave in waves if not done.issuperset(wave))

    def _cell(self, task: str, sampler: str) -> list[EpisodeKey]:
        repeats = range(self.first_repeat, self.first_repeat + self.repeats)
        return [EpisodeKey(task, sampler, seed, repeat) for seed in self.env_seeds for repeat in repeats]


def sweep(
    plan: Plan,
    file: ResultsFile,
    backend: Backend,
    load: Callable[[str], LoadedTask],
    stop_requested: Callable[[], bool] = lambda: False,
    observe: Observer | None = None,
) -> Generator[Record, None, None]:
    """Run the episodes that the file lacks, and yield each record when it is on disk.

    A complete file is put in the plan's order and closed.

    Args:
        load: task -> its parts; picklable, for backends with processes.
        stop_requested: called before each wave. If it returns true, the running waves are finished and none is begun.
        observe: called with each finished episode in the process that ran it: with `Serial`, in this one.

    Raises:
        ConfigError: if the file was made with other checkpoints or settings, or the backend has no `run`.
        DataError: if a record cannot be written.
        WorkerError: if many workers in a row are lost.
    """
    check_backend(backend)
    check_same_settings(file.records, plan.checkpoints, plan.settings)
    done = {record.key for record in file.records}
    waves = takewhile(lambda _: not stop_requested(), plan.waves(frozenset(done)))
    make_worker = partial(EpisodeWorker, load, dict(plan.checkpoints), dict(plan.settings), observe)
    with closing(backend.run(waves, make_worker)) as finished:
        for records in finished:
            for record in records:
                if record.key not in done:
                    file.append(record)
                    done.add(record.key)
                    yield record
    if not plan.missing(file.records):
        rank = {key: place for place, key in enumerate(plan.keys)}
        file.order(lambda record: rank.get(record.key, len(rank)))
