"""The report as a browser shows it, from a file: its numbers, its layout, and that it asks nobody for anything."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

import stored
from snnexp.report import html
from snnexp.report.document import Paragraph, Section, Table

pytestmark = pytest.mark.slow
TABLES = """return [...document.querySelectorAll('table')]
    .map(table => [...table.rows].map(row => [...row.cells].map(cell => cell.innerText)))"""
SCREENS = [(1366, 768), (1920, 1080), (800, 600)]


def size(browser: Chrome, width: int, height: int) -> None:
    """Set what the page sees of the window."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def overflow(browser: Chrome) -> int:
    """By how many pixels the page is wider than the window."""
    return int(
        browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )


def requested(browser: Chrome) -> set[str]:
    """What the browser has loaded since it was last asked: the kinds of addresses."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return {address.split(":")[0] for address in sent}


def test_a_report_shows_the_stored_numbers_and_loads_nothing(chromium: Chrome, outputs: Path) -> None:
    stored.report(outputs, name="all")
    requested(chromium)  # forget what came before
    chromium.get_log("browser")
    chromium.get((outputs / "reports" / "all.html").as_uri())
    _, ran, _, ranking, swept, *_ = chromium.execute_script(TABLES)
    sigmoid, atan = stored.rows(swept)
    assert [sigmoid["surrogate"], sigmoid["seeds"], sigmoid["test/accuracy"]] == ["sigmoid", "3", "0.92 ± 0.02"]
    assert [atan["surrogate"], atan["seeds"], atan["test/accuracy"]] == ["atan", "3", "0.81 ± 0.017"]
    assert ran[1] == ["train", "digits", "mlp", "lif", "10", "0, 1, 2", "6"]
    assert ranking == [list(stored.RANKING[0]), ["atan", "0.1235", "123457"], ["sigmoid", "1e-07", "12"]]
    widths = chromium.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.width])")
    assert [(complete, natural) for complete, natural, _ in widths] == [(True, 720)] * 3
    assert all(400 < shown <= 576 for *_, shown in widths)
    assert requested(chromium) == {"file", "data"}
    assert chromium.get_log("browser") == []
    for screen in SCREENS:
        size(chromium, *screen)
        assert overflow(chromium) == 0, screen


def test_large_tables_scroll_on_a_screen_and_are_whole_in_print(chromium: Chrome, tmp_path: Path) -> None:
    table = Table(
        "large", [f"a/long_name_{i}" for i in range(30)], [[f"{i * j / 7:.4g}" for j in range(30)] for i in range(100)]
    )
    words = [Paragraph("a word " + "x" * 400), table]
    page = tmp_path / "large.html"
    page.write_text(html.written(Section("large", "Large", [*words, Section("in", "y" * 300, words)])))
    chromium.get(page.as_uri())
    for screen in SCREENS:
        size(chromium, *screen)
        assert overflow(chromium) == 0, screen
    hidden = "return [...document.querySelectorAll('.table')].map(t => t.scrollHeight - t.clientHeight)"
    assert min(chromium.execute_script(hidden)) > 1000
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert chromium.execute_script(hidden) == [0, 0]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    pdf = b64decode(chromium.print_page())
    assert pdf.count(b"/Type /Page\n") >= 4, "twice a hundred rows fill more than two pages"
