"""Training windows over demonstrations.

They equal the windows of Diffusion Policy's SequenceSampler (https://github.com/real-stanford/diffusion_policy,
`common/sampler.py`). A window may begin before its episode or run past its end; there the edge step is repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from asd_policy.data.lazy_images import LazyImages
from asd_policy.errors import DataError


@dataclass(frozen=True)
class TrainingWindows:
    """W windows of H steps over N steps of demonstrations, stored as indices into the demonstrations' tensors.

    Attributes:
        obs: (N, ...) per key, unnormalised observations; images may be read when they are used.
        actions: (N, A) normalised actions.
        starts: (W,) int64, first step of each window; may lie before its episode.
        first: (W,) int64, first step of the window's episode.
        last: (W,) int64, last step of the window's episode.
        n_obs_steps: To, the number of observations of a window, its first steps.
        horizon: H, the number of actions of a window.
    """

    obs: Mapping[str, Tensor | LazyImages]
    actions: Tensor
    starts: Tensor
    first: Tensor
    last: Tensor
    n_obs_steps: int
    horizon: int

    def __len__(self) -> int:
        return len(self.starts)

    def to(self, device: torch.device | str) -> TrainingWindows:
        """The same windows with their tensors on another device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, obs={key: value.to(device) for key, value in self.obs.items()}, **tensors)

    def gather(self, indices: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """indices (B,) int64 -> observations (B, To, ...) per key and action chunks (B, H, A)."""
        offsets = torch.arange(self.horizon, device=self.starts.device)
        steps = self.starts[indices, None] + offsets
        steps = steps.clamp(self.first[indices, None], self.last[indices, None])
        seen = steps[:, : self.n_obs_steps]
        return {key: values[seen] for key, values in self.obs.items()}, self.actions[steps]

    def foreseeable(self, disturbed: Tensor) -> TrainingWindows:
        """Windows whose expert is undisturbed after the policy's last observation.

        The expert's answer to a later push cannot be predicted from the observations. A policy that learned it would
        act on pushes that do not happen.

        Args:
            disturbed: (N,) bool, the steps at which the expert is disturbed.

        Raises:
            DataError: if no window is left.
        """
        before = torch.cat([torch.zeros_like(disturbed[:1], dtype=torch.int64), disturbed.cumsum(0)])
        # The disturbance of a window's last action comes after all its other steps, so it does not count.
        begin, end = self.starts + self.n_obs_steps - 1, torch.minimum(self.starts + self.horizon - 1, self.last + 1)
        calm = before[begin] == before[end]
        if not calm.any():
            raise DataError(
                "In every window the expert is disturbed after the policy's last observation. Raise foreseeable, "
                "up to which a disturbance counts as noise, or collect demonstrations whose pushes leave gaps."
            )
        return replace(self, starts=self.starts[calm], first=self.first[calm], last=self.last[calm])


def make_windows(
    obs: Mapping[str, Tensor | LazyImages],
    actions: Tensor,
    episode_ends: Tensor,
    n_obs_steps: int,
    horizon: int,
    n_action_steps: int,
) -> TrainingWindows:
    """All windows of all episodes, padded by To - 1 steps before an episode and Ta - 1 steps after it.

    Args:
        obs: (N, ...) observations per key, episodes laid end to end.
        actions: (N, A) normalised actions.
        episode_ends: (E,) int64, one past the last step of each episode.
        n_obs_steps: To.
        horizon: H.
        n_action_steps: Ta.

    Raises:
        DataError: if the episodes do not cover the arrays, or none is long enough for a window.
    """
    ends = episode_ends.tolist()
    begins = [0, *ends[:-1]]
    lengths = {len(values) for values in (*obs.values(), actions)}
    covered = len(ends) > 0 and lengths == {ends[-1]}
    if not covered or any(end <= begin for begin, end in zip(begins, ends, strict=True)):
        raise DataError(
            f"episode_ends must increase up to the number of steps; got {ends[:3]}...{ends[-1:]} "
            f"for observations and actions of {sorted(lengths)} steps."
        )
    # From To - 1 steps before the episode to where Ta - 1 steps of the window lie past its end.
    starts = [
        torch.arange(begin - (n_obs_steps - 1), end - horizon + n_action_steps)
        for begin, end in zip(begins, ends, strict=True)
        if end - horizon + n_action_steps > begin - (n_obs_steps - 1)
    ]
    if not starts:
        raise DataError(f"No episode is long enough for a window of {horizon} steps.")
    all_starts = torch.cat(starts)
    # A window's first executed step, start + To - 1, always lies inside its episode.
    episode = torch.searchsorted(episode_ends, all_starts + n_obs_steps - 1, right=True)
    first = torch.tensor(begins)[episode]
    return TrainingWindows(obs, actions, all_starts, first, episode_ends[episode] - 1, n_obs_steps, horizon)
