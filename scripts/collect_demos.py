"""Collect demonstrations of a task's scripted expert into an episode store.

    python scripts/collect_demos.py --task square --num-episodes 200 --out data/square.zarr --workers 2

Seeds are tried upward from --seed-start until enough of them succeed; failures are recorded, not stored. Running
the command again continues where it stopped. Ctrl-C finishes the episodes in flight first; a
second one quits at once. The store's content does not depend on the number of workers.
"""

import os
import platform
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, astuple, dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import rich
import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import AsdPolicyError, ConfigError, DataError, UnknownNameError, WorkerError
from asd_policy.interrupt import stop_requests
from envs.tasks import ACTIONS, TASKS, Exploration

FIRST_EVALUATION_SEED = 100_000
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Args:
    """Collect demonstrations of a task's scripted expert.

    Attributes:
        task: a task of `envs.tasks`.
        num_episodes: successful episodes the store shall hold.
        out: folder of the store; an existing one is continued. By default data/TASK.zarr.
        workers: processes that roll out episodes.
        seed_start: first seed to try; evaluation uses the seeds from 100000 on, demonstrations those below.
        noise, pushes, closings, misses: what disturbs the expert, of `envs.tasks.Exploration`. By default the task's.
        policy: checkpoint of a policy that acts first, until the expert takes over: Tool Hang's goes on from where the
            policy has come to, the others begin anew there. What the expert would have done before is not known and
            stored as standing still, so train with --foreseeable 0.
        takeover: first and last step at which the expert takes over.
        actions: what is stored, a key of `envs.tasks.ACTIONS`: deltas, or target poses in the frame of the arm's base
            or of the world.
    """

    task: str = "square"
    num_episodes: int = 200
    out: Path | None = None
    workers: int = 2
    seed_start: int = 0
    noise: float | None = None
    pushes: float | None = None
    closings: float | None = None
    misses: float | None = None
    policy: Path | None = None
    takeover: tuple[int, int] = (0, 300)
    actions: str = "delta"

    @property
    def path(self) -> Path:
        return self.out or Path(f"data/{self.task}.zarr")

    @property
    def exploration(self) -> Exploration:
        asked = {name: getattr(self, name) for name in ("noise", "pushes", "closings", "misses")}
        return replace(TASKS[self.task].exploration, **{name: x for name, x in asked.items() if x is not None})


def main(args: Args) -> None:
    check(args)
    store = open_store(args)
    interrupted = collect(store, args)
    report(store, args)
    if store.num_episodes >= args.num_episodes:
        return
    if interrupted:
        raise SystemExit(130)
    raise DataError(f"All seeds below {FIRST_EVALUATION_SEED} are used up: start from a lower --seed-start.")


def collect(store: EpisodeStore, args: Args) -> bool:
    """Fill the store with successful episodes, in the order of their seeds; whether Ctrl-C stopped it."""
    with stop_requests() as stop_requested, progress_bar() as progress:
        bar = progress.add_task(args.task, total=args.num_episodes, failed=0)

        def show_progress() -> None:
            doing = "finishing what is in flight" if stop_requested() else args.task
            progress.update(bar, description=doing, completed=store.num_episodes, failed=len(failed_seeds(store)))

        def missing() -> int:
            return 0 if stop_requested() else args.num_episodes - store.num_episodes

        show_progress()
        for seed, episode in rollouts(args, next_seed(store, args), missing):
            record(store, seed, episode)
            show_progress()
    return stop_requested()


def check(args: Args) -> None:
    if args.task not in TASKS:
        raise UnknownNameError("task", args.task, TASKS)
    if args.actions not in ACTIONS:
        raise UnknownNameError("kind of actions", args.actions, ACTIONS)
    if not 0 <= args.seed_start < FIRST_EVALUATION_SEED:
        raise ConfigError(
            f"--seed-start {args.seed_start} is outside 0..{FIRST_EVALUATION_SEED - 1}: "
            f"the seeds from {FIRST_EVALUATION_SEED} on are kept for evaluation."
        )
    if args.num_episodes < 1 or args.workers < 1:
        raise ConfigError(
            f"Got --num-episodes {args.num_episodes} and --workers {args.workers}; expected at least 1 of each."
        )
    noise, *probabilities = astuple(args.exploration)
    if not (0.0 <= noise < np.inf and all(0.0 <= p <= 1.0 for p in probabilities)):
        got = ", ".join(f"--{name} {value}" for name, value in asdict(args.exploration).items())
        raise ConfigError(f"Got {got}; expected at least 0, and probabilities.")
    first, last = args.takeover
    if not 0 <= first <= last < TASKS[args.task].horizon:
        raise ConfigError(f"Got --takeover {first} {last}; expected steps of the episode, in this order.")
    if args.policy is not None:
        check_policy(args.policy, args)
    if args.exploration.misses:
        from envs.experts import MISSES  # here, because it loads the simulator

        if args.task not in MISSES:
            raise ConfigError(f"--misses: {args.task} cannot be led past its goal; {', '.join(MISSES)} can.")


def check_policy(policy: Path, args: Args) -> None:
    from asd_policy.importers.registry import read_checkpoint

    env_id, expected = read_checkpoint(policy).config.env_id, TASKS[args.task].env_id
    if env_id != expected:
        raise ConfigError(f"{policy} is a policy for {env_id}; expected one for {expected}.")
    if args.actions != "delta":
        raise ConfigError("A policy's actions are stored as it gives them: leave --actions out.")


def open_store(args: Args) -> EpisodeStore:
    """The store to fill: a new one, or an existing one made with the same settings."""
    task = TASKS[args.task]
    settings = {"env_id": task.variant(args.actions), **asdict(args.exploration), "seed_start": args.seed_start}
    if args.policy is not None:
        settings |= {"policy": str(args.policy), "takeover": list(args.takeover)}
    if not args.path.exists():
        attrs = {**settings, "failed_seeds": [], "versions": versions()}
        shapes = {key: (dim,) for key, dim in task.obs_dims.items()}
        return EpisodeStore.create(args.path, shapes, task.action_dim, attrs)
    store = EpisodeStore.open(args.path, writable=True)
    differing = {key: store.attrs.get(key) for key, value in settings.items() if store.attrs.get(key) != value}
    if differing:
        raise DataError(f"{args.path} was collected with {differing}, which differs from what is asked: {settings}.")
    return store


def versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("robosuite", "mujoco", "numpy", "gymnasium")}
    return {"python": platform.python_version(), **packages}


def next_seed(store: EpisodeStore, args: Args) -> int:
    return max([args.seed_start - 1, *store.seeds.tolist(), *failed_seeds(store)]) + 1


def failed_seeds(store: EpisodeStore) -> list[int]:
    return list(store.attrs["failed_seeds"])


def rollouts(args: Args, first_seed: int, missing: Callable[[], int]) -> Iterator[tuple[int, Demonstration | None]]:
    """Outcomes in the order of the seeds, while any are missing; what was begun is always finished."""
    os.environ.update(SINGLE_THREADED)
    seeds = iter(range(first_seed, FIRST_EVALUATION_SEED))
    lead = None if args.policy is None else Lead(args.policy, args.takeover)
    pending: deque[tuple[int, Future[Demonstration | None]]] = deque()
    with ProcessPoolExecutor(args.workers, get_context("spawn"), initializer=ignore_interrupts) as pool:
        while True:
            wanted = min(args.workers + 1, missing()) - len(pending)
            for seed in islice(seeds, max(wanted, 0)):
                pending.append((seed, pool.submit(roll_out, args.task, seed, args.exploration, args.actions, lead)))
            if not pending:
                return
            seed, future = pending.popleft()
            try:
                outcome = future.result()
            except BrokenProcessPool as error:
                raise WorkerError(
                    f"A worker was lost, perhaps for want of memory, at seed {seed} or soon after. The episodes before "
                    "it are kept: run the command again to go on, with fewer --workers if it happens again."
                ) from error
            yield seed, outcome


@dataclass(frozen=True)
class Lead:
    """A policy that acts first, and the first and last step at which the expert takes over.

    As in HG-DAgger (Kelly et al. 2019, https://arxiv.org/abs/1810.02890), the expert shows the way on from where the
    policy leads; here the time comes by chance.
    """

    policy: Path
    takeover: tuple[int, int]

    def act(self, obs: Mapping[str, Any], seed: int) -> Iterator[np.ndarray]:
        """The policy's actions, each for what `obs` holds when it is asked for."""
        policy = load_lead(self.policy)
        policy.reset(seed=seed)
        for _ in range(np.random.default_rng([seed, 3]).integers(*self.takeover, endpoint=True)):
            yield policy.act(obs)


@cache
def load_lead(path: Path) -> Any:
    import torch  # here, because it takes seconds

    from asd_policy import load_policy

    torch.set_num_threads(1)
    return load_policy(path, sampler="ddim")  # its law does not matter here, only where it leads


def roll_out(
    task: str, seed: int, exploration: Exploration, actions: str = "delta", lead: Lead | None = None
) -> Demonstration | None:
    """One episode of the expert, disturbed as `exploration` says; None if it ends without success."""
    from envs.robosuite_env import SimulationError  # here, so that the collecting process never loads the simulator

    env = make_env(task, actions)
    obs, _ = env.reset(seed=seed)
    now = dict(obs)
    steps: list[tuple[dict[str, Any], np.ndarray, np.ndarray]] = []
    successes = []
    for action, executed in demonstrate(env, seed, exploration, actions, lead, now):
        executed = executed.astype(np.float32)
        steps.append((obs, action, executed))
        try:
            obs, _, _, truncated, info = env.step(executed)
        except SimulationError:
            return None
        now.update(obs)
        successes.append(info["success"])
        if truncated:
            break
    if not successes[-1]:
        return None
    observations, labels, executions = zip(*steps, strict=True)
    return Demonstration(
        seed=seed,
        obs={key: np.stack([o[key] for o in observations]) for key in observations[0]},
        action=np.stack(labels).astype(np.float32),
        executed_action=np.stack(executions),
        steps_to_success=successes.index(True) + 1,
    )


def demonstrate(
    env: gymnasium.Env, seed: int, exploration: Exploration, actions: str, lead: Lead | None, now: Mapping[str, Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The expert's action at each step, and the one to execute; `now` holds the observation to act on."""
    from envs.experts import make_expert, make_misses
    from envs.experts.exploration import exploration_noise
    from envs.pose_actions import to_pose_action

    if lead is not None:
        for executed in lead.act(now, seed):
            yield np.zeros_like(executed), executed
    style, noise, chance = (np.random.default_rng([seed, stream]) for stream in (0, 1, 2))
    simulation = env.get_wrapper_attr("robosuite")
    disturbances = exploration_noise(exploration, len(env.get_wrapper_attr("task").robots), noise)
    misses = make_misses(env, exploration.misses, chance)
    for action, disturbance, miss in zip(make_expert(env, style), disturbances, misses, strict=False):
        executed = np.clip(action + disturbance, -1.0, 1.0) if miss is None else miss
        if actions != "delta":
            action, executed = (to_pose_action(simulation, a, actions) for a in (action, executed))
        yield action, executed


@cache
def make_env(task: str, actions: str) -> gymnasium.Env:
    return gymnasium.make(f"envs:{TASKS[task].variant(actions)}", terminate_on_success=False)


def record(store: EpisodeStore, seed: int, episode: Demonstration | None) -> None:
    if episode is None:
        store.update_attrs(failed_seeds=[*failed_seeds(store), seed])
    else:
        store.append(episode)


def ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )


def report(store: EpisodeStore, args: Args) -> None:
    episodes, failed = store.num_episodes, len(failed_seeds(store))
    tried = max(episodes + failed, 1)
    rich.print(
        f"{store.path}: {episodes} of {args.num_episodes} episodes, {store.num_steps} steps; "
        f"expert success {episodes}/{tried} ({100 * episodes / tried:.1f} %)."
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except AsdPolicyError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
