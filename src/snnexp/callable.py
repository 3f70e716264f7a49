"""Modules that can be called: `snnexp.run` and `snnexp.sweep` are modules of the command line, and functions to users.

A function of the same name would be lost as soon as such a module is imported. Imports nothing heavy.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def called_as(module: str, function: str) -> None:
    """Let `module(...)` call `function` of `snnexp.api`."""

    class Callable(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return getattr(import_module("snnexp.api"), function)(*arguments, **options)

    sys.modules[module].__class__ = Callable
