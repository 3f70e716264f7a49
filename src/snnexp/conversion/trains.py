"""Spike trains and channels as tensors: means, layouts, and trains packed to one bit a step."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def per_channel(x: Tensor) -> Tensor:
    """Return the mean over all dimensions but dimension 1: [N, C, ...] -> [C]."""
    return x.mean(dim=[d for d in range(x.dim()) if d != 1])


def relative(square: float, signal: float) -> float:
    """Return the relative error from a squared error and the squared signal (which may be 0)."""
    return math.sqrt(square / max(signal, 1e-12))


def along(values: Tensor, dims: int, at: int = 1) -> Tensor:
    """Return `values` [C] as a tensor of `dims` dimensions that varies along dimension `at`."""
    return values.view([-1 if d == at else 1 for d in range(dims)])


def mean_over_time(train: Tensor) -> Tensor:
    """Return the mean over the first axis, [T, ...] -> [...]; summed step by step, which is faster in channels-last."""
    total = train[0].clone()
    for step in train[1:]:
        total += step
    return total / len(train)


def channels_last(shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Return an empty tensor [T, N, C, ...] in the memory layout that convolutions use."""
    return torch.empty(*shape[:2], *shape[3:], shape[2], dtype=dtype, device=device).movedim(-1, 2)


def packed(out: Tensor) -> Tensor:
    """Pack a train [T, n, ...] of 0 or theta into uint8 [ceil(T/8), n, ...]: step t is bit t % 8 of byte t // 8."""
    bits = torch.empty_like(out[: -(-len(out) // 8)], dtype=torch.uint8)
    spike = torch.empty_like(out[0])
    for byte, steps in zip(bits, torch.split(out, 8), strict=True):
        value = torch.zeros_like(spike)
        for emitted in reversed(steps.unbind()):
            torch.gt(emitted, 0, out=spike)  # as floats, which is far faster than a comparison to bool
            torch.add(spike, value, alpha=2, out=value)
        byte.copy_(value)
    return bits


def unpacked(bits: Tensor, T: int, dtype: torch.dtype) -> Tensor:
    """Unpack the bits of `packed` into a train [T, n, ...] of 0 and 1."""
    train = channels_last((T, *bits.shape[1:]), dtype, bits.device)
    for t in range(T):
        train[t] = (bits[t // 8] >> t % 8) & 1
    return train
