"""The documentation agrees with the code: generated tables, options, links."""

from __future__ import annotations

import re
import subprocess
import sys

from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_tables_of_options_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_option_of_every_group_is_described() -> None:
    described = (ROOT / "docs" / "options.md").read_text()
    for path in sorted((ROOT / "conf").glob("*/*.yaml")):
        assert f"| `{path.stem}` |" in described, f"docs/options.md lacks {path.parent.name}={path.stem}"


def test_links_between_pages_lead_somewhere() -> None:
    checked = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
                checked += 1
        for target in re.findall(r"\bdocs/[a-z0-9_]+\.md", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name} names {target}, which does not exist"
    assert checked > 15


def test_the_readme_is_short_before_its_tables() -> None:
    before = (ROOT / "README.md").read_text().partition("## Groups")[0]
    assert len(before.split()) <= 600
    assert "](docs/conversion.png)" in before
    for reader in ("a student", "a researcher", "a contributor"):
        assert f"| {reader} |" in before
