"""The progress of commands, with a terminal and without."""

import io

import pytest
from rich.console import Console

from asd_policy.cli.progress import LINES, counter, progress


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def test_a_row_prints_twenty_lines_over_its_course():
    out = console(terminal=False)
    with progress(out) as shown:
        row = shown.add("steps", 1000)
        for done in range(1, 1001):
            shown.update(row, done, note=f"loss {done}")
    lines = out.file.getvalue().splitlines()
    assert len(lines) == LINES
    assert lines[0].startswith("steps: 50/1000, loss 50, about ")
    assert lines[-1] == "steps: 1000/1000, loss 1000, about 0 min left"


def test_units_done_before_are_counted_but_not_printed():
    out = console(terminal=False)
    with progress(out) as shown:
        row = shown.add("episodes", 4, done=3)
        shown.update(row, 3)
        assert out.file.getvalue() == ""
        shown.update(row, 4, label="[all]")
    assert out.file.getvalue() == "[all]: 4/4, about 0 min left\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_details_have_bars_and_no_lines(terminal):
    out = console(terminal)
    with progress(out) as shown:
        rows = [shown.add(name, 2, detail=name != "all") for name in ("first", "second", "all")]
        for row in rows:
            shown.update(row, 2, note="done")
    printed = out.file.getvalue()
    assert ("first" in printed) == ("second" in printed) == terminal
    assert "all" in printed
    assert "2/2" in printed


def test_bars_show_labels_notes_and_counts():
    out = console(terminal=True)
    with progress(out) as shown:
        shown.update(shown.add("timing", 4), 3, "3.1 ms", "profiling")
    [last] = [line for line in out.file.getvalue().splitlines() if "profiling" in line][-1:]
    assert "3/4" in last
    assert "3.1 ms" in last


def test_counter_counts():
    out = console(terminal=False)
    with progress(out) as shown:
        done = counter(shown, "timing", 3)
        for _ in range(3):
            done()
    lines = [line.partition(",")[0] for line in out.file.getvalue().splitlines()]
    assert lines == ["timing: 1/3", "timing: 2/3", "timing: 3/3"]
