"""A checkpoint: a policy's configuration and tensors, read from any format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack
from urllib.parse import unquote

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from asd_policy.core import SamplerOptions, SamplerSpec
from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.importers.robots import action_bound
from asd_policy.policies.actions import POSE_ARM
from asd_policy.policies.config import MAX_KEYS, PolicyConfig
from asd_policy.policies.diffusion import DiffusionPolicy
from asd_policy.policies.guess_file import load_guess
from asd_policy.policies.keyed import module_name
from asd_policy.policies.making import make_policy
from asd_policy.policies.network import build_encoders, build_network
from asd_policy.policies.normalizer import LinearNormalizer
from asd_policy.policies.quaternions import SIZE, Quaternion
from asd_policy.policies.tasks import arms_of, takes_poses

KINDS = ("scale", "offset", "center")
FIELDS = "normalizer.fields."
FOLDED = 64
"""Largest |center * scale| for which (x - center) * scale is computed as x * scale - center * scale."""

MASKS = ("model.mask", "model.memory_mask")  # attention masks, which contain minus infinity

CONFIG, WEIGHTS, WINDOWS, GUESS = "config.json", "model.safetensors", "windows.json", "guess.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A policy's configuration and tensors, as every format's reader returns them.

    Attributes:
        source: the file or folder it was read from; `Path()` for a policy in memory.
        format: the name of its format.
        config: the policy's configuration.
        tensors: `model.*` (the network), `normalizer.fields.<field>.{center,scale,offset}`, and `encoders.<key>.*` (the
            image encoders). Fields and keys are written as `module_name` does.
        notes: differences between the file's own library and this package, and settings missing in the file.
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

    def policy(
        self,
        sampler: str | SamplerSpec = "asd",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        guess: bool = True,
        **options: Unpack[SamplerOptions],
    ) -> DiffusionPolicy:
        """The policy, ready to act.

        Args:
            guess: use the learned first guess beside the checkpoint, if there is one; see `load_policy`.

        Raises:
            ConfigError: on an unknown sampler or option.
            CheckpointError: if tensors are missing, unexpected, not finite, or of wrong shapes or types. The message
                names them. Or if the first guess belongs to other weights, or cannot be read.
        """
        try:
            with torch.device("meta"):  # no memory is allocated, because a file can claim impossible sizes
                self._check(self._modules())
        except (RuntimeError, OverflowError, TypeError) as error:
            raise CheckpointError(f"{self.source} describes a network of impossible size: {error!s:.300}") from error
        self.check_values()
        modules = self._modules()
        modules.load_state_dict(self.tensors)
        network, normalizer, encoders = modules["model"], modules["normalizer"], modules["encoders"]
        assert isinstance(normalizer, LinearNormalizer)
        assert isinstance(encoders, nn.ModuleDict)
        config, windows, found = self.config, None, None
        if self.source != Path():
            windows, kept = windows_file(self.source), guess_file(self.source)
            if guess and kept.exists():
                found = load_guess(kept, network, config.global_cond_dim, (config.horizon, config.action_dim))
        return make_policy(network, normalizer, config, sampler, device, windows, dtype, encoders, found, **options)

    def save(self, folder: str | Path) -> None:
        """Write a native folder: `config.json` and `model.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save(folder / CONFIG)
        save_file({name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}, folder / WEIGHTS)

    def check_values(self) -> None:
        """Raise CheckpointError if any number is not finite in float32. The message names the feature or the tensor."""
        for name, value in self.tensors.items():
            numbers = value.float().clamp(min=-1) if name in MASKS else value.float()
            if not bool(numbers.isfinite().all()):
                field = _field_of(name)
                what = f"the normalisation of {field!r} ({name.rpartition('.')[2]})" if field else f"the weight {name}"
                raise CheckpointError(f"{self.source}: {what} is not finite; expected numbers that float32 can hold.")

    def affine(self, key: str) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, offset and center that normalise an observation or "action", each (D,) float64."""
        scale, offset, center = (self.tensors[field_name(key, kind)].double() for kind in KINDS)
        return scale, offset, center

    def with_env_id(self, env_id: str) -> Checkpoint:
        """The same policy for another environment, with the action bound and action parts of that environment.

        Target poses have no bound. If the policy has target poses and `env_id` takes deltas, the bound is 1 in our
        environments. Otherwise the bound and the parts are unchanged.
        """
        config = replace(self.config, env_id=env_id)
        if takes_poses(env_id):  # no bound, and 6-D rotations if the network predicts them
            arms = POSE_ARM * arms_of(env_id)
            predicted = config.action_dim == sum(part.dim for part in arms)
            parts = arms if predicted and not config.action_parts else config.action_parts
            config = replace(config, action_bound=None, action_parts=parts)
        elif takes_poses(self.config.env_id):
            config = replace(config, action_bound=action_bound(env_id))
        return replace(self, config=config)

    def with_obs_keys(self, obs_keys: Mapping[str, int]) -> Checkpoint:
        """The same policy with its observation split into other keys. The numbers and their order are unchanged.

        Args:
            obs_keys: observation keys and sizes in order. An image's size is its number of features. An image may be
                renamed.

        Raises:
            ConfigError: if the sizes do not add up to the policy's, or split an image or a quaternion.
        """
        config = self.config
        told = f"the policy in {self.source} observes {config.obs_dim}: {dict(config.obs_keys)}"
        if len(obs_keys or ()) > MAX_KEYS:
            raise ConfigError(f"obs_keys are {len(obs_keys)}; expected at most {MAX_KEYS}.")
        sizes = isinstance(obs_keys, Mapping) and all(type(dim) is int and dim > 0 for dim in obs_keys.values())
        if not sizes or sum(obs_keys.values()) != config.obs_dim:
            total = f"{sum(obs_keys.values())} entries" if sizes else "sizes that are not positive integers"
            raise ConfigError(f"obs_keys {obs_keys} have {total}, but {told}.")
        images = {_span(config.obs_keys, image.key): image for image in config.images}
        names = {images[span].key: key for key in obs_keys if (span := _span(obs_keys, key)) in images}
        if len(names) < len(images):
            raise ConfigError(f"obs_keys {dict(obs_keys)} cut through images, but {told}: keep those whole.")
        renamed = replace(
            config,
            obs_keys=dict(obs_keys),
            images=tuple(replace(image, key=names[image.key]) for image in config.images),
            quaternions=tuple(_moved(quaternion, config.obs_keys, obs_keys) for quaternion in config.quaternions),
        )
        return replace(self, config=renamed, tensors=self._cut(names, obs_keys))

    def _cut(self, names: Mapping[str, str], obs_keys: Mapping[str, int]) -> dict[str, Tensor]:
        """The tensors with images renamed and the vectors' normalisation split into the other keys."""
        tensors = {_renamed(name, names): value for name, value in self.tensors.items()}
        vectors = [key for key in self.config.obs_keys if key not in names]
        pieces = {key: dim for key, dim in obs_keys.items() if key not in names.values()}
        for kind in KINDS:
            parts = [tensors.pop(field_name(key, kind)) for key in vectors]
            whole = torch.cat(parts) if parts else torch.empty(0)
            cut = zip(pieces, torch.split(whole, list(pieces.values())), strict=True)
            tensors |= {field_name(key, kind): piece for key, piece in cut}
        return tensors

    def _modules(self) -> nn.ModuleDict:
        """The networks and the normalizer that the configuration describes."""
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
            f"{name} is of {found[name].dtype}, the config says {expected[name].dtype}"
            for name in expected.keys() & found.keys()
            if found[name].is_floating_point() != expected[name].is_floating_point() or found[name].is_complex()
        ]
        wrong += [
            f"{name} is {tuple(found[name].shape)}, the config says {tuple(expected[name].shape)}"
            for name in expected.keys() & found.keys()
            if found[name].shape != expected[name].shape
        ]
        if wrong:
            listed = "; ".join(sorted(wrong)[:5])
            raise CheckpointError(f"{self.source} does not fit its configuration in {len(wrong)} tensors: {listed}.")


def _span(keys: Mapping[str, int], key: str) -> tuple[int, int]:
    """The range of the key's entries in the observation: first, and one past the last."""
    names = list(keys)
    end = sum(keys[name] for name in names[: names.index(key) + 1])
    return end - keys[key], end


def _moved(quaternion: Quaternion, old: Mapping[str, int], new: Mapping[str, int]) -> Quaternion:
    """The quaternion, under the new key that holds its four entries."""
    first = _span(old, quaternion.key)[0] + quaternion.first
    for key in new:
        start, end = _span(new, key)
        if start <= first and first + SIZE <= end:
            return replace(quaternion, key=key, first=first - start)
    raise ConfigError(
        f"obs_keys {dict(new)} cut through the quaternion of {quaternion.key!r} (entries {first} to {first + SIZE - 1} "
        "of the observation), whose sign the policy normalises: keep it whole."
    )


def _renamed(name: str, keys: Mapping[str, str]) -> str:
    """A tensor's name after renaming observation keys."""
    prefixes = {
        f"{kind}.{module_name(old)}.": f"{kind}.{module_name(new)}."
        for kind in ("encoders", "normalizer.fields")
        for old, new in keys.items()
    }
    found = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    return name if found is None else prefixes[found] + name.removeprefix(found)


def windows_file(source: Path) -> Path:
    """The file of calibrated windows: in the checkpoint's folder, or beside its file."""
    return source / WINDOWS if source.is_dir() else source.with_suffix(f".{WINDOWS}")


def guess_file(source: Path) -> Path:
    """The file of the learned first guess: in the checkpoint's folder, or beside its file."""
    return source / GUESS if source.is_dir() else source.with_suffix(f".{GUESS}")


def fingerprint(source: Path, windows: bool = False, guess: bool = True) -> str:
    """SHA-256 of a checkpoint's file, or of the names and contents of the JSON and safetensors files in its folder.

    Args:
        windows: include the calibrated windows, for samplers that use them.
        guess: include the learned first guess, if there is one: it changes the samples of a seed.

    Raises:
        CheckpointError: if it cannot be read.
    """
    kept = {windows_file(source): windows, guess_file(source): guess}
    files = sorted({*source.glob("*.json"), *source.glob("*.safetensors")} - {*kept}) if source.is_dir() else [source]
    files += [file for file, wanted in kept.items() if wanted and file.exists()]
    try:
        digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    except OSError as error:
        raise CheckpointError(f"Cannot read the checkpoint {source}: {error}") from error
    if files == [source]:
        return digests[source.name]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def field_name(key: str, kind: str) -> str:
    """The name of a normalizer's tensor, `kind` one of `KINDS`."""
    return f"{FIELDS}{module_name(key)}.{kind}"


def _field_of(name: str) -> str | None:
    """The observation, or "action", that the tensor normalises; None for a weight."""
    return unquote(name.removeprefix(FIELDS).rpartition(".")[0]) if name.startswith(FIELDS) else None


def affine_field(key: str, scale: Tensor, offset: Tensor, center: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors that normalise `key` as y = (x - center) * scale + offset, all (D,).

    The center is folded into the offset unless float32 would lose precision.
    """
    scale, offset = scale.double(), offset.double()
    center = torch.zeros_like(scale) if center is None else center.double()
    folded = (scale != 0) & ((center * scale).abs() <= FOLDED)
    offset = torch.where(folded, offset - center * scale, offset)
    center = torch.where(folded, 0.0, center)
    values = {"center": center, "scale": scale, "offset": offset}
    return {field_name(key, kind): value.float().contiguous() for kind, value in values.items()}
