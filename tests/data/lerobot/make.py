"""Makes the datasets beside this file with lerobot itself, and `expected.npz` with what lerobot reads from them.

In an environment with lerobot 0.4.4 (LeRobotDataset 3.0), and then in one with lerobot 0.3.3 (2.1):

    python tests/data/lerobot/make.py v3
    python tests/data/lerobot/make.py v21

lerobot decodes the videos with its backend "pyav".
"""

import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SIDE = 64  # pixels, the least that AV1's encoder takes
LENGTHS = (12, 15)
ROWS = (0, 11, 12, 26)
SHAPES = {"observation.state": 2, "observation.environment_state": 3, "action": 2}


def make(folder: Path, kind: str) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    shutil.rmtree(folder, ignore_errors=True)
    features = {name: {"dtype": "float32", "shape": (size,), "names": None} for name, size in SHAPES.items()}
    image = {"dtype": kind, "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}
    features["observation.images.top"] = image
    made = LeRobotDataset.create(
        "test/made", fps=10, features=features, root=folder, robot_type="toy", use_videos=kind == "video"
    )
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for episode, length in enumerate(LENGTHS):
        for t in range(length):
            channels = [(3 * x + 10 * t) % 256, (2 * y + 90 * episode) % 256, np.full((SIDE, SIDE), 15 * t)]
            frame = {name: rng.normal(size=size).astype(np.float32) for name, size in SHAPES.items()}
            frame["observation.images.top"] = np.stack(channels, axis=-1).astype(np.uint8)
            if hasattr(made, "finalize"):  # 0.4
                made.add_frame(frame | {"task": f"task {episode}"})
            else:
                made.add_frame(frame, task=f"task {episode}")
        made.save_episode()
    if hasattr(made, "finalize"):
        made.finalize()
    shutil.rmtree(folder / "images", ignore_errors=True)


def expected(folder: Path) -> dict[str, np.ndarray]:
    """What lerobot reads in the rows of `ROWS`, and its statistics."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    read = LeRobotDataset("test/made", root=folder, video_backend="pyav")
    items = [read[index] for index in ROWS]
    values = {name: np.stack([item[name].numpy() for item in items]) for name in SHAPES}
    images = np.stack([(255 * item["observation.images.top"].numpy()).round() for item in items])
    values["observation.images.top"] = np.moveaxis(images, 1, -1).astype(np.uint8)
    for name in SHAPES:
        values |= {f"{name} {key}": np.array(read.meta.stats[name][key]) for key in ("min", "max")}
    return values


def expected_videos(folder: Path) -> dict[str, np.ndarray]:
    """The frames that lerobot decodes in the rows of `ROWS`, for 0.3.3, whose dataset needs an older `datasets`."""
    from lerobot.datasets.video_utils import decode_video_frames

    images = []
    for row in ROWS:
        episode = int(row >= LENGTHS[0])
        video = folder / f"videos/chunk-000/observation.images.top/episode_{episode:06d}.mp4"
        frame = decode_video_frames(video, [(row - LENGTHS[0] * episode) / 10], 1e-4, "pyav")
        images.append((255 * frame.squeeze(0).numpy()).round())
    return {"observation.images.top": np.moveaxis(np.stack(images), 1, -1).astype(np.uint8)}


if __name__ == "__main__":
    version = sys.argv[1]
    for kind in ("video", "image") if version == "v3" else ("video",):
        folder = HERE / f"{version}_{kind}"
        make(folder, kind)
        values = expected(folder) if version == "v3" else expected_videos(folder)
        np.savez_compressed(folder.with_suffix(".npz"), **values)
