"""docs/extending.md, followed to the letter: its files written, its commands run, in a copy of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, SMALL

BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.M | re.S)


@pytest.mark.slow
def test_the_page_works_as_written(environment: dict[str, str], tmp_path: Path) -> None:
    project = tmp_path / "project"
    for folder in ("src", "conf", "tests"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    bin_folder = str(Path(sys.executable).parent)
    # the page's PYTHONPATH=. is for its own package; the copy of the project has to come first as well
    environment |= {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(project / "src")}
    files, commands = [], []
    for language, title, text in BLOCK.findall((ROOT / "docs" / "extending.md").read_text()):
        if title:
            assert not (project / title).exists(), f"{title} is there already"
            (project / title).parent.mkdir(parents=True, exist_ok=True)
            (project / title).write_text(text)
            files.append(title)
        elif language == "sh":
            command = text.strip().replace("PYTHONPATH=.", f"PYTHONPATH=.:{project / 'src'}")
            small = [s for s in (*SMALL, "tracking=none") if s.split("=")[0] not in command and "hidden" not in s]
            if "snnexp " in command:
                command = " ".join([command, *small])
            done = subprocess.run(
                command, shell=True, cwd=project, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert "test/accuracy" in done.stdout or re.search(r"[1-9]\d* passed", done.stdout)
            commands.append(command)
    assert len(files) == 11
    assert len(commands) == 7


def test_every_option_of_every_group_is_listed_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "conf").glob("*/*.yaml")):
        assert f"`{path.stem}`" in readme, f"README.md's table of groups lacks {path.parent.name}={path.stem}"
