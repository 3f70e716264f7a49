"""Detection of NaN and infinite values. A neuron with a NaN potential never spikes, so the loss may hide them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from snnexp.errors import UserError


def nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold a NaN or an infinity. Each device is synchronized only once."""
    zeros: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        if is_lazy(tensor) or tensor.layout is not torch.strided or not tensor.numel():
            continue
        values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        if values.is_floating_point():
            least, most = (values.float() if values.itemsize == 1 else values).detach().aminmax()
            zeros[tensor.device][name] = (least * 0 + most * 0).double()  # NaN if one of them is not finite
    bad = set[str]()
    for of in zeros.values():
        marks = torch.stack(list(of.values())).isnan().tolist()
        bad |= {name for name, marked in zip(of, marks, strict=True) if marked}
    return [name for name in tensors if name in bad]


class Watch:
    """The values of a training that must stay finite: loss, weights, buffers, gradients, and the optimizer's state.

    Tensors that are not finite at the start (a mask of -inf) are left out. `clip`: the norm at which gradients are
    clipped, for advice. `gradients`: false if a loss scaler skips steps whose gradients are not finite.
    """

    def __init__(self, net: nn.Module, optimizer: Optimizer, clip: float | None, *, gradients: bool) -> None:
        self.net, self.optimizer, self.gradients = net, optimizer, gradients
        self.clip = 1 if clip is None else clip / 10
        self.exempt = set(nonfinite(self._tensors()))

    def check(self, which: str, loss: float, epoch: int) -> None:
        """Raise UserError unless all is finite in `epoch` (from 0), including the training or validation `loss`."""
        bad = [name for name in nonfinite(self._tensors()) if name not in self.exempt]
        if math.isfinite(loss) and not bad:
            return
        more = f" (and {len(bad) - 1} other tensors)" if len(bad) > 1 else ""
        said = f"{bad[0]}{more} became NaN or infinite" if bad else f"the {which} loss became {loss}"
        raise UserError(
            f"{said} in epoch {epoch + 1}: try a smaller optimizer.lr (now {self.optimizer.param_groups[0]['lr']:g}) "
            f"or trainer.gradient_clip={self.clip:g}. The last good checkpoint stays"
        )

    def _tensors(self) -> dict[str, Tensor]:
        weights = {name.removeprefix("network."): p for name, p in self.net.named_parameters()}
        found = dict[str, Tensor](weights)
        found |= {name.removeprefix("network."): buffer for name, buffer in self.net.named_buffers()}
        if self.gradients:
            found |= {f"the gradient of {name}": p.grad for name, p in weights.items() if p.grad is not None}
        for name, parameter in weights.items():
            state = self.optimizer.state.get(parameter, {})
            found |= {f"the optimizer's {key} of {name}": v for key, v in state.items() if isinstance(v, Tensor)}
        return found
