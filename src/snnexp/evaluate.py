"""Evaluate a trained network: accuracy at every t <= T from one simulation, confusion matrix, firing rates."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnexp.dataset.base import Split
from snnexp.timefold import TimeFold, observed, unfold


@dataclass(frozen=True)
class Evaluation:
    """`accuracy_t[t-1]`: accuracy of the output averaged over the first t steps. `confusion[true, predicted]`: counts.
    `rates`: mean output per neuron and step at each site (for spikes, the firing rate). `spikes`: per sample, over all
    sites."""

    loss: float
    accuracy_t: list[float]
    confusion: Tensor
    rates: dict[str, float]
    spikes: float

    @property
    def accuracy(self) -> float:
        return self.accuracy_t[-1]


@torch.inference_mode()
def evaluate(
    net: TimeFold, split: Split, loss: nn.Module, batch_size: int, device: torch.device, classes: int
) -> Evaluation:
    """Run `net` once over `split`."""
    net.eval()
    n, total = len(split), torch.zeros((), device=device)
    correct = torch.zeros(net.T, device=device)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    sums: dict[str, float] = {}
    neurons: dict[str, int] = {}
    steps = torch.arange(1, net.T + 1, device=device).view(-1, 1, 1)
    for x, y in split.batches(batch_size):
        x, y = x.to(device), y.to(device)
        with recorded(net) as trains:
            outputs = net(x)  # [T, N, K]
        total += loss(outputs, y) * len(y)
        predicted = (outputs.cumsum(0) / steps).argmax(2)  # [T, N]
        correct += (predicted == y).sum(1)
        pairs = y.cpu() * classes + predicted[-1].cpu()
        confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        for name, train in trains.items():
            sums[name] = sums.get(name, 0.0) + float(train.sum())
            neurons[name] = train[0, 0].numel()
    rates = {name: s / (n * net.T * neurons[name]) for name, s in sums.items()}
    return Evaluation(float(total) / n, (correct / n).tolist(), confusion, rates, sum(sums.values()) / n)


@contextmanager
def recorded(net: TimeFold) -> Iterator[dict[str, Tensor]]:
    """Collect the spike trains [T, N, ...] of `net` during forward passes, by name of the site."""
    trains: dict[str, Tensor] = {}
    firing = {name: site for name, site in net.sites().items() if site.spiking}
    with observed(firing, lambda name, _, output: trains.update({name: unfold(output.detach(), net.T)})):
        yield trains
