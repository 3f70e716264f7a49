"""The dynamics of spiking neurons, as pure functions; only this module decides when a neuron fires.

    v_temp = alpha v + c                                            charge (IF: alpha = 1)      (1)
    s      = 1 where v_temp >= theta, else 0                        fire, at equality too       (2)
    v      = v_temp - theta s                                       soft reset                  (3)
    v      = v_temp (1 - s) + v_reset s                             hard reset                  (4)
    CF(x)  = theta/T clip(floor(T x / theta), 0, T)                 clip-floor                  (5)

c input current, v membrane potential, theta > 0 threshold, alpha decay in (0, 1), s spikes in {0, 1}, T time steps.
Potentials, currents and thresholds share one unit (the ANN's activation units after conversion). Shapes are [N, ...];
theta may be a tensor that broadcasts against them. Spikes have no gradients: training uses `snnexp.neuron`.
"""

import torch
from torch import Tensor


def fires(v: Tensor, theta: float | Tensor) -> Tensor:
    """Return spikes in {0, 1}, shape and dtype of v: 1 where v >= theta, as SpikingJelly's heaviside(v - theta)."""
    return (v >= theta).to(v)  # Eq. (2)


def if_step(
    current: Tensor, v: Tensor, theta: float | Tensor = 1.0, v_reset: float | None = None
) -> tuple[Tensor, Tensor]:
    """Run one step of integrate-and-fire: (spikes, new potential). `v_reset`: None for soft reset, else its value."""
    return _fire_and_reset(v + current, theta, v_reset)


def lif_step(
    current: Tensor, v: Tensor, alpha: float | Tensor, theta: float | Tensor = 1.0, v_reset: float | None = None
) -> tuple[Tensor, Tensor]:
    """Run one step of leaky integrate-and-fire, decaying toward 0: (spikes, new potential)."""
    return _fire_and_reset(alpha * v + current, theta, v_reset)  # Eq. (1)


def clip_floor(x: Tensor, theta: float | Tensor, T: int) -> Tensor:
    """Return CF(x; theta, T), shape of x: the time mean of theta * s of a soft-reset IF from v = 0, x constant."""
    return theta / T * torch.floor(T * x / theta).clamp(0, T)  # Eq. (5)


def _fire_and_reset(v_temp: Tensor, theta: float | Tensor, v_reset: float | None) -> tuple[Tensor, Tensor]:
    s = fires(v_temp, theta)
    if v_reset is None:
        return s, v_temp - theta * s  # Eq. (3)
    return s, v_temp * (1 - s) + v_reset * s  # Eq. (4)
