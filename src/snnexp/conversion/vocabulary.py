"""The vocabulary: the operations that may stand between the sites of a network, and how each code treats them.

A mean over time passes through linear and affine operations unchanged; everything else needs a rule. `Vocabulary` has
the rules for spike trains, `Numbers` those for codes whose layers pass on numbers.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from snnexp.activations import of_module
from snnexp.conversion.stateful import MaxGate
from snnexp.errors import UserError
from snnexp.neuron.clip import Bounded
from snnexp.timefold import Dropout, Normalize


def _each(*kinds: str) -> tuple[type[nn.Module], ...]:
    """Return the modules of these kinds for one, two and three dimensions."""
    return tuple(getattr(nn, f"{kind}{d}d") for kind in kinds for d in (1, 2, 3))


def names(text: str) -> frozenset[str]:
    """Return the words of `text`."""
    return frozenset(text.split())


CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, Dropout)
MAX_POOLS = _each("MaxPool", "AdaptiveMaxPool")
MAX_POOL_FUNCTIONS = {kind.__name__.replace("MaxPool", "_max_pool").lower().lstrip("_"): kind for kind in MAX_POOLS}
# Modules that commute with the time mean: linear, or affine with a constant that is added once per step.
AFFINE = (
    *(nn.Linear, *CONVS, *NORMS, Normalize, nn.Flatten, nn.Unflatten, nn.Identity),
    *_each("AvgPool", "AdaptiveAvgPool", "ZeroPad", "ConstantPad", "CircularPad", "ReflectionPad", "ReplicationPad"),
    *(nn.Fold, nn.Unfold, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
)
# Names of functions and methods that do the same.
LINEAR = names(
    "add sub rsub neg pos cat concat concatenate stack chunk split unbind flatten reshape view permute transpose "
    "swapaxes movedim squeeze unsqueeze unflatten contiguous clone detach to float double expand expand_as "
    "repeat flip roll reshape_as view_as fold unfold "
    "narrow select getitem getattr size dim mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d pixel_shuffle pixel_unshuffle channel_shuffle pad interpolate upsample"
)
LINEAR_IN_ONE = names(  # linear in one of their arguments
    "mul multiply truediv div matmul bmm conv1d conv2d conv3d linear conv_transpose1d conv_transpose2d conv_transpose3d"
)
COMMUTING = names("mul multiply matmul")  # those that are linear in either argument
PRODUCTS = names("mul multiply matmul bmm")  # of two signals: possible for numbers, not for trains
CONSTANT = names("ones_like zeros_like full_like")  # their result depends on the shape of their input alone
READOUTS = names("sigmoid Sigmoid tanh Tanh softmax Softmax log_softmax LogSoftmax")  # at the end: of the time mean
MAXPOOL = ("average", "gate")


NORM = "train the network with BatchNorm in its place"
ATTENTION = "a network without attention, such as EfficientNet"
POOL = "MaxPool2d in its place (then conversion.maxpool, or conversion=few_spike), or AvgPool2d"
WAYS = {  # out of a refusal, by kind of operation
    **dict.fromkeys(("LayerNorm", "layer_norm", "GroupNorm", "group_norm", "RMSNorm", "rms_norm"), NORM),
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "instance_norm", "LocalResponseNorm"), NORM),
    **dict.fromkeys(("Softmax", "softmax", "MultiheadAttention", "scaled_dot_product_attention"), ATTENTION),
    **dict.fromkeys(("FractionalMaxPool2d", "FractionalMaxPool3d", "LPPool1d", "LPPool2d"), POOL),
    **dict.fromkeys(
        ("PReLU", "prelu"), "compute it as relu(x) - w * relu(-x), with w of shape [C, 1, 1], which is the same"
    ),
    **dict.fromkeys(
        ("GLU", "glu"), "compute it as a * sigmoid(b), with a, b = x.chunk(2, 1), for conversion=few_spike"
    ),
}


class Refusal(UserError):
    """An operation that no neurons of a code can be placed around; `kind` is its name."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Curve(nn.Sequential):
    """An elementwise activation other than a rectifier: a site for codes that pass on numbers."""


class Vocabulary:
    """The operations between neurons that pass on spike trains, whose means over time stand for the ANN's numbers."""

    products: frozenset[str] = frozenset()  # functions of two signals that are allowed
    replaces: str = "ReLU, clipped or QCFS activation"

    def site(self, module: nn.Module) -> nn.Module | None:
        """Return the activation that a neuron can replace where `module` stands; None for another module."""
        return rectifier(module)

    def max_pool(self, pool: nn.Module, layer: str, maxpool: str | None) -> nn.Module:
        """Return the replacement of max pooling. Raises UserError, naming the layer, if there is none."""
        if maxpool is None:
            raise UserError(
                f"layer {layer} is max pooling, which does not commute with the mean over time; choose "
                "conversion.maxpool=gate (spikes pass that raise the window's largest count) or "
                "conversion.maxpool=average (another network: check its accuracy)"
            )
        return MaxGate(pool) if maxpool == "gate" else _average(pool, layer)

    def refusal(self, layer: str, kind: str) -> Refusal:
        """Return the error for an operation of this kind, which is not part of the vocabulary."""
        return Refusal(
            f"layer {layer} ({kind}) cannot be converted: it is neither linear nor a ReLU, clipped or QCFS "
            "activation, so it does not commute with the mean over time",
            kind,
        )


class Numbers(Vocabulary):
    """The operations between neurons that pass on numbers: any activation, max pooling and products as well."""

    products = PRODUCTS
    replaces = "elementwise activation that few-spike neurons replace"

    def site(self, module: nn.Module) -> nn.Module | None:
        return rectifier(module) or (Curve(module) if of_module(module) else None)

    def max_pool(self, pool: nn.Module, layer: str, maxpool: str | None) -> nn.Module:
        return pool

    def refusal(self, layer: str, kind: str) -> Refusal:
        return Refusal(
            f"layer {layer} ({kind}) cannot be converted: few-spike neurons replace elementwise activations, and "
            "between them only linear layers, pooling and products are possible",
            kind,
        )


TRAINS, NUMBERS = Vocabulary(), Numbers()


def rectifier(module: nn.Module) -> nn.Module | None:
    """Return the ReLU, clipped or QCFS activation that `module` is; None for another module."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return nn.Hardtanh(0.0, float(module.max_val)) if module.min_val == 0 else None
    return module if isinstance(module, (nn.ReLU, Bounded)) else None


def is_linear(node: fx.Node, timed: list[fx.Node]) -> bool:
    """Return whether a function or method is linear in its inputs that vary in time, `timed`."""
    if node.op == "call_module" or node.kwargs.get("rounding_mode"):
        return False
    name = function_name(node)
    in_one = name in LINEAR_IN_ONE and len(timed) == 1 and (name in COMMUTING or node.args[0] in timed)
    return name in LINEAR or in_one


def is_addition(node: fx.Node) -> bool:
    """Return whether `node` is x + y of two nodes."""
    called = node.op in ("call_function", "call_method") and function_name(node) == "add"
    return called and not node.kwargs and len(node.args) == 2 and all(isinstance(n, fx.Node) for n in node.args)


def is_shape(node: fx.Node) -> bool:
    """Return whether `node` asks a tensor for its shape."""
    return (node.target is getattr and node.args[1] == "shape") or (node.target == "size" and len(node.args) == 1)


def where(node: fx.Node) -> str:
    """Return the name of a layer for messages: a module's name, or which function is called in which module."""
    if node.op == "call_module":
        return str(node.target)
    owner = owner_name(node)
    return f"{function_name(node)} in {owner}" if owner else f"{function_name(node)} in the network's forward"


def owner_name(node: fx.Node) -> str:
    """Return the name of the module in whose forward `node` is called; empty for the network's own."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def function_name(node: fx.Node) -> str:
    """Return the name of the function or method that `node` calls, without the underscore of an in-place one."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
    return name if name.startswith("_") else name.rstrip("_")


def _average(pool: nn.Module, layer: str) -> nn.Module:
    """Return average pooling over the windows of a max pooling."""
    average: Any = getattr(nn, type(pool).__name__.replace("Max", "Avg"))
    if hasattr(pool, "output_size"):
        return average(pool.output_size)  # type: ignore[no-any-return]
    if pool.dilation not in (1, (1,), (1, 1), (1, 1, 1)):
        why = "max pooling with dilation, for which there is no average pooling"
        raise UserError(f"layer {layer} is {why}: choose conversion.maxpool=gate")
    settings = {"ceil_mode": pool.ceil_mode, "count_include_pad": False}
    return average(pool.kernel_size, pool.stride, pool.padding, **settings)  # type: ignore[no-any-return]
