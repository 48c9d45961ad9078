"""The page in a real browser: no error in its console, and the numbers of results.json."""

import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from statistics import mean

import pytest

from fastvim.reports.write import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
)


def browse(page, folder, *flags):
    """The page's document as the browser has it, and what its console said."""
    run = subprocess.run(
        [
            BROWSER,
            *FLAGS,
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, re.findall(r"CONSOLE.*", run.stderr)


class Cells(HTMLParser):
    """The figures of the page: (variant, metric or cost) -> (exact value, text shown)."""

    def __init__(self, page):
        super().__init__()
        self.variant, self.key, self.found, self.differences = None, None, {}, {}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if "data-difference" in attributes:
            self.differences[attributes["data-variant"]] = attributes["data-difference"]
        self.variant = attributes.get("data-variant", self.variant)
        name = attributes.get("data-metric") or attributes.get("data-cost")
        self.key = (self.variant, name) if name else None
        if self.key:
            self.found[self.key] = (attributes["data-value"], "")

    def handle_data(self, data):
        if self.key and data.strip():
            value, text = self.found[self.key]
            self.found[self.key] = (value, text + data.strip())

    def handle_endtag(self, tag):
        self.key = None


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    write_report(study, folder, ("html", "json"))
    return folder


def test_the_console_is_empty_and_the_numbers_are_those_of_results_json(report, tmp_path):
    document, console = browse(report / "report.html", tmp_path, "--dump-dom")
    assert console == []
    cells = Cells(document)
    results = json.loads((report / "results.json").read_text())
    for variant in results["variants"]:
        for metric in ("top1", "top5", "loss"):
            value, text = cells.found[variant["name"], metric]
            known = [v for v in variant["metrics"][metric] if v is not None]
            if not known:
                assert (value, text) == ("None", "-")
                continue
            assert float(value) == mean(known)
            assert float(text.split(" ")[0]) == pytest.approx(mean(known), abs=0.005)
        for cost, value in variant["cost"].items():
            shown, text = cells.found[variant["name"], cost]
            assert (text == "-") == (value is None)
            assert value is None or float(shown) == value
    for contrast in results["contrasts"]:
        shown = cells.differences[contrast["variant"]]
        assert shown == str(contrast["difference"])


def test_a_page_with_an_error_would_be_noticed(report, tmp_path):
    broken = tmp_path / "broken.html"
    text = (report / "report.html").read_text()
    broken.write_text(text.replace("</body>", "<script>missing()</script></body>"))
    _, console = browse(broken, tmp_path, "--dump-dom")
    assert any("missing" in line for line in console)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_not_wider_than_the_screen(report, tmp_path, width):
    # A window cannot be as narrow as a phone, a frame can.
    frame = tmp_path / "frame.html"
    page = escape((report / "report.html").read_text(), quote=True)
    frame.write_text(
        f"""<!doctype html><iframe width="{width}" height="900" style="border:0" srcdoc="{page}">
        </iframe><script>onload = () => {{ const page = frames[0].document.documentElement,
        shown = name => [...page.ownerDocument.querySelectorAll(name)].filter(e => e.offsetParent);
        document.title = [page.scrollWidth, frames[0].innerWidth, shown(".wide").length,
        shown(".narrow").length].join(" ") }}</script>"""
    )
    document, console = browse(frame, tmp_path, "--window-size=1400,1000", "--dump-dom")
    assert console == []
    found = re.search(r"<title>([\d ]+)</title>", document).group(1)
    content, window, wide, narrow = map(int, found.split())
    assert window == width
    assert content <= width
    assert (wide, narrow) == ((0, 3) if width == 390 else (3, 0))
