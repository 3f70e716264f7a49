"""Contracts of the parts of a conversion: conversion, correction, mitigation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from snnexp.build import unlike
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import Converted, convert
from snnexp.conversion.walk import Correction, Method
from snnexp.errors import InvalidValue
from snnexp.mitigation.base import Mitigation


def small_ann(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """Return an ANN [N, 2, 8, 8] -> [N, 5] with a residual addition, BatchNorm and three activations."""
    torch.manual_seed(0)
    return _Residual(activation).eval()


class _Residual(nn.Module):
    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.norm, self.act1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), activation()
        self.second, self.act2 = nn.Conv2d(6, 6, 3, padding=1), activation()
        self.pool, self.hidden, self.act3, self.last = (
            nn.AvgPool2d(4),
            nn.Linear(24, 12),
            activation(),
            nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm(self.first(x)))
        x = self.act2(self.second(x) + x)
        out: Tensor = self.last(self.act3(self.hidden(self.pool(x).flatten(1))))
        return out


def images(n: int = 16) -> Tensor:
    """Return inputs [n, 2, 8, 8] in [0, 1]."""
    return torch.rand(n, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def relative_error(snn: Converted, ann: nn.Module, T: int) -> float:
    """Return the norm of the difference of both outputs over the norm of the ANN's."""
    x = images()
    with torch.no_grad():
        expected = ann(x)
        return float((snn(x, T) - expected).norm() / expected.norm())


class ConversionContract:
    """`make` returns a conversion. `T`: steps; `tolerance`: the relative error of the output after T steps;
    `activation`: of the ANN that is converted.
    """

    T: ClassVar[int] = 64
    tolerance: ClassVar[float] = 0.1

    def make(self) -> Method:
        raise NotImplementedError

    def activation(self) -> nn.Module:
        return nn.ReLU()

    def test_it_has_all_that_a_conversion_needs(self) -> None:
        assert not unlike(self.make(), Method)

    def test_the_output_approximates_the_ann(self) -> None:
        ann = small_ann(self.activation)
        before = copy.deepcopy(ann.state_dict())
        snn, records = convert(ann, images(), self.make(), self.T)
        assert relative_error(snn, ann, self.T) <= self.tolerance
        assert [record.name for record in records] == ["act1", "act2", "act3"]
        assert all(torch.equal(value, before[key]) for key, value in ann.state_dict().items()), "the ANN was changed"

    def test_what_it_places_is_what_it_says(self) -> None:
        method = self.make()
        snn, _ = convert(small_ann(self.activation), images(), method, self.T)
        placed = [snn.flow.module(site) for site in snn.flow.sites]
        assert all(isinstance(neuron, method.neuron) for neuron in placed)
        assert type(snn) is method.neuron.network

    def test_it_is_examined_and_comes_back_from_its_state(self) -> None:
        ann = small_ann(self.activation)
        snn, _ = convert(ann, images(), self.make(), self.T)
        again, _ = convert(ann, images(4) * 0.7, self.make(), self.T)
        again.load_state_dict(snn.state_dict())
        assert torch.equal(again(images(), self.T), snn(images(), self.T))
        assert all(isinstance(value, Tensor) for value in snn.state_dict().values())


class CorrectionContract:
    """`make` returns a correction. `method`: the conversion whose network is corrected; `T`: for so many steps."""

    T: ClassVar[int] = 8

    def make(self) -> Correction:
        raise NotImplementedError

    def method(self) -> Method:
        return MaxThreshold()

    def test_it_has_all_that_a_correction_needs(self) -> None:
        assert not unlike(self.make(), Correction)
        assert isinstance(self.make().name, str)

    def test_its_objective_never_rises(self) -> None:
        ann = small_ann()
        snn, records = convert(ann, images(), self.method(), self.T, [self.make()])
        kept = [one for record in records for one in record.corrections]
        assert kept, "it proposed nothing anywhere"
        assert all(one.after <= one.before and 0 <= one.share <= 1 for one in kept)
        assert any(one.after < one.before for one in kept), "it lowered its objective nowhere"
        assert snn(images(), self.T).isfinite().all()


class MitigationContract:
    """`make` returns a mitigation. `T`: steps that count; `tolerance`: the relative error of the output after them."""

    T: ClassVar[int] = 64
    tolerance: ClassVar[float] = 0.1

    def make(self) -> Mitigation:
        raise NotImplementedError

    def test_the_network_stays_as_it_is_and_the_answer_is_near_the_anns(self) -> None:
        ann = small_ann()
        plain, _ = convert(ann, images(), MaxThreshold(start=0.5), self.T)
        before = plain(images(), self.T)
        snn = self.make().applied(plain)
        assert relative_error(snn, ann, self.T) <= self.tolerance
        assert torch.equal(plain(images(), self.T), before), "the network it was applied to was changed"

    def test_its_costs_are_told(self) -> None:
        mitigation = self.make()
        assert mitigation.steps(self.T) >= self.T
        assert mitigation.latency(self.T, depth=3) >= self.T
        if mitigation.again:
            try:
                mitigation.check(mitigation.again - 1)
            except InvalidValue:
                return
            raise AssertionError("it takes fewer steps than it rehearses")
