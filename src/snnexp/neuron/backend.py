"""Select the implementation of SpikingJelly's IF, LIF and PLIF on an NVIDIA GPU.

SpikingJelly 2.0 takes no backend argument: each of its operators reads an environment variable once, at its first use,
and keeps that choice for the process. On a CPU there is only torch.
"""

import os
import sys
from typing import Any

import torch
from spikingjelly.activation_based import surrogate as library

from snnexp.errors import InvalidValue, require

BACKENDS = ("auto", "torch", "triton", "cuda")
_OPERATORS = {name: f"SJ_{name.rstrip('_').upper()}_CUDA_IMPLEMENTATION" for name in ("if_", "lif", "plif")}
# The surrogates that its kernels support; every other one runs in torch.
_FUSED = ("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf")
FUSED = tuple(getattr(library, name) for name in _FUSED)


def select(backend: str, surrogate: Any) -> str:
    """Make SpikingJelly use `backend` in this process and return it; raise `InvalidValue` if it cannot.

    `auto` changes nothing: SpikingJelly takes the first of cuda, triton, torch that works.
    """
    known = f"one of {', '.join(BACKENDS)} (SpikingJelly 2.0 has native CUDA kernels in place of CuPy's)"
    require(backend in BACKENDS, "backend", backend, known)
    if backend in ("triton", "cuda"):
        why = "auto or torch: this machine has no NVIDIA GPU that torch can use"
        require(torch.cuda.is_available(), "backend", backend, why)
        why = f"auto or torch with the surrogate {type(surrogate).__name__}: SpikingJelly's kernels support only "
        require(type(surrogate) in FUSED, "backend", backend, why + ", ".join(_FUSED))
    if backend != "auto" and torch.cuda.is_available():
        for operator, variable in _OPERATORS.items():
            bound = os.environ.get(variable, "auto")
            if bound != backend and f"spikingjelly._ops.{operator}" in sys.modules:
                why = "in this process, which has already used it: start a new process to change it"
                raise InvalidValue("backend", backend, f"{bound} {why}")
        os.environ.update(dict.fromkeys(_OPERATORS.values(), backend))
    return backend
