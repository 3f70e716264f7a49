"""Contracts of the parts of a conversion: conversion, correction, mitigation."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, fx, nn

from snnexp.build import unlike
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import Converted, convert, converted
from snnexp.conversion.qcfs import QCFSConversion
from snnexp.conversion.rewrite import rewrite
from snnexp.conversion.vocabulary import MAXPOOL
from snnexp.conversion.walk import Correction, Layer, Method, Proposal, walk
from snnexp.errors import InvalidValue
from snnexp.mitigation.base import Mitigation
from snnexp.neuron.qcfs import QCFS


def small_ann(activation: Callable[[], nn.Module] = nn.ReLU) -> _Residual:
    """Return an ANN [N, 2, 8, 8] -> [N, 5] with a residual addition, BatchNorm and three activations."""
    torch.manual_seed(0)
    made = _Residual(activation)
    made.eval()
    return made


class _Residual(nn.Module):
    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.norm, self.act1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), activation()
        self.second, self.act2, self.pool = nn.Conv2d(6, 6, 3, padding=1), activation(), nn.AvgPool2d(4)
        self.hidden, self.act3, self.last = nn.Linear(24, 12), activation(), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm(self.first(x)))
        x = self.act2(self.second(x) + x)
        out: Tensor = self.last(self.act3(self.hidden(self.pool(x).flatten(1))))
        return out


def images(n: int = 16) -> Tensor:
    """Return inputs [n, 2, 8, 8] in [0, 1]."""
    return torch.rand(n, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def examinable(ann: nn.Module, x: Tensor, method: Method, T: int) -> tuple[fx.GraphModule, Converted]:
    """Return (the traced ANN, its conversion on images x), for `Converted.examine`."""
    source, network = rewrite(ann, x[:2], method.maxpool, method.neuron.vocabulary)
    walk(source, network, x, T, method)
    return source, converted(network, T)


def relative_error(snn: Converted, ann: nn.Module, x: Tensor, T: int) -> float:
    """Return the norm of the difference between both outputs, divided by the norm of the ANN's output."""
    with torch.no_grad():
        expected = ann(x)
        return float((snn(x, T) - expected).norm() / expected.norm())


class ConversionContract:
    """`make` returns a conversion; `activation` returns an activation of the ANN that is converted (default: ReLU).

    `T`: steps. `tolerance`: the largest relative error of the output after T steps.
    """

    T: int = 64
    tolerance: float = 0.1

    def make(self) -> Method:
        raise NotImplementedError

    def activation(self) -> nn.Module:
        return nn.ReLU()

    def ann(self) -> nn.Module:
        """Return the ANN, the same at each call."""
        return small_ann(self.activation)

    def test_it_has_all_that_a_conversion_needs(self) -> None:
        assert not unlike(self.make(), Method)
        assert self.make().maxpool in (None, *MAXPOOL)

    def test_the_output_approximates_the_ann_which_stays_as_it_is(self) -> None:
        ann = self.ann()
        before = copy.deepcopy(ann.state_dict())
        snn, records = convert(ann, images(), self.make(), self.T)
        assert relative_error(snn, ann, images(), self.T) <= self.tolerance
        assert [record.name for record in records] == ["act1", "act2", "act3"]
        assert all(torch.equal(value, before[key]) for key, value in ann.state_dict().items()), "the ANN was changed"

    def test_it_places_the_neuron_that_it_names(self) -> None:
        method = self.make()
        snn, _ = convert(self.ann(), images(), method, self.T)
        assert all(isinstance(snn.flow.module(site), method.neuron) for site in snn.flow.sites)
        assert type(snn) is method.neuron.network

    def test_per_T_is_true_if_the_neurons_depend_on_T(self) -> None:
        if not self.make().per_T:
            one, other = (convert(self.ann(), images(), self.make(), T)[0].state_dict() for T in (self.T, 2 * self.T))
            assert all(torch.equal(value, other[key]) for key, value in one.items())

    def test_the_network_can_be_examined_saved_and_loaded(self) -> None:
        source, snn = examinable(self.ann(), images(), self.make(), self.T)
        layers, account = snn.examine(source, images(), self.T)
        assert [layer.layer for layer in layers] == ["act1", "act2", "act3"]
        assert account.energy_nj > 0
        expected = snn(images(), self.T)
        assert torch.equal(pickle.loads(pickle.dumps(snn))(images(), self.T), expected)
        again, _ = convert(self.ann(), images(4) * 0.7, self.make(), self.T)
        again.load_state_dict(snn.state_dict())
        assert torch.equal(again(images(), self.T), expected)


class CorrectionContract:
    """`make` returns a correction; `method` returns the conversion whose network is corrected, for `T` steps."""

    T: int = 8

    def make(self) -> Correction:
        raise NotImplementedError

    def method(self) -> Method:
        return MaxThreshold()

    def test_it_has_all_that_a_correction_needs(self) -> None:
        assert not unlike(self.make(), Correction)
        assert isinstance(self.make().name, str)

    def test_it_lowers_its_objective_and_raises_it_nowhere(self) -> None:
        snn, records = convert(small_ann(), images(), self.method(), self.T, [self.make()])
        kept = [one for record in records for one in record.corrections]
        assert all(one.after <= one.before and 0 <= one.share <= 1 for one in kept)
        assert any(one.after < one.before for one in kept), "it helped at no site"
        assert snn(images(), self.T).isfinite().all()

    def test_it_only_proposes(self) -> None:
        """Check that `propose` changes nothing in place: such a change could not be undone where it does not help."""
        correction = self.make()

        def propose(layer: Layer) -> Proposal | None:
            parts = [part for part in (layer.neuron, layer.synapse) if part is not None]
            before = [copy.deepcopy(part.state_dict()) for part in parts]
            proposal = correction.propose(layer)
            for part, values in zip(parts, before, strict=True):
                assert all(torch.equal(value, values[key]) for key, value in part.state_dict().items())
            return proposal

        watched = SimpleNamespace(name=correction.name, propose=propose)
        convert(small_ann(), images(), self.method(), self.T, [watched])


class MitigationContract:
    """`make` returns a mitigation, which is applied to a network of quantised activations converted by QCFS.

    `T`: steps that count. `tolerance`: the largest relative error of the output after them.
    """

    T: int = 8
    tolerance: float = 0.1

    def make(self) -> Mitigation:
        raise NotImplementedError

    def sample(self) -> tuple[nn.Module, Tensor]:
        """Return an ANN with QCFS activations, and inputs, the same at each call."""
        ann = small_ann(lambda: QCFS(8, 1.0))
        for layer in (ann.second, ann.hidden):
            layer.weight.data *= 3  # so that many neurons fire unevenly
        return ann, images(32)

    def test_it_lowers_the_unevenness_and_leaves_the_network_alone(self) -> None:
        ann, x = self.sample()
        source, plain = examinable(ann, x, QCFSConversion(), self.T)
        before, mitigation = plain(x), self.make()
        snn = mitigation.applied(plain)
        layers, old = (each.examine(source, x, self.T)[0] for each in (snn, plain))
        off, was = (sum(layer.over_spikes for layer in found) for found in (layers, old))
        assert mitigation.idle or off < was, "as many spikes too many as without it"
        parts = ("unevenness", "quantisation", "clipping", "propagated")
        assert all(math.isfinite(getattr(layer, part)) for layer in layers for part in parts)
        assert relative_error(snn, ann, x, self.T) <= self.tolerance
        assert torch.equal(plain(x), before), "the network it was applied to was changed"
        torch.testing.assert_close(snn.at(x[:7], [self.T])[0], snn(x)[:7])
        small = mitigation.applied(converted(plain.network, self.T))
        small.rows = 8
        torch.testing.assert_close(small(x), snn(x), msg="the answer depends on how the images are cut into pieces")

    def test_its_cost_is_stated(self) -> None:
        mitigation = self.make()
        assert mitigation.steps(self.T) >= self.T
        assert mitigation.latency(self.T, depth=3) >= self.T
        if mitigation.again:
            with pytest.raises(InvalidValue):
                mitigation.check(mitigation.again - 1)
