"""The registry of backends."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from asd_policy.errors import UnknownNameError
from asd_policy.evaluation.backends import Backend, Serial, check_backend
from asd_policy.evaluation.backends.processes import Processes
from asd_policy.evaluation.backends.ray_cluster import Ray


@dataclass(frozen=True)
class Resources:
    """The resources of a backend.

    Attributes:
        workers: how many; None takes as many as the CPUs allow.
        threads: CPUs of each worker.
        address: the address of a running Ray cluster; None starts one on this machine.
        gpu: whether the workers share GPUs.
    """

    workers: int | None = None
    threads: int = 1
    address: str | None = None
    gpu: bool = False

    @property
    def local_workers(self) -> int:
        """The number of workers on this machine."""
        return max(1, (os.cpu_count() or 1) // self.threads) if self.workers is None else self.workers


BACKENDS: Mapping[str, Callable[[Resources], Backend]] = {
    "serial": lambda resources: Serial(),
    "processes": lambda resources: Processes(resources.local_workers, resources.threads),
    "ray": lambda resources: Ray(resources.workers, resources.threads, resources.address, resources.gpu),
}
"""Name -> factory of a backend."""


def make_backend(name: str, resources: Resources) -> Backend:
    """Make the backend registered under `name`.

    Raises:
        ConfigError: on an unknown name, and as the backend's constructor.
    """
    if name not in BACKENDS:
        raise UnknownNameError("backend", name, BACKENDS)
    backend = BACKENDS[name](resources)
    check_backend(backend)
    return backend
