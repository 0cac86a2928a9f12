"""Filling a store: whatever the backend, the order in which seeds finish, and what is killed, the store is the same."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asd_policy.collection import collect as module
from asd_policy.collection.collect import collect
from asd_policy.collection.settings import FIRST_EVALUATION_SEED
from asd_policy.collection.store import failed_seeds
from asd_policy.data.store import EpisodeStore
from asd_policy.errors import WorkerError
from asd_policy.evaluation.backends import ATTEMPTS, Serial
from asd_policy.evaluation.backends.processes import Processes
from asd_policy.evaluation.backends.ray_cluster import Ray
from tests.collection.fake_demonstrator import FAILING, FakeDemonstrator, outcome

EPISODES = 9
SEEDS = [seed for seed in range(100) if seed not in FAILING][:EPISODES]
FAILED = sorted(seed for seed in FAILING if seed < SEEDS[-1])


def new_store(folder: Path, seed_start: int = 0) -> EpisodeStore:
    attributes = {"env_id": "asd/Square-v0", "seed_start": seed_start, "failed_seeds": []}
    return EpisodeStore.create(folder / "demos.zarr", {"object": (3,)}, 7, attributes)


def check_store(store: EpisodeStore, episodes: int = EPISODES) -> None:
    assert store.seeds.tolist() == SEEDS[:episodes]
    assert failed_seeds(store) == [seed for seed in FAILED if seed < SEEDS[episodes - 1]]
    for index, seed in enumerate(SEEDS[:episodes]):
        episode, expected = store.episode(index), outcome(seed).episode
        np.testing.assert_array_equal(episode.action, expected.action)
        np.testing.assert_array_equal(episode.obs["object"], expected.obs["object"])


def attempts(folder: Path, seed: int) -> int:
    return len(list(folder.glob(f"{seed}-*")))


@pytest.mark.parametrize(
    ("make_backend", "deadly"),
    [
        (Serial, ()),
        (lambda: Processes(1), ()),
        (lambda: Processes(3), ()),
        (lambda: Processes(2), ((0, 1), (4, 2), (7, 1))),
        pytest.param(lambda: Ray(2), ((4, 1),), marks=pytest.mark.slow),
    ],
    ids=["serial", "one process", "three processes", "killed processes", "ray, killed"],
)
def test_the_store_is_the_same(make_backend, deadly, tmp_path):
    store = new_store(tmp_path)
    make_worker = partial(FakeDemonstrator, tmp_path, deadly)
    outcomes = list(collect(store, EPISODES, make_backend(), make_worker))
    check_store(store)
    assert [outcome.seed for outcome in outcomes] == list(range(SEEDS[-1] + 1))
    for seed in range(SEEDS[-1] + 2):  # a killed worker costs its own seed one more attempt, and no other seed any
        expected = 1 + dict(deadly).get(seed, 0) if seed <= SEEDS[-1] else 0
        assert attempts(tmp_path, seed) == expected


def test_a_seed_that_always_kills_its_worker_is_named_and_tried_again_by_the_next_run(tmp_path, caplog):
    store, deadly = new_store(tmp_path), ((3, ATTEMPTS),)
    make_worker = partial(FakeDemonstrator, tmp_path, deadly)
    with pytest.raises(WorkerError, match=r"Seeds 3 lost their worker 3 times.*before 3 are in the store"):
        list(collect(store, EPISODES, Processes(2), make_worker))
    check_store(store, episodes=2)
    store.close()
    store = EpisodeStore.open(store.path, writable=True)
    list(collect(store, EPISODES, Processes(2), make_worker))
    check_store(store)


class Shuffling:
    """A backend that finishes tasks in an order of its own, a few at a time, and gives some up."""

    def __init__(self, rng: np.random.Generator, width: int, given_up: Iterable[int] = ()):
        self.rng, self.width, self.given_up = rng, width, set(given_up)
        self.begun: list[int] = []

    def run(self, tasks: Iterable[tuple[int]], make_worker: Callable[[], Any]) -> Any:
        left, flying = iter(tasks), []
        while True:
            flying.extend(islice(left, self.width - len(flying)))
            if not flying:
                return
            (seed,) = flying.pop(self.rng.integers(len(flying)))
            self.begun.append(seed)
            if seed not in self.given_up:
                yield outcome(seed)


@pytest.mark.parametrize("draw", range(8))
def test_the_store_is_the_same_in_any_order_and_however_often_it_is_stopped(draw, tmp_path):
    rng = np.random.default_rng(draw)
    store = new_store(tmp_path)
    while store.num_episodes < EPISODES:
        backend, calls = Shuffling(rng, width=int(rng.integers(1, 6))), iter(range(int(rng.integers(1, 8))))
        before = store.num_episodes + len(failed_seeds(store))
        list(collect(store, EPISODES, backend, FakeDemonstrator, lambda: next(calls, None) is None))  # noqa: B023
        recorded = store.num_episodes + len(failed_seeds(store)) - before
        assert recorded == len(backend.begun)  # what was begun is finished, and nothing is made in vain
        assert sorted([*store.seeds, *failed_seeds(store)]) == list(range(before + recorded))  # no seed is left out
    check_store(store)


def test_a_given_up_seed_ends_the_collection_before_much_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AHEAD", 4)
    store, backend = new_store(tmp_path), Shuffling(np.random.default_rng(0), width=1, given_up=[2])
    with pytest.raises(WorkerError, match="Seeds 2 "):
        list(collect(store, 50, backend, FakeDemonstrator))
    assert (store.seeds.tolist(), failed_seeds(store)) == ([0], [1])
    assert backend.begun == [0, 1, 2, 3, 4, 5]  # four from the first one unfinished


def test_seeds_of_the_evaluation_are_not_tried(tmp_path):
    store, backend = new_store(tmp_path, FIRST_EVALUATION_SEED - 2), Shuffling(np.random.default_rng(0), 3)
    list(collect(store, 5, backend, FakeDemonstrator))
    assert store.seeds.tolist() == [FIRST_EVALUATION_SEED - 2, FIRST_EVALUATION_SEED - 1]


def test_a_full_store_starts_no_worker(tmp_path):
    store = new_store(tmp_path)
    list(collect(store, 1, Shuffling(np.random.default_rng(0), 1), FakeDemonstrator))
    backend = Shuffling(np.random.default_rng(0), 1)
    assert list(collect(store, 1, backend, FakeDemonstrator)) == backend.begun == []
