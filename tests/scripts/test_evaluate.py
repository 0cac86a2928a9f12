"""scripts/evaluate.py as a user runs it, on the real environment and a policy with random weights."""

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asd_policy.errors import ConfigError, DataError
from asd_policy.evaluation.folders import choose_folder
from asd_policy.evaluation.results import read_records
from asd_policy.jsonl import JsonLines, read_json_lines
from envs.tasks import TASKS
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "evaluate.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    task = TASKS["square"]
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", task.obs_dims, task.action_dim)


def command(checkpoint: Path, out: Path, *arguments: str) -> list[str]:
    fixed = ["--checkpoint", checkpoint, "--out", out, "--threads", 1]
    return [str(word) for word in (sys.executable, SCRIPT, *fixed, *arguments)]


def test_two_samplers_on_one_seed(checkpoint, tmp_path):
    arguments = ("--samplers", "ddpm", "asd:reuse:4", "--seeds", "100000", "--no-video")
    done = subprocess.run(command(checkpoint, tmp_path, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "asd:reuse:4" in done.stdout
    assert (tmp_path / "acceptance.png").exists()
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["provenance"]["checkpoint_sha256"]) == 64
    plain, fast = results["summary"]
    assert plain["rounds"] == 12
    assert fast["rounds"] < 12
    episodes = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert [episode["sampler"] for episode in episodes] == ["ddpm", "asd:reuse:4"]
    assert episodes[0]["length"] == 400  # random weights solve nothing
    [plain, fast] = read_records([tmp_path / "episodes.jsonl"])
    assert plain.settings == {"device": "cpu", "threads": 1, "batch": 1}
    assert plain.checkpoint_sha256 == results["provenance"]["checkpoint_sha256"]
    report = [str(ROOT / "scripts" / "report.py"), str(tmp_path / "episodes.jsonl"), "--out", str(tmp_path / "report")]
    subprocess.run([sys.executable, *report], capture_output=True, check=True)
    assert "asd:reuse:4" in (tmp_path / "report" / "report.md").read_text()


def test_earlier_run_is_kept_unless_told_otherwise(tmp_path):
    out = tmp_path / "out"
    for folder in (out, tmp_path / "out-2", tmp_path / "out-3"):
        assert choose_folder(out, overwrite=False) == folder
        (folder / "episodes.jsonl").write_text(folder.name)
    assert choose_folder(out, overwrite=True) == out
    assert (out / "episodes.jsonl").read_text() == ""
    assert (tmp_path / "out-2" / "episodes.jsonl").read_text() == "out-2"
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(DataError, match="Cannot write to the folder"):
            choose_folder(place, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_is_being_written_is_not_overwritten(tmp_path):
    choose_folder(tmp_path / "out", overwrite=False)
    with JsonLines(tmp_path / "out" / "episodes.jsonl") as file:
        file.append({"finished": 1})
        with pytest.raises(ConfigError, match="Another process is writing"):
            choose_folder(tmp_path / "out", overwrite=True)
    assert len(read_json_lines(tmp_path / "out" / "episodes.jsonl")) == 1


def test_second_run_writes_beside_the_first(checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "episodes.jsonl").write_text("earlier\n")
    arguments = ("--samplers", "ddim:1", "--seeds", "100000", "--no-video")
    done = subprocess.run(command(checkpoint, out, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "which is kept: writing to" in done.stdout
    assert [file.name for file in out.iterdir()] == ["episodes.jsonl"]
    assert (out / "episodes.jsonl").read_text() == "earlier\n"
    assert (tmp_path / "out-2" / "results.json").exists()


def test_full_disk_names_the_episode_that_is_lost(checkpoint, tmp_path):
    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    arguments = ("--samplers", "ddim:1", "--seeds", "100000", "--no-video", "--overwrite")
    done = subprocess.run(
        command(checkpoint, tmp_path, *arguments), capture_output=True, text=True, check=False, preexec_fn=little_room
    )
    assert done.returncode == 1
    assert "DataError: Cannot write to" in done.stderr
    assert "Not recorded: EpisodeKey(task='asd/Square-v0', sampler='ddim:1', env_seed=100000" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "episodes.jsonl").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_device_is_no_results_file(checkpoint, tmp_path):
    (tmp_path / "episodes.jsonl").symlink_to("/dev/full")
    arguments = ("--samplers", "ddim:1", "--seeds", "100000", "--no-video", "--overwrite")
    done = subprocess.run(command(checkpoint, tmp_path, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "it is not a regular file" in done.stderr
    assert "Traceback" not in done.stderr


def test_interrupt_keeps_finished_episodes(checkpoint, tmp_path):
    arguments = ("--samplers", "ddim:1", "--seeds", "100000-100999", "--no-video")
    process = subprocess.Popen(
        command(checkpoint, tmp_path, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    record = tmp_path / "episodes.jsonl"
    while process.poll() is None and not (record.exists() and record.read_text()):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    [row] = json.loads((tmp_path / "results.json").read_text())["summary"]
    assert row["episodes"] == len(lines) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--samplers", "euler"), "expected ddpm[:CAPTURE], ddim"),
        (("--samplers", "asd:frosen"), "Did you mean 'frozen'"),
        (("--samplers", "ddpm", "ddpm"), "samplers holds ['ddpm'] more than once"),
        (("--max-steps", "0"), "expected 1 or more"),
        (("--seeds", "x"), "Cannot read the seeds"),
        (("--seeds", "1,1"), "env_seeds holds [1] more than once"),
        (("--threads", "0"), "0 threads"),
        (("--repeat", "-1"), "expected neither to be negative"),
    ],
)
def test_bad_arguments(checkpoint, tmp_path, arguments, message):
    done = subprocess.run(command(checkpoint, tmp_path, *arguments), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
