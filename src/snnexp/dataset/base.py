"""The interface from datasets to training: three splits of in-memory or memory-mapped tensors."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from snnexp.errors import number, require


@dataclass(frozen=True)
class Split:
    """Samples `x` [n, ...] (uint8, possibly a memory map shared by splits), their labels `y` [n] int64, and `index`
    int64: the rows of both that belong to this split."""

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x [b, ...], y [b]) in `order` (positions within this split; default: as stored)."""
        order = torch.arange(len(self)) if order is None else order
        for positions in torch.split(order.to(self.index.device), size):
            rows = self.index[positions]
            # index_select copies whole rows: many times as fast as self.x[rows] on bytes
            yield self.x.index_select(0, rows), self.y.index_select(0, rows)


@dataclass(frozen=True)
class Data:
    """A prepared dataset. `shape` is (C, H, W) of one step. `temporal`: x has a time axis after the batch axis ([n, T,
    C, H, W]); otherwise the same x is shown at each step ([n, C, H, W]). `averaged`: x has a time axis, but its mean
    over time is shown at each step (`temporal` is then false).

    `augment(x [b, ...], seed)` changes a training batch on the batch's device, determined by x and `seed`. `normalize`:
    (mean, std) per channel in units of 255; the network applies it, so its inputs are 0..255. `content`: identifies the
    stored samples and labels, e.g. a digest of their files (None: `identity` digests the tensors).
    """

    name: str
    train: Split
    val: Split
    test: Split
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    temporal: bool
    averaged: bool = False
    augment: Callable[[Tensor, int], Tensor] | None = None
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    content: str | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The name, the numbers of samples, and a `digest` of the splits' content, which does not depend on paths."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        stored = {id(t): t for split in splits.values() for t in (split.x, split.y)}
        parts = [
            self.content or [_digest(t) for t in stored.values()],
            [[list(split.x.shape), _digest(split.index)] for split in splits.values()],
            [list(self.shape), list(self.classes), self.temporal, self.averaged, self.normalize],
        ]
        digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return {"name": self.name} | {name: len(split) for name, split in splits.items()} | {"digest": digest}

    @classmethod
    def of(cls, name: str, x: Tensor, y: Tensor, trained: int, share: float, seed: int, **settings: Any) -> Self:
        """Return a dataset of samples x, y: the first `trained` train and validate (`split_train`), the rest test."""
        rows = *split_train(trained, share, seed), torch.arange(trained, len(y))
        train, val, test = (Split(x, y, index) for index in rows)
        return cls(name, train, val, test, **settings)

    def to(self, device: torch.device) -> Self:
        """Return a copy with training and validation data on `device`; tensors that splits share stay shared."""
        kept = {id(t): t for split in (self.train, self.val) for t in (split.x, split.y, split.index)}
        there = {key: t.to(device) for key, t in kept.items()}

        def moved(split: Split) -> Split:
            return Split(there[id(split.x)], there[id(split.y)], there[id(split.index)])

        return replace(self, train=moved(self.train), val=moved(self.val))


def _digest(tensor: Tensor) -> str:
    """Return a digest of the tensor's type and bytes."""
    made = hashlib.sha256(str(tensor.dtype).encode())
    made.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


def validation_share(value: float) -> float:
    """Return `value` if it lies between 0 and 1, else raise InvalidValue."""
    return number("validation", value, "a share between 0 and 1, both excluded", above=0, below=1)


def split_train(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split rows 0..n-1 by `seed` into (train, validation), sorted; `share` of them, at least one, validates.

    Raises InvalidValue if no row is left for training.
    """
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    cut = max(1, round(share * n))
    require(cut < n, "validation", share, f"smaller: it leaves none of {n} training samples to train on")
    return rows[cut:].sort().values, rows[:cut].sort().values
