"""Fills a store with successful demonstrations in the order of their seeds, on any backend, with the same result."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

from asd_policy.collection.demonstration import Outcome, Seed
from asd_policy.collection.settings import FIRST_EVALUATION_SEED
from asd_policy.collection.store import next_seed, record
from asd_policy.data.store import EpisodeStore
from asd_policy.errors import WorkerError
from asd_policy.evaluation.backends import ATTEMPTS, Backend, Worker

AHEAD = 256
"""Seeds that may be started beyond the first unfinished one: the most episodes lost if a seed is given up."""


def collect(
    store: EpisodeStore,
    num_episodes: int,
    backend: Backend,
    make_worker: Callable[[], Worker[Seed, Outcome]],
    stop_requested: Callable[[], bool] = lambda: False,
) -> Generator[Outcome, None, None]:
    """Fill the store with successful demonstrations in the order of their seeds; yield each outcome when it is on disk.

    The store's content does not depend on the backend, its workers or kills. Ends when the store holds enough episodes,
    when no seeds are left below FIRST_EVALUATION_SEED, or on a stop request.

    Args:
        store: from `asd_policy.collection.store.open_store`.
        num_episodes: the number of demonstrations to reach.
        backend: runs the workers.
        make_worker: picklable, such as `partial(Demonstrator, collection)`.
        stop_requested: called before each seed. If it returns true, the started seeds are finished and none is started.

    Raises:
        DataError: if the store cannot be written.
        WorkerError: if a seed has lost its worker ATTEMPTS times; the seeds before it are in the store.
    """
    # Each round tries as many seeds as demonstrations are missing, so that no demonstration is discarded.
    while not stop_requested() and (missing := num_episodes - store.num_episodes) > 0:
        first = next_seed(store)
        seeds = range(first, min(first + missing, FIRST_EVALUATION_SEED))
        if not seeds:
            return
        yield from _round(store, seeds, backend, make_worker, stop_requested)


def _round(
    store: EpisodeStore,
    seeds: range,
    backend: Backend,
    make_worker: Callable[[], Worker[Seed, Outcome]],
    stop_requested: Callable[[], bool],
) -> Generator[Outcome, None, None]:
    """Try the seeds in any order, and record them in ascending order."""
    begun: list[int] = []
    recorded = 0  # number of started seeds that are recorded
    waiting: dict[int, Outcome] = {}  # outcomes that wait for an earlier seed

    def tasks() -> Iterator[Seed]:
        for seed in seeds:
            if stop_requested() or len(begun) - recorded >= AHEAD:
                return
            begun.append(seed)
            yield (seed,)

    with closing(backend.run(tasks(), make_worker)) as outcomes:
        for outcome in outcomes:
            waiting[outcome.seed] = outcome
            while recorded < len(begun) and begun[recorded] in waiting:
                earliest = waiting.pop(begun[recorded])
                record(store, earliest)
                recorded += 1
                yield earliest
    lost = [seed for seed in begun[recorded:] if seed not in waiting]
    if lost:
        raise WorkerError(
            f"Seeds {', '.join(map(str, lost))} lost their worker {ATTEMPTS} times each, perhaps for lack of memory. "
            f"The seeds before {lost[0]} are in the store: to continue, run the command again with fewer --workers."
        )
