"""torchvision's own networks for image classification, with new weights, torchvision's, or those of a file."""

import fnmatch

import torchvision
from torch import nn

from snnexp.checkpoint import load_weights, read_weights
from snnexp.errors import UserError, choice, require
from snnexp.model import Neuron, Shape

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU)
AUXILIARY = ("googlenet", "inception_v3")  # return a tuple in training


def network(shape: Shape, classes: int, neuron: Neuron, *, name: str, weights: str | None) -> nn.Module:
    """Return torchvision's `name` (resnet50, efficientnet_b0, mobilenet_v2, ...); [T*N, 3, H, W] -> [T*N, classes].

    With `neuron=relu` it stays as torchvision builds it; any other neuron replaces each of its activations. `weights`:
    None, `default` (downloaded by torchvision), or a file with a state_dict. If they are for another number of classes,
    a new layer replaces the last linear one. Raises InvalidValue for an unknown name or for images without three
    channels, UserError for weights that are not available or do not fit.
    """
    known = [n for n in torchvision.models.list_models(module=torchvision.models) if n not in AUXILIARY]
    near = tuple(fnmatch.filter(known, f"{str(name)[:6]}*")) or tuple(known)
    choice("name", name, tuple(known) if name in known else near)
    require(shape[0] == 3, "name", name, "used with images of three channels (dataset.channels=3)")
    require(weights is None or isinstance(weights, str), "weights", weights, "null, default, or a file of weights")
    if weights is None:
        net = torchvision.models.get_model(name, num_classes=classes)
    else:
        net = _trained(name, weights)
        _new_head(net, classes)
    if not isinstance(neuron(), nn.ReLU):
        _place(net, neuron)
    return net  # type: ignore[no-any-return]


def _trained(name: str, weights: str) -> nn.Module:
    if weights == "default":
        try:
            return torchvision.models.get_model(name, weights="DEFAULT")  # type: ignore[no-any-return]
        except OSError as error:  # includes URLError
            raise UserError(
                f"model.weights=default: torchvision cannot fetch the weights of {name} ({error}); "
                "give a file with model.weights=FILE, or null"
            ) from error
    net = torchvision.models.get_model(name)
    state = read_weights(weights, "model.weights", list(net.state_dict()))
    heads = [value.shape[0] for value in state.values() if value.dim() == 2]
    if heads and heads[-1] != 1000:
        net = torchvision.models.get_model(name, num_classes=heads[-1])
    load_weights(net, state, weights, "model.weights")
    return net  # type: ignore[no-any-return]


def _new_head(net: nn.Module, classes: int) -> None:
    linear = [(path, m) for path, m in net.named_modules() if isinstance(m, nn.Linear)]
    require(bool(linear), "weights", "a value", "null for this network, which has no linear layer to replace")
    path, last = linear[-1]
    if last.out_features != classes:
        net.set_submodule(path, nn.Linear(last.in_features, classes))


def _place(net: nn.Module, neuron: Neuron) -> None:
    for path, module in list(net.named_modules()):
        if isinstance(module, ACTIVATIONS):
            net.set_submodule(path, neuron())
