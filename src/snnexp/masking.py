"""Hide passwords in addresses: every text that is shown, stored or sent goes through `masked`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO, TypeVar

HIDDEN = "***"
USER = re.compile(r"(://[^\s:/]*:)\S*@")  # up to the last @, because a password may contain one
TOKEN = re.compile(r"(https?://)[^\s:/]+@")  # a user without a password is a token
# A quotation mark ends a value only where it closes a quotation: a password may contain one.
SECRET = r"\w*(?:password|passwd|pwd|token|secret|api_?key|auth|odbc_connect)\w*"
QUERY = re.compile(rf"""([?&;]{SECRET}=)(?:(?!['"]+(?:[\s,)\]}}]|$))[^\s&])+""", re.IGNORECASE)
Value = TypeVar("Value")


def masked(value: Value) -> Value:
    """Return a text with the password of each address replaced by ***, or a container with all of its texts masked."""
    made: Any = value
    if isinstance(value, str):
        made = QUERY.sub(rf"\1{HIDDEN}", TOKEN.sub(rf"\1{HIDDEN}@", USER.sub(rf"\1{HIDDEN}@", value)))
    elif isinstance(value, Mapping):
        made = {key: masked(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        made = [masked(item) for item in value]
    return made  # type: ignore[no-any-return]


def is_masked(address: str) -> bool:
    """Return whether the password of an address was replaced by ***."""
    return f"{HIDDEN}@" in address or f"={HIDDEN}" in address


@contextmanager
def masking_errors() -> Iterator[None]:
    """Mask what this process writes to stderr: Hydra and tracebacks print the command line as it was given."""
    with redirect_stderr(_Masking(sys.stderr)):
        yield


class _Masking:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(masked(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
