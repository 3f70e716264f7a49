"""Weight correction: the layer's weights are fitted to the inputs that the spiking network below gives.

Li et al., ICML 2021, minimise the squared error of the layer by SGD, with the clip-floor in the forward pass and a
straight-through derivative. Here one step of that descent is made, preconditioned by the covariance of the inputs
(ridge regression), which needs no learning rate and no epochs:

    [dW, db] = (X'X / n + r I)^-1 X'E / n,    E = a - phi where weights can reduce it (`Placed.correctable`), else 0

X: mean inputs (patches of a convolution) and a column of ones; phi: the simulated mean output; r: `ridge` x the mean
diagonal of X'X / n.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnexp.conversion.trains import along
from snnexp.conversion.walk import Layer, Proposal, Stats
from snnexp.errors import integer, number


class Weights:
    """Proposes the weights and bias of a Linear or Conv2d that serves this site alone; its objective is the mean
    squared error of each channel. `ridge` > 0; at most `places` patches per image are used. Raises InvalidValue.
    """

    name = "weights"

    def __init__(self, ridge: float = 0.01, places: int = 64) -> None:
        self.ridge = number("ridge", ridge, "a number > 0", above=0)
        self.places = integer("places", places, at_least=1)

    def propose(self, layer: Layer) -> Proposal | None:
        synapse = layer.synapse
        if "bias" not in layer.neuron.values or not isinstance(synapse, nn.Linear | nn.Conv2d):
            return None
        if synapse.weight.dim() != layer.stats.error.dim() or getattr(synapse, "padding_mode", "zeros") != "zeros":
            return None
        gram, moment = self._moments(layer, synapse)
        scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * self.ridge
        eye = torch.eye(gram.shape[1], device=gram.device, dtype=gram.dtype)
        step = torch.linalg.solve(gram + scale * eye, moment).transpose(1, 2).flatten(0, 1).to(synapse.weight)
        weight = synapse.weight.data + step[:, :-1].reshape(synapse.weight.shape)
        bias = layer.neuron.bias + along(step[:, -1], layer.stats.error.dim())
        return Proposal(self.score, layer.neuron.changed(bias=bias), weight)

    @staticmethod
    def score(stats: Stats) -> Tensor:
        return stats.square

    def _moments(self, layer: Layer, synapse: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
        """Return (X'X / n [groups, K + 1, K + 1], X'E / n [groups, K + 1, outputs]) over images and places."""
        gram: Tensor | None = None
        moment, n = torch.zeros(()), 0
        for x, a, phi in layer.answers():
            inputs, errors = self._pairs(synapse, x, layer.neuron.correctable(a, phi))
            g = inputs.transpose(1, 2) @ inputs
            m = inputs.transpose(1, 2) @ errors
            gram, moment = (g, m) if gram is None else (gram + g, moment + m)
            n += inputs.shape[1]
        assert gram is not None
        return gram / n, moment / n

    def _pairs(self, synapse: nn.Linear | nn.Conv2d, x: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs [groups, S, K + 1] and errors [groups, S, outputs] at the same places."""
        if isinstance(synapse, nn.Linear):
            patches, errors, groups = x.unsqueeze(-1), e.unsqueeze(-1), 1  # [n, K, 1], [n, C, 1]
        else:
            padded = F.pad(x, synapse._reversed_padding_repeated_twice)  # padding=same may pad unevenly
            patches = F.unfold(padded, synapse.kernel_size, synapse.dilation, 0, synapse.stride)
            errors, groups = e.flatten(2), synapse.groups
            if patches.shape[2] > self.places:
                at = torch.randperm(patches.shape[2], generator=torch.Generator().manual_seed(0))[: self.places]
                patches, errors = patches[:, :, at], errors[:, :, at]
        inputs = patches.reshape(len(patches), groups, -1, patches.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)
        errors = errors.reshape(len(errors), groups, -1, errors.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)
        precise = torch.promote_types(inputs.dtype, torch.float32)
        return torch.cat([inputs, torch.ones_like(inputs[..., :1])], 2).to(precise), errors.to(precise)
