"""warm_up: what a control loop would have to wait for is done before it."""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from asd_policy import load_policy
from asd_policy.errors import ConfigError
from tests.tiny import tiny_checkpoint

COMPILED = [
    ("asd", {"draft": "path", "window": 5}),
    ("asd", {"draft": "frozen", "window": None}),
    ("asd", {"draft": "reuse", "window": (3, *[7] * 4, *[2] * 7)}),
    ("ddpm", {}),
    ("ddim", {"num_steps": 4}),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("warm_up") / "tiny", {"a": 3}, 2, down_dims=(8,))


def observation(step: int, batch: int | None = None) -> dict[str, np.ndarray]:
    return {"a": np.random.default_rng(step).standard_normal(3 if batch is None else (batch, 3))}


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize(("sampler", "options"), COMPILED)
def test_nothing_is_compiled_after_it(checkpoint, sampler, options, batch):
    """Through episodes, with one row of a batch out of step with the others."""
    policy = load_policy(checkpoint, sampler=sampler, capture="compile", **options)
    policy.warm_up(batch or 1)
    compiled = dict(counters["stats"])
    assert compiled["unique_graphs"] > 0
    for episode in range(3):
        policy.reset(**({"seed": episode} if batch is None else {"seeds": range(batch)}))
        for step in range(20):
            if step == 3 and batch is not None:
                policy.reset(mask=[True] + [False] * (batch - 1))
            policy.act(observation(step, batch))
    assert dict(counters["stats"]) == compiled


@pytest.mark.parametrize("options", [{"window": 4}, {"sampler": "ddim"}])
def test_the_policy_stays_as_it_is(checkpoint, options):
    policy, plain = (load_policy(checkpoint, **options) for _ in range(2))
    state = torch.get_rng_state()
    policy.warm_up()
    assert policy.stats is None
    assert torch.equal(state, torch.get_rng_state())
    for each in (policy, plain):
        each.reset(seed=0)
    for step in range(20):
        if step in (3, 11):
            policy.warm_up(2)
        assert np.array_equal(policy.act(observation(step)), plain.act(observation(step)))


def test_errors_are_those_of_act(checkpoint):
    with pytest.raises(ConfigError, match="has not been calibrated"):
        load_policy(checkpoint, window="auto").warm_up()
    with pytest.raises(ConfigError, match="batch_size is 0"):
        load_policy(checkpoint).warm_up(0)


@pytest.mark.parametrize("sampler", ["asd", "ddpm", "ddim"])
def test_it_is_needed_where_something_is_compiled(checkpoint, sampler):
    needed = [load_policy(checkpoint, sampler, capture=capture).needs_warm_up for capture in ("eager", "compile")]
    assert needed == [False, True]
