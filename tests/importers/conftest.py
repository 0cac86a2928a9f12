"""One file of each foreign format, made once."""

import pytest

from tests.importers import originals
from tests.importers.originals import Original


@pytest.fixture(scope="session")
def all_originals(tmp_path_factory) -> dict[str, Original]:
    """By format: a file made by (or in the layout of) the library, and what the library computes with it."""
    folder = tmp_path_factory.mktemp("originals")
    with originals.small_robomimic_unet():
        robomimic = originals.robomimic_original(folder / "model.pth")
    return {
        "robomimic": robomimic,
        "lerobot": originals.lerobot_original(),
        "diffusion_policy": originals.real_stanford_original(folder / "latest.ckpt"),
    }
