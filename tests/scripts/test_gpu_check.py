"""scripts/gpu_check.py on a CPU, and that it reads a GPU's traces rightly."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from asd_policy import load_policy
from asd_policy.benchmarks.acting import SQUARE_OBSERVATIONS, Acting, RecordedEpisodes
from asd_policy.benchmarks.diffusers_loop import DiffusersLoop
from asd_policy.benchmarks.gpu_check import NO_TESTS, machine, run_sections
from asd_policy.benchmarks.gpu_plan import LOOP, NO_TIME, TINY, Bench, GpuPlan
from asd_policy.benchmarks.gpu_results import Budget, GpuResults
from asd_policy.benchmarks.gpu_table import WIDTH
from asd_policy.benchmarks.gpu_tests import clone, gpu_tests, run_tests
from asd_policy.benchmarks.work import CHUNK, NETWORK, chunk_range, network_marked, profiled, work_on_gpu
from asd_policy.core import Asd, parse_sampler
from asd_policy.errors import DataError
from envs.tasks import TASKS
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.py"

ON_A_BARE_MACHINE = """
import runpy, sys
for name in (
    "gymnasium", "robosuite", "mujoco", "diffusers", "tyro", "rich", "matplotlib", "scipy", "h5py", "zarr", "dill",
    "torchvision", "huggingface_hub", "hypothesis", "transformers", "imageio", "jinja2", "omegaconf", "envs",
):
    sys.modules[name] = None  # not installed
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    task = TASKS["square"]
    return tiny_checkpoint(tmp_path_factory.mktemp("gpu") / "tiny", task.obs_dims, task.action_dim)


def bench_of(checkpoint: Path, out: Path, plan: GpuPlan, minutes: float = 5) -> Bench:
    about = {"dry_run": True, "date": "today", "commit": "none", **machine(torch.device("cpu")), "sections": {}}
    policy, recording = load_policy(checkpoint), RecordedEpisodes.read(SQUARE_OBSERVATIONS)
    return Bench(policy, recording, plan, GpuResults(out, about), Budget(minutes), ROOT, lambda text: None)


def test_dry_run_with_the_packages_of_a_bare_machine(checkpoint, tmp_path):
    options = ["--dry-run", "--skip-tests", "--checkpoint", checkpoint, "--out", tmp_path]
    command = [sys.executable, "-c", ON_A_BARE_MACHINE, SCRIPT, *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gpu_check.json").read_text())
    rows = results["rows"]
    assert [row.get("error") or row.get("skipped") for row in rows] == [None] * len(rows)
    assert [row["row"] for row in rows if row["section"] == "batch 2"] == list(TINY.samplers)
    chunks = {row["row"]: row for row in rows if row["section"] == "batch 1"}
    for row in chunks.values():
        assert row["p95_ms"] >= row["median_ms"] > 0
        assert 0 < row["network_share"] < 1
        assert row["kernels_a_round"] > row["outside_kernels_a_round"] > 0
    assert [chunks[label]["rounds"] for label in ("ddim:10", LOOP)] == [10, 12]
    assert 3 <= chunks["asd:path:24"]["rounds"] < 12
    assert "restated" in chunks[LOOP]["loop"]
    precision = {row["row"]: row["largest_difference"] for row in rows if row["section"] == "precision"}
    assert precision["float32"] == 0 < precision["bfloat16"] < 0.5
    network = {row["row"]: row["ms"] for row in rows if row["section"] == "network"}
    assert set(network) == {"call, batch 2", "call, batch 1", "round of path, window 2"}
    assert results["sections"]["tests"] == "not asked for"
    table = (tmp_path / "gpu_check.md").read_text()
    assert table.strip() == done.stdout.strip()
    assert all(len(line) <= WIDTH for line in table.splitlines())
    assert f"| {'asd:path:24':14} |" in table
    assert "A dry run: its numbers mean nothing." in table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_an_error(tmp_path):
    command = [sys.executable, SCRIPT, "--out", tmp_path / "out"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert "--dry-run" in done.stderr
    assert not (tmp_path / "out").exists()


def test_all_that_found_no_time_says_so(checkpoint, tmp_path):
    bench = bench_of(checkpoint, tmp_path, TINY, minutes=1e-6)
    run_sections(bench)
    assert {row["section"] for row in bench.results.rows} == {"batch 1", "batch 2", "network", "precision", "tests"}
    assert all(row["skipped"] == NO_TIME for row in bench.results.rows)
    table = (tmp_path / "gpu_check.md").read_text()
    assert table.count(f"not measured: {NO_TIME}") == len(bench.results.rows)


def test_a_sampler_that_fails_is_a_row_and_the_rest_goes_on(checkpoint, tmp_path):
    plan = replace(TINY, batches=(1,), samplers=("asd:path:24:cuda_graph", "ddim:10"))
    bench = bench_of(checkpoint, tmp_path, plan)
    run_sections(bench, only=["batch 1", "counts"])
    failed, good = bench.results.rows
    assert failed["error"].startswith("ConfigError: capture='cuda_graph' needs samples on a CUDA device")
    assert "median_ms" not in failed
    assert "error" not in good
    assert good["kernels_a_round"] > 0
    assert "- asd:path:24:cuda_graph: error: ConfigError" in (tmp_path / "gpu_check.md").read_text()
    assert bench.results.about["sections"]["network"] == "not asked for"


def test_a_section_that_fails_leaves_the_others(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("asd_policy.benchmarks.gpu_check.measure_wide_network", lambda *_: 1 / 0)
    bench = bench_of(checkpoint, tmp_path, replace(TINY, batches=(1,), samplers=("ddim:10",)))
    run_sections(bench, only=["network", "batch 1"])
    assert bench.results.about["sections"]["network"] == "ZeroDivisionError: division by zero"
    assert [row["row"] for row in bench.results.rows] == ["ddim:10"]


def test_everything_planned_exists():
    specs = [parse_sampler(label) for label in GpuPlan().samplers if label != LOOP]
    captured = {(s.draft, s.window) for s in specs if isinstance(s, Asd) and s.capture == "cuda_graph"}
    assert captured == {(draft, window) for draft in ("frozen", "reuse", "path") for window in (16, 24, 48, None)}
    assert len(set(GpuPlan().samplers)) == len(GpuPlan().samplers)


def test_recording_is_what_the_shipped_policy_sees():
    recording, policy = RecordedEpisodes.read(SQUARE_OBSERVATIONS), load_policy(ROOT / "checkpoints" / "square")
    assert {key: value.shape[2:] for key, value in recording.values.items()} == policy.config.obs_shapes
    assert recording.first.sum() == 3
    for key, value in recording.values.items():
        assert (value[recording.first, 0] == value[recording.first, 1]).all()
        normalized = policy.normalizer.normalize(key, torch.from_numpy(value))
        assert normalized.abs().max() < 1.5


def test_unreadable_recording(tmp_path):
    (tmp_path / "x.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"x\.npz"):
        RecordedEpisodes.read(tmp_path / "x.npz")


def test_acting_gives_the_policy_the_recorded_histories(checkpoint):
    """Through several chunks and an episode's end, in a batch whose rows are at different places."""
    recording = RecordedEpisodes.read(SQUARE_OBSERVATIONS)
    policy = load_policy(checkpoint, sampler="ddim", num_steps=2)
    seen: list[torch.Tensor] = []
    launch = policy.sampler.launch
    policy.sampler.launch = lambda n, cond, *rest: (seen.append(cond), launch(n, cond, *rest))[1]  # type: ignore[method-assign]
    acting = Acting(policy, recording, 2)
    for _ in range(15):
        acting.chunk()
    for turn, conds in enumerate(seen):
        for row, cond in enumerate(conds):
            place = (turn + row) % len(recording)
            which = (1, 1) if turn == 0 else (0, 1)  # a recording joined midway has nothing before it
            history = [{key: value[place, k] for key, value in recording.values.items()} for k in which]
            assert torch.equal(cond, policy.condition(history)[0])


def test_restated_loop_is_diffusers(checkpoint):
    policy = load_policy(checkpoint)
    cond = torch.randn(3, policy.config.global_cond_dim, generator=torch.Generator().manual_seed(1))
    ours, theirs = (
        DiffusersLoop(policy, restated).run(cond, torch.Generator().manual_seed(0)) for restated in (True, False)
    )
    assert (ours - theirs).abs().max() < 1e-4  # the schedule is computed in float32 there


def event(cat: str, name: str, ts: float, dur: float, correlation: int | None = None) -> dict:
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": dur, "args": args}


def test_trace_of_a_gpu():
    events = [
        {"ph": "M", "name": "process_name", "args": {"name": "python"}},
        event("user_annotation", CHUNK, 100, 100),
        event("user_annotation", NETWORK, 120, 10),
        event("gpu_user_annotation", NETWORK, 300, 10),
        event("cuda_runtime", "cudaLaunchKernel", 90, 1, 1),  # before the chunk
        event("kernel", "early", 101, 5, 1),
        event("cuda_runtime", "cudaMemcpyAsync", 105, 1, 2),
        event("gpu_memcpy", "Memcpy HtoD", 106, 1, 2),
        event("cuda_driver", "cuLaunchKernel", 125, 1, 3),  # Triton's, in the network
        event("kernel", "conv", 220, 7, 3),
        event("cuda_runtime", "cudaGraphLaunch", 140, 1, 4),
        *(event("kernel", f"of the graph {i}", 230 + i, 1, 4) for i in range(5)),
        event("gpu_memset", "of the graph", 236, 1, 4),
        event("cuda_runtime", "cudaStreamSynchronize", 150, 40, 5),
        event("cuda_runtime", "cudaEventRecord", 195, 1, 6),
        event("cuda_runtime", "cudaDeviceSynchronize", 210, 40, 7),  # after the chunk
    ]
    work = work_on_gpu(events)
    assert (work.kernels, work.network, work.captured, work.waits) == (8, 1, 6, 1)
    assert (work.milliseconds, work.network_milliseconds) == (pytest.approx(14e-3), pytest.approx(7e-3))


def test_operations_on_a_cpu_are_those_that_no_other_calls():
    x = torch.randn(8, 8)
    x.softmax(-1)  # not in the range

    def run() -> None:
        with chunk_range():
            x.view(64).unsqueeze(0)
            (x @ x).softmax(-1)
            x.relu().sum()

    work = profiled(run, torch.device("cpu"))
    assert (work.kernels, work.network, work.captured, work.waits) == (4, 0, 0, 0)


@pytest.mark.parametrize(("sampler", "calls"), [("ddpm", 12), ("ddim", 10), (LOOP, 12)])
def test_marks_are_calls_of_the_network(checkpoint, sampler, calls):
    policy = load_policy(checkpoint)
    chosen = DiffusersLoop(policy) if sampler == LOOP else policy.with_sampler(sampler).sampler
    cond = torch.zeros(1, policy.config.global_cond_dim)
    with torch.profiler.profile() as profiler, network_marked(chosen) as clock:
        chosen.draw(1, cond, [torch.Generator().manual_seed(0)])
    assert sum(e.name == NETWORK for e in profiler.events()) == calls
    spent = clock.seconds
    assert spent > 0
    chosen.draw(1, cond, [torch.Generator().manual_seed(0)])
    assert clock.seconds == spent  # the marks are gone


def test_tests_that_need_a_gpu_are_found():
    chosen = gpu_tests(ROOT)
    assert chosen[:2] == ["-m", "gpu"]
    assert {"tests/core/test_capture.py", "tests/core/test_law.py"} <= set(chosen)
    assert "tests/core/test_window.py" not in chosen


def test_an_installed_package_has_no_tests_to_run(checkpoint, tmp_path):
    bench = replace(bench_of(checkpoint, tmp_path, TINY), root=None)
    run_sections(bench, only=["tests"])
    [row] = bench.results.rows
    assert row["skipped"] == NO_TESTS
    assert "from a clone" in " ".join((tmp_path / "gpu_check.md").read_text().split())
    assert clone() == ROOT


def test_tests_are_counted(tmp_path):
    (tmp_path / "test_a.py").write_text("def test_good(): pass\ndef test_bad(): assert 0\n")
    (tmp_path / "test_b.py").write_text("import there_is_no_such_package\n")
    found = run_tests(tmp_path, tmp_path / "report.txt", 100, ["-c", "/dev/null", "."])
    assert (found["passed"], found["failed"], found["finished"]) == (1, 1, True)
    assert found["wrong"] == ["test_a.py::test_bad"]
    assert found["not_imported"] == ["test_b.py"]
    assert found["missing_packages"] == ["there_is_no_such_package"]


def test_tests_that_take_too_long_are_stopped_and_counted(tmp_path):
    (tmp_path / "test_a.py").write_text(
        "import time\ndef test_good(): pass\ndef test_slow():\n    time.sleep(100)\ndef test_late(): pass\n"
    )
    found = run_tests(tmp_path, tmp_path / "report.txt", 10, ["-c", "/dev/null", "."])
    assert (found["passed"], found["finished"]) == (1, False)
    assert math.isfinite(found["exit_code"])
