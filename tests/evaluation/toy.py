"""A toy environment and policy, and a toy sweep whose episodes can be made to break or to take their worker down."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np

from asd_policy.errors import ConfigError
from asd_policy.evaluation.backends import Serial
from asd_policy.evaluation.backends.processes import Processes
from asd_policy.evaluation.backends.ray_cluster import Ray
from asd_policy.evaluation.results import ResultsFile
from asd_policy.evaluation.seeds import parse_seeds
from asd_policy.evaluation.sweep import Plan, sweep
from asd_policy.evaluation.worker import LoadedTask
from asd_policy.interrupt import stop_requests


class Walk(gymnasium.Env):
    """A point must be brought beyond 1; the episode is cut after 12 steps.

    Args:
        faults: env seed -> what happens at the third step.
        marks: folder that remembers which faults have happened.
    """

    observation_space = gymnasium.spaces.Dict({"x": gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)})
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, faults: Mapping[int, str] = {}, marks: Path | None = None, delay: float = 0.0):
        self.faults, self.marks, self.delay = faults, marks, delay

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.x, self.t = seed, self.np_random.uniform(0, 0.1, 1).astype(np.float32), 0
        return {"x": self.x}, {"success": False}

    def step(self, action):
        time.sleep(self.delay)
        self.x, self.t = self.x + 0.2 * action, self.t + 1
        if self.t == 3:
            self.break_down(self.faults.get(self.seed))
        success = bool(self.x[0] > 1)
        return {"x": self.x}, float(success), success, self.t == 12, {"success": success}

    def break_down(self, fault):
        if fault == "diverge":
            raise FloatingPointError(f"diverged at step {self.t}")
        if fault == "misconfigured":
            raise ConfigError("the whole sweep is wrong")
        if fault == "no memory":
            raise MemoryError
        if fault == "kill once" and not (self.marks / str(self.seed)).exists():
            (self.marks / str(self.seed)).touch()
            fault = "kill"
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def render(self):
        return np.full((2, 2, 3), self.t, dtype=np.uint8)


@dataclass
class Cost:
    latency: float
    rounds: np.ndarray
    evaluations: np.ndarray
    acceptance: np.ndarray


class Push:
    """Acts by noise around a constant, or NaN when its first draw is above `nan_above`; a chunk is four steps.

    Args:
        started: file that gets a line per episode.
    """

    def __init__(self, strength, rounds, started=None, name="", nan_above=np.inf):
        self.strength, self.rounds, self.stats = strength, rounds, None
        self.started, self.name, self.nan_above = started, name, nan_above

    def reset(self, seed=None, seeds=None):
        self.rngs, self.t = [np.random.default_rng(one) for one in ([seed] if seeds is None else seeds)], 0
        self.batched = seeds is not None
        if self.started is not None:
            with self.started.open("a") as file:
                file.writelines(f"{self.name} {one}\n" for one in ([seed] if seeds is None else seeds))

    def act(self, obs):
        if self.t % 4 == 0:
            calls = np.full(len(self.rngs), self.rounds)
            self.stats = Cost(0.001 * self.rounds, calls, 2 * calls, np.array([1.0, 0.5]))
        self.t += 1
        draws = np.stack([rng.standard_normal(1) for rng in self.rngs])
        actions = (self.strength + 0.1 * draws + 0.01 * obs["x"]).astype(np.float32)
        actions[draws > self.nan_above] = np.nan
        return actions if self.batched else actions[0]


@dataclass(frozen=True)
class Toy:
    """Loads the toy task: what `sweep` is given to load."""

    faults: Mapping[int, str] = field(default_factory=dict)
    folder: Path | None = None  # for the started episodes, the workers' process ids and the marks
    delay: float = 0.0
    nan_above: float = np.inf

    def __call__(self, task):
        started = self.folder / "started" if self.folder else None
        if self.folder:
            with (self.folder / "workers").open("a") as file:
                file.write(f"{os.getpid()}\n")
        return LoadedTask(
            partial(Walk, self.faults, self.folder, self.delay),
            lambda label: Push(float(label), 7, started, label, self.nan_above),
        )


def toy_plan(seeds="0-4", samplers=("0.9", "0.3"), repeats=2, batch=1, checkpoint="ab"):
    settings = {"device": "cpu", "threads": 1, "batch": batch}
    return Plan({"walk": checkpoint * 32}, samplers, parse_seeds(seeds), repeats, settings)


def main(folder, backend):
    """A toy sweep as a process of its own, to be killed."""
    backends = {"serial": Serial, "processes": partial(Processes, 2), "ray": partial(Ray, 2)}
    with stop_requests() as stop_requested, ResultsFile(Path(folder) / "sweep.jsonl") as file:
        toy = Toy(folder=Path(folder), delay=0.02)
        for record in sweep(toy_plan(), file, backends[backend](), toy, stop_requested):
            print(record.sampler, record.env_seed, record.repeat, flush=True)
    return 130 if stop_requested() else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
