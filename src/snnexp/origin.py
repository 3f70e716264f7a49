"""The origin of a run: its options, and the code and packages that it ran with (`task=rerun` and `task=diff`)."""

import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

ORIGIN = "origin.json"  # in the run directory
LIMIT = 1_000_000  # characters of a diff, and bytes of a new file
CHECKOUT = Path(__file__).resolve().parents[2]
CODE = ("src", "conf", "sweeps")  # what determines results


@lru_cache(maxsize=1)  # a process computes with the code that it has loaded, even if the files change later
def software() -> dict[str, Any]:
    """Return the version of Python, those of snnexp's dependencies and, in a checkout, its commit and `diff`."""
    code = {"version": version("snnexp")}
    if (CHECKOUT / ".git").exists():  # not a wheel
        with suppress(OSError, subprocess.CalledProcessError):  # git is not installed
            code |= {"commit": _git("rev-parse", "HEAD").strip(), "diff": diff(CHECKOUT)}
    return {"python": platform.python_version(), "packages": _packages(), "code": code}


def diff(checkout: Path, folders: tuple[str, ...] = CODE) -> str:
    """Return the uncommitted changes of the code, with new files; what exceeds LIMIT is cut off.

    Raises CalledProcessError.
    """
    plain = ("--no-ext-diff", "--no-textconv")
    text = _git("diff", *plain, "HEAD", "--", *folders, checkout=checkout)
    for name in _git("ls-files", "-z", "--others", "--exclude-standard", "--", *folders, checkout=checkout).split("\0"):
        if name and (size := (checkout / name).stat().st_size) > LIMIT:
            text += f"new file {name} of {size} bytes\n"
        elif name:
            text += _git("diff", *plain, "--no-index", "--", "/dev/null", name, checkout=checkout, differs=True)
    return text if len(text) <= LIMIT else f"{text[:LIMIT]}\n(cut at {LIMIT} characters of {len(text)})\n"


def resumed(first: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the origin `first` of a run that is resumed; software that differs from before is added to `resumed`."""
    before = list(first.get("resumed", []))
    return dict(first) | ({"resumed": [*before, dict(now)]} if differences([first, *before][-1], now) else {})


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between the software of a run and that of another, a line for each difference."""
    if not then.get("code"):
        return ["the run kept no record of its code and packages, so they cannot be compared"]
    old, new = described(then), described(now)
    lines = [
        f"{key} was {old.get(key)}, and is {new.get(key)} now" for key in {**old, **new} if old.get(key) != new.get(key)
    ]
    if (
        "commit" in old
        and old.get("commit") == new.get("commit")
        and then["code"].get("diff") != now["code"].get("diff")
    ):
        lines = [line for line in lines if not line.startswith("uncommitted")]
        lines.append(f"the uncommitted changes of the code differ (those of the run are in its {ORIGIN})")
    if then.get("resumed"):
        lines.append(f"the run was resumed with other code or packages (see `resumed` in its {ORIGIN})")
    return lines


def described(software: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions as {name: version}, with the code's commit and the size of its uncommitted changes."""
    code, packages = (_mapping(software.get(name)) for name in ("code", "packages"))
    changed = str(code.get("diff") or "").count("\n")
    of_code = {"commit": str(code["commit"]), "uncommitted lines": str(changed)} if "commit" in code else {}
    named = {"snnexp": code.get("version"), "Python": software.get("python"), **packages}
    return {key: str(value) for key, value in (of_code | named).items() if value is not None}


def _packages() -> dict[str, str]:
    found = {}
    for line in (line for line in requires("snnexp") or () if "extra ==" not in line):
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        with suppress(PackageNotFoundError):  # of another platform
            found[name] = version(name)
    return found


def _git(*arguments: str, checkout: Path = CHECKOUT, differs: bool = False) -> str:
    command = ["git", "--no-optional-locks", "-C", str(checkout), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0 and not (differs and done.returncode == 1):
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
