"""Chromium without a window, driven through its own driver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

import stored


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """The store of `stored.fill`."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_database, folder)
    stored.fill(folder)
    return folder


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chrome]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs Chromium and chromedriver, which tests/browser/install.sh installs (Debian, as root)")
    options = ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1366,768"):
        options.add_argument(argument)  # without its sandbox it also runs as root; it sees our own pages alone
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = Chrome(options, Service(driver))
    yield browser
    browser.quit()
