"""The MLflow UI, as `task=ui` serves it, finds what was logged: nested runs, accuracy against T, figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import stored

pytestmark = pytest.mark.slow
TRACES = """return [...document.querySelectorAll('.js-plotly-plot')]
    .flatMap(plot => plot.data.map(trace => [trace.metricKey, [...trace.x], [...trace.y]]))"""
COLUMNS = """return [...document.querySelectorAll('.ag-header-cell')]
    .sort((a, b) => a.getBoundingClientRect().left - b.getBoundingClientRect().left)
    .map(cell => cell.innerText.trim()).filter(text => text)"""
WIDTHS = "return [...document.images].map(image => [image.alt, image.naturalWidth])"


def test_the_ui_shows_sweeps_curves_and_figures(chromium: Chrome, outputs: Path, ui: Callable[..., str]) -> None:
    address = ui(outputs, "tracking.experiment=lab")
    port = urlsplit(address).port
    wait = WebDriverWait(chromium, 120)
    stored.report(outputs, name="ui", experiments="lab", port=port)
    chromium.get((outputs / "reports" / "ui.html").as_uri())
    links = {link.text: str(link.get_attribute("href")) for link in chromium.find_elements(By.TAG_NAME, "a")}
    sweep, converted = links["surrogate x seed"], links["mlp-digits-relu-qcfs-s0"]
    sweep_id = sweep.rsplit("/", 1)[1]

    def rows(browser: Chrome) -> set[str]:
        return {link.text for link in browser.find_elements(By.CSS_SELECTOR, "[role=row] a")}

    chromium.get(address)
    wait.until(lambda browser: "surrogate x seed" in rows(browser))
    columns = chromium.execute_script(COLUMNS)
    assert columns[:5] == ["Run Name", "Created", "task", "test/accuracy", "test/snn_accuracy"]
    children = {f"sigmoid seed={seed}" for seed in range(3)} | {f"atan seed={seed}" for seed in range(4)}
    assert not children & rows(chromium), "a sweep is closed at first"
    chromium.find_element(By.CSS_SELECTOR, f"[role=row][row-id='{sweep_id}'] button").click()
    wait.until(lambda browser: children <= rows(browser))

    chromium.get(f"{converted}/model-metrics")
    expected = ["test/snn_accuracy", list(stored.AT_T), [accuracies[0] for accuracies in stored.AT_T.values()]]
    wait.until(lambda browser: expected in browser.execute_script(TRACES))

    chromium.get(f"{sweep}/artifacts/figures/val_accuracy.png")
    wait.until(lambda browser: ["figures/val_accuracy.png", 720] in browser.execute_script(WIDTHS))
