"""An alias of the tracer, for model files that were written before `rewrite.py` existed."""

from snnexp.conversion.tracing import Tracer as _Tracer

__all__ = ["_Tracer"]
