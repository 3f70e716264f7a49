"""Weight correction by descent: the weights of a layer are fitted through the clip-floor with a straight-through
derivative. Li et al., "A Free Lunch From ANN", ICML 2021; optimiser and schedule as in the authors' code.

    min over W of  mean (CF(z + v(0)/T; theta, T) - a)^2,    z = W x + b + what other branches add

x: mean inputs from the spiking network below; a: the ANN's activation; CF: the clip-floor of `snnexp.dynamics`, whose
floor has derivative 1.
"""

import copy

import torch
from torch import Tensor, nn

from snnexp.conversion.walk import Layer, Proposal, Stats, room
from snnexp.errors import integer, number


class WeightsSGD:
    """Proposes the weights of a Linear or convolution that serves this site alone, after `iterations` steps of Adam on
    minibatches of `batch` images with the learning rate `lr`, which a cosine schedule brings to 0.

    `seed` draws the minibatches. Its objective is the mean squared error of each channel. Raises InvalidValue.
    """

    name = "weights_sgd"

    def __init__(self, lr: float = 1e-5, iterations: int = 5000, batch: int = 32, seed: int = 0) -> None:
        self.lr = number("lr", lr, "a number > 0", above=0)
        self.iterations = integer("iterations", iterations, at_least=1)
        self.batch = integer("batch", batch, at_least=1)
        self.seed = seed

    def propose(self, layer: Layer) -> Proposal | None:
        if layer.synapse is None or not {"theta", "v_init", "bias"} <= set(layer.neuron.values):
            return None
        synapse = copy.deepcopy(layer.synapse)
        stored: list[Tensor] = []
        start = 0
        for x, a, c in layer.means_of_synapse():
            parts = x, a, c - synapse(x)  # the last: what other branches add
            stored = stored or [room((1, layer.images, *part.shape[1:]), part.dtype)[0] for part in parts]
            for kept, part in zip(stored, parts, strict=True):
                kept[start : start + len(x)] = part.cpu()
            start += len(x)
        with torch.enable_grad():
            self._descend(layer, synapse, *stored)
        return Proposal(self.score, weight=synapse.weight.data)  # type: ignore[arg-type]

    def _descend(self, layer: Layer, synapse: nn.Module, x: Tensor, a: Tensor, rest: Tensor) -> None:
        """Fit `synapse.weight` in place."""
        synapse.requires_grad_(False)
        weight: Tensor = synapse.weight.requires_grad_(True)  # type: ignore[assignment]
        optimizer = torch.optim.Adam([weight], self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
        generator = torch.Generator().manual_seed(self.seed)
        theta: Tensor = layer.neuron.theta  # type: ignore[assignment]
        added = layer.neuron.bias + layer.neuron.v_init / layer.T  # type: ignore[operator]
        for _ in range(self.iterations):
            rows = torch.randperm(len(x), generator=generator)[: self.batch]
            inputs, target, others = (part[rows].to(weight.device) for part in (x, a, rest))
            level = ((synapse(inputs) + others + added) * layer.T / theta).clamp(0, layer.T)
            phi = theta / layer.T * (level + (level.floor() - level).detach())
            optimizer.zero_grad()
            (phi - target).square().mean().backward()
            optimizer.step()
            schedule.step()

    @staticmethod
    def score(stats: Stats) -> Tensor:
        return stats.square
