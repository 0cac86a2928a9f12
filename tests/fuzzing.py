"""Damaged inputs and a harness that tries thousands of them: no hang, no memory bomb, no stray exception.

Every mutation depends on the given `random.Random` alone, so a finding is repeated with its seed.
"""

import copy
import os
import pickle
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from asd_policy.errors import AsdPolicyError

SECONDS = 2  # of CPU time for one input
STUCK = 60  # seconds of wall clock, for what waits instead of computing
MEMORY = 2**30  # bytes above what the process holds before the first input
WORDS = (b"\x00" * 8, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x80\x7f", b"nan", b"[" * 64)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 10**6, 2**31, 2**63, 10**30, -(10**9), 0.5, -0.5, 1e-300, 1e308,
    float("nan"), float("inf"), "", "x", "${horizon}", "a.b", "\x00", [], [1], [[]], {}, {"a": 1}, [1] * 50,
)  # fmt: skip


def mutated_bytes(data: bytes, rng: Random) -> bytes:
    """The bytes with one to four changes: flips, cuts, insertions, repetitions, overwritten words."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[place % len(out)] = rng.randrange(256)
        elif kind == 2:
            del out[place : place + rng.choice((1, rng.randrange(1, 64), len(out)))]
        elif kind == 3:
            out[place:place] = rng.randbytes(rng.randrange(1, 16))
        elif kind == 4:
            out[place:place] = out[place : place + rng.randrange(1, 64)]
        else:
            word = rng.choice(WORDS)
            out[place : place + len(word)] = word
    return bytes(out)


def mutated_json(value: Any, rng: Random) -> Any:
    """A copy of nested dicts and lists with one or two entries removed, renamed, repeated or given another value."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(value))
        if not places:
            return rng.choice(VALUES)
        parent, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[rng.choice(("", "x", f"{key}.x", "action", 3))] = parent.pop(key)
        elif kind == 2:
            parent[key] = _deep(rng.choice((10, 120)), parent[key])
        elif kind == 3:
            parent[key] = [parent[key]] * rng.choice((2, 1000))
        elif kind == 4:
            other, place = rng.choice(places)
            parent[key] = copy.deepcopy(other.get(place) if isinstance(other, dict) else (other or [None])[0])
        elif kind == 5 and isinstance(parent[key], int | float):
            parent[key] = parent[key] * rng.choice((-1, 2, 1000, 1e300)) + rng.choice((0, 1))
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def mutated_tensors(tensors: dict[str, Tensor], rng: Random) -> dict[str, Tensor]:
    """The tensors with one or two dropped, renamed, reshaped, of another type, or with other values."""
    out = dict(tensors)
    for _ in range(rng.choice((1, 1, 2))):
        if not out:
            return out
        name = rng.choice(list(out))
        out[name] = _mutated_tensor(out[name], rng)
        kind = rng.randrange(8)
        if kind == 0:
            del out[name]
        elif kind == 1:
            out[rng.choice(("x", f"module.{name}", f"{name}.x", name[1:]))] = out.pop(name)
    return out


def _mutated_tensor(value: Tensor, rng: Random) -> Tensor:
    kind = rng.randrange(8)
    if kind == 0:
        return value.to(rng.choice((torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)))
    if kind == 1:
        return value.flatten()
    if kind == 2:
        return value.unsqueeze(rng.randrange(value.ndim + 1))
    if kind == 3 and value.ndim:
        return torch.cat([value, value])
    if kind == 4 and value.ndim:
        return value[: len(value) // 2]
    number = rng.choice((float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e-45, 1e-30, 1e20, 1e38))
    changed = value.clone()
    if changed.numel() and (changed.is_floating_point() or number in (0.0, -1.0)):
        changed.view(-1)[rng.randrange(changed.numel())] = number
        if kind == 7:
            changed.fill_(number)
    return changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) within nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield value, key
        yield from _places(child)


def _deep(levels: int, inner: Any) -> Any:
    for _ in range(levels):
        inner = [inner]
    return inner


def findings(check: Callable[[int], None], seeds: Sequence[int]) -> list[str]:
    """What goes wrong when `check` is called with each seed, in child processes under limits.

    Right are a return and an AsdPolicyError. A finding is any other exception, more than `SECONDS` of CPU time, or more
    memory than `MEMORY`.
    """
    found: list[str] = []
    left = list(seeds)
    while left:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            _run(check, left, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            lines = _messages(pipe)
        _, status = os.waitpid(child, 0)
        found += [f"seed {seed}: {problem}" for seed, problem in lines if problem]
        left = left[len(lines) :]
        if left and os.WIFSIGNALED(status):
            found.append(f"seed {left.pop(0)}: killed by {signal.Signals(os.WTERMSIG(status)).name}")
        elif left:
            found.append(f"seed {left.pop(0)}: the process ended")
    return found


def _messages(pipe: Any) -> list[tuple[int, str]]:
    messages = []
    while True:
        try:
            messages.append(pickle.load(pipe))
        except EOFError:
            return messages


def _run(check: Callable[[int], None], seeds: Sequence[int], writer: int) -> None:
    """Call `check` with each seed, tell each result, and end this process."""
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    for seed in seeds:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(STUCK)
        problem = ""
        try:
            check(seed)
        except AsdPolicyError:
            pass
        except BaseException as error:
            problem = f"{type(error).__name__}: {str(error)[:300]}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(writer, pickle.dumps((seed, problem)))
    os._exit(0)
