"""Training windows against a literal transcription of Diffusion Policy's padding rule."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asd_policy.data.windows import make_windows
from asd_policy.errors import DataError


def expected_windows(lengths: list[int], n_obs: int, horizon: int, n_action: int) -> list[list[int]]:
    """Step indices of each window: starts -(To - 1) .. length - horizon + Ta - 1, edges repeated."""
    windows, begin = [], 0
    for length in lengths:
        for start in range(-(n_obs - 1), length - horizon + n_action):
            steps = [min(max(start + offset, 0), length - 1) for offset in range(horizon)]
            windows.append([begin + step for step in steps])
        begin += length
    return windows


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    n_obs=st.integers(1, 3),
    horizon=st.sampled_from([4, 8, 16]),
    n_action=st.integers(1, 4),
)
def test_windows_are_diffusion_policys(lengths: list[int], n_obs: int, horizon: int, n_action: int) -> None:
    n_action = min(n_action, horizon - n_obs + 1)
    total = sum(lengths)
    index = torch.arange(total)
    obs = torch.stack([index, -index], dim=1).float()
    ends = torch.tensor(lengths).cumsum(0)
    expected = expected_windows(lengths, n_obs, horizon, n_action)
    if not expected:
        with pytest.raises(DataError, match="long enough"):
            make_windows({"x": obs}, index[:, None].float(), ends, n_obs, horizon, n_action)
        return
    windows = make_windows({"x": obs}, index[:, None].float(), ends, n_obs, horizon, n_action)
    assert len(windows) == len(expected)
    seen, actions = windows.gather(torch.arange(len(windows)))
    steps = torch.tensor(expected)
    assert torch.equal(actions[..., 0].long(), steps)
    assert torch.equal(seen["x"], obs[steps[:, :n_obs]])


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(16, 40), min_size=1, max_size=3),
    disturbed=st.lists(st.integers(0, 47), max_size=4),
    n_obs=st.integers(1, 3),
)
def test_windows_are_foreseeable_until_something_unseen_changes_their_actions(
    lengths: list[int], disturbed: list[int], n_obs: int
) -> None:
    ends = torch.tensor(lengths).cumsum(0)
    steps = torch.arange(int(ends[-1]))
    mask = torch.isin(steps, torch.tensor(disturbed, dtype=torch.int64))
    windows = make_windows({"x": steps[:, None]}, steps[:, None].float(), ends, n_obs, 16, 8)
    chunks = windows.gather(torch.arange(len(windows)))[1][..., 0].long()
    # The last action has no later one to change; a step repeated past the end of its episode changes none either.
    expected = [c.tolist() for c in chunks if not mask[c[n_obs - 1 : -1]].any()]
    if not expected:
        with pytest.raises(DataError, match="leave gaps"):
            windows.foreseeable(mask)
        return
    kept = windows.foreseeable(mask)
    assert kept.gather(torch.arange(len(kept)))[1][..., 0].long().tolist() == expected


def test_gather_takes_any_indices() -> None:
    steps = torch.arange(40.0)[:, None]
    windows = make_windows({"x": steps}, steps, torch.tensor([40]), 2, 16, 8)
    seen, actions = windows.gather(torch.tensor([5, 0, 5]))
    assert seen["x"].flatten(1).tolist() == [[4, 5], [0, 0], [4, 5]]
    assert actions.shape == (3, 16, 1)
    assert torch.equal(actions[0], actions[2])


@pytest.mark.parametrize("ends", [[], [10, 10, 40], [20, 30], [30, 20, 40], [50]])
def test_ends_that_do_not_fit_are_refused(ends: list[int]) -> None:
    steps = torch.zeros(40, 1)
    with pytest.raises(DataError, match="episode_ends"):
        make_windows({"x": steps}, steps, torch.tensor(ends, dtype=torch.int64), 2, 16, 8)
