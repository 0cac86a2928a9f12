"""A policy at rest: its configuration and its tensors, whatever file they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.policies.config import PolicyConfig
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.policies.network import build_encoders, build_network
from asd_policy.policies.normalizer import LinearNormalizer

CONFIG, WEIGHTS, WINDOWS = "config.json", "model.safetensors", "windows.json"


@dataclass(frozen=True)
class Checkpoint:
    """What every importer returns.

    Attributes:
        source: the file or folder it was read from.
        format: the name of the format it was found to be in.
        config: this package's configuration of the policy.
        tensors: `model.*` of the network, `normalizer.fields.<field>.{scale,offset}`, and `encoders.<key>.*` of images.
        notes: what the file says and this package does differently, or cannot know.
    """

    source: Path
    format: str
    config: PolicyConfig
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, policy: DiffusionPolicy) -> Checkpoint:
        """The checkpoint of a policy in memory."""
        parts = {"model": policy.network, "normalizer": policy.normalizer, "encoders": policy.encoders}
        return cls(Path(), "native", policy.config, nn.ModuleDict(parts).state_dict())

    def policy(self, sampler: str = "asd", device: torch.device | str = "cpu", **options: Any) -> DiffusionPolicy:
        """The policy, ready to act.

        Raises:
            ConfigError: on an unknown sampler or option.
            CheckpointError: if the tensors are not exactly those of the configuration.
        """
        try:
            with torch.device("meta"):  # shapes alone: a file can claim sizes that fit into no memory
                self._check(self._modules())
        except RuntimeError as error:
            raise CheckpointError(f"{self.source} describes a network of impossible size: {error}") from error
        modules = self._modules()
        modules.load_state_dict(self.tensors)
        network, normalizer, encoders = modules["model"], modules["normalizer"], modules["encoders"]
        assert isinstance(normalizer, LinearNormalizer)
        assert isinstance(encoders, nn.ModuleDict)
        windows = windows_file(self.source) if self.source != Path() else None
        return DiffusionPolicy(network, normalizer, self.config, sampler, device, windows, encoders=encoders, **options)

    def save(self, folder: str | Path) -> None:
        """Write the native folder: `config.json` and `model.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save(folder / CONFIG)
        save_file({name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}, folder / WEIGHTS)

    def with_obs_keys(self, obs_keys: Mapping[str, int]) -> Checkpoint:
        """The same policy with its observation cut into other keys: the same numbers in the same order.

        Args:
            obs_keys: an image is one of them, with as many numbers as it has features, and may have another name.

        Raises:
            ConfigError: if the sizes do not add up to the policy's, or cut through an image.
        """
        config, total = self.config, sum(obs_keys.values())
        told = f"the policy in {self.source} observes {config.obs_dim}: {dict(config.obs_keys)}"
        if total != config.obs_dim:
            raise ConfigError(f"obs_keys {dict(obs_keys)} have {total} entries, but {told}.")
        images = {_span(config.obs_keys, image.key): image for image in config.images}
        names = {images[span].key: key for key in obs_keys if (span := _span(obs_keys, key)) in images}
        if len(names) < len(images):
            raise ConfigError(f"obs_keys {dict(obs_keys)} cut through images, but {told}: keep those whole.")
        tensors = {_renamed(name, names): value for name, value in self.tensors.items()}
        vectors = [key for key in config.obs_keys if key not in names]
        pieces = {key: dim for key, dim in obs_keys.items() if key not in names.values()}
        for kind in ("scale", "offset"):
            parts = [tensors.pop(field_name(key, kind)) for key in vectors]
            whole = torch.cat(parts) if parts else torch.empty(0)
            cut = zip(pieces, whole.split(list(pieces.values())), strict=True)
            tensors |= {field_name(key, kind): piece for key, piece in cut}
        renamed = tuple(replace(image, key=names[image.key]) for image in config.images)
        return replace(self, config=replace(config, obs_keys=dict(obs_keys), images=renamed), tensors=tensors)

    def _modules(self) -> nn.ModuleDict:
        """The networks and the normaliser that the configuration describes."""
        normalizer = LinearNormalizer(self.config.normalizer_dims)
        parts = {"model": build_network(self.config), "normalizer": normalizer, "encoders": build_encoders(self.config)}
        return nn.ModuleDict(parts)

    def _check(self, modules: nn.Module) -> None:
        """Raise CheckpointError unless the tensors are exactly those of the modules."""
        expected: dict[str, Tensor] = modules.state_dict()
        found = self.tensors
        wrong = [f"{name} is missing" for name in expected.keys() - found.keys()]
        wrong += [f"{name} is not of this network" for name in found.keys() - expected.keys()]
        wrong += [
            f"{name} is {tuple(found[name].shape)}, the config says {tuple(expected[name].shape)}"
            for name in expected.keys() & found.keys()
            if found[name].shape != expected[name].shape
        ]
        if wrong:
            listed = "; ".join(sorted(wrong)[:5])
            raise CheckpointError(f"{self.source} does not fit its configuration in {len(wrong)} tensors: {listed}.")


def _span(keys: Mapping[str, int], key: str) -> tuple[int, int]:
    """Where the key's numbers begin and end in the observation."""
    names = list(keys)
    end = sum(keys[name] for name in names[: names.index(key) + 1])
    return end - keys[key], end


def _renamed(name: str, keys: Mapping[str, str]) -> str:
    """A tensor's name where observation keys have other names."""
    prefixes = {
        f"{kind}.{old}.": f"{kind}.{new}." for kind in ("encoders", "normalizer.fields") for old, new in keys.items()
    }
    found = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    return name if found is None else prefixes[found] + name.removeprefix(found)


def windows_file(source: Path) -> Path:
    """Where calibrated windows are kept: in the checkpoint's folder, or beside its file."""
    return source / WINDOWS if source.is_dir() else source.with_suffix(f".{WINDOWS}")


def fingerprint(source: Path, windows: bool = False) -> str:
    """SHA-256 of a checkpoint's file, or of the names and contents of what a policy is read from in its folder.

    Args:
        windows: include the calibrated windows, for samplers that use them.

    Raises:
        CheckpointError: if it cannot be read.
    """
    kept = windows_file(source)
    files = sorted({*source.glob("*.json"), *source.glob("*.safetensors")} - {kept}) if source.is_dir() else [source]
    files += [kept] if windows and kept.exists() else []
    try:
        digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint {source}: {error}") from error
    if files == [source]:
        return digests[source.name]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def field_name(key: str, kind: str) -> str:
    """The name of a normaliser's tensor."""
    return f"normalizer.fields.{key}.{kind}"


def affine_field(key: str, scale: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """The tensors that normalise `key` as y = x * scale + offset, both (D,)."""
    return {
        field_name(key, "scale"): scale.float().contiguous(),
        field_name(key, "offset"): offset.float().contiguous(),
    }
