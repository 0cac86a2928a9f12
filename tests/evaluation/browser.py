"""A real browser without a window, run once per question."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="neither chromium nor google-chrome is installed (Debian: apt-get install chromium)"
)

# Frames of several widths show the page as windows of these widths would; then their layout is read.
MEASURE = """<!doctype html><meta charset="utf-8"><body>
{frames}
<pre id="answer"></pre>
<script>
onload = () => {{
  const answer = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, style = frame.contentWindow.getComputedStyle(page.body);
    const outside = element => element.getBoundingClientRect().right > frame.clientWidth + 1
      && !element.closest(".scroll, svg");
    return {{
      width: frame.clientWidth,
      scroll_width: page.documentElement.scrollWidth,
      outside: [...page.querySelectorAll("body *")].filter(outside).map(e => e.outerHTML.slice(0, 80)),
      scrolling: [...page.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth + 1).length,
      missing: [...page.images].filter(image => !(image.complete && image.naturalWidth)).length,
      drawings: [...page.querySelectorAll("figure svg")].map(svg => svg.getBoundingClientRect().height),
      duplicate_ids: [...page.querySelectorAll("[id]")].map(e => e.id).filter((id, i, ids) => ids.indexOf(id) != i),
      color: style.color, background: style.backgroundColor,
    }};
  }});
  document.getElementById("answer").textContent = JSON.stringify(answer);
}};
</script>"""


def chromium(page: Path, *options: str) -> subprocess.CompletedProcess:
    """Open a file, and print its document after its scripts."""
    fixed = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--enable-logging=stderr"]
    profile = f"--user-data-dir={page.parent / 'browser'}"
    command = [CHROMIUM, *fixed, profile, "--window-size=1300,900", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def console(page: Path) -> list[str]:
    """What the page's console says: errors of scripts and styles, and loads that failed or were refused."""
    return [line for line in chromium(page).stderr.splitlines() if "CONSOLE" in line]


def measure(page: Path, widths: tuple[int, ...], dark: bool = False) -> list[dict]:
    """The page's layout in each of the widths."""
    source = html.escape(page.read_text())
    frames = "\n".join(f'<iframe width="{width}" height="800" srcdoc="{source}"></iframe>' for width in widths)
    outer = page.with_name("measure.html")
    outer.write_text(MEASURE.format(frames=frames))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    document = chromium(outer, scheme).stdout
    return json.loads(html.unescape(re.search(r'<pre id="answer">(.*?)</pre>', document, re.DOTALL)[1]))


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two colours, as computed styles write them: rgb(1, 2, 3)."""
    light, dark = sorted(map(_luminance, (first, second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
