"""Reads lerobot folders.

The normalisation statistics are in the processors' state files, or in older folders in buffers beside the weights.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.importers.checkpoint import CONFIG, WEIGHTS, Checkpoint, affine_field
from asd_policy.importers.files import TensorPool, check_count, entry, read_json, read_safetensors
from asd_policy.importers.network_sizes import check_claims, unet_sizes
from asd_policy.importers.runs import AVERAGED
from asd_policy.importers.schedulers import read_scheduler
from asd_policy.importers.statistics import Statistics, check_finite, check_spread, numbers, reciprocal
from asd_policy.importers.vision import encoder_tensors, image_field, image_key, rgb_encoder
from asd_policy.policies.actions import ActionPart
from asd_policy.policies.config import PolicyConfig, SchedulerConfig
from asd_policy.policies.image_keys import ImageKey, central_crop
from asd_policy.records import read_record

NAME = "lerobot"
SIDECAR = "asd_policy.json"
"""The file in which this package writes the fields that lerobot's own files lack, see `Sidecar`."""

KEYS = {"observation.state": "state", "observation.environment_state": "environment_state"}
"""lerobot's feature -> our observation key, in the order of the condition. Images come between the two."""

TYPES = ("diffusion", "asd_diffusion")
"""lerobot's name of its diffusion policy, and of the plug-in's with the same weights."""

IMAGES = "observation.image"
"""The prefix of image features in lerobot. Our observation keys are their last parts."""

RENAMES = (
    (r"\.conv([12])\.block\.", lambda m: f".blocks.{int(m[1]) - 1}.block."),
    (r"^((?:down|up)_modules\.\d+\.2)\.(\w+)$", r"\1.conv.\2"),
)
BOUNDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
DEFAULT_EPS = 1e-8
CLAIMS = {
    "down_dims": "down_dims",
    "kernel_size": "kernel_size",
    "diffusion_step_embed_dim": "diffusion_step_embed_dim",
    "use_film_scale_modulation": "cond_predict_scale",
}

Stats = dict[str, Tensor]
"""Statistics of one feature by name: min, max, mean, std, q01 ..."""


@dataclass(frozen=True)
class Sidecar:
    """The contents of `asd_policy.json`: the fields that lerobot's own files lack.

    Attributes:
        env_id: the environment the policy was trained for.
        obs_keys: the environment's observation keys and sizes; None if they are lerobot's features.
        action_bound: see `PolicyConfig`.
        action_parts: see `PolicyConfig`.
    """

    env_id: str = "unknown"
    obs_keys: dict[str, int] | None = None
    action_bound: float | None = None
    action_parts: tuple[ActionPart, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Sidecar:
        """The sidecar in a folder; the defaults if there is none. Raises ConfigError on unknown or wrong fields."""
        file = folder / SIDECAR
        return read_record(cls, read_json(file), str(file)) if file.is_file() else cls()


class Normalisation(NamedTuple):
    """How a folder normalises its features.

    Attributes:
        stats: the statistics of each feature.
        eps: lerobot's eps for normalising inputs.
        eps_out: lerobot's eps for unnormalising actions.
        legacy: use the formulas of lerobot before processors, which add eps to every range.
        observed: the observations that are normalised; None for all of them.
        modes: each processor's normalisation mode by feature type; empty in folders without processors.
    """

    stats: dict[str, Stats]
    eps: float = DEFAULT_EPS
    eps_out: float = DEFAULT_EPS
    legacy: bool = False
    observed: tuple[str, ...] | None = None
    modes: tuple[Mapping[str, str], ...] = ()


def read(path: Path) -> Checkpoint:
    """Read a folder. If there is a `pretrained_model_ema` beside it, pass that folder for the EMA weights.

    Raises:
        CheckpointError: if a file is damaged, or the policy is of an unsupported kind.
        ConfigError: if `asd_policy.json` has unknown or wrong fields.
    """
    where = str(path)
    config = read_json(path / CONFIG)
    if config.get("type", "diffusion") not in TYPES:
        raise CheckpointError(f"{where} holds a lerobot policy of type {config['type']!r}; expected 'diffusion'.")
    features = {**entry(config, "input_features", where), **entry(config, "output_features", where)}
    check_count(features, where)
    shapes = {name: _shape(feature, name, where) for name, feature in features.items()}
    weights = read_safetensors(path / WEIGHTS)
    pool = TensorPool(weights, where)
    network = {_renamed(name): value for name, value in pool.take_all("diffusion.unet.").items()}
    encoders = _encoders(pool, config, [name for name, shape in shapes.items() if len(shape) == 3], where)
    found = _legacy_stats(pool, shapes) or _processor_stats(path, shapes)
    pool.finish()
    normalizer = _normalizer(config, features, found, where)
    checkpoint = _checkpoint(path, config, shapes, network, encoders, normalizer)
    return replace(checkpoint, notes=checkpoint.notes + _notes(path, config, found))


def _shape(feature: Any, name: str, where: str) -> tuple[int, ...]:
    """The shape of a feature: (D,) or, for an image, (C, H, W)."""
    shape, kind = entry(feature, "shape", f"{where}: {name}"), entry(feature, "type", f"{where}: {name}")
    image = kind == "VISUAL"
    sizes = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    named = name.startswith(IMAGES) if image else name in (*KEYS, "action")
    if not sizes or not named or len(shape) != (3 if image else 1):
        raise CheckpointError(
            f"{where}: feature {name!r} is of type {kind!s:.100} and shape {shape!s:.100}; expected vectors "
            f"{', '.join(KEYS)} and action, and images {IMAGES}s.NAME of shape (C, H, W)."
        )
    return tuple(shape)


def _names(features: Iterable[str]) -> dict[str, str]:
    """lerobot's features -> our keys. An image is called by its last part, unless two features share that part."""
    last = {name: KEYS.get(name, name.rpartition(".")[2]) for name in features}
    counts = Counter(last.values())
    return {name: short if counts[short] == 1 else name for name, short in last.items()}


def _encoders(
    pool: TensorPool, config: dict[str, Any], images: list[str], where: str
) -> dict[str, Mapping[str, Tensor]]:
    """The encoder of each image by lerobot's feature. A shared encoder is copied for each image."""
    prefix = "diffusion.rgb_encoder."
    if images and not entry(config, "use_separate_rgb_encoder_per_camera", where):
        shared = rgb_encoder(pool.take_all(prefix))
        return {name: {key: value.clone() for key, value in shared.items()} for name in images}
    return {name: rgb_encoder(pool.take_all(f"{prefix}{index}.")) for index, name in enumerate(images)}


def _image(
    key: str, shape: tuple[int, ...], encoder: Mapping[str, Tensor], config: dict[str, Any], where: str
) -> tuple[ImageKey, int]:
    """The image and its number of features."""
    channels, height, width = shape
    resize, crop = config.get("resize_shape"), entry(config, "crop_shape", where)
    if resize:  # lerobot then uses crop_ratio and ignores crop_shape
        ratio = entry(config, "crop_ratio", where)
        crop = [int(size * ratio) for size in resize] if ratio < 1 else None
    place = central_crop(resize or (height, width), crop, round) if crop else ()
    backbone = entry(config, "vision_backbone", where)
    return image_key(key, (channels, height, width), encoder, where, place, tuple(resize or ()), backbone)


def _renamed(name: str) -> str:
    """Our name of a tensor of lerobot's U-Net."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _legacy_stats(pool: TensorPool, features: Iterable[str]) -> Normalisation | None:
    """Statistics from buffers beside the weights; None if there are none."""
    stats: dict[str, Stats] = {}
    for name in features:
        group = "unnormalize_outputs" if name == "action" else "normalize_inputs"
        stats[name] = pool.take_all(f"{group}.buffer_{name.replace('.', '_')}.")
        pool.take_all(f"normalize_targets.buffer_{name.replace('.', '_')}.")  # for the training loss
    return Normalisation(stats, legacy=True) if any(stats.values()) else None


def _processor_stats(path: Path, features: Iterable[str]) -> Normalisation:
    """Statistics from the processors' state files: inputs from the first pipeline, the action from the second."""
    before, settings = _step_stats(path, "policy_preprocessor.json", "normalizer_processor")
    after, others = _step_stats(path, "policy_postprocessor.json", "unnormalizer_processor")
    stats: dict[str, Stats] = {name: {} for name in features}
    for name in stats:
        for key, value in (after if name == "action" else before).items():
            feature, _, statistic = key.rpartition(".")
            if feature == name:
                stats[name][statistic] = value
    eps, eps_out = (step.get("eps", DEFAULT_EPS) for step in (settings, others))
    for value in (eps, eps_out):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
            raise CheckpointError(f"{path}: a normalizer's eps is {value!s:.100}; expected a number between 0 and 1.")
    observed = settings.get("normalize_observation_keys")
    modes = tuple(step.get("norm_map") or {} for step in (settings, others))
    return Normalisation(stats, eps, eps_out, observed=None if observed is None else tuple(observed), modes=modes)


def _step_stats(path: Path, pipeline: str, step_name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in the state file of a pipeline's step, and its settings."""
    if not (path / pipeline).is_file():
        raise CheckpointError(
            f"{path} has neither {pipeline} nor normalisation buffers in its weights. Without normalisation the policy "
            "would act wrongly: convert the folder with lerobot's migrate_policy_normalization first."
        )
    where = str(path / pipeline)
    steps = [step for step in entry(read_json(path / pipeline), "steps", where) if isinstance(step, dict)]
    found = [step for step in steps if step.get("registry_name") == step_name]
    if len(found) != 1:
        raise CheckpointError(f"{where} has {len(found)} steps {step_name!r}; expected one.")
    file = entry(found[0], "state_file", where)
    if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
        raise CheckpointError(f"{where} names the state file {file!s:.200}; expected a name in its own folder.")
    return read_safetensors(path / file), found[0].get("config") or {}


def _normalizer(
    config: dict[str, Any], features: Mapping[str, Any], found: Normalisation, where: str
) -> dict[str, Tensor]:
    """The normalizer's tensors of every feature."""
    modes = entry(config, "normalization_mapping", where)
    names = _names(features)
    tensors: dict[str, Tensor] = {}
    for name, feature in features.items():
        # lerobot does not normalise a feature whose type has no mode.
        mode = modes.get(feature["type"], "IDENTITY")
        if name != "action" and found.observed is not None and name not in found.observed:
            mode = "IDENTITY"
        statistics = _statistics(name, mode, feature["shape"][0], found, where)
        if len(feature["shape"]) == 3:
            statistics = image_field(statistics, feature["shape"][0])
        tensors |= affine_field(names[name], *statistics)
    return tensors


def _statistics(name: str, mode: Any, dim: int, found: Normalisation, where: str) -> Statistics:
    """lerobot's normalisation of a feature, each (D,) float64.

    For inputs, lerobot replaces ranges of zero by eps and adds eps to deviations. An entry that never moved in training
    is therefore scaled by up to 2 / eps. An action entry with deviation zero is its mean.
    """
    if mode == "IDENTITY":
        return Statistics.identity(dim)
    stats, is_action = found.stats[name], name == "action"
    kinds = ("mean", "std") if mode == "MEAN_STD" else BOUNDS.get(mode, ()) if isinstance(mode, str) else ()
    if not kinds or not set(kinds) <= stats.keys():
        raise CheckpointError(f"{where}: cannot normalise {name} by {mode!s:.100} with {sorted(stats)}.")
    values = {kind: _vector(stats[kind], dim, name, where) for kind in kinds}
    check_finite(values, name, where)
    first, second = values.values()
    if mode == "MEAN_STD":
        check_spread(second, "std", name, where, may_be_zero=True)
        scale = reciprocal(second) if is_action else 1 / (second + found.eps)
        return Statistics(scale, torch.zeros(dim), first)
    spread = second - first
    check_spread(spread, " - ".join(reversed(kinds)), name, where, may_be_zero=True)
    if not found.legacy:
        spread = torch.where(spread == 0, found.eps_out if is_action else found.eps, spread)
    elif not is_action:
        spread = spread + found.eps
    return Statistics(2 * reciprocal(spread), -torch.ones(dim), first)


def _vector(value: Tensor, dim: int, feature: str, where: str) -> Tensor:
    """A statistic, (D,) or for an image (D, 1, 1), as (D,) float64."""
    if tuple(value.shape) not in ((dim,), (dim, 1, 1)):
        raise CheckpointError(f"{where}: statistics of {feature} have shape {tuple(value.shape)}; expected ({dim},).")
    return numbers(value, feature, where).flatten()


def _notes(path: Path, config: dict[str, Any], found: Normalisation) -> tuple[str, ...]:
    """Notes on processors that disagree with `config.json`, and on EMA weights in another folder."""
    modes = config["normalization_mapping"]
    told = {kind: mode for others in found.modes for kind, mode in others.items() if modes.get(kind, mode) != mode}
    notes: tuple[str, ...] = ()
    if told:
        notes += (
            f"{CONFIG} normalises by {modes}, the processors by {told}. lerobot follows the processors; here {CONFIG} "
            "is followed.",
        )
    averaged = next((folder for folder in (path / AVERAGED, path.parent / AVERAGED) if folder.is_dir()), None)
    if averaged is not None and path.name != AVERAGED:
        notes += (f"The averaged weights lie in {averaged}; pass that folder to load them.",)
    return notes


def _checkpoint(
    path: Path,
    config: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    network: dict[str, Tensor],
    encoders: Mapping[str, Mapping[str, Tensor]],
    normalizer: dict[str, Tensor],
) -> Checkpoint:
    where = str(path)
    names = _names(shapes)
    images = {name: _image(names[name], shapes[name], encoder, config, where) for name, encoder in encoders.items()}
    state, environment = ({KEYS[name]: shapes[name][0]} if name in shapes else {} for name in KEYS)
    sizes = unet_sizes(network, entry(config, "n_groups", where), where)
    check_claims(sizes.network, {ours: entry(config, theirs, where) for theirs, ours in CLAIMS.items()}, where)
    scheduler, notes = _scheduler(config, where)
    sidecar = Sidecar.of(path)
    policy = PolicyConfig(
        env_id=sidecar.env_id,
        obs_keys=state | {image.key: features for image, features in images.values()} | environment,
        action_dim=shapes.get("action", (0,))[0],
        n_obs_steps=entry(config, "n_obs_steps", where),
        horizon=entry(config, "horizon", where),
        n_action_steps=entry(config, "n_action_steps", where),
        action_bound=sidecar.action_bound,
        network=sizes.network,
        scheduler=scheduler,
        action_parts=sidecar.action_parts,
        images=tuple(image for image, _ in images.values()),
    )
    tensors = {f"model.{name}": value for name, value in network.items()} | normalizer
    for name, encoder in encoders.items():
        tensors |= encoder_tensors(names[name], encoder)
    checkpoint = Checkpoint(path, NAME, policy, tensors, notes)
    return checkpoint if sidecar.obs_keys is None else checkpoint.with_obs_keys(sidecar.obs_keys)


def _scheduler(config: dict[str, Any], where: str) -> tuple[SchedulerConfig, tuple[str, ...]]:
    """The scheduler from the settings that lerobot passes to diffusers. lerobot ignores all others."""
    names = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample")
    values = {name: entry(config, name, where) for name in (*names, "clip_sample_range")}
    kind, steps = entry(config, "noise_scheduler_type", where), entry(config, "num_inference_steps", where)
    return read_scheduler(kind, values, steps, where)
