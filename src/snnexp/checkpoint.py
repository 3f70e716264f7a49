"""Weights from files, ours and other people's `state_dict`s: tensors and plain values only, never pickled code."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from snnexp.errors import UserError

NESTED = ("state_dict", "model")  # keys under which training scripts keep the weights
PREFIXES = ("module.", "_orig_mod.")  # put before each key by DataParallel and torch.compile
OURS = "network."  # put there by TimeFold
STATE = ("._extra_state", ".surrogate.counts")  # the state of surrogates, which is not a weight
OPTIONAL = ("num_batches_tracked", *STATE)  # needed by no computation; files of old versions lack them


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the weights in `path` by key, without prefixes; they may be nested under `state_dict` or `model`.

    Raises UserError if the file is missing, cannot be read, or holds more than tensors and plain values.
    """
    try:
        found = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint={path}: there is no such file") from None
    except Exception as error:  # torch raises many types
        wanted = "it must be a state_dict of tensors, as torch.save(network.state_dict(), file) writes it"
        raise UserError(f"checkpoint={path} cannot be read as weights: {wanted}") from error
    while isinstance(found, Mapping) and (inner := [found[k] for k in NESTED if isinstance(found.get(k), Mapping)]):
        found = inner[0]
    weights = {k: v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not weights:
        raise UserError(f"checkpoint={path} holds no weights, neither at its top level nor under {' or '.join(NESTED)}")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def load_into(net: nn.Module, path: str | Path) -> None:
    """Load `path` into `net`, a `TimeFold`: our own files whole, other people's weights into its network.

    Raises UserError, naming the first missing, unexpected and misshapen keys, unless all fit.
    """
    weights = read_weights(path)
    if not any(key.startswith(OURS) for key in weights):
        weights = {OURS + key: value for key, value in weights.items()}
    load_weights(net, weights, path)


def load_weights(net: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Load `weights` from `path` into `net`; raise UserError unless all keys and shapes fit.

    Normalisation (`front.*`) is taken from the file if it has any, else it stays the dataset's. Surrogates start from
    their settings, whatever state the file has for them.
    """
    own = net.state_dict()
    weights = {k: v for k, v in weights.items() if not k.endswith(STATE)}
    missing = [k for k in own if k not in weights and not k.endswith(OPTIONAL) and not k.startswith("front.")]
    unexpected = [k for k in weights if k not in own]
    differ = [k for k, v in weights.items() if k in own and v.shape != own[k].shape]
    misshapen = [f"{k} {_shape(weights[k])} in the file, {_shape(own[k])} in the network" for k in differ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if wrong := [_first(what, keys) for what, keys in faults.items() if keys]:
        raise UserError(f"checkpoint={path} does not fit the network: {'; '.join(wrong)}")
    net.load_state_dict(dict(weights), strict=False)


def _first(what: str, keys: list[str], shown: int = 3) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return f"{what}: {', '.join(k.removeprefix(OURS) for k in keys[:shown])}{more}"


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"
