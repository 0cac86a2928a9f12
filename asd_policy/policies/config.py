"""The configuration that travels with a policy's weights (`config.json`), read strictly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from asd_policy.checks import expect, is_count, is_number
from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.nets import NETWORKS, Architecture, NetworkConfig, check_architecture
from asd_policy.policies.actions import ActionPart
from asd_policy.policies.image_keys import ImageKey
from asd_policy.policies.quaternions import SIZE, Quaternion
from asd_policy.policies.scheduler_config import SchedulerConfig
from asd_policy.records import LATER, ByName, read_record

__all__ = ["FORMAT_VERSION", "MAX_KEYS", "NetworkConfig", "PolicyConfig", "SchedulerConfig"]

FORMAT_VERSION = 1
# limits on memory and reading time
MAX_IMAGES, MAX_OCTAVES, MAX_KEYS = 32, 16, 1000
MAX_HORIZON, MAX_SIZE, MAX_NUMBERS = 4096, 2**20, 2**26


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that a policy needs besides its weights.

    Attributes:
        env_id: the environment it was trained for.
        obs_keys: observation keys and their sizes, in the order of the condition.
        action_dim: A, the size of an action as the network predicts it.
        n_obs_steps: To, the number of observations in the condition; the last one is the present.
        horizon: H, the number of actions in a chunk. The first action belongs to the oldest observation.
        n_action_steps: Ta, the number of actions executed: chunk[To - 1 : To - 1 + Ta].
        action_bound: actions are clipped to [-action_bound, action_bound]; None if the action space has no bounds.
        network: the configuration of the noise predictor, of any type that fits `asd_policy.nets.Architecture`.
            `from_dict` finds it by its name in `asd_policy.nets.NETWORKS`.
        scheduler: the diffusion.
        format_version: of the file format.
        action_parts: conversion of the network's actions to the environment's; empty if they are the same.
        quaternions: quaternions in the observations whose sign is normalised.
        images: the observations that are images.
        octaves: number of sines and cosines of each observed value in the condition, besides the value itself
            (`asd_policy.policies.normalizer.with_octaves`).

    Raises:
        ConfigError: naming the field that cannot be used, or the member that `network` lacks.
    """

    env_id: str
    obs_keys: Mapping[str, int]
    action_dim: int
    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    action_bound: float | None = 1.0
    network: Annotated[Architecture, ByName("network", NETWORKS)] = field(default_factory=NetworkConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    format_version: int = FORMAT_VERSION
    action_parts: tuple[ActionPart, ...] = field(default=(), metadata=LATER)
    quaternions: tuple[Quaternion, ...] = field(default=(), metadata=LATER)
    images: tuple[ImageKey, ...] = field(default=(), metadata=LATER)
    octaves: int = field(default=0, metadata=LATER)

    def __post_init__(self) -> None:
        for name in ("action_parts", "quaternions", "images"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        expect(self.format_version == FORMAT_VERSION, "format_version", self.format_version, str(FORMAT_VERSION))
        expect(isinstance(self.env_id, str), "env_id", self.env_id, "a name")
        for name in ("action_dim", "n_obs_steps", "horizon", "n_action_steps"):
            expect(is_count(getattr(self, name)), name, getattr(self, name), "a positive integer")
        check_architecture(self.network)
        self._check_keys()
        self._check_memory()
        self._check_actions()
        self._check_observations()

    def _check_keys(self) -> None:
        """Raise ConfigError unless there are observations, each with a name and a size."""
        few = 0 < len(self.obs_keys) <= MAX_KEYS
        expect(few, "obs_keys", f"{len(self.obs_keys)} of them", f"at least one key, and at most {MAX_KEYS}")
        for key, dim in self.obs_keys.items():
            usable = is_count(dim) and isinstance(key, str) and key not in ("", "action")
            expect(usable, f"obs_keys[{key!r}]", dim, "a positive size, of a key that is not 'action'")

    def _check_memory(self) -> None:
        """Raise ConfigError if a chunk, its noise or its condition would be too large."""
        expect(self.horizon <= MAX_HORIZON, "horizon", self.horizon, f"at most {MAX_HORIZON}")
        chunk = self.horizon * self.action_dim
        noise = self.scheduler.num_train_timesteps * chunk
        expect(noise <= MAX_NUMBERS, "action_dim", self.action_dim, f"at most {MAX_NUMBERS} numbers of noise a chunk")
        expect(self.obs_dim <= MAX_SIZE, "obs_keys", dict(self.obs_keys), f"at most {MAX_SIZE} numbers")
        cond = self.n_obs_steps * self.obs_dim
        expect(cond <= MAX_NUMBERS, "n_obs_steps", self.n_obs_steps, f"at most {MAX_NUMBERS} observed numbers")

    def _check_actions(self) -> None:
        """Raise ConfigError unless the network can predict the chunk and the parts cover an action."""
        bound = self.action_bound
        expect(bound is None or (is_number(bound) and bound > 0), "action_bound", bound, "a positive number or null")
        few = len(self.action_parts) <= MAX_KEYS
        expect(few, "action_parts", f"{len(self.action_parts)} of them", f"at most {MAX_KEYS}")
        parts_dim = sum(part.dim for part in self.action_parts)
        expect(parts_dim in (0, self.action_dim), "action_parts", parts_dim, f"dims that sum to {self.action_dim}")
        factor = self.network.downsampling
        multiple = f"a multiple of {factor}, by which the network {self.network.name} downsamples"
        expect(self.horizon % factor == 0, "horizon", self.horizon, multiple)
        fits = self.n_obs_steps - 1 + self.n_action_steps <= self.horizon
        expected = f"n_obs_steps - 1 + n_action_steps <= horizon ({self.horizon})"
        expect(fits, "n_action_steps", self.n_action_steps, expected)

    def _check_observations(self) -> None:
        """Raise ConfigError unless quaternions and images are among the observations, and octaves fit them."""
        few = len(self.quaternions) <= min(self.obs_dim, MAX_KEYS)
        expect(few, "quaternions", f"{len(self.quaternions)} of them", f"at most {min(self.obs_dim, MAX_KEYS)}")
        for quaternion in self.quaternions:
            dim = self.obs_keys.get(quaternion.key, 0)
            expect(quaternion.first + SIZE <= dim, "quaternions", quaternion, f"entries of {dict(self.obs_keys)}")
        keys = [image.key for image in self.images]
        once = len(set(keys)) == len(keys) <= MAX_IMAGES and set(keys) <= set(self.obs_keys)
        expect(once, "images", keys[:MAX_IMAGES], f"at most {MAX_IMAGES}, each one of {', '.join(self.obs_keys)}")
        most = 0 if self.images else MAX_OCTAVES
        count = is_count(self.octaves, least=0) and self.octaves <= most
        expect(count, "octaves", self.octaves, f"0 to {MAX_OCTAVES}, and 0 with images")

    @property
    def obs_dim(self) -> int:
        """G, the size of one step's observation."""
        return sum(self.obs_keys.values())

    @property
    def obs_shapes(self) -> dict[str, tuple[int, ...]]:
        """Observation keys and the shapes of their arrays: (D,), or (H, W, C) for images."""
        return {key: (dim,) for key, dim in self.obs_keys.items()} | {image.key: image.shape for image in self.images}

    @property
    def normalizer_dims(self) -> dict[str, int]:
        """Fields of the normalizer and their sizes: each observation's last dimension, and the action's."""
        return {key: shape[-1] for key, shape in self.obs_shapes.items()} | {"action": self.action_dim}

    @property
    def env_options(self) -> dict[str, Any]:
        """Options for making the environment: the cameras to render, and their sizes in pixels."""
        if not self.images:
            return {}
        return {"cameras": {image.key.removesuffix("_image"): image.shape[:2] for image in self.images}}

    @property
    def env_action_dim(self) -> int:
        """The size of the environment's action."""
        return sum(part.env_dim for part in self.action_parts) or self.action_dim

    @property
    def global_cond_dim(self) -> int:
        """The size of the network's condition: To * G values, and the sines and cosines of each."""
        return self.n_obs_steps * self.obs_dim * (1 + 2 * self.octaves)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the order of `obs_keys` is kept."""
        images = tuple(image.to_dict() for image in self.images)
        return dataclasses.asdict(self) | {"obs_keys": dict(self.obs_keys), "images": images}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicyConfig:
        """The inverse of `to_dict`, strictly. Only files of earlier versions may lack fields: those added later.

        Raises:
            ConfigError: naming the field that is missing, unknown or unusable.
        """
        version = data.get("format_version") if isinstance(data, Mapping) else None
        if type(version) is int and version > FORMAT_VERSION:  # a newer file's fields are unknown here
            raise ConfigError(
                f"The policy config has format_version {version}; this package reads up to {FORMAT_VERSION}. A newer "
                "asd-policy wrote it: update the package."
            )
        return read_record(cls, data, "The policy config", complete=True)

    def save(self, path: str | Path) -> None:
        """Write `config.json`."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> PolicyConfig:
        """Read `config.json`.

        Raises:
            CheckpointError: if the file cannot be read, or is not JSON.
            ConfigError: as `from_dict`.
        """
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"Cannot read the policy config {path}: {error}") from error
        return cls.from_dict(data)
