"""Every command in README and docs can be typed: zsh expands nothing in it, and Hydra composes it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from conftest import ROOT
from snnexp.config import conf_dir
from snnexp.sweep.shown import of_first_job

QUICK = ("README.md", "lab1.md", "lab2.md", "lab2_dvs.md", "images.md", "conversion.md")  # the others in the slow tests
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN = re.compile(r"--config-dir|my_|mine|custom|\.\.\.|nope")  # the reader's own files, parts left out, mistakes
EXPANDED = re.compile(r"[\[\]{}*?()<>|&;!^]")  # by zsh, outside quotes
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\\.")


def blocks(page: Path) -> Iterator[str]:
    """The fenced blocks of shell commands, and the blocks and spans of code that are one command or setting."""
    text = re.sub(r"<[a-zA-Z][\w ]*>", "PLACE", page.read_text())  # what the reader puts in
    text = re.sub(r"\\\n\s*", "", text)  # lines that go on
    for language, block in re.findall(r"^[ ]*```(\w*)\n(.*?)^[ ]*```$", text, re.S | re.M):
        if language in ("sh", "bash"):
            yield block
    plain = re.sub(r"^[ ]*```.*?^[ ]*```$", "", text, flags=re.S | re.M)
    yield from re.findall(r"^    ((?:snnexp|make|python) .*)$", plain, re.M)
    yield from (span for span in re.findall(r"`([^`\n]+)`", plain) if re.match(r"'?(snnexp |[a-z+~][\w.]*=\W)", span))


def commands() -> list[tuple[str, str]]:
    """All lines of all pages that a shell would read, with continued lines joined and comments removed."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            for line in block.splitlines():
                if command := re.sub(r"(^|\s)#.*", "", line).strip():
                    found.append((page.name, command))
    return list(dict.fromkeys(found))


COMMANDS = commands()


def test_a_shell_reads_every_command_as_it_stands() -> None:
    """No list, glob or redirection outside quotes; a reader's shell may be zsh, which refuses them."""
    wrong = [
        (page, command) for page, command in COMMANDS if EXPANDED.search(QUOTED.sub("", command).replace(" && ", " "))
    ]
    assert not wrong, wrong
    for _, command in COMMANDS:
        assert shlex.split(command), command
    assert sum("snnexp" in command for _, command in COMMANDS) > 60


def composed(command: str) -> None:
    """Compose the config of a command, of a sweep that of its first job."""
    words = shlex.split(command)
    arguments = of_first_job(["--cfg", "job", *words[words.index("snnexp") + 1 :]])
    keys = [word for word in arguments if "=" in word or word.startswith("~")]
    assert {word for word in arguments if word not in keys} <= {"--cfg", "job", "all", "--help", "--info"}
    compose("config", keys, return_hydra_config=True)


@pytest.mark.parametrize(
    "page", [pytest.param(page.name, marks=() if page.name in QUICK else pytest.mark.slow) for page in PAGES]
)
def test_hydra_composes_every_command(page: str) -> None:
    wrong = {}
    GlobalHydra.instance().clear()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        for name, command in COMMANDS:
            if name == page and re.match(r"(\w+=\S* )*snnexp( |$)", command) and not OWN.search(command):
                try:
                    composed(command)
                except Exception as error:
                    wrong[command] = str(error).splitlines()[:2]
    assert not wrong, "\n".join(f"{command}: {said}" for command, said in wrong.items())
