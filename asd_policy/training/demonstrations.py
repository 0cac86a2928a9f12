"""Demonstrations as tensors for training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asd_policy.data.dataset import Choice, Dataset
from asd_policy.data.formats import open_dataset
from asd_policy.data.gate import ACTION_KINDS
from asd_policy.data.lazy_images import LazyImages, half_of_memory
from asd_policy.data.windows import TrainingWindows, make_windows
from asd_policy.errors import ConfigError, DataError
from asd_policy.nets import Architecture
from asd_policy.policies.actions import POSE_ARM, POSE_ARM_DIM, POSE_ARM_ENV_DIM, from_env_poses
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.image_keys import ImageKey, central_crop
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.policies.quaternions import Quaternion, with_steady_signs
from asd_policy.policies.tasks import is_ours, takes_poses

IMAGE_FEATURES = 64
"""Features of an image, as in real-stanford's and robomimic's policies."""


@dataclass(frozen=True)
class Demonstrations:
    """Episodes of a dataset, as tensors.

    Attributes:
        env_id: the environment.
        obs: (N, D) per key, float32; for images (N, H, W, C), uint8, in memory or read when they are used.
        actions: (N, A), the expert's; rotations of target poses as six numbers, as the network predicts them.
        episode_ends: (E,) int64.
        disturbance: (N,), the largest absolute difference between an executed action and the expert's.
        action_kind: the meaning of actions, a key of `asd_policy.data.gate.ACTION_KINDS`.
        notes: warnings to read before training on them.
    """

    env_id: str
    obs: dict[str, Tensor | LazyImages]
    actions: Tensor
    episode_ends: Tensor
    disturbance: Tensor
    action_kind: str
    notes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        path: str | Path,
        episodes: int | None = None,
        filter_key: str | None = None,
        absolute: bool = False,
        obs_keys: Sequence[str] = (),
        clip_actions: bool = False,
        action_key: str | None = None,
        env_id: str | None = None,
    ) -> Demonstrations:
        """Read the first `episodes` of a dataset in any of `asd_policy.data.formats.FORMATS`; None reads all.

        Args:
            path: a file, a folder, or a repository of the hub.
            filter_key, absolute, obs_keys, clip_actions, action_key, env_id: see `asd_policy.data.dataset.Choice`.

        Raises:
            UnknownNameError: on an observation or action that the dataset lacks.
            ConfigError: if `clip_actions` is set and actions have no range, or a package is not installed.
            DataError: if there are fewer episodes than asked for, or the dataset cannot be used.
            HubError: if the repository cannot be downloaded.
        """
        choice = Choice(tuple(obs_keys), action_key, env_id, filter_key, absolute, clip_actions)
        return cls._from(open_dataset(path, choice), episodes)

    @classmethod
    def _from(cls, dataset: Dataset, episodes: int | None) -> Demonstrations:
        available = len(dataset.names)
        wanted = available if episodes is None else episodes
        if not 1 <= wanted <= available:
            dataset.close()
            raise DataError(f"{dataset.path} holds {available} episodes; {wanted} are asked for.")
        try:
            rows = dataset.read(wanted)
            obs = _in_memory(rows.obs)
        except BaseException:
            dataset.close()
            raise
        if not any(isinstance(values, LazyImages) for values in obs.values()):
            dataset.close()
        actions, ends = torch.from_numpy(rows.action.copy()), torch.from_numpy(rows.ends.copy())
        disturbance = torch.zeros(len(actions))
        if rows.executed_action is not rows.action:
            disturbance = (torch.from_numpy(rows.executed_action) - actions).abs().amax(dim=1)
        return cls._of(dataset.env_id, dataset.action_kind, obs, actions, ends, disturbance, dataset.notes)

    @classmethod
    def _of(
        cls,
        env: str,
        action_kind: str,
        obs: dict[str, Tensor | LazyImages],
        actions: Tensor,
        ends: Tensor,
        disturbance: Tensor,
        notes: tuple[str, ...],
    ) -> Demonstrations:
        taken = "pose" if takes_poses(env) else "delta"
        if is_ours(env) and action_kind != taken:
            raise DataError(
                f"The demonstrations' actions are {ACTION_KINDS[action_kind]}; expected {ACTION_KINDS[taken]}, which "
                f"{env} takes. The attributes action_kind and env_id contradict each other."
            )
        if action_kind == "pose":
            if actions.shape[1] % POSE_ARM_ENV_DIM:
                raise DataError(
                    f"The actions of {env} are target poses of {actions.shape[1]} entries; expected "
                    f"{POSE_ARM_ENV_DIM} per arm."
                )
            actions = from_env_poses(actions)
        return cls(env, obs, actions, ends, disturbance, action_kind, notes)

    def policy_config(self, network: Architecture, quaternions: Mapping[str, Sequence[int]]) -> PolicyConfig:
        """The configuration of a policy for this environment.

        Args:
            network: the configuration of its network.
            quaternions: quaternions in the observations whose sign is normalised: a key and the index of each one's
                first entry.

        Raises:
            ConfigError: if the observations have no such entries, or do not fit the network.
        """
        self._check_entries(quaternions)
        vectors = self._vectors
        steady = tuple(
            Quaternion.mean_of(key, first, vectors[key]) for key, firsts in quaternions.items() for first in firsts
        )
        dim = self.actions.shape[1]
        shapes = self.obs_shapes
        images = tuple(_image_key(key, shape) for key, shape in shapes.items() if len(shape) == 3)
        obs_keys = {key: shape[0] for key, shape in shapes.items()} | {image.key: IMAGE_FEATURES for image in images}
        config = PolicyConfig(self.env_id, obs_keys, dim, network=network, quaternions=steady, images=images)
        if self.action_kind == "other":
            config = replace(config, action_bound=None)
        if self.action_kind == "pose":
            config = replace(config, action_parts=POSE_ARM * (dim // POSE_ARM_DIM), action_bound=None)
        return config

    def split(self, held_out: int) -> tuple[Demonstrations, Demonstrations | None]:
        """Training episodes, and the last `held_out` episodes for validation (None if that is 0).

        Raises:
            ConfigError: if no episode is left to train on.
        """
        total = len(self.episode_ends)
        if not 0 <= held_out < total:
            raise ConfigError(f"{held_out} of {total} episodes are held out; expected 0 to {total - 1}.")
        if held_out == 0:
            return self, None
        end = int(self.episode_ends[total - held_out - 1])

        def part(steps: slice, ends: Tensor) -> Demonstrations:
            obs = {key: values[steps] for key, values in self.obs.items()}
            disturbance = self.disturbance[steps]
            return replace(self, obs=obs, actions=self.actions[steps], episode_ends=ends, disturbance=disturbance)

        ends = self.episode_ends
        return part(slice(end), ends[:-held_out]), part(slice(end, None), ends[-held_out:] - end)

    def as_seen_by(self, config: PolicyConfig) -> Demonstrations:
        """The demonstrations with quaternion signs normalised as the policy normalises them."""
        return replace(self, obs={**self.obs, **with_steady_signs(self._vectors, config.quaternions)})

    def check_fit(self, config: PolicyConfig) -> None:
        """Raise ConfigError unless a policy with this configuration can be trained on these demonstrations."""
        got, expected = (self.obs_shapes, self.actions.shape[1]), (config.obs_shapes, config.action_dim)
        if got != expected:
            raise ConfigError(f"The demonstrations have observations and actions {got}; the policy has {expected}.")
        if self.env_id != config.env_id and (takes_poses(self.env_id) or takes_poses(config.env_id)):
            raise ConfigError(
                f"The demonstrations are of {self.env_id}, the policy is for {config.env_id}: these take target poses "
                "in different frames. Take demonstrations with the policy's kind of actions."
            )

    def observations(self, count: int) -> list[dict[str, NDArray[Any]]]:
        """`count` observations, evenly spaced over all steps, as an environment would return them.

        Raises:
            ConfigError: if there are fewer steps.
        """
        total = len(self.actions)
        if not 1 <= count <= total:
            raise ConfigError(f"{count} observations are asked for; the demonstrations have {total} steps.")
        steps = torch.arange(count) * total // count
        chosen = {key: values[steps].numpy() for key, values in self.obs.items()}
        return [{key: values[index] for key, values in chosen.items()} for index in range(count)]

    def fingerprint(self) -> str:
        """A hash of observations, actions and episode ends."""
        return fingerprint({**self.obs, "action": self.actions, "ends": self.episode_ends})

    @property
    def _vectors(self) -> dict[str, Tensor]:
        """The observations in memory."""
        return {key: values for key, values in self.obs.items() if isinstance(values, Tensor)}

    @property
    def obs_shapes(self) -> dict[str, tuple[int, ...]]:
        """Observation keys and shapes: (D,), or (H, W, C) for images."""
        return {key: tuple(values.shape[1:]) for key, values in self.obs.items()}

    def fit_normalizer(self, ignored: Mapping[str, Sequence[int]]) -> LinearNormalizer:
        """Min-max normalisation of every observation key and of the actions; pixels go from 0 to 255.

        `ignored` lists entries of observations to hide from the policy, such as a quaternion of random sign.
        """
        self._check_entries(ignored)
        normalizer = LinearNormalizer(
            {key: shape[-1] for key, shape in self.obs_shapes.items()} | {"action": self.actions.shape[1]}
        )
        for key, values in {**self.obs, "action": self.actions}.items():
            if isinstance(values, LazyImages) or values.ndim == 4:
                values = torch.tensor([[0.0], [255.0]]).expand(-1, values.shape[-1])
            normalizer.fit(key, values, ignored.get(key, ()))
        return normalizer

    def _check_entries(self, wanted: Mapping[str, Sequence[int]]) -> None:
        for key, entries in wanted.items():
            shape = self.obs_shapes.get(key, ())
            if len(shape) != 1 or not all(0 <= entry < shape[0] for entry in entries):
                raise ConfigError(f"There are no entries {list(entries)} of {key!r}; the shapes are {self.obs_shapes}.")

    def windows(
        self, config: PolicyConfig, normalizer: LinearNormalizer, foreseeable: float | None = None
    ) -> TrainingWindows:
        """The training windows, with normalised actions.

        `foreseeable` keeps only the windows of `TrainingWindows.foreseeable`; disturbances up to this value do not
        count.
        """
        actions = normalizer.normalize("action", self.actions)
        lengths = config.n_obs_steps, config.horizon, config.n_action_steps
        windows = make_windows(self.obs, actions, self.episode_ends, *lengths)
        return windows if foreseeable is None else windows.foreseeable(self.disturbance > foreseeable)


def fingerprint(arrays: Mapping[str, Tensor | LazyImages]) -> str:
    """A hash of the names, shapes and values of arrays on the CPU.

    Images that are read when they are used count as if they were in memory. Those that are compressed one by one or as
    a video are not decoded: their files count.
    """
    digest = hashlib.sha256()
    for name, values in arrays.items():
        dtype = torch.uint8 if isinstance(values, LazyImages) else values.dtype
        digest.update(f"{name} {tuple(values.shape)} {dtype}\n".encode())
        if isinstance(values, Tensor):
            digest.update(values.contiguous().numpy().data)
        elif (files := values.reader.fingerprint()) is not None:
            digest.update(files.encode())
        else:
            for block in values.blocks():
                digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()[:16]


def _in_memory(obs: Mapping[str, NDArray[Any] | LazyImages]) -> dict[str, Tensor | LazyImages]:
    """Vectors as tensors, and images too unless they are compressed, or together take over half of the memory."""
    size = sum(values.nbytes for values in obs.values() if isinstance(values, LazyImages))
    fits = size <= half_of_memory()
    read: dict[str, Tensor | LazyImages] = {}
    for key, values in obs.items():
        if isinstance(values, LazyImages):
            read[key] = values.in_memory() if fits and not values.reader.compressed else values
        else:
            read[key] = torch.from_numpy(values.copy())
    return read


def _image_key(key: str, shape: tuple[int, ...]) -> ImageKey:
    """An image with real-stanford's and robomimic's crop: 76 of 84 pixels."""
    size = shape[:2]
    return ImageKey(key, shape, central_crop(size, [n * 76 // 84 for n in size]))
