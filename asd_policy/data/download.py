"""Downloads robomimic's human demonstrations with robomimic's own downloader. Needs robomimic."""

from pathlib import Path

from robomimic import DATASET_REGISTRY, HF_REPO_ID
from robomimic.utils import file_utils

from asd_policy.errors import ConfigError, DataError, UnknownNameError


def download(task: str, kind: str, folder: Path) -> Path:
    """Download low-dimensional demonstrations to TASK/KIND/ in a folder. Returns the path of the HDF5 file.

    Args:
        task: a task of robomimic, such as "square".
        kind: "ph" (one proficient human) or "mh" (several humans).

    Raises:
        UnknownNameError: if robomimic has no such task.
        ConfigError: if robomimic has no such demonstrations of the task, or the file exists already.
        DataError: if the download fails.
    """
    if task not in DATASET_REGISTRY:
        raise UnknownNameError("task", task, DATASET_REGISTRY)
    source = DATASET_REGISTRY[task].get(kind, {}).get("low_dim", {}).get("url")
    if source is None:
        raise ConfigError(f"robomimic has no low-dimensional {kind} demonstrations of {task}.")
    target = folder / task / kind / Path(source).name
    if target.exists():
        raise ConfigError(f"{target} exists already: it is not downloaded again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        file_utils.download_file_from_hf(HF_REPO_ID, source, str(target.parent))
    except OSError as error:  # the base of huggingface_hub's network and server errors
        raise DataError(f"Cannot download {source} from {HF_REPO_ID}: {error}") from error
    return target
