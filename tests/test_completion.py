"""Tab completion in bash and zsh, after the line that README gives for each."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import ROOT

LINES = dict(re.findall(r"^(.*install=bash.*)  # (\w+)$", (ROOT / "README.md").read_text(), re.M))
SHELLS = {shell: line.strip() for line, shell in LINES.items()}
COMMANDS = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}


class Terminal:
    """A shell in a terminal of its own."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.execvpe(command[0], command, environment)
        self.seen = b""

    def type(self, text: str, shows: str, patience: float = 20) -> None:
        """Type `text` and wait until the terminal shows `shows` after it."""
        start, end = len(self.seen), time.monotonic() + patience
        os.write(self.terminal, text.encode())
        while shows.encode() not in self.seen[start:]:
            assert select.select([self.terminal], [], [], max(end - time.monotonic(), 0))[0], self.seen[start:]
            self.seen += os.read(self.terminal, 65536)

    def close(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.terminal)


@pytest.fixture
def terminal(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[[str], Terminal]]:
    program = tmp_path / "bin" / "snnexp"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom snnexp.run import main\nmain()\n")
    program.chmod(0o755)
    path = f"{program.parent}:{environment['PATH']}"
    started = []

    def start(shell: str) -> Terminal:
        plain = environment | {"PATH": path, "TERM": "dumb", "PS1": "> ", "HOME": str(tmp_path), "COLUMNS": "300"}
        started.append(Terminal(COMMANDS[shell], plain))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.mark.parametrize("shell", ["bash", pytest.param("zsh", marks=pytest.mark.slow)])
def test_words_are_completed(shell: str, terminal: Callable[[str], Terminal]) -> None:
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell} here")
    shown = terminal(shell)
    shown.type(SHELLS[shell] + "; echo re''ady\n", "ready")
    shown.type("snnexp surrogate=sin\t", "surrogate=sine")  # an option
    shown.type(" trainer.ep\t", "trainer.epochs=")  # a key
    shown.type("3 task=comp\t", "task=compare_surrogates")
    shown.type(" nonsense.k=1 no\t", "\a")  # nothing fits: the terminal's bell
    assert b"is not" not in shown.seen, "no message of the program between the words"
