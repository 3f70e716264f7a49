"""The error on calibration images is measured right, told, and a warning above its limit."""

from __future__ import annotations

import logging
import re

import pytest
import torch
import torchvision
from torch import nn

from snnexp.calibration.bias import Bias
from snnexp.conversion.adaptive_threshold import AdaptiveThreshold
from snnexp.conversion.few_spike import FewSpikeConversion
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import convert
from snnexp.conversion.walk import Method
from snnexp.model.resnet import cifar_resnet
from snnexp.testing.conversions import images, small_ann


@pytest.mark.parametrize("corrections", [[], [Bias()]], ids=["plain", "corrected"])
@pytest.mark.parametrize("method", [MaxThreshold(start=0.5), FewSpikeConversion(per_channel=True)], ids=["rate", "few"])
def test_the_errors_told_are_those_of_the_network(
    method: Method, corrections: list[Bias], caplog: pytest.LogCaptureFixture
) -> None:
    ann, x = small_ann(nn.ReLU), images()
    with caplog.at_level(logging.INFO):
        snn, records = convert(ann, x, method, 8, corrections)
    with torch.no_grad():
        expected, hidden = ann(x), ann.act1(ann.norm(ann.first(x)))  # type: ignore[operator]
        found = snn.flow.values(x)[snn.flow.sites[0]] if method.neuron.stepwise is False else None
        assert records.error == pytest.approx(float((snn(x) - expected).norm() / expected.norm()), rel=1e-3)
        if found is not None:
            assert records[0].error == pytest.approx(float((found - hidden).norm() / hidden.norm()), rel=1e-3)
    worst = max((record for record in records if record.name != "output"), key=lambda record: record.error)
    assert "T = 8: on 16 calibration images the output of the SNN differs from that of the ANN by" in caplog.text
    assert f"largest errors of layers: {worst.name} {100 * worst.error:.3g} %" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_several_outputs_and_none_that_varies() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> dict[str, object]:
            y = self.net(x)
            return {"logits": y, "pair": (2 * y, x), "n": y.shape[0]}

    x = images()
    _, records = convert(Both(), x, MaxThreshold(start=0.5), 8)
    _, alone = convert(net, x, MaxThreshold(start=0.5), 8)
    assert alone.error
    assert records.error == pytest.approx(alone.error)


def test_a_network_that_is_far_off_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """One spike a layer, and thresholds of the largest activation with few steps: both said nothing."""
    torch.manual_seed(0)
    x = torch.rand(4, 3, 32, 32)
    coarse = torchvision.models.squeezenet1_1(num_classes=5).eval()
    deep = cifar_resnet((3, 32, 32), 10, nn.ReLU, depth=14, width=4, shortcut="B", readout="current").eval()
    cases: list[tuple[nn.Module, Method, int, str]] = [
        (coarse, FewSpikeConversion(), 1, "more steps of a layer .timesteps."),
        (deep, MaxThreshold(), 4, "conversion=adaptive_threshold"),
    ]
    for ann, method, T, way in cases:
        caplog.clear()
        _, records = convert(ann, x, method, T)
        assert records.error is not None
        assert records.error > 0.3
        (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert re.search(rf"T = {T}: .* Above 30 %, check the accuracy .* Ways out: .*({way})", told)
    caplog.clear()
    convert(deep, x, AdaptiveThreshold(per_channel=True), 64)  # the way out works
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
