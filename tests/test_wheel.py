"""A built wheel, installed elsewhere, runs: it carries the configs and needs nothing of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT, SMALL


@pytest.mark.slow
def test_the_wheel_runs_outside_the_checkout(environment: dict[str, str], tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("snnexp-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.removeprefix("snnexp/conf/") for name in names if name.startswith("snnexp/conf/")}
    sweeps = {f"sweep/{p.name}" for p in (ROOT / "sweeps").glob("*.yaml")}
    assert shipped == sweeps | {str(p.relative_to(ROOT / "conf")) for p in (ROOT / "conf").rglob("*.yaml")}
    assert "hydra_plugins/snnexp_optuna/sweeper.py" in names
    texts = {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src" / "snnexp" / "report").rglob("*.yaml")}
    assert {"snnexp/report/style.css", "snnexp/report/labs/labs.yaml", *texts} <= set(names)
    assert "hydra_plugins/__init__.py" not in names

    # a fresh environment that sees the libraries installed here, but neither the checkout nor its editable install
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    libraries = next(p for p in sys.path if p.endswith("site-packages"))
    python = tmp_path / "venv" / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "install",
        "--quiet",
        "--python",
        str(python),
        "--no-deps",
        str(wheel),
    ]
    subprocess.run(install, check=True)
    (site,) = (tmp_path / "venv").glob("lib/*/site-packages")
    for entry in Path(libraries).iterdir():
        ours = entry.name.startswith(("snnexp", "_snnexp", "__editable__", "__pycache__")) or entry.suffix == ".pth"
        if not ours and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {key: value for key, value in environment.items() if key not in ("PYTHONPATH", "SNNEXP_OUTPUTS")}
    snnexp = tmp_path / "venv" / "bin" / "snnexp"
    done = subprocess.run([snnexp, *SMALL], cwd=elsewhere, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "test/accuracy" in done.stdout
    assert sorted(p.name for p in elsewhere.iterdir()) == ["outputs"]
    where = subprocess.run(
        [python, "-c", "import snnexp; print(snnexp.__file__)"],
        cwd=elsewhere,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(tmp_path / "venv"))
    assert os.fspath(ROOT) not in where.stdout
