"""Select the implementation of SpikingJelly's IF, LIF and PLIF on an NVIDIA GPU.

SpikingJelly 2.0 takes no backend argument: each of its operators reads an environment variable once, at its first use,
and keeps that choice for the process. On a CPU there is only torch.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from spikingjelly.activation_based import surrogate as library

from snnexp.errors import require

BACKENDS = ("auto", "torch", "triton", "cuda")
_OPERATORS = {
    "if_": "SJ_IF_CUDA_IMPLEMENTATION",
    "lif": "SJ_LIF_CUDA_IMPLEMENTATION",
    "plif": "SJ_PLIF_CUDA_IMPLEMENTATION",
}
FUSED = (
    library.Sigmoid,
    library.ATan,
    library.PiecewiseQuadratic,
    library.PiecewiseExp,
    library.SoftSign,
    library.SuperSpike,
    library.Erf,
)  # surrogates that its kernels support; every other one runs in torch


def select(backend: str, surrogate: Any) -> str:
    """Make SpikingJelly use `backend` in this process and return it; raise `InvalidValue` if it cannot.

    `auto` changes nothing: SpikingJelly takes the first of cuda, triton, torch that works.
    """
    require(
        backend in BACKENDS,
        "backend",
        backend,
        f"one of {', '.join(BACKENDS)} (SpikingJelly 2.0 has native CUDA kernels in place of CuPy's)",
    )
    kernels = backend in ("triton", "cuda")
    require(
        not kernels or torch.cuda.is_available(),
        "backend",
        backend,
        "auto or torch: this machine has no NVIDIA GPU that torch can use",
    )
    require(
        not kernels or type(surrogate) in FUSED,
        "backend",
        backend,
        f"auto or torch with the surrogate {type(surrogate).__name__}: SpikingJelly's kernels support only "
        + ", ".join(kind.__name__ for kind in FUSED),
    )
    if backend != "auto" and torch.cuda.is_available():
        for operator, variable in _OPERATORS.items():
            bound = os.environ.get(variable, "auto")
            require(
                bound == backend or f"spikingjelly._ops.{operator}" not in sys.modules,
                "backend",
                backend,
                f"{bound} in this process, which has already used it: start a new process to change it",
            )
        os.environ.update(dict.fromkeys(_OPERATORS.values(), backend))
    return backend
