"""Weights from files, ours and other people's `state_dict`s: tensors and plain values only, never pickled code."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from snnexp.errors import UserError
from snnexp.finite import nonfinite

NESTED = ("state_dict", "model")  # keys under which training scripts keep the weights
PREFIXES = ("module.", "_orig_mod.")  # put before each key by DataParallel and torch.compile
OURS = "network."  # put there by TimeFold
STATE = ("._extra_state", ".surrogate.counts")  # the state of surrogates, which is not a weight
OPTIONAL = ("num_batches_tracked", *STATE)  # needed by no computation; files of old versions lack them


def read_weights(path: str | Path, key: str = "checkpoint") -> dict[str, Tensor]:
    """Return the weights in `path` by name, without prefixes; they may be nested under `state_dict` or `model`.

    Raises UserError, naming `key` and file, if the file is missing, cannot be read, or holds more than tensors and
    plain values, and for a tensor whose name is not text or that is not a plain array of numbers.
    """
    if not Path(path).expanduser().is_file():
        raise UserError(f"{key}={path}: there is no such file")
    try:
        found = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types
        raise UserError(
            f"{key}={path} cannot be read as weights: it must be a state_dict of tensors, as "
            "torch.save(network.state_dict(), file) writes it"
        ) from error
    outer = []
    while isinstance(found, Mapping) and (inner := [k for k in NESTED if isinstance(found.get(k), Mapping)]):
        outer.append(found)
        found = found[inner[0]]
        if any(found is mapping for mapping in outer):
            raise UserError(f"{key}={path}: the mapping under {inner[0]} contains itself, and so holds no weights")
    weights = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not weights:
        raise UserError(f"{key}={path} holds no weights, neither at its top level nor under {' or '.join(NESTED)}")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise UserError(f"{key}={path}: the key {name!r} of a tensor is not text, as those of a state_dict are")
        if kind := _kind(value):
            wanted = "save it as a dense one of floating-point numbers"
            raise UserError(f"{key}={path}: {name} is a {kind} tensor: {wanted}")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def load_into(net: nn.Module, path: str | Path) -> None:
    """Load `path` into `net`, a `TimeFold`: our own files whole, other people's weights into its network.

    Raises UserError, naming the first missing, unexpected and misshapen keys, unless all fit.
    """
    weights = read_weights(path)
    if not any(key.startswith(OURS) for key in weights):
        weights = {OURS + key: value for key, value in weights.items()}
    load_weights(net, weights, path)


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], path: str | Path, key: str = "checkpoint") -> None:
    """Load `weights` from `path` into `net`. Raises UserError unless keys, shapes and types fit and all are finite.

    Normalisation (`front.*`) is taken from the file if it has any, else it stays the dataset's. Surrogates start from
    their settings, whatever state the file has for them.
    """
    own = net.state_dict()
    weights = {k: v for k, v in weights.items() if not k.endswith(STATE)}
    missing = [k for k in own if k not in weights and not k.endswith(OPTIONAL) and not k.startswith("front.")]
    unexpected = [k for k in weights if k not in own]
    misshapen = [
        f"{k} {_shape(v)} in the file, {_shape(own[k])} in the network"
        for k, v in weights.items()
        if k in own and v.shape != own[k].shape
    ]
    shared = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    untyped = [f"{k} {v.dtype} in the file" for k, v in shared.items() if not _castable(v, own[k])]
    cast = {k: v.to(own[k].dtype) for k, v in shared.items() if _castable(v, own[k])}
    masks = nonfinite({k: own[k] for k in cast})  # e.g. of -inf
    wrongs = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": misshapen,
        "of another type": untyped,
        "NaN or infinite": [k for k in nonfinite(cast) if k not in masks],
    }
    if wrong := [_first(what, keys) for what, keys in wrongs.items() if keys]:
        raise UserError(f"{key}={path} does not fit the network: {'; '.join(wrong)}")
    net.load_state_dict(dict(weights), strict=False)


def _kind(value: Tensor) -> str:
    """Return what kind of tensor `value` is, if it is not a plain array of numbers."""
    kinds = {"meta": value.is_meta, "quantised": value.is_quantized, "nested": value.is_nested}
    found = [kind for kind, applies in kinds.items() if applies]
    return found[0] if found else "" if value.layout is torch.strided else str(value.layout).removeprefix("torch.")


def _castable(value: Tensor, own: Tensor) -> bool:
    """Return whether `value` can stand for `own`: no part of complex numbers, no steps of quantised ones."""
    return not (value.is_complex() > own.is_complex() or own.is_floating_point() > value.is_floating_point())


def _first(what: str, keys: list[str], shown: int = 3) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return f"{what}: {', '.join(k.removeprefix(OURS) for k in keys[:shown])}{more}"


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"
