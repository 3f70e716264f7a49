"""What is given to a conversion from Python: a network and a tensor, and their precision. Anything else is told."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from snnexp.errors import UserError, require

HALF = (torch.float16, torch.bfloat16)


def given(ann: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor, torch.dtype | None]:
    """Return network and images for a conversion, and the precision that its result must have (None: as it is).

    Networks in half precision are converted in single precision: sums over images would be lost in 8 or 11 bits.
    Raises UserError for anything but a network and a tensor, InvalidValue for no or non-finite images.
    """
    check_network(ann)
    check_tensor(images, "the calibration images")
    require(len(images) > 0 and bool(images.isfinite().all()), "images", list(images.shape), "at least one, and finite")
    kinds = {p.dtype for p in (*ann.parameters(), *ann.buffers()) if p.is_floating_point()}
    if len(kinds) != 1 or (half := kinds.pop()) not in HALF:
        return ann, images, None
    return copy.deepcopy(ann).float(), images.float() if images.is_floating_point() else images, half


def check_network(ann: object) -> None:
    """Raise UserError, with what to do, unless `ann` is a network."""
    if isinstance(ann, nn.Module):
        return
    if isinstance(ann, type):
        advice = f"a class: make a network of it, such as {ann.__name__}()"
    elif isinstance(ann, Mapping):
        advice = "a state_dict, which is only its weights: make the network and load them, net.load_state_dict(weights)"
    elif isinstance(ann, str | Path):
        advice = "a path: make the network and load the file's weights, net.load_state_dict(torch.load(path))"
    else:
        advice = f"{_a(ann)}: it must be a torch.nn.Module"
    raise UserError(f"the network is {advice}")


def check_tensor(x: object, what: str = "the input") -> None:
    """Raise UserError, with what to do, unless `x` is a tensor with an axis of samples. `what`: its name."""
    if isinstance(x, Tensor):
        if not x.dim():
            raise UserError(f"{what}: one number, where a tensor [N, ...] of N samples is needed")
        return
    if isinstance(x, np.ndarray):
        advice = "torch.from_numpy(x).float(), with the axes of the network's input"
    elif isinstance(x, DataLoader):
        advice = "the images of some batches, torch.cat([x for x, _ in itertools.islice(loader, 4)])"
    elif isinstance(x, Dataset):
        advice = "some of its images, torch.stack([dataset[i][0] for i in range(256)])"
    elif isinstance(x, list | tuple):
        advice = "torch.stack(x) of single images, or torch.cat(x) of batches"
    else:
        advice = "a torch.Tensor [N, ...] of N samples"
    raise UserError(f"{what}: {_a(x)} was given, where a tensor is needed; give {advice}")


def _a(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
