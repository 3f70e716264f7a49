"""Compare the surrogate gradient with finite differences of the loss, for weights of one layer.

    FDG_i = (L(w + eps e_i) - L(w - eps e_i)) / (2 eps)    central; Li et al., NeurIPS 2021    (1)

Moving one weight moves one channel of its layer's output. So the network runs once; each weight then costs only its
channel and the neurons that receive it, and only samples whose spikes have changed go through the rest.
"""

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from snnexp.errors import InvalidValue, UserError
from snnexp.neuron.base import SpikingSite
from snnexp.timefold import Timed, TimeFold, fold, unfold

ELEMENTS = 2**22  # in the largest intermediate tensors, which then almost fit in a cache


class Fidelity(NamedTuple):
    """Surrogate gradient g against finite differences f over the same weights: their cosine and its standard error
    (because the weights are a sample), |g| / |f|, and the share of f that is not zero. Zero if f or g is zero."""

    cosine: float
    error: float
    ratio: float
    nonzero: float


def compare(surrogate: Tensor, finite: Tensor) -> Fidelity:
    """Compare the gradients of the same weights, both [K], K > 1."""
    g, f = surrogate.double(), finite.double()
    gg, ff, nonzero = g.square().mean(), f.square().mean(), float((f != 0).double().mean())
    if not gg * ff > 0:
        return Fidelity(0.0, 0.0, 0.0, nonzero)
    cosine = (g * f).mean() / (gg * ff).sqrt()
    influence = g * f / (gg * ff).sqrt() - cosine / 2 * (g.square() / gg + f.square() / ff)  # of weights on the cosine
    return Fidelity(float(cosine), float(influence.std() / len(f) ** 0.5), float((gg / ff).sqrt()), nonzero)


def layers(net: TimeFold) -> list[str]:
    """Return the names of the layers whose weights can be moved, in order of definition."""
    return [name for name, m in net.network.named_modules() if isinstance(m, nn.Linear) or _plain_conv(m)]


def sample(net: TimeFold, layer: str, count: int | None, generator: torch.Generator) -> Tensor:
    """Draw `count` positions in the layer's flattened weight (None, or more than it has: all), int64 [K]."""
    total = net.network.get_parameter(f"{layer}.weight").numel()
    if count is None or total < 16 * count:
        return torch.randperm(total, generator=generator)[:count]
    some: Tensor = torch.unique(torch.randint(total, (2 * count,), generator=generator))  # faster for a large layer
    return some[torch.randperm(len(some), generator=generator)[:count]]


class Probe:
    """A copy of `net` in evaluation mode (so that samples do not mix), its batch x [N, ...], y [N], and the elements
    `weights` of the weight of `layer`.

    `loss(outputs [T, N, classes], y)` is a mean over samples. Surrogates of `self.net` may be changed between calls.
    Raises UserError for a network that torch.fx cannot trace, InvalidValue (`layer`) for a layer that is not a linear
    layer or 2-d convolution, or is used more than once.
    """

    def __init__(self, net: TimeFold, loss: nn.Module, layer: str, x: Tensor, y: Tensor, weights: Tensor) -> None:
        self.net, self.loss, self.y = copy.deepcopy(net).eval(), loss, y
        self.graph = _traced(self.net.network)
        nodes = [n for n in self.graph.graph.nodes if n.op == "call_module" and n.target == layer]
        if len(nodes) != 1 or layer not in layers(net):
            raise InvalidValue("layer", layer, f"a layer that is used once: one of {', '.join(layers(net))}")
        self.node: fx.Node = nodes[0]
        self.layer: Any = self.graph.get_submodule(layer)
        self.site, self.end = _site(self.graph, self.node)
        self.later = {node: _later(node) for node in (self.node, self.end)}
        with torch.no_grad():
            run = fx.Interpreter(self.graph, garbage_collect_values=False)
            outputs = unfold(run.run(self.net.folded(x)), self.net.T)
            self.env = dict(run.env)
            self.losses = self._losses(outputs, y)
        if isinstance(self.layer, nn.Linear) and self.env[self.node].dim() != 2:
            raise InvalidValue("layer", layer, "a linear layer with inputs [T*N, features]")
        shape = net.network.get_parameter(f"{layer}.weight").shape
        indices = torch.stack(torch.unravel_index(weights.to(y.device), shape))  # [dims, K]
        # limits memory
        self.parts = torch.split(indices, max(1, ELEMENTS // self.env[self.node][:, 0].numel()), dim=1)
        self._last: tuple[Tensor, Tensor] | None = None  # a part and its response

    @torch.no_grad()
    def finite(self, eps: float) -> Tensor:
        """Return the finite differences, Eq. (1), [K]."""
        moved = [self._moved(part, eps) - self._moved(part, -eps) for part in self.parts]
        return torch.cat(moved) / (2 * eps)

    def surrogate(self) -> Tensor:
        """Return dL/dw by backpropagation with the surrogates of `self.net`, [K]."""
        with torch.enable_grad():
            current = self.env[self.node].detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.loss(self._after(self.node, current), self.y), current)
        products = (slope[:, part[0]] * self._response(part) for part in self.parts)
        return torch.cat([product.transpose(0, 1).flatten(1).sum(1) for product in products])

    def _response(self, part: Tensor) -> Tensor:
        """Return d(output channel)/d(weight) for each weight of `part` [dims, k]: [T*N, k, ...]."""
        if self._last is None or self._last[0] is not part:
            self._last = part, self._new_response(part)
        return self._last[1]

    def _new_response(self, part: Tensor) -> Tensor:
        x: Tensor = self.env[self.node.all_input_nodes[0]]
        if isinstance(self.layer, nn.Linear):
            return x[:, part[1]]
        conv, out, within, place = self.layer, part[0], part[1], part[2:]
        kernels = torch.zeros(part.shape[1], 1, *conv.kernel_size, dtype=x.dtype, device=x.device)
        kernels[torch.arange(part.shape[1]), 0, place[0], place[1]] = 1
        channel = out // (conv.out_channels // conv.groups) * (conv.in_channels // conv.groups) + within
        return F.conv2d(x[:, channel], kernels, None, conv.stride, conv.padding, conv.dilation, groups=part.shape[1])

    def _moved(self, part: Tensor, step: float) -> Tensor:
        """Return the change of the loss when each weight of `part` alone moves by `step`, [k]."""
        T, channel, before = self.net.T, part[0], unfold(self.env[self.end], self.net.T)
        after = unfold(self.site(self.env[self.node][:, channel] + step * self._response(part)), T)  # [T, N, k, ...]
        changed = (after != before[:, :, channel]).any(0).reshape(len(self.y), part.shape[1], -1).any(2)
        total = torch.zeros(part.shape[1], dtype=self.losses.dtype, device=channel.device)
        n, k = changed.nonzero(as_tuple=True)
        for i in torch.split(torch.arange(len(n)), max(1, ELEMENTS // before[:, 0].numel())):
            value = before[:, n[i]]
            value[:, torch.arange(len(i)), channel[k[i]]] = after[:, n[i], k[i]]
            outputs = self._after(self.end, fold(value), n[i])
            total.index_add_(0, k[i], self._losses(outputs, self.y[n[i]]) - self.losses[n[i]])
        return total / len(self.y)

    def _after(self, node: fx.Node, value: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the network's output [T, P, classes] if `node` gave `value` [T*P, ...], for the samples `rows` [P]."""
        later = self.later[node]
        env: dict[fx.Node, Any] = dict.fromkeys(n for n in self.graph.graph.nodes if n not in later)
        for kept in {n for user in later for n in user.all_input_nodes} - later - {node}:
            was = self.env[kept]
            by_sample = rows is not None and kept.op != "get_attr" and isinstance(was, Tensor)
            env[kept] = fold(unfold(was, self.net.T)[:, rows]) if by_sample else was
        run = fx.Interpreter(self.graph)
        return unfold(run.run(initial_env=env | {node: value}, enable_io_processing=False), self.net.T)

    def _losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each sample, [N]."""
        return torch.vmap(lambda o, t: self.loss(o.unsqueeze(1), t.unsqueeze(0)), in_dims=(1, 0))(outputs, y)  # type: ignore[no-any-return]


def _site(graph: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, fx.Node]:
    """Return the neurons that alone receive the output of `node`, and their node; else an identity, and `node`."""
    user, *others = node.users
    site = graph.get_submodule(str(user.target)) if user.op == "call_module" else None
    return (site, user) if isinstance(site, SpikingSite) and not others else (nn.Identity(), node)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Timed) or super().is_leaf_module(m, module_qualified_name)


def _traced(network: nn.Module) -> fx.GraphModule:
    try:
        return fx.GraphModule(network, _Tracer().trace(network))
    except Exception as error:  # users' networks may fail in any way
        need = "finite differences need a network that torch.fx can trace"
        raise UserError(f"{need}; this one fails: {error}") from error


def _later(node: fx.Node) -> set[fx.Node]:
    """Return all nodes that depend on `node`."""
    found: set[fx.Node] = set()
    new = set(node.users)
    while new:
        found |= new
        new = {user for n in new for user in n.users} - found
    return found


def _plain_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
