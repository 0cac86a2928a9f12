"""The image encoder: keypoints where the light is, and crops where they are asked for."""

import pytest
import torch
from torchvision.transforms.functional import center_crop

from asd_policy.nets.vision import ImageEncoder, SpatialSoftmax
from asd_policy.policies.image_keys import central_crop


def test_keypoints_follow_the_brightest_pixel() -> None:
    pool = SpatialSoftmax(channels=2, num_keypoints=2)
    with torch.no_grad():
        pool.conv.weight.copy_(100 * torch.eye(2)[:, :, None, None])
    features = torch.zeros(1, 2, 3, 5)
    features[0, 0, 0, 4] = features[0, 1, 2, 1] = 1  # (row, column)
    torch.testing.assert_close(pool(features), torch.tensor([[1.0, -1.0, -0.5, 1.0]]))


@pytest.mark.parametrize(("size", "crop"), [((84, 84), (76, 76)), ((48, 56), (41, 43)), ((9, 11), (4, 4))])
def test_central_crops_are_torchvisions(size, crop) -> None:
    top, left, height, width = central_crop(size, crop, round)
    image = torch.arange(size[0] * size[1]).view(size)
    assert torch.equal(image[top : top + height, left : left + width], center_crop(image[None], list(crop))[0])


def encoder(**options) -> ImageEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageEncoder(3, 6, num_keypoints=4, **options).eval()


def test_every_image_is_cropped_at_its_own_corner() -> None:
    net = encoder(crop=(2, 1, 32, 40))
    images = torch.rand(2, 2, 36, 44, 3, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor([[[2, 1], [0, 0]], [[4, 4], [3, 0]]])
    features = net(images, corners)
    assert features.shape == (2, 2, 6)
    torch.testing.assert_close(features[0, 0], net(images)[0, 0])
    for row in range(2):
        for step in range(2):
            top, left = corners[row, step].tolist()
            alone = images[row, step, top : top + 32, left : left + 40]
            torch.testing.assert_close(features[row, step], encoder()(alone[None])[0])


def test_norms_sizes_and_channels() -> None:
    for options in ({"backbone": "resnet34"}, {"norm": "batch"}, {"resize": (33, 40), "crop": (0, 8, 32, 32)}):
        assert encoder(**options)(torch.rand(1, 40, 48, 3)).shape == (1, 6)
    assert ImageEncoder(1, 5).eval()(torch.rand(2, 3, 32, 32, 1)).shape == (2, 3, 5)
