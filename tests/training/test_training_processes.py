"""Training in several processes: the same losses as in one, files from one, and no waiting for the dead."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from asd_policy.cli import train
from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.errors import ConfigError, WorkerError
from asd_policy.nets import NetworkConfig
from asd_policy.training.loop import check_divisible
from asd_policy.training.processes import Processes
from asd_policy.training.run import Machine, RunInfo
from asd_policy.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
NETWORK = NetworkConfig(down_dims=(8, 16), n_groups=4, diffusion_step_embed_dim=8)
STEPS = 12
OPTIONS = [
    *("--steps", str(STEPS), "--batch-size", "8", "--warmup-steps", "3", "--snapshot-every", "6", "--log-every", "2"),
    *("--held-out", "1", "--device", "cpu", "--network.down-dims", "8", "16", "--network.n-groups", "4"),
    *("--network.diffusion-step-embed-dim", "8", "--obs-keys", "position", "camera"),
]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three episodes with a camera, so that crops are drawn too."""
    shapes: dict[str, tuple[int, ...]] = {"position": (3,), "camera": (36, 36, 3)}
    episodes = EpisodeStore.create(tmp_path / "demos.zarr", shapes, 2, {"env_id": "asd/Square-v0"})
    generator = np.random.default_rng(0)
    for seed in range(3):
        obs = {
            "position": generator.normal(size=(20, 3)).astype(np.float32),
            "camera": generator.integers(256, size=(20, 36, 36, 3), dtype=np.uint8),
        }
        action = generator.uniform(-1, 1, size=(20, 2)).astype(np.float32)
        episodes.append(Demonstration(seed, obs, action, action, 20))
    return tmp_path / "demos.zarr"


def launch(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The training command, started by torchrun."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*start, "-m", "asd_policy.cli", "train", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False)


def losses(out: Path) -> dict[int, tuple[float, float | None]]:
    """Step -> loss and held-out loss of log.jsonl."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line.get("held_out_loss")) for line in lines}


def assert_alike(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    """Weights that are equal to rounding.

    A bias in front of a group norm can have a gradient of zero, but for rounding, of which Adam makes a whole step.
    """
    assert others.keys() == weights.keys()
    differences = torch.cat([(others[key] - value).abs().flatten() for key, value in weights.items()])
    assert float((differences > 5e-6).float().mean()) < 1e-5 + 8 / len(differences)
    assert float(differences.max()) < 2e-3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_as_one_does(store, tmp_path):
    """The same losses and averaged weights to rounding, each file written once, and the same again after a resume."""
    pytest.importorskip("accelerate")
    one, two = tmp_path / "one", tmp_path / "two"
    assert train.main(train.parse(train, ["new", "--data", str(store), "--out", str(one), *OPTIONS], "train")) == 0
    done = launch(2, "new", "--data", store, "--out", two, *OPTIONS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("finished") == 1
    expected, got = losses(one), losses(two)
    assert list(got) == list(expected) == [2, 4, 6, 8, 10, 12]
    for step, (loss, held_out) in expected.items():
        assert got[step] == (pytest.approx(loss, rel=1e-6), held_out and pytest.approx(held_out, rel=1e-6))
    assert {file.name for file in two.iterdir()} == {file.name for file in one.iterdir()}
    for name in (f"ema_{STEPS // 2:06d}", f"ema_{STEPS:06d}"):
        assert_alike(*(load_file(out / f"{name}.safetensors") for out in (one, two)))

    (two / "last.pt").unlink()  # as if it had been killed before its first saved state
    resumed = launch(2, "resume", "--out", two, "--device", "cpu")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert losses(two) == got


SCRIPT = """
import sys, time
from pathlib import Path
from asd_policy.cli import train
from asd_policy.training import loop, processes
from datetime import timedelta
processes.TIMEOUT = timedelta(seconds=20)
update = loop.Trainer.update
def slowly(self):
    Path(sys.argv[1], f"step_{self.processes.rank}").write_text(str(self.step))
    time.sleep(0.05)
    return update(self)
loop.Trainer.update = slowly
arguments = train.parse(train, sys.argv[2:], "train")
sys.exit(train.main(arguments))
"""


def started(tmp_path: Path, *arguments: object) -> list[subprocess.Popen[str]]:
    """Two processes without a launcher that would end one when the other is lost."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), *map(str, arguments)]
    return [
        subprocess.Popen(
            command,
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kill", "within"), [(signal.SIGKILL, 60), (signal.SIGSTOP, 90)])
def test_a_lost_process_ends_the_others(store, tmp_path, kill, within):
    pytest.importorskip("accelerate")
    options = [*OPTIONS, "--steps", "100000"]
    first, second = started(tmp_path, "new", "--data", store, "--out", tmp_path / "run", *options)
    try:
        step = tmp_path / "step_1"
        wait_for(lambda: step.exists() and int(step.read_text() or 0) > 8, 400)
        second.send_signal(kill)
        output, _ = first.communicate(timeout=within)
        assert first.returncode != 0
        assert "WorkerError" in output
        assert "Process 0 of 2 has lost another one" in output
        assert "resume the run" in output
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    assert (tmp_path / "run" / "last.pt").is_file()
    assert not (tmp_path / "run.tmp").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_request_to_stop_one_process_stops_both_at_one_step(store, tmp_path):
    pytest.importorskip("accelerate")
    options = [*OPTIONS, "--steps", "100000", "--snapshot-every", "100000"]
    both = started(tmp_path, "new", "--data", store, "--out", tmp_path / "run", *options)
    try:
        step = tmp_path / "step_1"
        wait_for(lambda: step.exists() and int(step.read_text() or 0) > 4, 400)
        both[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=200)[0] for process in both]
        assert [process.returncode for process in both] == [1, 1], outputs
    finally:
        for process in both:
            process.kill()
            process.wait()
    stopped = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"]
    assert {int((tmp_path / f"step_{rank}").read_text()) + 1 for rank in range(2)} == {stopped}
    assert "stopped; resume it with" in outputs[0]
    assert "stopped" not in outputs[1]


def command(store: Path, out: Path, settings: TrainSettings, accumulate: int = 1) -> train.New:
    machine = Machine("cpu", accumulate=accumulate)
    return train.New(store, out, settings, network=NETWORK, machine=machine, obs_keys=("position",))


def run(store: Path, out: Path, accumulate: int = 1, **settings: object) -> dict[str, torch.Tensor]:
    """Train in this process. Returns the averaged weights."""
    chosen = replace(TrainSettings(steps=6, batch_size=8, warmup_steps=2, snapshot_every=3, log_every=1), **settings)
    assert train.main(command(store, out, chosen, accumulate)) == 0
    return load_file(out / "ema_000006.safetensors")


def test_accumulated_gradients_are_those_of_the_whole_batch(store, tmp_path):
    whole, parts = run(store, tmp_path / "whole"), run(store, tmp_path / "parts", accumulate=4)
    for step, (loss, _) in losses(tmp_path / "whole").items():
        assert losses(tmp_path / "parts")[step][0] == pytest.approx(loss, rel=1e-6)
    assert_alike(whole, parts)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_and_resumes_bit_for_bit(store, tmp_path, precision):
    """The scale of the loss is part of the state."""
    whole = run(store, tmp_path / "whole", **{precision: True})
    settings = RunInfo.load(tmp_path / "whole" / "train.json").settings
    assert getattr(settings, precision) is True
    exact = run(store, tmp_path / "exact")
    assert any(not torch.equal(exact[name], value) for name, value in whole.items())
    for step, (loss, _) in losses(tmp_path / "exact").items():
        assert losses(tmp_path / "whole")[step][0] == pytest.approx(loss, rel=0.1)

    out = tmp_path / "cut"
    trainer = train.prepare(command(store, out, settings)).trainer
    for _ in range(2):
        trainer.update()
    trainer.save(out / "last.pt")
    assert train.main(train.Resume(out, Machine("cpu"))) == 0
    resumed = load_file(out / "ema_000006.safetensors")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_one_process_needs_no_accelerate_and_several_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Processes.join("cpu")
    assert (alone.count, alone.rank, alone.is_first, alone.device("cpu"), alone.any(True)) == (1, 0, True, "cpu", True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match=r"several processes needs accelerate \(pip install 'asd-policy\[distributed\]'"
    ):
        Processes.join("cpu")


def test_batches_divide_into_equal_parts():
    processes = Processes()
    assert processes.shares(8, 1) == [slice(0, 8)]
    processes.count, processes.rank = 2, 1
    assert processes.shares(8, 2) == [slice(4, 6), slice(6, 8)]
    with pytest.raises(
        ConfigError, match=r"A batch of 8 does not divide into 6 equal parts \(2 processes, --accumulate 3"
    ):
        processes.shares(8, 3)


def test_batches_of_networks_that_normalise_over_them_are_not_divided():
    net = nn.ModuleDict({"encoder": nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))})
    check_divisible(net, 1)
    with pytest.raises(ConfigError, match=r"encoder\.1 is a BatchNorm.*2 parts of a batch would be another training"):
        check_divisible(net, 2)


def test_an_error_of_this_process_is_not_taken_for_the_loss_of_another():
    processes = Processes()
    with pytest.raises(RuntimeError, match="Connection closed by peer") as raised, processes.watched():
        raise RuntimeError("[gloo] Connection closed by peer")
    assert not isinstance(raised.value, WorkerError)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"accumulate": 0}, "accumulate is 0"), ({"track": ("wndb",)}, "Unknown tracker 'wndb'. Did you mean 'wandb'")],
)
def test_machines_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        Machine("cpu", **options)
    with pytest.raises(ConfigError, match="one of bfloat16 and float16"):
        TrainSettings(steps=1, bfloat16=True, float16=True)
