"""Turns a folder of lerobot's diffusion policy into one of `asd_diffusion`: the same weights and processors."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from asd_policy.errors import CheckpointError, ConfigError
from asd_policy.importers.files import entry, read_json
from lerobot_policy_asd.options import POLICY_TYPE, SamplerFields, check_chain

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PIPELINES = ("policy_preprocessor.json", "policy_postprocessor.json")
MIGRATE = "python -m lerobot.processor.migrate_policy_normalization --pretrained-path FOLDER"


def convert(
    folder: str | Path, out: str | Path, fields: SamplerFields | None = None, as_ddpm: bool = False
) -> tuple[str, ...]:
    """Write a folder that `--policy.path=` loads as `asd_diffusion`. Returns the names of its files.

    The weights and processors are copied; config.json gains the type and the sampler's options. Either the whole folder
    appears or nothing does.

    Args:
        folder: lerobot's folder, `.../pretrained_model`. A folder of `asd_diffusion` is given other options.
        out: the folder to write. It must not exist.
        fields: the sampler's options; None for the defaults.
        as_ddpm: sample a checkpoint made for DDIM by the DDPM of its betas, with all training steps.

    Raises:
        ConfigError: if `out` exists or its parent does not, or the chain is no DDPM.
        CheckpointError: if a file is missing or damaged, or the policy is of another type. The message names it.
    """
    folder, out = Path(folder), Path(out)
    config = _converted(folder, fields or SamplerFields(), as_ddpm)
    _check_weights(folder / WEIGHTS)
    copied = (WEIGHTS, *_processor_files(folder))
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists; expected a folder that does not, since nothing is overwritten.")
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent} is no folder; expected the one in which {out.name} is to be written.")
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        made.chmod(0o755)
        for name in copied:
            shutil.copyfile(folder / name, made / name)
        (made / CONFIG).write_text(json.dumps(config, indent=4) + "\n")
        made.rename(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return (CONFIG, *copied)


def _converted(folder: Path, fields: SamplerFields, as_ddpm: bool) -> dict[str, Any]:
    """The contents of the new config.json."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; expected lerobot's folder pretrained_model.")
    config = read_json(folder / CONFIG)
    kind = entry(config, "type", str(folder / CONFIG))
    if kind not in ("diffusion", POLICY_TYPE):
        raise CheckpointError(f"{folder} holds a lerobot policy of type {kind!r:.100}; expected 'diffusion'.")
    scheduler = entry(config, "noise_scheduler_type", str(folder / CONFIG))
    if as_ddpm and scheduler == "DDIM":
        config |= {"noise_scheduler_type": "DDPM", "num_inference_steps": None}
    check_chain(config["noise_scheduler_type"])
    return {**config, "type": POLICY_TYPE, **asdict(fields)}


def _check_weights(path: Path) -> None:
    """Raise CheckpointError unless the file's header is that of a diffusion policy without normalisation buffers."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; expected the weights of a whole policy (not those of an adapter).")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read the weights {path}: {error}. Is the file complete?") from error
    if not any(name.startswith("diffusion.unet.") for name in names):
        raise CheckpointError(f"{path} has no tensors diffusion.unet.*; expected those of a diffusion policy.")
    if any(name.startswith("normalize_inputs.") for name in names):
        raise CheckpointError(
            f"{path} holds normalisation buffers, as lerobot wrote them before it had processors. Migrate the folder "
            f"first: {MIGRATE}"
        )


def _processor_files(folder: Path) -> Iterator[str]:
    """The names of the processors' files: each pipeline, and the state files that it names."""
    for pipeline in PIPELINES:
        where = str(folder / pipeline)
        if not (folder / pipeline).is_file():
            raise CheckpointError(
                f"{where} is missing. Without processors the policy would act on numbers that are not normalised. "
                f"A folder of lerobot before processors is migrated by: {MIGRATE}"
            )
        yield pipeline
        for step in entry(read_json(folder / pipeline), "steps", where):
            file = step.get("state_file") if isinstance(step, dict) else None
            if file is None:
                continue
            if not isinstance(file, str) or Path(file).name != file:
                raise CheckpointError(f"{where} names the state file {file!r:.200}; expected a name in its own folder.")
            if not (folder / file).is_file():
                raise CheckpointError(f"{folder / file} is missing; {where} names it.")
            yield file
