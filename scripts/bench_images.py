"""Measure image samplers: what an image costs against the window, and how far each sampler's images are from the data.

    python scripts/bench_images.py --model checkpoints/digits --features checkpoints/digits/features.safetensors \\
        --out results/images

Every measurement is appended to measurements.jsonl as it is made; the same command again goes on with those that are
missing. In the end it prints tables, and writes results.json and speedup.png, the paper's figure 2 for this model.
"""

import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import DDPMParallelScheduler
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Generator, Tensor

from asd_policy.benchmarks.memory import PeakMemory
from asd_policy.benchmarks.paradigms import sample_paradigms
from asd_policy.core import OnRound, SamplerSpec, parse_sampler
from asd_policy.errors import AsdPolicyError, ConfigError
from asd_policy.evaluation.provenance import software
from asd_policy.images import AsdImagePipeline
from asd_policy.images.arguments import finite, whole
from asd_policy.images.frechet import load_reference
from asd_policy.interrupt import stop_requests
from asd_policy.threads import check_threads

CLASSES = 10
MEASURED = {
    "cost": ("rounds", "evaluations", "seconds"),
    "memory": ("peak_bytes",),
    "quality": ("frechet", "batch_rounds"),
}
"""Kind of measurement -> what is measured."""
BASELINE = "ddpm"
Measurement = dict[str, Any]


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    model: Path
    """Folder of a class-conditional DDPMPipeline of digits."""
    features: Path
    """What scripts/train_digit_classifier.py wrote."""
    out: Path = Path("results/images")
    drafts: tuple[str, ...] = ("frozen", "reuse", "path")
    windows: tuple[str, ...] = ("2", "4", "8", "16", "24", "32", "64", "all")
    seeds: int = 10
    """Images, drawn one at a time, to average the cost over."""
    quality: tuple[str, ...] = (BASELINE, "ddim:50", "ddim:100", "paradigms:64:0.1", "asd:frozen:64", "asd:path:64")
    """Samplers whose images are compared with the data; paradigms:WINDOW:TOLERANCE beside the usual ones."""
    images: int = 1000
    """Images of a Frechet distance; distances from different numbers of images do not compare."""
    repeats: int = 3
    """Frechet distances of each sampler, each from other noise."""
    batch_size: int = 20
    """Images drawn together where quality is measured."""
    max_states: int | None = 512
    """States that one call of the network may have."""
    device: str = "cpu"
    threads: int = 1
    """torch's threads on the CPU. Two that share a busy core wait for each other: slower than one by far."""


@dataclass(frozen=True)
class Job:
    """One measurement: the cost or the memory of one image, or the distance of many."""

    kind: str  # "cost", "memory" or "quality"
    sampler: str
    repeat: int  # the seed of "cost"


def jobs(arguments: Arguments) -> list[Job]:
    samplers = [BASELINE, *(f"asd:{draft}:{window}" for draft in arguments.drafts for window in arguments.windows)]
    cost = [Job("cost", sampler, seed) for seed in range(arguments.seeds) for sampler in samplers]
    memory = [Job("memory", sampler, 0) for sampler in samplers]
    return cost + memory + [Job("quality", name, n) for n in range(arguments.repeats) for name in arguments.quality]


class Samplers:
    """Samplers by the name that a command line gives them, behind one call."""

    def __init__(self, arguments: Arguments):
        self._arguments = arguments
        self._pipeline = AsdImagePipeline.from_pretrained(
            arguments.model, arguments.device, max_states=arguments.max_states
        )
        self._pipeline.pipe.set_progress_bar_config(disable=True)
        classes = self._pipeline.pipe.unet.config.num_class_embeds
        if classes is None or classes < CLASSES:
            raise ConfigError(f"{arguments.model} has {classes or 'no'} classes; expected the {CLASSES} digits'.")
        for name in {job.sampler for job in jobs(arguments)}:
            parsed = self._parse(name)
            if not isinstance(parsed, tuple):
                self._pipeline.with_sampler(parsed)  # refuses now what would fail after hours

    def draw(
        self, name: str, labels: Sequence[int], generators: list[Generator], on_round: OnRound | None = None
    ) -> tuple[Tensor, Measurement]:
        """Images (B, 1, 32, 32) from -1 to 1, and what they cost."""
        parsed = self._parse(name)
        if isinstance(parsed, tuple):
            images, calls = self._paradigms(labels, generators, *parsed)
            return images, {"rounds": calls}
        pipeline = self._pipeline.with_sampler(parsed)
        images = pipeline(
            len(labels), class_labels=labels, generator=generators, output_type="latent", on_round=on_round
        ).images
        stats = pipeline.stats
        assert stats is not None
        rounds, evaluations = float(stats.rounds.float().mean()), float(stats.evaluations.float().mean())
        return images, {"rounds": rounds, "evaluations": evaluations}

    def _parse(self, name: str) -> SamplerSpec | tuple[int, float]:
        kind, *rest = name.split(":")
        if kind != "paradigms":
            return parse_sampler(name)
        try:
            window, tolerance = rest
            return whole("WINDOW", int(window)), finite("TOLERANCE", float(tolerance), least=0)
        except ValueError as error:  # a ConfigError too
            raise ConfigError(f"Unknown sampler {name!r}; expected paradigms:WINDOW:TOLERANCE. {error}") from error

    def _paradigms(
        self, labels: Sequence[int], generators: list[Generator], window: int, tolerance: float
    ) -> tuple[Tensor, int]:
        unet, device = self._pipeline.pipe.unet, self._arguments.device
        scheduler = DDPMParallelScheduler.from_config(self._pipeline.scheduler.config)
        scheduler.set_timesteps(scheduler.config.num_train_timesteps)
        classes = torch.tensor(labels, device=device)
        size = self._arguments.max_states or window * len(labels)

        def net(x: Tensor, t: Tensor) -> Tensor:
            parts = zip(x.split(size), t.split(size), classes.repeat(len(x) // len(classes)).split(size), strict=True)
            return torch.cat([unet(some, times, class_labels=of).sample for some, times, of in parts])

        shape = self._pipeline.event_shape
        return sample_paradigms(net, scheduler, shape, len(labels), generators, window, tolerance, device)


def measure_cost(samplers: Samplers, job: Job, device: torch.device) -> Measurement:
    """One image, alone."""
    started = time.perf_counter()
    _, cost = samplers.draw(job.sampler, [job.repeat % CLASSES], [generator(job.repeat, 0)])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {**cost, "seconds": time.perf_counter() - started}


class FirstRound(Exception):  # noqa: N818  (no error)
    """The first round is over: it needs as much memory as any later one."""


def measure_memory(arguments: Arguments, sampler: str) -> Measurement:
    """What one image takes at most. To be called in a process of its own: memory that was used once is not returned."""
    torch.set_num_threads(arguments.threads)
    samplers = Samplers(arguments)

    def stop(frontier: Tensor, x: Tensor) -> None:
        raise FirstRound

    def first_round(name: str) -> None:
        with suppress(FirstRound):
            samplers.draw(name, [0], [generator(0, 0)], stop)

    first_round(BASELINE)  # loads what the network needs whatever the sampler
    with PeakMemory(torch.device(arguments.device)) as memory:
        first_round(sampler)
    return {"peak_bytes": memory.peak}


def measure_quality(samplers: Samplers, job: Job, arguments: Arguments) -> Measurement:
    """The Frechet distance of many images, as many of each digit as can be."""
    metric = load_reference(arguments.features)
    rounds = []
    # Each sampler has noise of its own: distances of samplers of the same law differ by chance alone.
    stream = int(hashlib.sha256(job.sampler.encode()).hexdigest()[:8], 16)
    for first in range(0, arguments.images, arguments.batch_size):
        rows = range(first, min(first + arguments.batch_size, arguments.images))
        generators = [generator(stream, job.repeat, row) for row in rows]
        images, cost = samplers.draw(job.sampler, [row % CLASSES for row in rows], generators)
        metric.update(images.cpu().clamp(-1, 1), real=False)
        rounds.append(cost["rounds"])
    return {"frechet": float(metric.compute()), "batch_rounds": float(np.mean(rounds))}


def generator(*entropy: int) -> Generator:
    """SeedSequence mixes the numbers: the CPU generator reads 32 bits of its seed alone."""
    return Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


def measure(arguments: Arguments, console: Console) -> tuple[list[Measurement], bool]:
    """All measurements, those of earlier runs included, and whether there are any left."""
    load_reference(arguments.features)  # refuses now what would fail after hours
    samplers, device = Samplers(arguments), torch.device(arguments.device)
    path = arguments.out / "measurements.jsonl"
    done = list(read(path, settings(arguments)))
    known = {Job(entry["kind"], entry["sampler"], entry["repeat"]) for entry in done}
    missing = [job for job in jobs(arguments) if job not in known]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with stop_requests() as stop_requested, Progress(*columns, console=console) as progress, path.open("a") as file:
        if not known:
            print(json.dumps(settings(arguments)), file=file, flush=True)
        bar = progress.add_task("", total=len(missing))
        for job in missing:
            if stop_requested():
                return done, True
            progress.update(bar, description=f"{job.kind} {job.sampler} {job.repeat}")
            if job.kind == "memory":
                with get_context("spawn").Pool(1) as fresh:
                    values = fresh.apply(measure_memory, (arguments, job.sampler))
            else:
                cost = job.kind == "cost"
                values = measure_cost(samplers, job, device) if cost else measure_quality(samplers, job, arguments)
            done.append({**asdict(job), **values})
            print(json.dumps(done[-1]), file=file, flush=True)
            progress.advance(bar)
    return done, False


def settings(arguments: Arguments) -> Measurement:
    """What measurements must share to stand in one table."""
    weights = [*sorted(arguments.model.glob("unet/*.safetensors")), arguments.features]
    return {
        "model_sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights],
        "images": arguments.images,
        "max_states": arguments.max_states,
        "device": arguments.device,
        "threads": arguments.threads,
    }


def read(path: Path, expected: Measurement) -> Iterator[Measurement]:
    """The measurements of earlier runs.

    Raises:
        ConfigError: if they were made with other settings, or are damaged.
    """
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        lines.pop()  # a kill cut it off; it is measured again
        path.write_text("".join(lines))
    if not lines:
        return
    try:
        first, *entries = map(json.loads, lines)
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}. Mend it, or choose another --out.") from error
    if first != expected:
        raise ConfigError(f"{path} holds measurements with {first}; now {expected}. Choose another --out.")
    yield from entries


def summarize(measurements: Sequence[Measurement]) -> list[Measurement]:
    """A row for each kind and sampler: means, and the spread of the Frechet distance over repeats."""
    groups: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for entry in measurements:
        groups[entry["kind"], entry["sampler"]].append(entry)
    rows = []
    for (kind, sampler), entries in groups.items():
        row = {name: float(np.mean([entry[name] for entry in entries])) for name in MEASURED[kind]}
        if kind == "quality":
            row["frechet_std"] = float(np.std([e["frechet"] for e in entries], ddof=1)) if len(entries) > 1 else 0.0
        rows.append({"kind": kind, "sampler": sampler, "count": len(entries), **row})
    return rows


def tables(rows: Sequence[Measurement]) -> Iterator[Table]:
    """The cost of an image, and the distances."""
    cost, memory = ({row["sampler"]: row for row in rows if row["kind"] == kind} for kind in ("cost", "memory"))
    base = cost.get(BASELINE)
    table = Table("sampler", "rounds", "fewer", "states", "seconds", "faster", "peak MiB", box=box.SIMPLE_HEAD)
    for name, row in cost.items():
        fewer, faster = (f"{base[key] / row[key]:.1f}x" if base else "-" for key in ("rounds", "seconds"))
        peak = f"{memory[name]['peak_bytes'] / 2**20:.0f}" if name in memory else "-"
        states = f"{row['evaluations']:.0f}"
        table.add_row(name, f"{row['rounds']:.1f}", fewer, states, f"{row['seconds']:.2f}", faster, peak)
    yield table
    table = Table("sampler", "Frechet distance", "spread", "repeats", box=box.SIMPLE_HEAD)
    for row in rows:
        if row["kind"] == "quality":
            table.add_row(row["sampler"], f"{row['frechet']:.3f}", f"{row['frechet_std']:.3f}", str(row["count"]))
    yield table


def plot(rows: Sequence[Measurement], num_steps: int, path: Path) -> None:
    """Speed-up over the plain DDPM against the window: in sequential calls, and on the clock (the paper's figure 2)."""
    cost: Mapping[str, Measurement] = {row["sampler"]: row for row in rows if row["kind"] == "cost"}
    drafts: dict[str, list[tuple[int, Measurement]]] = defaultdict(list)
    for name, row in cost.items():
        if name != BASELINE:
            _, draft, window = name.split(":")
            drafts[draft].append((num_steps if window == "all" else int(window), row))
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("rounds", "seconds"), ("fewer sequential calls", "faster"), strict=True
    ):
        for draft, points in drafts.items():
            windows, measured = zip(*sorted(points, key=lambda point: point[0]), strict=True)
            axes.plot(windows, [cost[BASELINE][key] / row[key] for row in measured], "o-", label=draft)
        axes.axhline(1, color="gray", linewidth=1)
        axes.set(xscale="log", xlabel="window", ylabel=f"times {label} than DDPM")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def check(arguments: Arguments) -> None:
    """Raise ConfigError on what would fail after hours."""
    for name, least in (("seeds", 0), ("images", 2), ("repeats", 0), ("batch_size", 1), ("threads", 1)):
        whole(name, getattr(arguments, name), least)
    check_threads(arguments.threads)


def main(arguments: Arguments) -> int:
    check(arguments)
    console = Console()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    measurements, stopped = measure(arguments, console)
    rows = summarize(measurements)
    result = {"settings": settings(arguments), "software": software(), "rows": rows}
    (arguments.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    for table in tables(rows):
        console.print(table)
    baseline = [row for row in rows if row["kind"] == "cost" and row["sampler"] == BASELINE]
    if baseline:
        plot(rows, int(baseline[0]["rounds"]), arguments.out / "speedup.png")
    console.print(f"Wrote {arguments.out}/results.json and speedup.png" + ("; stopped early" if stopped else ""))
    return 130 if stopped else 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Arguments, description=__doc__)))
    except AsdPolicyError as error:
        sys.exit(f"{type(error).__name__}: {error}")
