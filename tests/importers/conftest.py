"""One file of each foreign format, made once."""

import pytest

from tests.importers import originals
from tests.importers.originals import Original


@pytest.fixture(scope="session")
def all_originals(tmp_path_factory) -> dict[str, Original]:
    """By format and, where it has several, architecture: a file, and what the library that made it computes with it.

    One of real-stanford's is made here, in its layout.
    """
    folder = tmp_path_factory.mktemp("originals")
    with originals.small_robomimic_unet():
        robomimic = originals.robomimic_original(folder / "model.pth")
        robomimic_image = originals.robomimic_image_original(folder / "image.pth")
    return {
        "robomimic": robomimic,
        "robomimic image": robomimic_image,
        "lerobot": originals.lerobot_original(),
        "lerobot image": originals.lerobot_rgb_original(folder / "lerobot_rgb"),
        "lerobot image, separate": originals.lerobot_rgb_original(folder / "separate", "lerobot_rgb_separate"),
        "diffusion_policy image": originals.real_stanford_image_original(folder / "hybrid.ckpt"),
        "diffusion_policy image, average": originals.real_stanford_image_original(folder / "m.ckpt", "multi_image"),
        "diffusion_policy image, shared": originals.real_stanford_image_original(folder / "shared.ckpt", "shared"),
        "diffusion_policy": originals.lookalike_of_real_stanford(folder / "latest.ckpt"),
        "diffusion_policy unet": originals.real_stanford_original("unet"),
        "diffusion_policy transformer": originals.real_stanford_original("transformer"),
    }
