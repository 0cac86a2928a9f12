"""Films of episodes that are run again, on a toy environment and policy."""

from dataclasses import replace

import imageio
import numpy as np
import pytest

from asd_policy.evaluation.results import Record
from asd_policy.evaluation.rollout import rollout
from asd_policy.evaluation.videos import film
from tests.evaluation.toy import Push, Walk


class Filmed(Walk):
    """Shows the time as a shade of grey."""

    metadata = {"render_fps": 20}  # noqa: RUF012  (gymnasium's way)

    def render(self):
        return np.full((32, 32, 3), 20 * self.t, dtype=np.uint8)


@pytest.fixture
def record():
    episode = rollout(Filmed(), Push(0.9, rounds=7), env_seed=1, noise_seed=2)
    common = {"task": "../walk", "sampler": "asd:path:16", "repeat": 3, "error": None, "checkpoint_sha256": "0" * 64}
    return Record(**episode.to_json(), **common, settings={}, software={})


def test_film_shows_the_episode(record, tmp_path):
    video = film(Filmed(), Push(0.9, rounds=7), record, tmp_path / "index.html")
    assert (video.same, video.success) == (True, True)
    [path] = tmp_path.rglob("*.mp4")
    assert tmp_path / video.path == path
    assert path.parent == tmp_path / "videos"  # whatever the task is called
    shades = [frame.mean() for frame in imageio.mimread(path)]
    assert len(shades) == len(range(0, record.length - 1, 2)) + 1  # every other step and the last
    assert shades == sorted(shades)
    assert shades[-1] == pytest.approx(20 * record.length, abs=6)


def test_film_tells_of_another_episode(record, tmp_path):
    video = film(Filmed(), Push(0.0, rounds=7), record, tmp_path / "index.html")
    assert (video.same, video.success) == (False, False)
    other_noise = replace(record, noise_seed=3)
    assert not film(Filmed(), Push(0.9, rounds=7), other_noise, tmp_path / "index.html").same
