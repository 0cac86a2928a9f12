"""Demonstrations as tensors for training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asd_policy.data.gate import ACTION_KINDS
from asd_policy.data.robomimic_hdf5 import RobomimicFile
from asd_policy.data.store import EpisodeStore
from asd_policy.data.windows import TrainingWindows, make_windows
from asd_policy.errors import ConfigError, DataError, UnknownNameError
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
    """Episodes of a store or HDF5 file, as tensors.

    Attributes:
        env_id: the environment.
        obs: (N, D) per key, float32; for images (N, H, W, C), uint8.
        actions: (N, A), the expert's; rotations of target poses as six numbers, as the network predicts them.
        episode_ends: (E,) int64.
        disturbance: (N,), the largest absolute difference between an executed action and the expert's.
        action_kind: the meaning of actions, a key of `asd_policy.data.gate.ACTION_KINDS`.
        notes: warnings to read before training on them.
    """

    env_id: str
    obs: dict[str, Tensor]
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
    ) -> Demonstrations:
        """Read the first `episodes` of a store or of a robomimic HDF5 file; None reads all.

        Args:
            filter_key: the mask of an HDF5 file that selects demonstrations.
            absolute: read the target poses that an HDF5 file holds beside its delta actions.
            obs_keys: the observations to read, in this order. By default all of a store; of an HDF5 file the vectors
                that robomimic's policies use.
            clip_actions: clip delta actions outside [-1, 1], with a note. Without it they are an error.

        Raises:
            UnknownNameError: on an observation that the file lacks.
            ConfigError: if `clip_actions` is set and actions are target poses.
            DataError: if there are fewer episodes than asked for, or the file cannot be used.
        """
        if Path(path).is_file():
            with RobomimicFile.open(path, filter_key, absolute, obs_keys, clip_actions) as file:
                return cls._read_hdf5(file, episodes)
        if filter_key is not None or absolute:
            raise DataError(
                f"{path} is not an HDF5 file: expected neither filter_key ({filter_key!r}) nor absolute ({absolute})."
            )
        return cls._read_store(EpisodeStore.open(path), episodes, obs_keys, clip_actions)

    @classmethod
    def _read_store(
        cls, store: EpisodeStore, episodes: int | None, obs_keys: Sequence[str], clip_actions: bool
    ) -> Demonstrations:
        available = store.num_episodes
        episodes = available if episodes is None else episodes
        if not 1 <= episodes <= available:
            raise DataError(f"{store.path} holds {available} episodes; {episodes} are asked for.")
        env_id = store.attrs.get("env_id")
        if not isinstance(env_id, str):
            raise DataError(f"{store.path}: its attribute env_id is {env_id!r}; expected the name of an environment.")
        ends = torch.from_numpy(np.array(store.episode_ends[:episodes]))
        steps = int(ends[-1])
        unknown = [key for key in obs_keys if key not in store.obs_keys]
        if unknown:
            raise UnknownNameError(f"observation of {store.path}", unknown[0], store.obs_keys)
        obs = {key: torch.from_numpy(store.obs(key)[:steps].copy()) for key in obs_keys or store.obs_keys}
        labels, note = store.labels(clip_actions)
        said = store.attrs.get("notes")
        notes = (*map(str, said if isinstance(said, list) else ()), *([note] if note else ()))
        actions = torch.from_numpy(labels[:steps].copy())
        disturbance = (torch.from_numpy(store.actions(executed=True)[:steps]) - actions).abs().amax(dim=1)
        return cls._of(env_id, store.action_kind, obs, actions, ends, disturbance, notes)

    @classmethod
    def _read_hdf5(cls, file: RobomimicFile, episodes: int | None) -> Demonstrations:
        wanted = len(file.demos) if episodes is None else episodes
        if not 1 <= wanted <= len(file.demos):
            raise DataError(f"{file.path} holds {len(file.demos)} episodes; {wanted} are asked for.")
        read = [file.episode(name) for name in file.demos[:wanted]]
        obs = {key: torch.from_numpy(np.concatenate([one.obs[key] for one in read])) for key in file.obs_shapes}
        actions = torch.from_numpy(np.concatenate([one.action for one in read]))
        ends = torch.tensor([len(one.action) for one in read]).cumsum(dim=0)
        return cls._of(file.env_id, file.action_kind, obs, actions, ends, torch.zeros(len(actions)), file.notes)

    @classmethod
    def _of(
        cls,
        env: str,
        action_kind: str,
        obs: dict[str, Tensor],
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
        steady = tuple(
            Quaternion.mean_of(key, first, self.obs[key]) for key, firsts in quaternions.items() for first in firsts
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
        return replace(self, obs=with_steady_signs(self.obs, config.quaternions))

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

    def fingerprint(self) -> str:
        """A hash of observations, actions and episode ends."""
        return fingerprint({**self.obs, "action": self.actions, "ends": self.episode_ends})

    @property
    def obs_shapes(self) -> dict[str, tuple[int, ...]]:
        """Observation keys and shapes: (D,), or (H, W, C) for images."""
        return {key: tuple(values.shape[1:]) for key, values in self.obs.items()}

    def fit_normalizer(self, ignored: Mapping[str, Sequence[int]]) -> LinearNormalizer:
        """Min-max normalisation of every observation key and of the actions; pixels go from 0 to 255.

        `ignored` lists entries of observations to hide from the policy, such as a quaternion of random sign.
        """
        self._check_entries(ignored)
        fields = {**self.obs, "action": self.actions}
        normalizer = LinearNormalizer({name: values.shape[-1] for name, values in fields.items()})
        for name, values in fields.items():
            pixels = torch.tensor([[0.0], [255.0]]).expand(-1, values.shape[-1])
            normalizer.fit(name, pixels if values.ndim == 4 else values, ignored.get(name, ()))
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


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of the names, shapes and values of tensors on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _image_key(key: str, shape: tuple[int, ...]) -> ImageKey:
    """An image with real-stanford's and robomimic's crop: 76 of 84 pixels."""
    size = shape[:2]
    return ImageKey(key, shape, central_crop(size, [n * 76 // 84 for n in size]))
