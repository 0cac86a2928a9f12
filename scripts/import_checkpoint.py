"""Convert a policy between libraries, or only say what a file holds.

Examples:

    python scripts/import_checkpoint.py model_epoch_1000.pth --inspect
    python scripts/import_checkpoint.py latest.ckpt --out checkpoints/mine
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from asd_policy.errors import AsdPolicyError, ConfigError
from asd_policy.importers import Checkpoint, read_checkpoint
from asd_policy.importers.export import EXPORTS
from asd_policy.policies.image_keys import ImageKey


@dataclass(frozen=True)
class Arguments:
    """Which file, and what to do with it."""

    path: tyro.conf.Positional[Path]
    """A real-stanford .ckpt, a robomimic .pth, a lerobot folder, or a folder of this package."""
    out: Path | None = None
    """Where to write the converted policy."""
    to: Literal["native", "robomimic", "lerobot"] = "native"
    """Format to write; robomimic's is a file, the others are folders."""
    inspect: bool = False
    """Only show what the file holds."""
    obs_keys: dict[str, int] = field(default_factory=dict)
    """The environment's observation keys and sizes in the policy's order, where the file has them in one piece."""
    env_id: str | None = None
    """The environment, where the file does not name it."""
    trust_pickle: bool = False
    """Run whatever code the file's pickle contains, with your rights on this machine. Only for files you made."""


def main(arguments: Arguments) -> None:
    console = Console()
    if (arguments.out is None) != arguments.inspect:
        raise ConfigError("Pass either --inspect or --out PATH.")
    if arguments.out is not None and arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists already: choose another path.")
    checkpoint = read_checkpoint(
        arguments.path, arguments.obs_keys or None, arguments.env_id, trust_pickle=arguments.trust_pickle
    )
    checkpoint.policy()  # builds it: every tensor must find its place
    console.print(table(checkpoint))
    for note in checkpoint.notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True, markup=False, highlight=False)
    if arguments.out is not None:
        EXPORTS[arguments.to](checkpoint, arguments.out)
        console.print(f"Wrote {arguments.out}", soft_wrap=True, highlight=False)


def table(checkpoint: Checkpoint) -> Table:
    """What was found."""
    config, scheduler = checkpoint.config, checkpoint.config.scheduler
    parameters = sum(
        value.numel() for name, value in checkpoint.tensors.items() if name.startswith(("model.", "encoders."))
    )
    images = [encoded(image, config.obs_keys[image.key]) for image in config.images]
    clip = f"clipped to ±{scheduler.clip_sample_range:g}" if scheduler.clip_sample else "not clipped"
    parts = ", ".join(f"{part.kind} {part.dim}" for part in config.action_parts) or "as the network predicts them"
    bound = "no bounds" if config.action_bound is None else f"within ±{config.action_bound:g}"
    first = config.n_obs_steps - 1
    rows = {
        "format": checkpoint.format,
        "environment": config.env_id,
        "architecture": config.network.describe(),
        "parameters": f"{parameters:,}",
        "horizons": f"observes {config.n_obs_steps}, predicts {config.horizon}, "
        f"executes {config.n_action_steps} (chunk[{first}:{first + config.n_action_steps}])",
        "scheduler": f"DDPM {scheduler.num_train_timesteps} steps, {scheduler.beta_schedule}, "
        f"{scheduler.variance_type}, {scheduler.prediction_type}, {clip}",
        "observations": ", ".join(f"{key} {dim}" for key, dim in config.obs_keys.items())
        + f" (total {config.obs_dim})",
        "images": "\n".join(images) or "none",
        "actions": f"{config.action_dim} -> {config.env_action_dim}: {parts}; {bound}",
        "normalised": ", ".join(normalised(checkpoint)) or "nothing",
    }
    shown = Table("", "found", title=str(checkpoint.source), show_lines=False)
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def encoded(image: ImageKey, features: int) -> str:
    """How an image becomes so many numbers."""
    shape = "x".join(map(str, image.shape))
    resized = f", resized to {image.resize[0]}x{image.resize[1]}" if image.resize else ""
    cropped = "" if not image.crop else ", cropped to {2}x{3} from row {0}, column {1}".format(*image.crop)
    encoder = f"{image.backbone} with {image.norm} norm, {image.num_keypoints} keypoints"
    return f"{image.key} {shape}{resized}{cropped}: {encoder} -> {features}"


def normalised(checkpoint: Checkpoint) -> list[str]:
    """Fields whose normalisation is not the identity."""
    found = []
    for key in (*checkpoint.config.obs_keys, "action"):
        scale, offset, center = checkpoint.affine(key)
        if bool((scale != 1).any() or (offset != 0).any() or (center != 0).any()):
            found.append(key)
    return found


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except AsdPolicyError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
