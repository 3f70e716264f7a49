"""Networks in half precision are converted as well as in single precision; what is no network or tensor is told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from snnexp.calibration.bias import Bias
from snnexp.calibration.potential import Potential
from snnexp.calibration.threshold import Threshold
from snnexp.calibration.weights import Weights
from snnexp.conversion.adaptive_threshold import AdaptiveThreshold
from snnexp.conversion.few_spike import FewSpikeConversion
from snnexp.conversion.max_threshold import MaxThreshold
from snnexp.conversion.network import convert
from snnexp.conversion.stored import load_network, save_network
from snnexp.errors import UserError

torch.manual_seed(0)
IMAGES = torch.rand(128, 3, 8, 8)
ANN = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Conv2d(8, 8, 3),
    nn.ReLU(),
    nn.AvgPool2d(2),
    nn.Flatten(),
    nn.Linear(8 * 9, 5),
).eval()
METHODS: dict[str, Callable[[], Any]] = {
    "max": lambda: MaxThreshold(1.0, 0.5),
    "adaptive": AdaptiveThreshold,
    "few spikes": FewSpikeConversion,
}
CORRECTIONS: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "light": lambda: [Bias()],
    "advanced": lambda: [Weights(), Potential()],
    "best": lambda: [Threshold(), Weights(), Threshold(), Potential()],
}
CASES = [(m, c) for m in METHODS for c in CORRECTIONS if (m, c) != ("max", "best")]  # a rate without a grid


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=["bfloat16", "half"])
@pytest.mark.parametrize(("method", "correction"), CASES)
def test_half_precision(method: str, correction: str, kind: torch.dtype, tmp_path: Path) -> None:
    """The error is that of single precision, but for the rounding of the answers."""
    make, correct = METHODS[method], CORRECTIONS[correction]
    half = copy.deepcopy(ANN).to(kind)
    snn, records = convert(half, IMAGES.to(kind), make(), 8, correct())
    single, _ = convert(ANN, IMAGES, make(), 8, correct())
    answer = snn(IMAGES.to(kind))
    assert answer.dtype == kind
    with torch.no_grad():
        wanted = ANN(IMAGES)
    assert relative(answer, wanted) < relative(single(IMAGES), wanted) + 0.005
    assert records
    assert {p.dtype for p in half.parameters()} == {kind}, "the caller's network is not changed"
    save_network(snn, tmp_path / "network.pt")
    assert torch.equal(load_network(tmp_path / "network.pt")(IMAGES.to(kind)), answer)


DATA = TensorDataset(IMAGES, torch.zeros(len(IMAGES)))
NOT_TENSORS: dict[str, tuple[Any, str]] = {
    "an array": (IMAGES.numpy(), "a ndarray was given, where a tensor is needed; give torch.from_numpy(x).float()"),
    "a list": (list(IMAGES), "a list was given, where a tensor is needed; give torch.stack(x) of single images"),
    "a loader": (DataLoader(DATA), "a DataLoader was given, where a tensor is needed; give the images of some batches"),
    "a data set": (DATA, "a TensorDataset was given, where a tensor is needed; give some of its images, torch.stack(["),
    "a number": (torch.tensor(1.0), "one number, where a tensor [N, ...] of N samples is needed"),
    "nothing": (None, "a NoneType was given, where a tensor is needed; give a torch.Tensor [N, ...] of N samples"),
}


@pytest.mark.parametrize("kind", NOT_TENSORS)
def test_what_is_no_tensor_is_told(kind: str) -> None:
    x, said = NOT_TENSORS[kind]
    with pytest.raises(UserError) as error:
        convert(ANN, x, MaxThreshold(1.0, 0.5), 4)
    assert str(error.value).startswith(f"the calibration images: {said}")
    for method in (MaxThreshold(1.0, 0.5), FewSpikeConversion()):
        snn, _ = convert(ANN, IMAGES, method, 4)
        for use in (snn, lambda x, snn=snn: snn.at(x, [4]), lambda x, snn=snn: next(iter(snn.stream(x)))):
            with pytest.raises(UserError) as error:
                use(x)
            assert str(error.value).startswith(f"the input: {said}")


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 2))


NOT_NETWORKS: dict[str, tuple[Any, str]] = {
    "its weights": (ANN.state_dict(), "a state_dict, which is only its weights: make the network and load them, net."),
    "its class": (Net, "a class: make a network of it, such as Net()"),
    "its file": ("net.pt", "a path: make the network and load the file's weights, net.load_state_dict(torch.load(pat"),
    "a function": (torch.relu, "a builtin_function_or_method: it must be a torch.nn.Module"),
}


@pytest.mark.parametrize("kind", NOT_NETWORKS)
def test_what_is_no_network_is_told(kind: str) -> None:
    ann, said = NOT_NETWORKS[kind]
    with pytest.raises(UserError) as error:
        convert(ann, IMAGES, MaxThreshold(1.0, 0.5), 4)
    assert str(error.value).startswith(f"the network is {said}")


def test_the_advice_works() -> None:
    loader = DataLoader(DATA, batch_size=4)
    for images in (
        torch.from_numpy(np.asarray(IMAGES)).float(),
        torch.stack(list(IMAGES)),
        torch.cat([x for x, _ in loader]),
        torch.stack([DATA[i][0] for i in range(len(IMAGES))]),
    ):
        assert torch.equal(images, IMAGES)
    assert convert(Net(), IMAGES, MaxThreshold(1.0, 0.5), 4)[0](IMAGES).shape == (128, 2)
