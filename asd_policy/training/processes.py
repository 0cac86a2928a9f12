"""The processes that train one run together: the only module that knows of more than one.

Every process draws the random numbers of the whole batch and computes its share, so the batch, its noise and its
timesteps do not depend on their number. torch averages the gradients (DistributedDataParallel). Optimizer and EMA run
in every process on equal weights; only the first process writes files.

accelerate joins the processes: it reads the environment of torchrun and of its own launcher, and chooses backend and
device. lerobot trains with it too, so its users have it. Mixed precision and accumulation need no help from it, so that
one process needs no accelerate, and computes as before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from asd_policy.errors import ConfigError, WorkerError

TIMEOUT = timedelta(minutes=10)
"""Longest time that a process waits for the others, for example while the first one writes a snapshot."""

LOST = ("gloo", "connection closed", "connection reset", "broken pipe", "timed out", "nccl")
"""What torch's errors say if another process is gone. They have no class of their own."""


class Processes:
    """This process, or this process among others.

    Args:
        accelerator: accelerate's Accelerator, which knows the others; None if this process trains alone.

    Attributes:
        count: their number.
        rank: this process's, from 0 on.
    """

    def __init__(self, accelerator: Any = None):
        self._accelerator = accelerator
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.rank = 0 if accelerator is None else accelerator.process_index
        # flags travel on the CPU, so that the GPU need not be waited for
        self._flags: Any = None
        if accelerator is not None:
            self._flags = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)

    @classmethod
    def join(cls, device: str) -> Processes:
        """Join the processes that torchrun or `accelerate launch` has started; without a launcher, train alone.

        Args:
            device: "cpu", or another kind for each process's own device.

        Raises:
            ConfigError: if there are several processes but accelerate is not installed, or they cannot connect.
        """
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        try:
            accelerate = import_module("accelerate")
        except ImportError as error:
            raise ConfigError(
                "Training in several processes needs accelerate (pip install 'asd-policy[distributed]')."
            ) from error
        options = [
            accelerate.InitProcessGroupKwargs(timeout=TIMEOUT),
            accelerate.DistributedDataParallelKwargs(broadcast_buffers=False),  # no buffer changes: see check_divisible
        ]
        try:
            return cls(accelerate.Accelerator(cpu=torch.device(device).type == "cpu", kwargs_handlers=options))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"The processes of the training cannot connect: {error!s:.300}") from error

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows the progress."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """The device of this process: its own GPU among several processes, else the wanted one."""
        return wanted if self._accelerator is None else str(self._accelerator.device)

    def shares(self, batch_size: int, accumulate: int) -> list[slice]:
        """The parts of a batch that this process computes, one after another.

        Raises:
            ConfigError: if the batch does not divide into equal parts.
        """
        total = self.count * accumulate
        if batch_size % total:
            raise ConfigError(
                f"A batch of {batch_size} does not divide into {total} equal parts ({self.count} processes, "
                f"--accumulate {accumulate}); change --batch-size or --accumulate."
            )
        size = batch_size // total
        first = self.rank * accumulate
        return [slice(size * part, size * (part + 1)) for part in range(first, first + accumulate)]

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with its gradients averaged over the processes in each backward pass."""
        return module if self._accelerator is None else cast(nn.Module, self._accelerator.prepare_model(module))

    def keeping_gradients(self, wrapped: nn.Module, keep: bool) -> AbstractContextManager[None]:
        """A context for a backward pass; if `keep`, gradients are added up here and not averaged yet."""
        if self._accelerator is None or not keep:
            return nullcontext()
        return cast(AbstractContextManager[None], self._accelerator.no_sync(wrapped))

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        return value if self._accelerator is None else cast(Tensor, self._accelerator.reduce(value, "mean"))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. All processes must call it."""
        if self._flags is None:
            return flag
        flags = torch.tensor(int(flag))
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, self._flags)
        return bool(flags)

    def wait(self) -> None:
        """Wait until every process has come here."""
        self.any(False)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A context in which the loss of another process is told.

        Raises:
            WorkerError: if another process has ended, or has not answered for `TIMEOUT`.
        """
        try:
            yield
        except RuntimeError as error:
            if self._accelerator is None or not any(told in str(error).lower() for told in LOST):
                raise
            raise WorkerError(
                f"Process {self.rank} of {self.count} has lost another one, or has had no answer for "
                f"{TIMEOUT.total_seconds():.0f} s. The last saved state is unchanged: resume the run. ({error!s:.200})"
            ) from error
