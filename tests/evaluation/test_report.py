"""The report of synthetic episodes: what it says, what it refuses, and how a browser shows it."""

import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from asd_policy.errors import ConfigError, DataError
from asd_policy.evaluation.render import to_html, to_markdown
from asd_policy.evaluation.report import Video, analyze
from asd_policy.evaluation.results import read_records
from tests.evaluation.browser import chromium, console, contrast, measure, needs_browser
from tests.evaluation.records import LATENCY, ROUNDS, SETTINGS, episode, sweep

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>&|`*"\'$\\frac{'


class Page(HTMLParser):
    """A page's tags, and its tables as rows of texts."""

    def __init__(self, source: str):
        super().__init__()
        self.tags, self.tables, self.text, self.in_cell = [], [], "", False
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data.strip()


def failed(record, **changes):
    empty = {"latency": [], "rounds": [], "evaluations": [], "acceptance": [], "action_sha256": "", "length": 0}
    return replace(record, success=False, **empty | changes)


@pytest.fixture(scope="module")
def records():
    """Square complete, and Transport with an episode that broke and some missing."""
    square = sweep("square", repeats=3, seeds=30)
    transport = sweep("transport", ("ddpm", "asd:path:16"), seeds=20, chance=0.7)
    transport[-1] = failed(transport[-1], error=f"NumericalError: {HOSTILE}")
    return square + transport[1:]


@pytest.fixture(scope="module")
def page(records, tmp_path_factory):
    videos = [Video(records[0], "videos/same.mp4", True, True), Video(records[1], "videos/other.mp4", False, False)]
    path = tmp_path_factory.mktemp("report") / "index.html"
    path.write_text(to_html(analyze(records), videos))
    return path


def test_speed_up_success_and_comparison(records):
    square, _ = analyze(records)
    assert list(square.rows) == list(ROUNDS)
    assert square.rows["ddpm"].rounds == 100
    plain, fast = square.rows["ddpm"], square.rows["asd:path:16"]
    expected = LATENCY["ddpm"] / LATENCY["asd:path:16"]
    assert plain.latency_ms / fast.latency_ms == pytest.approx(expected, rel=0.02)
    it = square.comparisons["asd:path:16"]
    assert it.episodes == 90
    assert it.seeds == 30
    assert it.both + it.only_baseline == plain.successes
    assert it.both + it.only_sampler == fast.successes
    assert "ddpm" not in square.comparisons


def test_page_holds_the_table(page, records):
    success, paired = Page(page.read_text()).tables[:2]
    square, _ = analyze(records)
    assert [row[0] for row in success[1:]] == list(ROUNDS)
    for row in success[1:]:
        summary = square.rows[row[0]]
        assert row[1] == f"{summary.successes}/{summary.episodes}"
        assert f"{summary.rounds:.1f}" in row
    assert [row[0] for row in paired[1:]] == list(ROUNDS)[1:]
    assert all("undecided" in row[-1] for row in paired[1:])  # 30 seeds decide nothing within 5 points


def test_equivalence_is_said_where_it_holds():
    same = [
        episode("square", sampler, 1 + seed, 0, seed > 3) for sampler in ("ddpm", "asd:path:16") for seed in range(99)
    ]
    assert "equivalent within 5 points" in Page(to_html(analyze(same))).text
    assert "equivalent within 5 points" in to_markdown(analyze(same))
    assert "equivalent within" not in to_markdown(analyze(same, margin=0.01))


def test_page_is_complete_in_itself(page):
    """No script, and nothing that is loaded: the only addresses are anchors and the videos beside the page."""
    source = page.read_text()
    tags = Page(source).tags
    assert not {"script", "iframe", "object", "embed", "base"} & {tag for tag, _ in tags}
    addresses = [
        value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href", "xlink:href")
    ]
    local = ("#", "data:,", "videos/")
    assert all(address.startswith(local) for address in addresses), addresses
    assert not re.search(r"url\((?!#)|@import", source)


def test_page_is_accessible(page):
    tags = Page(page.read_text()).tags
    figures = [attributes for tag, attributes in tags if tag == "figure"]
    assert len(figures) == 6
    assert all(figure["role"] == "img" and "ddpm" in figure["aria-label"] for figure in figures[:2])
    assert ("html", {"lang": "en"}) in tags
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_what_comes_from_files_is_escaped():
    record = episode("square", "ddpm", 1, 0, True)
    hostile = replace(
        record, task=HOSTILE, sampler=HOSTILE, checkpoint_sha256=HOSTILE,
        settings={HOSTILE: HOSTILE}, software={HOSTILE: HOSTILE},
    )  # fmt: skip
    tasks = analyze([hostile, failed(replace(hostile, env_seed=2), error=HOSTILE)])
    page = Page(to_html(tasks))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(HOSTILE) >= 6
    markdown = to_markdown(tasks)
    assert not re.search(r"(?<!\\)<", markdown.replace("<br>", ""))
    assert len({line.count("|") - line.count(r"\|") for line in markdown.splitlines() if line.startswith("|")}) == 1


def test_markdown_fits_a_terminal_and_its_tables_are_whole(records):
    lines = to_markdown(analyze(records)).splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert max(map(len, tables)) <= 100
    assert {line.count("|") for line in tables} == {8, 10}  # seven columns, nine columns
    assert any(re.match(r"\| asd:path:16 .* 7\.\dx \|$", line) for line in tables)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"settings": SETTINGS | {"batch": 8}}, "batched runs (one policy served 8 environments)"),
        ({"settings": SETTINGS | {"threads": 2}}, "different settings (threads)"),
        ({"software": {"torch": "2.6"}}, "different software (git, python, torch)"),
        ({"env_seed": 7}, "have not run the same episodes (ddpm 2, asd:path:16 2)"),
        ({"sampler": "asd:reuse:4"}, "have not run the same episodes"),
        ({"error": "NumericalError: NaN", "success": False}, "broke with an error, and count as failures: 1"),
    ],
)
def test_warnings(changes, warning):
    records = [episode("square", sampler, seed, 0, True) for sampler in ("ddpm", "asd:path:16") for seed in (1, 2)]
    assert analyze(records)[0].warnings == []
    records[-1] = replace(records[-1], **changes)
    tasks = analyze(records)
    assert any(warning in text for text in tasks[0].warnings), tasks[0].warnings
    assert warning in Page(to_html(tasks)).text
    assert warning in to_markdown(tasks)


def test_another_baseline(records):
    """The same numbers, whatever the baseline is called."""
    renamed = [replace(r, sampler="ddpm:compile") if r.sampler == "ddpm" else r for r in records]
    there, here = (analyze(records)[0], analyze(renamed, baseline="ddpm:compile")[0])
    assert here.comparisons == there.comparisons
    assert here.warnings == there.warnings
    assert "against ddpm:compile" in to_markdown([here])
    assert "ddpm:compile" in Page(to_html([here])).text


def test_without_the_baseline():
    tasks = analyze([episode("square", "asd:path:16", seed, 0, True) for seed in range(3)])
    assert tasks[0].comparisons == {}
    assert "Nothing was run with ddpm" in Page(to_html(tasks)).text


def test_a_cell_of_nothing_but_errors():
    broken = [failed(episode("square", "ddpm", seed, 0, False), error="OSError: x") for seed in range(3)]
    tasks = analyze([*broken, episode("square", "asd:path:16", 0, 0, True)])
    assert tasks[0].rows["ddpm"].successes == 0
    assert [row[-1] for row in Page(to_html(tasks)).tables[0][1:]] == ["-", "-"]
    assert "nan" not in to_markdown(tasks)


def test_nothing_but_errors():
    page = Page(to_html(analyze([failed(episode("square", "ddpm", 1, 0, False), error="OSError: x")])))
    assert [row[0] for row in page.tables[0][1:]] == ["ddpm"]
    assert page.tables[1][1] == ["ddpm", "seed 1", "0", "OSError: x"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, ConfigError, "more than once"),
        ({"env_seed": 2, "checkpoint_sha256": "f" * 64}, ConfigError, "several checkpoints"),
        ({"env_seed": 2, "rounds": [1]}, DataError, "a positive number of each chunk"),
        (
            {"env_seed": 2, "latency": ["1"], "rounds": [1], "evaluations": [1]},
            DataError,
            "a positive number of each chunk",
        ),
        ({"env_seed": 2, "latency": [float("nan")], "rounds": [1], "evaluations": [1]}, DataError, "a positive number"),
        ({"env_seed": 2, "latency": [-1.0], "rounds": [1], "evaluations": [1]}, DataError, "a positive number"),
        ({"env_seed": 2, "acceptance": [2.0] * 100}, DataError, "from 0 to 1"),
        ({"env_seed": 2, "acceptance": [1.0]}, DataError, "acceptance has 1 steps, others 100"),
    ],
)
def test_refusals(changes, error, message):
    record = episode("square", "ddpm", 1, 0, True)
    with pytest.raises(error, match=message):
        analyze([record, replace(record, **changes)])


def test_no_records():
    with pytest.raises(ConfigError, match="no finished episode"):
        analyze([])


def test_from_files(records, tmp_path):
    for name, part in (("a.jsonl", records[:200]), ("b.jsonl", records[200:])):
        (tmp_path / name).write_text("".join(json.dumps(record.to_json()) + "\n" for record in part))
    assert analyze(read_records([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])) == analyze(records)


@needs_browser
def test_browser_finds_no_fault(page):
    assert console(page) == []
    document = Page(chromium(page).stdout)
    assert len(document.tables) == 7
    assert [row[0] for row in document.tables[0][1:]] == list(ROUNDS)
    assert HOSTILE in document.text


@needs_browser
def test_browser_would_tell_of_a_fault(page):
    """The control of the test above: a script is refused by the page's own policy, and the console says so."""
    broken = page.with_name("broken.html")
    broken.write_text(
        page.read_text().replace("</body>", "<script>1</script><img src='https://localhost/x.png'></body>")
    )
    assert len(console(broken)) == 2


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_layout(page, dark):
    """Nothing leaves the window or is missing, and text stands out, at a telephone's width and a desktop's."""
    layouts = measure(page, (400, 1200), dark)
    assert [layout["width"] for layout in layouts] == [400, 1200]
    for layout in layouts:
        assert layout["scroll_width"] <= layout["width"]
        assert layout["outside"] == []
        assert layout["missing"] == 0
        assert layout["duplicate_ids"] == []
        assert len(layout["drawings"]) == 6
        assert min(layout["drawings"]) > 100
        assert contrast(layout["color"], layout["background"]) > 7
        assert (contrast(layout["background"], "rgb(0, 0, 0)") < 2) == dark
    assert layouts[1]["scrolling"] == 0  # a desktop shows the tables whole


@needs_browser
def test_layout_would_tell_of_an_overflow(page):
    wide = page.with_name("wide.html")
    wide.write_text(page.read_text().replace("</main>", '<p style="width: 900px; max-width: none">wide</p></main>'))
    narrow, broad = measure(wide, (400, 1200))
    assert narrow["scroll_width"] > 900
    assert narrow["outside"]
    assert broad["outside"] == []
