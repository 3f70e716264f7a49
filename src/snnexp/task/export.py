"""`task=export`: write a trained spiking network as a NIR file, for other frameworks and neuromorphic hardware.

NIR: Pedersen et al., "Neuromorphic intermediate representation: a unified instruction set for interoperable
brain-inspired computing", Nature Communications 2024; written by SpikingJelly's exchange. NIR's neurons reset to a
value, whereas those of converted networks subtract the threshold.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from snnexp.conversion.flow import Flow
from snnexp.conversion.rewrite import drop_dropout, finish, fold_norms, rewrite
from snnexp.conversion.vocabulary import function_name, where
from snnexp.errors import UserError, number
from snnexp.neuron.base import SpikingSite
from snnexp.neuron.integrate_fire import IF
from snnexp.record import Record
from snnexp.session import Session
from snnexp.task.base import Task
from snnexp.timefold import Dropout
from snnexp.training import Metrics

if TYPE_CHECKING:
    import nir

FILE = "network.nir"
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.AvgPool2d, nn.Flatten)  # what the exchange writes, beside neurons


class Export(Task):
    """Write the network of `checkpoint` to network.nir in the run directory, with steps of `dt` seconds. Returns the
    numbers of its nodes and edges. Raises InvalidValue; `run` raises UserError, naming the layers that NIR cannot
    express.
    """

    groups = ("model", "dataset", "neuron", "surrogate")

    def __init__(self, dt: float) -> None:
        self.dt = number("dt", dt, "a time in seconds > 0", above=0)

    def run(self, session: Session, record: Record) -> Metrics:
        session.check()
        if not session.config["checkpoint"]:
            needs = "checkpoint=FILE or checkpoint=runs:/ID, with the model, neuron and dataset of that run"
            raise UserError(f"task=export writes a trained network: it needs {needs}")
        net, data = session.network().eval(), session.data
        x, _ = next(data.val.batches(1))
        step = x[:, 0].to(torch.get_default_dtype()) if data.temporal else net.front(x)
        if not net.sites():
            raise UserError(_converted(net.network, step))
        network = writable(net.network)
        return record.tracked(lambda: _written(record, network, step, self.dt))


def to_nir(network: nn.Module, x: Tensor, path: Path, dt: float) -> nir.NIRGraph:
    """Write a network of layers and sites to `path`; `x` [1, ...] is the input of one step.

    BatchNorm is folded, dropout is removed. The network is not changed. Raises UserError for what NIR cannot express.
    """
    from spikingjelly.activation_based import nir_exchange

    try:
        return nir_exchange.export_to_nir(writable(network), x, path, dt)
    except NotImplementedError as error:  # options of a layer
        raise UserError(f"the network cannot be written as NIR: {error}") from error


def writable(network: nn.Module) -> fx.GraphModule:
    """Return a copy with SpikingJelly's neurons. Raises UserError, naming the layers that NIR cannot express."""
    import nirtorch
    from spikingjelly.activation_based import base

    network = copy.deepcopy(network).eval()
    for name, site in [(name, m) for name, m in network.named_modules() if isinstance(m, SpikingSite)]:
        if reason := _unlike(site):
            raise UserError(f"layer {name} cannot be written as NIR: {reason}")
        network.set_submodule(name, _node(site))
    known = (*LAYERS, base.MemoryModule)
    graph = fx.GraphModule(network, nirtorch.torch_tracer.NIRTorchTracer((base.MemoryModule, Dropout)).trace(network))
    drop_dropout(graph)
    fold_norms(graph)
    finish(graph)
    flow = Flow(graph)
    refused = []
    for node in flow.nodes[1:-1]:
        module = flow.module(node)
        if not isinstance(module, known) and not (node.op == "call_function" and function_name(node) == "add"):
            refused.append(where(node) + (f" ({type(module).__name__})" if module else ""))
    if refused:
        raise UserError(
            f"these layers cannot be written as NIR: {', '.join(refused)}. What can: "
            f"{', '.join(layer.__name__ for layer in LAYERS)}, BatchNorm after a layer, additions, and "
            "neuron=if, lif or plif with neuron.reset=hard"
        )
    return graph


def _unlike(site: SpikingSite) -> str | None:
    """Return the reason if no NIR neuron behaves like `site`."""
    if site.reset == "soft":
        hard = "NIR's neurons reset to a value (train with neuron.reset=hard)"
        return f"it resets by subtracting the threshold, and {hard}"
    if site.v_init != site.reset_value:
        return f"it starts at v_init={site.v_init}, and a NIR neuron where it resets to, {site.reset_value}"
    if site.reset_value and not isinstance(site, IF):
        one = "SpikingJelly's exchange has one value for both"
        return f"it decays toward 0 and resets to {site.reset_value}, and {one}"
    return None


def _node(site: SpikingSite) -> nn.Module:
    """Return SpikingJelly's module of the same neuron."""
    from spikingjelly.activation_based import neuron

    settings: dict[str, Any] = {"v_threshold": site.threshold, "v_reset": site.v_reset}
    if isinstance(site, IF):
        return neuron.IFNode(**settings)  # type: ignore[no-any-return]
    tau = 1 / (1 - float(torch.as_tensor(site.decay).detach()))
    return neuron.LIFNode(tau=tau, decay_input=False, **settings)  # type: ignore[no-any-return]


def _converted(network: nn.Module, x: Tensor) -> str:
    """Return the error message for a network without spikes; a converted network could not be written either."""
    source, _ = rewrite(network, x, "gate")
    names = ", ".join(str(n.target) for n in Flow(source).sites)
    return (
        "task=export writes spiking networks, and this one has none: train it with neuron=if, lif or plif and "
        f"neuron.reset=hard. Converted, it could not be written either: its neurons ({names}) would reset by "
        "subtracting the threshold, and NIR's neurons reset to a value"
    )


def _written(record: Record, network: fx.GraphModule, x: Tensor, dt: float) -> Metrics:
    graph = to_nir(network, x, record.folder / FILE, dt)
    record.artifact(FILE)
    return {"nir/nodes": float(len(graph.nodes)), "nir/edges": float(len(graph.edges))}
