"""lerobot's training runs: which step's policy is read."""

import shutil
from pathlib import Path

import pytest

from asd_policy.errors import CheckpointError
from asd_policy.importers import find_checkpoint, load_policy, read_checkpoint
from tests.importers.originals import GOLDEN_LEROBOT


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with steps 20000 and 100000, as lerobot 0.4 to 0.6 writes it."""
    steps = tmp_path / "outputs" / "checkpoints"
    for step in ("020000", "100000"):
        shutil.copytree(GOLDEN_LEROBOT, steps / step / "pretrained_model")
        (steps / step / "training_state").mkdir()
    (steps / "last").symlink_to("100000")
    return steps.parent


def test_a_step_and_its_policy_are_read_silently(run, recwarn):
    step = run / "checkpoints" / "020000"
    assert find_checkpoint(step) == find_checkpoint(step / "pretrained_model") == step / "pretrained_model"
    assert find_checkpoint(run / "checkpoints" / "last") == run / "checkpoints" / "last" / "pretrained_model"
    assert load_policy(step, "ddpm").config == read_checkpoint(GOLDEN_LEROBOT).config
    assert not [warning for warning in recwarn if "training run" in str(warning.message)]


@pytest.mark.parametrize("part", ["", "checkpoints"])
def test_of_a_run_the_last_step_is_read_with_a_warning(run, part):
    expected = run / "checkpoints" / "100000" / "pretrained_model"
    with pytest.warns(UserWarning, match=r"training run of lerobot. Its step 100000 is read; other steps: 020000\."):
        assert find_checkpoint(run / part) == expected
    with pytest.warns(UserWarning, match="100000"):
        assert read_checkpoint(run / part).source == expected


def test_the_link_counts_and_without_it_the_number(run):
    """A run that went on from an earlier step has later ones that are no longer its last."""
    last = run / "checkpoints" / "last"
    last.unlink()
    with pytest.warns(UserWarning, match="Its step 100000 is read"):
        find_checkpoint(run)
    last.symlink_to("020000")
    with pytest.warns(UserWarning, match="Its step 020000 is read; other steps: 100000"):
        assert find_checkpoint(run).parts[-2:] == ("020000", "pretrained_model")


def test_a_link_to_a_step_without_a_policy_is_refused(run):
    shutil.rmtree(run / "checkpoints" / "100000")
    with pytest.raises(CheckpointError, match=r"last is a link to 100000, which holds no policy.*020000"):
        find_checkpoint(run)


def test_a_run_without_a_saved_step_is_said_to_hold_no_policy(tmp_path):
    (tmp_path / "checkpoints" / "020000" / "training_state").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"config\.json: there is no such file"):
        read_checkpoint(tmp_path)
