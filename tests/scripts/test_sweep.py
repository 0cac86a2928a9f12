"""scripts/sweep.py as a user runs it, on the real environment and a policy with random weights."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from asd_policy.cli.episodes import show_episodes
from asd_policy.cli.sweep import Arguments, main
from asd_policy.cli.tasks import TaskLoader
from asd_policy.errors import AsdPolicyError, CheckpointError
from asd_policy.evaluation.estimate import seconds_per_step
from asd_policy.evaluation.results import Record, read_records
from asd_policy.evaluation.sweep import Plan
from asd_policy.evaluation.worker import LoadedTask
from asd_policy.importers.checkpoint import fingerprint
from envs.tasks import TASKS
from tests.evaluation.toy import Push, Walk
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
SAMPLERS = ("ddim:1", "asd:reuse:4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    task = TASKS["square"]
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", task.obs_dims, task.action_dim)


def start(checkpoint: Path, out: Path, samplers: tuple[str, ...], *arguments: object) -> subprocess.Popen:
    fixed = ["--checkpoints", checkpoint, "--out", out, "--samplers", *samplers, *arguments]
    command = list(map(str, (sys.executable, ROOT / "scripts" / "sweep.py", *fixed)))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def complete(checkpoint, tmp_path_factory):
    """A complete file of one episode, and what was printed."""
    out = tmp_path_factory.mktemp("results") / "sweep.jsonl"
    process = start(checkpoint, out, SAMPLERS[:1], "--seeds", "100000", "--workers", 1)
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output
    return out, output


def test_one_episode(checkpoint, complete):
    out, output = complete
    [record] = read_records([out])
    assert (record.task, record.sampler, record.env_seed, record.repeat) == ("asd/Square-v0", "ddim:1", 100000, 0)
    assert (record.success, record.length, len(record.latency)) == (False, 400, 50)  # random weights solve nothing
    assert record.checkpoint_sha256 == fingerprint(checkpoint)
    assert record.settings == {"device": "cpu", "threads": 1, "batch": 1}
    assert "all episodes: 1/1, 0 succeeded, about 0 min left" in output
    assert "1 of 1 episodes, 0 with errors" in output


@pytest.mark.slow
def test_interrupted_sweep_is_continued(checkpoint, tmp_path):
    out = tmp_path / "sweep.jsonl"
    arguments = (checkpoint, out, SAMPLERS, "--seeds", "100000,100001", "--workers", 2)
    process = start(*arguments)
    while process.poll() is None and not (out.exists() and out.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "Interrupted; the same command continues." in output
    before = read_records([out])
    assert 1 <= len(before) < 4
    process = start(*arguments)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    records = read_records([out])
    assert len(records) == 4
    assert all(record in records for record in before)


def arguments(checkpoint, out, **changes):
    return replace(Arguments((checkpoint,), SAMPLERS, out, "100000,100001"), **changes)


def test_dry_run_tells_what_is_left(checkpoint, complete, capsys):
    out, _ = complete
    content = out.read_bytes()
    assert main(arguments(checkpoint, out, samplers=("ddim:1", "ddim:2"), dry_run=True)) == 0
    printed = capsys.readouterr().out
    assert "3 of 4 episodes to run" in printed
    known, unknown = (line.split() for line in printed.splitlines() if "asd/Square-v0" in line)
    assert known[1:4] + known[5:6] == ["ddim:1", "1", "1", "400"]
    assert unknown[1:4] + unknown[5:7] == ["ddim:2", "0", "2", "<=", "400"]
    assert float(known[4]) > 0
    assert out.read_bytes() == content


def test_changes_are_refused(checkpoint, complete, tmp_path):
    out, _ = complete
    with pytest.raises(AsdPolicyError, match=r"'threads': 1.*'threads': 2"):
        main(arguments(checkpoint, out, threads=2))
    changed = tmp_path / "changed"
    shutil.copytree(checkpoint, changed)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"n_action_steps": 4}))
    with pytest.raises(AsdPolicyError, match="another checkpoint for asd/Square-v0"):
        main(arguments(changed, out))


def test_checkpoint_that_changes_under_way(checkpoint):
    settings = {"device": "cpu", "threads": 1, "batch": 1}
    load = TaskLoader({"asd/Square-v0": (checkpoint, "ab" * 32)}, windows=False, settings=settings)
    with pytest.raises(CheckpointError, match="has changed since the sweep began"):
        load("asd/Square-v0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samplers": ("euler",)}, "expected ddpm.*, ddim"),
        ({"seeds": "papers"}, "smoke, dev, paper"),
        ({"threads": 0}, "--threads is 0"),
        ({"batch": 0}, "nothing to run"),
        ({"workers": -1}, "Got -1 workers"),
        ({"workers": 0}, "Got 0 workers"),
        ({"seeds": "100001,100000-100002"}, r"env_seeds holds \[100001\] more than once"),
        ({"samplers": ("asd:path:²",)}, "in place of a positive number, 'all' or 'auto'"),
        ({"samplers": ("ddim:0",)}, "got '0' in place of a positive number"),
        ({"repeats": -1}, "nothing to run"),
        ({"samplers": ("asd:frosen",), "backend": "serial"}, "Did you mean 'frozen'"),
        ({"backend": "serail"}, "Did you mean 'serial'"),
    ],
)
def test_bad_arguments(checkpoint, tmp_path, changes, message):
    with pytest.raises(AsdPolicyError, match=message):
        main(arguments(checkpoint, tmp_path / "sweep.jsonl", **changes))


def test_two_checkpoints_of_one_task(checkpoint, tmp_path):
    with pytest.raises(AsdPolicyError, match="one checkpoint per task"):
        main(arguments(checkpoint, tmp_path / "sweep.jsonl", checkpoints=(checkpoint, checkpoint)))


def test_fingerprint_is_of_what_the_policy_is_read_from(checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    before = fingerprint(folder)
    (folder / "README.md").write_text("scores")
    (folder / "windows.json").write_text("{}")
    assert fingerprint(folder) == before == fingerprint(checkpoint)
    assert fingerprint(folder, windows=True) != before
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert fingerprint(folder) != before
    with pytest.raises(CheckpointError, match="Cannot read the checkpoint"):
        fingerprint(tmp_path / "none")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(terminal):
    plan = Plan({"walk": "ab" * 32}, SAMPLERS, [1, 2], 1, {"batch": 1})
    episode = {"noise_seed": 1, "length": 3, "latency": [], "rounds": [], "evaluations": [], "acceptance": []}
    fixed = {**episode, "action_sha256": "", "checkpoint_sha256": "ab" * 32, "settings": {}, "software": {}}
    errors = (None, None, None, "SimulationError: diverged")
    records = [
        Record(**asdict(key), **fixed, success=error is None, error=error)
        for key, error in zip(plan.keys, errors, strict=True)
    ]
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    with show_episodes(plan, records[:1], console) as show:
        for record in records[1:]:
            show(record)
    printed = console.file.getvalue()
    assert "4/4" in printed
    assert "3 succeeded, 1 with errors" in printed
    if terminal:
        assert "walk asd:reuse:4" in printed
    else:
        assert printed.count("\n") == 3


@pytest.mark.slow
@pytest.mark.parametrize("backend", [("processes", "--workers", 2), ("ray", "--workers", 2)], ids=("processes", "ray"))
def test_shipped_policy_acts_alike_on_every_backend(backend, tmp_path):
    streams = []
    for number, chosen in enumerate((("serial",), backend)):
        out = tmp_path / f"{number}.jsonl"
        samplers = ("ddim:10", "asd:path:16")
        process = start(ROOT / "checkpoints/square", out, samplers, "--seeds", "100000,100001", "--backend", *chosen)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        streams.append([(record.key, record.success, record.action_sha256) for record in read_records([out])])
    assert streams[0] == streams[1]
    assert len(streams[0]) == 4


class Slow(Push):
    """Compiles in its first act."""

    compiled = False

    def act(self, obs):
        if not self.compiled:
            time.sleep(1.0)
            self.compiled = True
        return super().act(obs)


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_estimate_leaves_compilation_out(first):
    policy = Slow(0.0, 7)
    policy.compiled = first == 0.0
    seconds = seconds_per_step(LoadedTask(Walk, lambda label: policy), "ddpm", env_seed=1, batch=1)
    assert 0 < seconds < 0.05  # a second in twelve steps would be 0.08
