"""Measure image samplers: the cost of an image against the window, and the distance of images from the data.

    asd-policy images bench --model checkpoints/digits \\
        --features checkpoints/digits/features.safetensors --out results/images

Every measurement is appended to measurements.jsonl at once. The same command makes the missing measurements. At the
end it prints tables and writes results.json and speedup.png, the paper's figure 2 for this model.
"""

import json
from contextlib import closing

import torch
from rich.console import Console

from asd_policy.benchmarks.images import BASELINE, ImageBenchmark, MeasurementFile, Samplers, measure
from asd_policy.benchmarks.images_report import plot, summarize, tables
from asd_policy.cli import COMPLETE, INTERRUPTED
from asd_policy.cli.progress import progress
from asd_policy.evaluation.provenance import software
from asd_policy.images.frechet import load_reference
from asd_policy.interrupt import stop_requests

Arguments = ImageBenchmark


def main(arguments: ImageBenchmark) -> int:
    """Make the missing measurements, print the tables, and write the files."""
    arguments.check()
    console = Console()
    torch.set_num_threads(arguments.threads)
    load_reference(arguments.features)  # raises now what would fail after hours
    samplers = Samplers(arguments)
    settings = arguments.settings()
    with closing(MeasurementFile(arguments.out / "measurements.jsonl", settings)) as file:
        stopped = make_missing(samplers, arguments, file, console)
    rows = summarize(file.measurements)
    result = {"settings": settings, "software": software(), "rows": rows}
    (arguments.out / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    for table in tables(rows):
        console.print(table)
    baseline = [row for row in rows if row["kind"] == "cost" and row["sampler"] == BASELINE]
    if baseline:
        plot(rows, int(baseline[0]["rounds"]), arguments.out / "speedup.png")
    console.print(f"Wrote {arguments.out}/results.json and speedup.png" + ("; stopped early" if stopped else ""))
    return INTERRUPTED if stopped else COMPLETE


def make_missing(samplers: Samplers, arguments: ImageBenchmark, file: MeasurementFile, console: Console) -> bool:
    """Make the measurements that the file lacks. Returns whether Ctrl-C stopped it."""
    known = {measurement.trial for measurement in file.measurements}
    missing = [trial for trial in arguments.trials() if trial not in known]
    with stop_requests() as stop_requested, progress(console) as shown:
        row = shown.add("measuring", len(missing))
        for done, trial in enumerate(missing):
            if stop_requested():
                return True
            label = f"{trial.kind} {trial.sampler} {trial.repeat}"
            shown.update(row, done, label=label)
            file.append(measure(samplers, arguments, trial))
            shown.update(row, done + 1, label=label)
    return False
