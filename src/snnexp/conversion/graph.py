"""The former place of the tracer, which model files written before `rewrite.py` existed name."""

from snnexp.conversion.rewrite import Tracer as _Tracer

__all__ = ["_Tracer"]
