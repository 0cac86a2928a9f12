"""Progress where there is no terminal, and on one."""

import io

from rich.console import Console

from asd_policy.cli.progress import LINES, counter, progress


def test_lines_without_a_terminal():
    console = Console(file=io.StringIO(), width=200)
    with progress(console) as shown:
        row = shown.add("timing", 100, done=50)
        for done in range(50, 101):
            shown.update(row, done, "3.1 ms")
    lines = console.file.getvalue().splitlines()
    assert len(lines) == LINES // 2
    assert lines[0].startswith("timing: 55/100, 3.1 ms, about ")
    assert lines[-1] == "timing: 100/100, 3.1 ms, about 0 min left"


def test_bars_on_a_terminal_show_labels_notes_and_counts():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with progress(console) as shown:
        row = shown.add("timing", 4)
        shown.update(row, 3, "3.1 ms", "profiling")
    [last] = [line for line in console.file.getvalue().splitlines() if "profiling" in line][-1:]
    assert "3/4" in last
    assert "3.1 ms" in last


def test_counter_counts():
    console = Console(file=io.StringIO(), width=200)
    with progress(console) as shown:
        done = counter(shown, "timing", 3)
        for _ in range(3):
            done()
    assert [line.partition(",")[0] for line in console.file.getvalue().splitlines()] == [
        "timing: 1/3",
        "timing: 2/3",
        "timing: 3/3",
    ]
