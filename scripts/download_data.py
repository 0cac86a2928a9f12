"""Download robomimic's human demonstrations with robomimic's own downloader.

python scripts/download_data.py --task square --type ph --out data/robomimic
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from asd_policy.errors import AsdPolicyError, ConfigError, DataError, UnknownNameError


@dataclass(frozen=True)
class Arguments:
    """What to download."""

    task: str = "square"
    """A task of robomimic."""
    type: Literal["ph", "mh"] = "ph"
    """ph: one proficient human, 200 demonstrations. mh: several humans, 300."""
    out: Path = Path("data/robomimic")
    """Folder; the file goes to TASK/TYPE/ in it."""


def main(arguments: Arguments) -> Path:
    """Download the file and return where it is."""
    # Here, so that --help does not wait for robomimic.
    from robomimic import DATASET_REGISTRY, HF_REPO_ID
    from robomimic.utils.file_utils import download_file_from_hf

    if arguments.task not in DATASET_REGISTRY:
        raise UnknownNameError("task", arguments.task, DATASET_REGISTRY)
    source = DATASET_REGISTRY[arguments.task].get(arguments.type, {}).get("low_dim", {}).get("url")
    if source is None:
        raise ConfigError(f"robomimic has no low-dimensional {arguments.type} demonstrations of {arguments.task}.")
    folder = arguments.out / arguments.task / arguments.type
    target = folder / Path(source).name
    if target.exists():
        raise ConfigError(f"{target} exists already: it is not downloaded again.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        download_file_from_hf(HF_REPO_ID, source, str(folder))
    except OSError as error:  # huggingface_hub's errors of network and server are among these
        raise DataError(f"Cannot download {source} from {HF_REPO_ID}: {error}") from error
    print(f"Wrote {target}; train on it with: python scripts/train.py new --data {target} --out runs/{arguments.task}")
    return target


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except AsdPolicyError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
