"""Digits from both kinds of files, and files that hold none."""

import gzip
from contextlib import suppress

import numpy as np
import pytest
import torch

from asd_policy.data.digits import Digits
from asd_policy.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
LABELS = np.array([0, 9, 1, 1, 4], dtype=np.uint8)


def test_npz_and_torchvision_agree(tmp_path):
    np.savez(tmp_path / "digits.npz", images=IMAGES, labels=LABELS)
    raw = tmp_path / "root" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for name, values in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
            header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
            (raw / f"{split}-{name}-ubyte").write_bytes(header + values.tobytes())
            (raw / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    npz, root = Digits.read(tmp_path / "digits.npz"), Digits.read(tmp_path / "root")
    assert torch.equal(npz.images, root.images)
    assert torch.equal(npz.labels, root.labels)
    assert npz.labels.dtype == torch.int64


def test_padding(tmp_path):
    np.savez(tmp_path / "digits.npz", images=IMAGES, labels=LABELS)
    padded = Digits.read(tmp_path / "digits.npz").padded()
    assert padded.shape == (5, 1, 32, 32)
    assert (padded[:, :, :2] == -1).all()
    torch.testing.assert_close((padded[:, 0, 2:-2, 2:-2] + 1) * 127.5, torch.from_numpy(IMAGES).float())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGES}, "with `images` and `labels`"),
        ({"images": IMAGES.astype(np.float32), "labels": LABELS}, "float32"),
        ({"images": IMAGES, "labels": LABELS[:4]}, r"labels \(4,\)"),
        ({"images": IMAGES, "labels": LABELS + 1}, "from 1 to 10"),
        ({"images": IMAGES, "labels": LABELS + 0.5}, "integers"),
        ({"images": IMAGES, "labels": LABELS * np.nan}, "integers"),
        ({"images": IMAGES, "labels": np.uint8(3)}, r"labels \(\)"),
        ({"images": IMAGES, "labels": np.array(list("01234"))}, "integers"),
    ],
)
def test_refused_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "digits.npz", **arrays)
    with pytest.raises(DataError, match=message):
        Digits.read(tmp_path / "digits.npz")


def test_refused_paths(tmp_path):
    with pytest.raises(DataError, match="download=True"):
        Digits.read(tmp_path)
    (tmp_path / "text.npz").write_text("no zip file")
    for name in ("text.npz", "missing.npz"):
        with pytest.raises(DataError, match=name):
            Digits.read(tmp_path / name)


def test_cut_off_files(tmp_path):
    np.savez_compressed(tmp_path / "digits.npz", images=IMAGES, labels=LABELS)
    whole = (tmp_path / "digits.npz").read_bytes()
    for place in range(0, len(whole), 5):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]):
            (tmp_path / "digits.npz").write_bytes(damaged)
            with suppress(DataError):
                Digits.read(tmp_path / "digits.npz")
