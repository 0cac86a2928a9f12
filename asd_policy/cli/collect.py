"""Collect demonstrations of a task's scripted expert into an episode store.

    asd-policy collect --task square --num-episodes 200 --out data/square.zarr --workers 2

Seeds are tried in ascending order from --seed-start until enough of them succeed. Failures are recorded, not stored.
The same command continues an interrupted collection. Ctrl-C first finishes the running episodes; a second one quits at
once. The store's content does not depend on the backend or the number of workers. Exit status: 0 complete, 1 an error,
130 interrupted.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.extras import literal_type_from_choices

from asd_policy.cli import COMPLETE, INTERRUPTED
from asd_policy.cli.progress import progress
from asd_policy.collection.collect import collect
from asd_policy.collection.demonstration import Demonstrator
from asd_policy.collection.lead import Lead, check_takeover
from asd_policy.collection.settings import FIRST_EVALUATION_SEED, Collection
from asd_policy.collection.store import failed_seeds, open_store
from asd_policy.data.store import EpisodeStore
from asd_policy.errors import ConfigError, DataError, UnknownNameError
from asd_policy.evaluation.backends import Backend
from asd_policy.evaluation.backends.registry import BACKENDS, Resources
from asd_policy.evaluation.backends.registry import make_backend as backend_named
from asd_policy.hub import pinned
from asd_policy.interrupt import stop_requests
from envs.tasks import TASKS, Exploration, TaskSpec

WORKERS = 2
"""Default number of workers of the processes backend."""
LAST_TAKEOVER = 300
"""Default last step of the takeover, in episodes that are longer."""


@dataclass(frozen=True)
class Arguments:
    """The demonstrations to collect, and where."""

    task: str = "square"
    """A task of envs.tasks; MODULE:NAME imports MODULE first, which registers the task NAME with envs.register."""
    num_episodes: int = 200
    """Number of successful episodes to store."""
    out: Path | None = None
    """Folder of the store. An existing store is continued. By default data/NAME.zarr."""
    backend: Annotated[str, tyro.conf.arg(constructor=literal_type_from_choices(BACKENDS))] = "processes"
    """Where to run: serial (in this process), processes (of this machine), or ray (a Ray cluster)."""
    address: str | None = None
    """Address of a Ray cluster, whose nodes find --policy at the same path. By default a cluster is started here."""
    workers: int | None = None
    """Episodes that run at once. By default 2; on a Ray cluster one per CPU."""
    seed_start: int = 0
    """First seed to try. Evaluation uses the seeds from 100000 on, demonstrations use those below."""
    noise: float | None = None
    """Standard deviation of white noise on the expert's actions, as a fraction of a full action. The defaults of this
    and the next three options are the task's."""
    pushes: float | None = None
    """Probability at each step and arm that a push begins."""
    closings: float | None = None
    """Probability at each step and arm that the fingers begin to close."""
    misses: float | None = None
    """Probability of leading the expert past its goal at each opportunity (Tool Hang)."""
    policy: Path | None = None
    """Checkpoint of a policy (a path or a Hugging Face hub id) that acts first, until the expert takes over. Tool
    Hang's expert continues from the state that the policy has reached; the other experts start their task again from
    there. The labels of the policy's steps are zeros, because the expert's action there is unknown: train with
    --foreseeable 0."""
    takeover: tuple[int, int] | None = None
    """First and last step at which the expert takes over from --policy. By default 0 and 300."""
    actions: str = "delta"
    """Stored actions: delta, or target poses in the frame of the arm's base (base) or of the world (world)."""

    @property
    def name(self) -> str:
        return self.task.rpartition(":")[2]

    @property
    def path(self) -> Path:
        return self.out or Path(f"data/{self.name}.zarr")

    @property
    def exploration(self) -> Exploration:
        asked = {name: getattr(self, name) for name in ("noise", "pushes", "closings", "misses")}
        return replace(TASKS[self.name].exploration, **{name: x for name, x in asked.items() if x is not None})


def main(arguments: Arguments) -> int:
    collection = make_collection(arguments)
    backend = make_backend(arguments)
    store, console = open_store(arguments.path, collection), Console()
    with stop_requests() as stop_requested, progress(console) as shown:
        row = shown.add(arguments.name, arguments.num_episodes, store.num_episodes)
        make_worker = partial(Demonstrator, collection)
        with closing(collect(store, arguments.num_episodes, backend, make_worker, stop_requested)) as outcomes:
            for _ in outcomes:
                label = "finishing running episodes" if stop_requested() else arguments.name
                shown.update(row, store.num_episodes, f"{len(failed_seeds(store))} failed", label)
    report(store, arguments.num_episodes, console)
    if store.num_episodes >= arguments.num_episodes:
        return COMPLETE
    if stop_requested():
        console.print("Interrupted; the same command continues.", style="yellow")
        return INTERRUPTED
    raise DataError(f"All seeds below {FIRST_EVALUATION_SEED} are used up: start from a lower --seed-start.")


def make_collection(arguments: Arguments) -> Collection:
    task = find_task(arguments.task)
    takeover = arguments.takeover or (0, min(LAST_TAKEOVER, task.horizon - 1))
    check_takeover(takeover, task)
    lead = None if arguments.policy is None else Lead(Path(pinned(str(arguments.policy))), takeover)
    return Collection(task, arguments.exploration, arguments.actions, lead, arguments.seed_start)


def find_task(text: str) -> TaskSpec:
    """The task NAME, or MODULE:NAME, whose module registers it on import."""
    module, _, name = text.rpartition(":")
    if module:
        try:
            import_module(module)
        except ImportError as error:
            raise ConfigError(f"--task {text}: {module} cannot be imported ({error}).") from error
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return TASKS[name]


def make_backend(arguments: Arguments) -> Backend:
    workers = arguments.workers
    if arguments.num_episodes < 1 or (workers is not None and workers < 1):
        raise ConfigError(
            f"Got --num-episodes {arguments.num_episodes} and --workers {workers}; expected at least 1 of each."
        )
    workers = WORKERS if workers is None and arguments.backend == "processes" else workers
    return backend_named(arguments.backend, Resources(workers, address=arguments.address))


def report(store: EpisodeStore, wanted: int, console: Console) -> None:
    episodes, failed = store.num_episodes, len(failed_seeds(store))
    tried = max(episodes + failed, 1)
    console.print(
        f"{store.path}: {episodes} of {wanted} episodes, {store.num_steps} steps; "
        f"expert success {episodes}/{tried} ({100 * episodes / tried:.1f} %).",
        soft_wrap=True,
    )
