"""Synthetic episodes, shaped like Square's: what the report is drawn from in tests."""

import hashlib

import numpy as np

from asd_policy.evaluation.results import Record

STEPS = 100
LATENCY = {"ddpm": 0.98, "ddim:10": 0.1, "asd:frozen:24": 0.45, "asd:path:16": 0.2}  # seconds a chunk
ROUNDS = {"ddpm": 100, "ddim:10": 10, "asd:frozen:24": 23, "asd:path:16": 11}
SETTINGS = {"device": "cpu", "threads": 1, "batch": 1}


def episode(task: str, sampler: str, env_seed: int, repeat: int, success: bool, **changes) -> Record:
    """One episode of 5 to 50 chunks; `changes` replace its fields."""
    rng = np.random.default_rng([env_seed, repeat, *sampler.encode()])
    length = int(rng.integers(80, 300)) if success else 400
    chunks = -(-length // 8)
    drafts = sampler.startswith("asd")
    rounds = ROUNDS[sampler] + (rng.poisson(2, chunks) + 4 * (np.arange(chunks) == 0) if drafts else np.zeros(chunks))
    acceptance = 1 - np.linspace(0, 0.7, STEPS) ** 3 + 0.02 * rng.standard_normal(STEPS)
    fields = {
        "task": task,
        "sampler": sampler,
        "env_seed": env_seed,
        "repeat": repeat,
        "noise_seed": 1000 * env_seed + repeat,
        "success": success,
        "length": length,
        "latency": (LATENCY[sampler] * rng.lognormal(0, 0.1, chunks)).tolist(),
        "rounds": rounds.astype(int).tolist(),
        "evaluations": (rounds.astype(int) * (16 if drafts else 1)).tolist(),
        "acceptance": acceptance.clip(0, 1).tolist() if drafts else [0.0] * STEPS,
        "action_sha256": hashlib.sha256(repr((task, sampler, env_seed, repeat)).encode()).hexdigest(),
        "error": None,
        "checkpoint_sha256": hashlib.sha256(task.encode()).hexdigest(),
        "settings": SETTINGS,
        "software": {"python": "3.11.2", "torch": "2.14.0", "git": "0123456789ab"},
    }
    return Record(**fields | changes)


def sweep(task: str = "square", samplers=tuple(ROUNDS), seeds: int = 100, repeats: int = 1, chance: float = 0.94):
    """Episodes in which hard seeds are hard for every sampler."""
    rng = np.random.default_rng(0)
    hard = rng.random(seeds) > chance
    return [
        episode(task, sampler, 100000 + seed, repeat, bool(rng.random() < (0.4 if hard[seed] else 0.99)))
        for sampler in samplers
        for seed in range(seeds)
        for repeat in range(repeats)
    ]
