"""Weights from files, ours and other people's `state_dict`s: found in the file, matched to a network, and checked."""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from snnexp.errors import UserError
from snnexp.finite import nonfinite
from snnexp.weightfile import tables

WRAPPERS = ("module", "_orig_mod")  # put into names by DataParallel, AveragedModel and torch.compile, at any depth
OURS = "network."  # put before names by TimeFold
STATE = ("._extra_state", ".surrogate.counts")  # the state of surrogates, which is not a weight
OPTIONAL = ("num_batches_tracked", *STATE)  # needed by no computation; files of old versions lack them
LEFT_OVER = ("n_averaged", "total_ops", "total_params")  # counts that AveragedModel and profilers add
EMA = "ema"  # in the key of weights that are averaged over steps; those that are not are preferred


def read_weights(
    path: str | Path, key: str = "checkpoint", own: Collection[str] = (), to: str = ""
) -> dict[str, Tensor]:
    """Return the weights in the file `path` by the names `own` of a network, as far as they have them, after `to`.

    They may be nested in mappings and lists at any depth, with any prefix before their names and DataParallel's
    `module` or torch.compile's `_orig_mod` in them. Of several sets the one with the most names in `own` is taken.
    Raises UserError, naming `key` and file, if the file is missing, cannot be read, or holds more than tensors and
    plain values, and for a tensor whose name is not text or that is not a plain array of numbers.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        what = "it is a folder: name the file in it" if place.is_dir() else "there is no such file"
        raise UserError(f"{key}={path}: {what}")
    try:
        found = tables(place)
    except ValueError as error:
        raise UserError(f"{key}={path} cannot be read as weights: {error}") from error
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error.strerror}") from error
    named = {at: {str(k): v for k, v in table.items() if isinstance(v, Tensor)} for at, table in found.items()}
    names = {at: _matched(list(weights), set(own), to) for at, weights in named.items()}
    wanted = {to + name for name in own}
    scores = {at: (len(wanted & set(names[at].values())), EMA not in at.lower(), len(named[at])) for at in named}
    best = max(scores, key=lambda at: scores[at][: 2 if scores[at][0] else 3])
    for name, value in found[best].items():
        if isinstance(value, Tensor):
            _check(name, value, f"{key}={path}")
    return {names[best][name]: value for name, value in named[best].items()}


def load_into(net: nn.Module, path: str | Path) -> None:
    """Load `path` into `net`, a `TimeFold`: our own files whole, other people's weights into its network.

    Raises UserError, naming the first missing, unexpected and misshapen keys, unless all fit.
    """
    inside = [name.removeprefix(OURS) for name in net.state_dict() if name.startswith(OURS)]
    load_weights(net, read_weights(path, own=inside, to=OURS), path)


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], path: str | Path, key: str = "checkpoint") -> None:
    """Load `weights` from `path` into `net`. Raises UserError unless keys, shapes and types fit and all are finite.

    Normalisation (`front.*`) is taken from the file if it has any, else it stays the dataset's. Surrogates start from
    their settings, whatever state the file has for them.
    """
    own = net.state_dict()
    weights = {k: v for k, v in weights.items() if not k.endswith(STATE)}
    weights = {k: v for k, v in weights.items() if k in own or k.rpartition(".")[2] not in LEFT_OVER}
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
        wrong += [_first("the file has", list(weights))] * bool(missing)
        raise UserError(f"{key}={path} does not fit the network: {'; '.join(wrong)}")
    net.load_state_dict(dict(weights), strict=False)


def _matched(names: list[str], own: set[str], to: str) -> dict[str, str]:
    """Return {name in a file: name in the network}: `to` replaces a prefix, and if that helps WRAPPERS are left out.

    The prefix is the one without which most names are in `own`. Names without it stay as they are.
    """
    bare = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    forms = [{name: name for name in names}, bare]
    prefixes = [_prefix(form.values(), own) for form in forms]
    k = int(prefixes[1][1] > prefixes[0][1] and len(set(bare.values())) == len(bare))
    prefix = prefixes[k][0]
    return {
        name: to + text.removeprefix(prefix) if text.startswith(prefix) else name for name, text in forms[k].items()
    }


def _prefix(names: Collection[str], own: set[str]) -> tuple[str, int]:
    """Return the shortest prefix without which most names are in `own`, and how many are.

    None is taken away for half of `own` or less: names such as `0.weight` occur in networks that are not alike.
    """
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        ends = (k for k in range(len(parts)) if ".".join(parts[k:]) in own)
        counts.update("".join(f"{part}." for part in parts[:k]) for k in ends)
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")
    return (best, counts[best]) if 2 * counts[best] > len(own) else ("", counts[""])


def _check(name: object, value: Tensor, file: str) -> None:
    """Raise UserError unless a tensor of the file is named by text and is a plain array of numbers."""
    if not isinstance(name, str):
        raise UserError(f"{file}: the key {name!r} of a tensor is not text, as those of a state_dict are")
    kinds = {"meta": value.is_meta, "quantised": value.is_quantized, "nested": value.is_nested}
    found = [kind for kind, applies in kinds.items() if applies]
    if value.layout is not torch.strided:
        found.append(str(value.layout).removeprefix("torch."))
    if found:
        raise UserError(f"{file}: {name} is a {found[0]} tensor: save it as a dense one of floating-point numbers")


def _castable(value: Tensor, own: Tensor) -> bool:
    """Return whether `value` can stand for `own`: floats for floats, or whole numbers that stay what they are."""
    if own.is_floating_point() or own.is_complex():
        return value.is_floating_point() or (value.is_complex() and own.is_complex())
    return not value.is_complex() and torch.equal(value.to(own.dtype).to(value.dtype), value)


def _first(what: str, keys: list[str], shown: int = 3) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return f"{what}: {', '.join(k.removeprefix(OURS) for k in keys[:shown])}{more}"


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"
