"""A spiking layer over all its time steps as one autograd node: the loop in which training on a CPU spends its time.

    h(t) = alpha v(t-1) + c(t);  s(t) = H(h(t) - theta);  v(t) = h(t) - theta s(t)  or  h(t) (1 - s(t)) + v_reset s(t)

Each step takes three operations forward and two backward, on preallocated tensors; the surrogate's derivative is taken
for all steps at once. SpikingJelly's reference loop computes the same with some ten autograd nodes per step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from snnexp.neuron.backend import FUSED
from snnexp.surrogate.base import Surrogate


def scan(
    x_seq: Tensor,
    v: Tensor,
    decay: float | Tensor,
    theta: float,
    v_reset: float | None,
    surrogate: nn.Module,
    detach_reset: bool,
) -> tuple[Tensor, Tensor]:
    """Map currents `x_seq` [T, N, ...] and potentials `v` [N, ...] to (spikes [T, N, ...], last potentials [N, ...]).

    Both results have the dtype of `v`. `decay` is alpha in (0, 1]; a tensor (one element) gets a gradient.
    `v_reset=None` is a soft reset. `detach_reset` keeps the surrogate's gradient out of the reset. There are no second
    derivatives.
    """
    return _Scan.apply(x_seq, v, decay, theta, v_reset, surrogate, detach_reset)  # type: ignore[no-untyped-call, no-any-return]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_seq: Tensor, v0: Tensor, decay: float | Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        theta, v_reset, ctx.surrogate, ctx.detach = settings
        alpha = float(decay)
        h = torch.empty(x_seq.shape, dtype=v0.dtype, device=v0.device)
        s = torch.empty_like(h)
        v = v0
        for t in range(len(x_seq)):
            torch.add(x_seq[t], v, alpha=alpha, out=h[t])
            torch.ge(h[t], theta, out=s[t])
            v = _reset(h[t], s[t], theta, v_reset)
        ctx.save_for_backward(h, s, v0)
        ctx.alpha, ctx.theta, ctx.v_reset = alpha, theta, v_reset
        ctx.x_dtype, ctx.mark_decay = x_seq.dtype, decay.dtype if isinstance(decay, Tensor) else None
        return s, v

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        h, s, v0 = ctx.saved_tensors
        slope = _derivative(ctx.surrogate, h - ctx.theta)
        through = _through_reset(ctx, h, s, slope)  # dv(t)/dh(t); None means 1
        grad_h = slope.mul_(grad_s)  # the part from the spikes; that from the potentials follows, backward in time
        for t in range(len(h) - 1, -1, -1):
            if through is None:
                grad_h[t] += grad_v
            else:
                grad_h[t].addcmul_(grad_v, through[t])
            grad_v = grad_h[t] * ctx.alpha
        grad_decay = None
        if ctx.mark_decay is not None:
            before = torch.cat([v0.unsqueeze(0), _reset(h[:-1], s[:-1], ctx.theta, ctx.v_reset)])  # v(t-1)
            grad_decay = (grad_h * before).sum().to(ctx.mark_decay)
        return grad_h.to(ctx.x_dtype), grad_v, grad_decay, None, None, None, None


def _reset(h: Tensor, s: Tensor, theta: float, v_reset: float | None) -> Tensor:
    return torch.sub(h, s, alpha=theta) if v_reset is None else torch.where(s > 0, v_reset, h)


def _through_reset(ctx: Any, h: Tensor, s: Tensor, slope: Tensor) -> Tensor | None:
    if ctx.v_reset is None:
        return None if ctx.detach else 1 - ctx.theta * slope
    kept = 1 - s
    return kept if ctx.detach else kept.addcmul_(ctx.v_reset - h, slope)


def _derivative(surrogate: nn.Module, x: Tensor) -> Tensor:
    """Return the factor of the surrogate's backward pass at every x, as a new tensor."""
    if isinstance(surrogate, Surrogate):
        return surrogate.gradient(x)
    if type(surrogate) in FUSED:  # the bare formula: a nested backward pass costs five times as much
        return type(surrogate).backward(x.new_ones(()), x, surrogate.alpha)  # type: ignore[attr-defined, no-any-return]
    with torch.enable_grad():
        points = x.requires_grad_()
        (slope,) = torch.autograd.grad(surrogate(points), points, torch.ones_like(points))
    return slope
