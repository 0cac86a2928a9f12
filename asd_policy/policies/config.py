"""The configuration that travels with a policy's weights (`config.json`), read strictly."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asd_policy.core import Schedule
from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.nets.unet1d import FINAL_GROUPS
from asd_policy.policies.actions import ActionPart
from asd_policy.policies.image_keys import ImageKey
from asd_policy.policies.quaternions import SIZE, Quaternion

FORMAT_VERSION = 1
# More would be no network, but an attempt to keep its reader busy or to fill its memory.
MAX_LAYERS, MAX_LEVELS, MAX_IMAGES, MAX_OCTAVES, MAX_KEYS = 1000, 16, 32, 16, 1000
MAX_TIMESTEPS, MAX_HORIZON, MAX_SIZE, MAX_NUMBERS = 100_000, 4096, 2**20, 2**26
MAX_NUMBER = 2**62  # torch takes no larger integer
SAMPLING = ("timestep_spacing", "steps_offset", "set_alpha_to_one", "use_clipped_model_output")
"""Fields of SchedulerConfig that files written before them lack."""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the noise predictor; see `asd_policy.nets.ConditionalUnet1D`."""

    name: str = "unet1d"
    down_dims: tuple[int, ...] = (64, 128, 256)
    kernel_size: int = 5
    n_groups: int = 8
    diffusion_step_embed_dim: int = 128
    cond_predict_scale: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "down_dims", tuple(self.down_dims))
        _expect(self.name == "unet1d", "network.name", self.name, "'unet1d'")
        _expect(_is_size(self.n_groups), "network.n_groups", self.n_groups, "a positive integer")
        levels = 0 < len(self.down_dims) <= MAX_LEVELS
        _expect(
            levels and all(_is_size(dim) and dim % self.n_groups == 0 for dim in self.down_dims),
            "network.down_dims",
            self.down_dims[: MAX_LEVELS + 1],
            f"1 to {MAX_LEVELS} multiples of n_groups ({self.n_groups})",
        )
        first = self.down_dims[0]
        _expect(first % FINAL_GROUPS == 0, "network.down_dims[0]", first, f"a multiple of {FINAL_GROUPS}")
        _expect(
            _is_size(self.kernel_size) and self.kernel_size % 2 == 1, "network.kernel_size", self.kernel_size, "odd"
        )
        embed_dim = self.diffusion_step_embed_dim
        even = _is_size(embed_dim) and embed_dim % 2 == 0 and embed_dim >= 4
        _expect(even, "network.diffusion_step_embed_dim", embed_dim, "an even integer, 4 or more")

    @property
    def downsampling(self) -> int:
        """The horizon must be a multiple of this."""
        return 2 ** (len(self.down_dims) - 1)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the other noise predictor; see `asd_policy.nets.ConditionalTransformer`."""

    name: str = "transformer"
    n_layer: int = 8
    n_head: int = 4
    n_emb: int = 256
    causal_attn: bool = True

    def __post_init__(self) -> None:
        _expect(self.name == "transformer", "network.name", self.name, "'transformer'")
        for name in ("n_layer", "n_head", "n_emb"):
            _expect(_is_size(getattr(self, name)), f"network.{name}", getattr(self, name), "a positive integer")
        _expect(self.n_layer <= MAX_LAYERS, "network.n_layer", self.n_layer, f"at most {MAX_LAYERS}")
        fits = self.n_emb % self.n_head == 0 and self.n_emb % 2 == 0 and self.n_emb >= 4
        _expect(fits, "network.n_emb", self.n_emb, f"even, 4 or more, and a multiple of n_head ({self.n_head})")

    @property
    def downsampling(self) -> int:
        """The horizon may be any."""
        return 1


NETWORKS: Mapping[str, type[NetworkConfig] | type[TransformerConfig]] = {
    "unet1d": NetworkConfig,
    "transformer": TransformerConfig,
}


@dataclass(frozen=True)
class SchedulerConfig:
    """The diffusion, in the vocabulary of diffusers' DDPMScheduler.

    The last four say how fewer steps than `num_train_timesteps` are sampled: `timestep_spacing` and `steps_offset`
    which they are, `set_alpha_to_one` where DDIM's last step ends, and `use_clipped_model_output` whether DDIM
    recomputes the noise from the clipped sample.
    """

    num_train_timesteps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    variance_type: str = "fixed_small"
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    use_clipped_model_output: bool = True

    def __post_init__(self) -> None:
        timesteps = self.num_train_timesteps
        few = _is_size(timesteps) and timesteps <= MAX_TIMESTEPS
        _expect(few, "scheduler.num_train_timesteps", timesteps, f"a positive integer up to {MAX_TIMESTEPS}")
        offset = self.steps_offset
        fits = isinstance(offset, int) and not isinstance(offset, bool) and 0 <= offset < timesteps
        _expect(fits, "scheduler.steps_offset", offset, f"an integer from 0 to {timesteps - 1}")
        for name in ("clip_sample", "set_alpha_to_one", "use_clipped_model_output"):
            _expect(isinstance(getattr(self, name), bool), f"scheduler.{name}", getattr(self, name), "true or false")
        for name in ("beta_start", "beta_end", "clip_sample_range"):
            _expect(_is_number(getattr(self, name)), f"scheduler.{name}", getattr(self, name), "a finite number")
        for name in ("beta_schedule", "variance_type", "timestep_spacing"):
            _expect(isinstance(getattr(self, name), str), f"scheduler.{name}", getattr(self, name), "a name")
        _expect(
            0 < self.beta_start <= self.beta_end < 1,
            "scheduler.beta_start, beta_end",
            (self.beta_start, self.beta_end),
            "0 < beta_start <= beta_end < 1",
        )
        _expect(
            self.prediction_type in ("epsilon", "v_prediction", "sample"),
            "scheduler.prediction_type",
            self.prediction_type,
            "'epsilon', 'v_prediction' or 'sample'",
        )
        _expect(self.clip_sample_range > 0, "scheduler.clip_sample_range", self.clip_sample_range, "positive")
        try:
            Schedule.from_diffusers(dataclasses.asdict(self))
        except ConfigError as error:
            raise ConfigError(
                f"scheduler.beta_schedule, variance_type or timestep_spacing cannot be used: {error}"
            ) from error


PARTS: Mapping[str, type[ActionPart] | type[Quaternion] | type[ImageKey]] = {
    "action_parts": ActionPart,
    "quaternions": Quaternion,
    "images": ImageKey,
}
"""Fields of PolicyConfig that are lists, which may be empty."""


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that a policy needs besides its weights.

    Attributes:
        env_id: the environment it was trained for.
        obs_keys: observation keys in the order of the global condition, with their sizes there.
        action_dim: A, the size of an action as the network predicts it.
        n_obs_steps: To, how many observations the condition holds; the last one is now.
        horizon: H, how many actions a chunk holds. Its first action belongs to the oldest observation.
        n_action_steps: Ta, how many actions are executed: chunk[To - 1 : To - 1 + Ta].
        action_bound: actions are clipped to [-action_bound, action_bound]; None where the action space has no bounds.
        action_parts: how the network's actions become the environment's; none if they are the same.
        quaternions: those in the observations whose sign is made steady.
        images: those of the observations that are images.
        octaves: how many sines and cosines of each observed value the network is told besides the value
            (`asd_policy.policies.normalizer.with_octaves`). Files written before this field, `action_parts`,
            `quaternions` or `images` existed lack them.
    """

    env_id: str
    obs_keys: Mapping[str, int]
    action_dim: int
    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    action_bound: float | None = 1.0
    network: NetworkConfig | TransformerConfig = field(default_factory=NetworkConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    format_version: int = FORMAT_VERSION
    action_parts: tuple[ActionPart, ...] = ()
    quaternions: tuple[Quaternion, ...] = ()
    images: tuple[ImageKey, ...] = ()
    octaves: int = 0

    def __post_init__(self) -> None:
        for name in PARTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _expect(self.format_version == FORMAT_VERSION, "format_version", self.format_version, str(FORMAT_VERSION))
        _expect(isinstance(self.env_id, str), "env_id", self.env_id, "a name")
        for name in ("action_dim", "n_obs_steps", "horizon", "n_action_steps"):
            _expect(_is_size(getattr(self, name)), name, getattr(self, name), "a positive integer")
        bound = self.action_bound
        _expect(bound is None or (_is_number(bound) and bound > 0), "action_bound", bound, "a positive number or null")
        few = 0 < len(self.obs_keys) <= MAX_KEYS
        _expect(few, "obs_keys", f"{len(self.obs_keys)} of them", f"at least one key, and at most {MAX_KEYS}")
        few = len(self.action_parts) <= MAX_KEYS
        _expect(few, "action_parts", f"{len(self.action_parts)} of them", f"at most {MAX_KEYS}")
        for key, dim in self.obs_keys.items():
            named = isinstance(key, str) and key not in ("", "action")
            _expect(
                _is_size(dim) and named, f"obs_keys[{key!r}]", dim, "a positive size, of a key that is not 'action'"
            )
        self._expect_memory()
        parts_dim = sum(part.dim for part in self.action_parts)
        _expect(parts_dim in (0, self.action_dim), "action_parts", parts_dim, f"dims that sum to {self.action_dim}")
        few = len(self.quaternions) <= min(self.obs_dim, MAX_KEYS)
        _expect(few, "quaternions", f"{len(self.quaternions)} of them", f"at most {min(self.obs_dim, MAX_KEYS)}")
        for quaternion in self.quaternions:
            dim = self.obs_keys.get(quaternion.key, 0)
            _expect(quaternion.first + SIZE <= dim, "quaternions", quaternion, f"entries of {dict(self.obs_keys)}")
        keys = [image.key for image in self.images]
        once = len(set(keys)) == len(keys) <= MAX_IMAGES and set(keys) <= set(self.obs_keys)
        _expect(once, "images", keys[:MAX_IMAGES], f"at most {MAX_IMAGES}, each one of {', '.join(self.obs_keys)}")
        most = 0 if self.images else MAX_OCTAVES
        count = isinstance(self.octaves, int) and 0 <= self.octaves <= most
        _expect(count, "octaves", self.octaves, f"0 to {MAX_OCTAVES}, and 0 with images")
        factor = self.network.downsampling
        _expect(self.horizon % factor == 0, "horizon", self.horizon, f"a multiple of the U-Net's factor {factor}")
        _expect(
            self.n_obs_steps - 1 + self.n_action_steps <= self.horizon,
            "n_action_steps",
            self.n_action_steps,
            f"n_obs_steps - 1 + n_action_steps <= horizon ({self.horizon})",
        )

    def _expect_memory(self) -> None:
        """Raise ConfigError where a chunk, its noise or its condition would be absurdly large."""
        _expect(self.horizon <= MAX_HORIZON, "horizon", self.horizon, f"at most {MAX_HORIZON}")
        chunk = self.horizon * self.action_dim
        noise = self.scheduler.num_train_timesteps * chunk
        _expect(noise <= MAX_NUMBERS, "action_dim", self.action_dim, f"at most {MAX_NUMBERS} numbers of noise a chunk")
        _expect(self.obs_dim <= MAX_SIZE, "obs_keys", dict(self.obs_keys), f"at most {MAX_SIZE} numbers")
        cond = self.n_obs_steps * self.obs_dim
        _expect(cond <= MAX_NUMBERS, "n_obs_steps", self.n_obs_steps, f"at most {MAX_NUMBERS} observed numbers")

    @property
    def obs_dim(self) -> int:
        """G, the size of one step's observation."""
        return sum(self.obs_keys.values())

    @property
    def obs_shapes(self) -> dict[str, tuple[int, ...]]:
        """Observation keys and the shapes of their arrays: (D,), of images (H, W, C)."""
        return {key: (dim,) for key, dim in self.obs_keys.items()} | {image.key: image.shape for image in self.images}

    @property
    def normalizer_dims(self) -> dict[str, int]:
        """What a normaliser has a field for: the last dimension of each observation, and of the action."""
        return {key: shape[-1] for key, shape in self.obs_shapes.items()} | {"action": self.action_dim}

    @property
    def env_options(self) -> dict[str, Any]:
        """What the environment is to be made with: one with images renders them for the cameras that they name."""
        if not self.images:
            return {}
        return {"cameras": {image.key.removesuffix("_image"): image.shape[:2] for image in self.images}}

    @property
    def env_action_dim(self) -> int:
        """The size of an action as the environment takes it."""
        return sum(part.env_dim for part in self.action_parts) or self.action_dim

    @property
    def global_cond_dim(self) -> int:
        """The size of the network's condition: To * G, and the sines and cosines of each."""
        return self.n_obs_steps * self.obs_dim * (1 + 2 * self.octaves)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the order of `obs_keys` is kept."""
        return dataclasses.asdict(self) | {"obs_keys": dict(self.obs_keys)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PolicyConfig":
        """The inverse of `to_dict`. Every field but `octaves` and those of `PARTS` and `SAMPLING` must be there,
        and no other.

        Raises:
            ConfigError: naming the field that is missing, unknown or unusable.
        """
        _expect(isinstance(data, Mapping), "policy config", data, "a JSON object")
        version = data.get("format_version", FORMAT_VERSION)
        if type(version) is int and version > FORMAT_VERSION:  # whose fields are not known here
            raise ConfigError(
                f"The policy config has format_version {version}; this package reads up to {FORMAT_VERSION}. A newer "
                "asd-policy wrote it: update the package."
            )
        values = _strict_fields(cls, {**dict.fromkeys(PARTS, ()), "octaves": 0, **data}, "policy config")
        for name, kind in PARTS.items():
            values[name] = tuple(kind(**_strict_fields(kind, entry, name)) for entry in values[name])
        name = values["network"].get("name")
        _expect(isinstance(name, str) and name in NETWORKS, "network.name", name, " or ".join(map(repr, NETWORKS)))
        network = NETWORKS[name]
        values["network"] = network(**_strict_fields(network, values["network"], "network"))
        values["scheduler"] = SchedulerConfig(**_scheduler_fields(values["scheduler"]))
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write `config.json`."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "PolicyConfig":
        """Read `config.json`."""
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"Cannot read the policy config {path}: {error}") from error
        return cls.from_dict(data)


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "bool": (bool,),
    "tuple[int, ...]": (list, tuple),
    "tuple[float, ...]": (list, tuple),
    "tuple[asd_policy.policies.actions.ActionPart, ...]": (list, tuple),
    "tuple[asd_policy.policies.quaternions.Quaternion, ...]": (list, tuple),
    "tuple[asd_policy.policies.image_keys.ImageKey, ...]": (list, tuple),
}


def _strict_fields(cls: type, data: Any, where: str) -> dict[str, Any]:
    """The fields of a dataclass from a JSON object with exactly those names and types."""
    _expect(isinstance(data, Mapping), where, data, "a JSON object")
    types = {f.name: f.type if isinstance(f.type, str) else _type_name(f.type) for f in dataclasses.fields(cls)}
    missing, unknown = types.keys() - data.keys(), data.keys() - types.keys()
    if missing or unknown:
        raise ConfigError(
            f"The {where} lacks {sorted(missing) or 'nothing'} and has unknown fields {sorted(unknown) or 'none'}; "
            f"expected exactly {', '.join(types)}."
        )
    for name, value in data.items():
        allowed = _JSON_TYPES.get(types[name], (Mapping,))
        right = isinstance(value, allowed) and (isinstance(value, bool) <= (bool in allowed))
        _expect(right, f"{where}.{name}", value, types[name])
    return dict(data)


def _scheduler_fields(data: Any) -> dict[str, Any]:
    """The fields of SchedulerConfig; those of `SAMPLING` may be missing."""
    _expect(isinstance(data, Mapping), "scheduler", data, "a JSON object")
    defaults = {field.name: field.default for field in dataclasses.fields(SchedulerConfig) if field.name in SAMPLING}
    return _strict_fields(SchedulerConfig, {**defaults, **data}, "scheduler")


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if type(annotation) is type else str(annotation)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def _expect(condition: bool, name: str, got: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {got!r}; expected {expected}.")
