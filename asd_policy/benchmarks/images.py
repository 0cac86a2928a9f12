"""Measures cost, memory and quality of image samplers, one at a time, in a file that later runs continue."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMParallelScheduler
from torch import Generator, Tensor

from asd_policy.benchmarks.memory import PeakMemory
from asd_policy.benchmarks.paradigms import sample_paradigms
from asd_policy.core import OnRound, SamplerSpec, parse_sampler
from asd_policy.errors import ConfigError, DataError
from asd_policy.images import AsdImagePipeline
from asd_policy.images.arguments import finite, whole
from asd_policy.images.frechet import load_reference
from asd_policy.jsonl import JsonLines
from asd_policy.records import read_record
from asd_policy.threads import check_threads

CLASSES = 10
MEASURED = {
    "cost": ("rounds", "evaluations", "seconds"),
    "memory": ("peak_bytes",),
    "quality": ("frechet", "batch_rounds"),
}
"""Kind of trial -> the names of its values."""
BASELINE = "ddpm"
REMEDY = "Mend the file, or choose another --out."


@dataclass(frozen=True)
class ImageBenchmark:
    """The settings of the benchmark."""

    model: Path
    """Folder of a class-conditional DDPMPipeline of digits."""
    features: Path
    """Features of digits, as `asd-policy images classifier` writes them."""
    out: Path = Path("results/images")
    """Folder for measurements.jsonl, results.json and speedup.png."""
    drafts: tuple[str, ...] = ("frozen", "reuse", "path")
    """Drafts whose cost and memory are measured."""
    windows: tuple[str, ...] = ("2", "4", "8", "16", "24", "32", "64", "all")
    """Windows of each draft: numbers, or "all" for all steps."""
    seeds: int = 10
    """Images, drawn one at a time, over which the cost is averaged."""
    quality: tuple[str, ...] = (BASELINE, "ddim:50", "ddim:100", "paradigms:64:0.1", "asd:frozen:64", "asd:path:64")
    """Samplers to compare with the data: ddpm, ddim:STEPS, asd:DRAFT:WINDOW or
    paradigms:WINDOW:TOLERANCE."""
    images: int = 1000
    """Images for a Frechet distance. Distances of different numbers of images do not compare."""
    repeats: int = 3
    """Frechet distances of each sampler, each from other noise."""
    batch_size: int = 20
    """Images drawn together for a Frechet distance."""
    max_states: int | None = 512
    """Most rows in one call of the network."""
    device: str = "cpu"
    """Device to sample on, such as cpu or cuda."""
    threads: int = 1
    """CPU threads of torch. Two threads on a busy core wait for each other, which is far slower than one."""

    def check(self) -> None:
        """Raise ConfigError on settings that would fail after hours."""
        for name, least in (("seeds", 0), ("images", 2), ("repeats", 0), ("batch_size", 1), ("threads", 1)):
            whole(name, getattr(self, name), least)
        check_threads(self.threads)

    def settings(self) -> dict[str, Any]:
        """The settings that all measurements in a table must share."""
        weights = [*sorted(self.model.glob("unet/*.safetensors")), self.features]
        return {
            "model_sha256": [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights],
            "images": self.images,
            "max_states": self.max_states,
            "device": self.device,
            "threads": self.threads,
        }

    def trials(self) -> list[Trial]:
        """All trials, in order."""
        samplers = [BASELINE, *(f"asd:{draft}:{window}" for draft in self.drafts for window in self.windows)]
        cost = [Trial("cost", sampler, seed) for seed in range(self.seeds) for sampler in samplers]
        memory = [Trial("memory", sampler, 0) for sampler in samplers]
        return cost + memory + [Trial("quality", name, n) for n in range(self.repeats) for name in self.quality]


@dataclass(frozen=True)
class Trial:
    """One measurement to make: the cost or the memory of one image, or the Frechet distance of many.

    Attributes:
        kind: a key of `MEASURED`.
        sampler: its name on the command line.
        repeat: the seed of a cost, or the number of a distance.
    """

    kind: str
    sampler: str
    repeat: int


@dataclass(frozen=True)
class Measurement:
    """A trial and the values of its kind: a line of measurements.jsonl.

    Attributes:
        rounds: sequential network calls of the image.
        evaluations: states that the network evaluated.
        seconds: time of the image.
        peak_bytes: peak memory, less the memory in use before; NaN if the system does not report it.
        frechet: Frechet distance from the data.
        batch_rounds: mean rounds of a batch.
    """

    kind: str
    sampler: str
    repeat: int
    rounds: float | None = None
    evaluations: float | None = None
    seconds: float | None = None
    peak_bytes: float | None = None
    frechet: float | None = None
    batch_rounds: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in MEASURED:
            raise ConfigError(f"kind is {self.kind!r}; expected {', '.join(MEASURED)}")
        missing = [name for name in MEASURED[self.kind] if getattr(self, name) is None]
        if missing:
            raise ConfigError(f"a measurement of {self.kind} lacks {', '.join(missing)}")

    @property
    def trial(self) -> Trial:
        return Trial(self.kind, self.sampler, self.repeat)

    @property
    def values(self) -> dict[str, float]:
        """The values of its kind."""
        return {name: getattr(self, name) for name in MEASURED[self.kind]}


class Samplers:
    """Samplers by their command-line names, behind one call.

    Raises:
        ConfigError: if the model has too few classes, or a sampler cannot be used with it.
    """

    def __init__(self, benchmark: ImageBenchmark):
        self._benchmark = benchmark
        self._pipeline = AsdImagePipeline.from_pretrained(
            benchmark.model, benchmark.device, max_states=benchmark.max_states
        )
        self._pipeline.pipe.set_progress_bar_config(disable=True)
        classes = self._pipeline.pipe.unet.config.num_class_embeds
        if classes is None or classes < CLASSES:
            raise ConfigError(f"{benchmark.model} has {classes or 'no'} classes; expected the {CLASSES} digits.")
        for name in {trial.sampler for trial in benchmark.trials()}:
            parsed = self._parse(name)
            if not isinstance(parsed, tuple):
                self._pipeline.with_sampler(parsed)  # raises now what would fail after hours

    def draw(
        self, name: str, labels: Sequence[int], generators: list[Generator], on_round: OnRound | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Images (B, 1, 32, 32) from -1 to 1, and their cost."""
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
        unet, device = self._pipeline.pipe.unet, self._benchmark.device
        scheduler = DDPMParallelScheduler.from_config(self._pipeline.scheduler.config)
        scheduler.set_timesteps(scheduler.config.num_train_timesteps)
        classes = torch.tensor(labels, device=device)
        size = self._benchmark.max_states or window * len(labels)

        def net(x: Tensor, t: Tensor) -> Tensor:
            parts = zip(x.split(size), t.split(size), classes.repeat(len(x) // len(classes)).split(size), strict=True)
            return torch.cat([unet(some, times, class_labels=of).sample for some, times, of in parts])

        shape = self._pipeline.event_shape
        return sample_paradigms(net, scheduler, shape, len(labels), generators, window, tolerance, device)


def measure(samplers: Samplers, benchmark: ImageBenchmark, trial: Trial) -> Measurement:
    """Make one measurement."""
    if trial.kind == "memory":
        with get_context("spawn").Pool(1) as fresh:  # a process does not return all memory that it has used
            values = fresh.apply(measure_memory, (benchmark, trial.sampler))
    elif trial.kind == "cost":
        values = measure_cost(samplers, trial, torch.device(benchmark.device))
    else:
        values = measure_quality(samplers, trial, benchmark)
    return Measurement(trial.kind, trial.sampler, trial.repeat, **values)


def measure_cost(samplers: Samplers, trial: Trial, device: torch.device) -> dict[str, float]:
    """The cost of one image drawn by itself."""
    started = time.perf_counter()
    _, cost = samplers.draw(trial.sampler, [trial.repeat % CLASSES], [generator(trial.repeat, 0)])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {**cost, "seconds": time.perf_counter() - started}


class FirstRound(Exception):  # noqa: N818  (no error)
    """The first round is over. It needs as much memory as any later one."""


def measure_memory(benchmark: ImageBenchmark, sampler: str) -> dict[str, float]:
    """Peak memory of one image. Call it in its own process."""
    torch.set_num_threads(benchmark.threads)
    samplers = Samplers(benchmark)

    def stop(frontier: Tensor, x: Tensor) -> None:
        raise FirstRound

    def first_round(name: str) -> None:
        with suppress(FirstRound):
            samplers.draw(name, [0], [generator(0, 0)], stop)

    first_round(BASELINE)  # loads what every sampler needs
    with PeakMemory(torch.device(benchmark.device)) as memory:
        first_round(sampler)
    return {"peak_bytes": memory.peak}


def measure_quality(samplers: Samplers, trial: Trial, benchmark: ImageBenchmark) -> dict[str, float]:
    """The Frechet distance of many images, spread over the digits as evenly as possible."""
    metric = load_reference(benchmark.features)
    rounds = []
    # Each sampler has its own noise: distances of samplers of the same law differ by chance alone.
    stream = int(hashlib.sha256(trial.sampler.encode()).hexdigest()[:8], 16)
    for first in range(0, benchmark.images, benchmark.batch_size):
        rows = range(first, min(first + benchmark.batch_size, benchmark.images))
        generators = [generator(stream, trial.repeat, row) for row in rows]
        images, cost = samplers.draw(trial.sampler, [row % CLASSES for row in rows], generators)
        metric.update(images.cpu().clamp(-1, 1), real=False)
        rounds.append(cost["rounds"])
    return {"frechet": float(metric.compute()), "batch_rounds": float(np.mean(rounds))}


def generator(*entropy: int) -> Generator:
    """A generator seeded by all numbers. SeedSequence mixes them, because the CPU generator uses only 32 bits."""
    return Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class MeasurementFile:
    """measurements.jsonl: the settings in the first line, and one measurement in each other line.

    Args:
        path: an existing file is continued.
        settings: from `ImageBenchmark.settings`.

    Attributes:
        measurements: the measurements in the file.

    Raises:
        ConfigError: if the file's measurements were made with other settings, or another process writes it.
        DataError: if it is damaged or cannot be written.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        try:
            self._file = JsonLines(path)
        except DataError as error:
            raise DataError(f"{error} {REMEDY}") from error
        try:
            self.measurements = self._read(settings)
        except BaseException:
            self.close()
            raise

    def _read(self, settings: dict[str, Any]) -> list[Measurement]:
        path, entries = self._file.path, self._file.entries
        if not entries:
            self._file.append(settings)
        elif entries[0] != settings:
            raise ConfigError(f"{path} holds measurements with {entries[0]}; now {settings}. Choose another --out.")
        try:
            return [
                read_record(Measurement, entry, f"{path}, line {number}", DataError)
                for number, entry in enumerate(entries[1:], start=2)
            ]
        except DataError as error:
            raise DataError(f"{error} {REMEDY}") from error

    def append(self, measurement: Measurement) -> None:
        """Append the measurement and flush it to disk. Raises DataError if that fails."""
        self._file.append({**asdict(measurement.trial), **measurement.values})
        self.measurements.append(measurement)

    def close(self) -> None:
        """Close the file and unlock it."""
        self._file.close()
