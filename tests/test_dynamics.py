"""The step functions: hand-computed steps, the clip-floor closed form, and when a neuron fires."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based.surrogate import heaviside

from snnexp.dynamics import clip_floor, fires, if_step, lif_step


def simulate(x, theta, T, v=None):
    """Time mean of theta * s of a soft-reset IF under constant input x, and its last potential."""
    v = torch.zeros_like(x) if v is None else v
    count = torch.zeros_like(x)
    for _ in range(T):
        s, v = if_step(x, v, theta)
        count += s
    return theta / T * count, v


def test_a_neuron_fires_at_equality_as_in_spikingjelly():
    v = torch.tensor([0.999999, 1.0, 1.000001, -1.0])
    assert fires(v, 1.0).tolist() == [0, 1, 1, 0]
    assert torch.equal(fires(v, 1.0), heaviside(v - 1.0))


@given(st.floats(-10, 10, width=32), st.floats(0.0078125, 10, width=32))
def test_comparing_and_subtracting_agree_in_float32(v, theta):
    v, theta = torch.tensor([v]), torch.tensor([theta])
    assert torch.equal(fires(v, theta), heaviside(v - theta))


@pytest.mark.parametrize(("v_reset", "after"), [(None, 0.25), (0.0, 0.0), (-0.5, -0.5)])
def test_one_step_by_hand(v_reset, after):
    current, v = torch.tensor([1.0, 0.25]), torch.tensor([0.5, 0.5])
    s, v_next = lif_step(current, v, alpha=0.5, v_reset=v_reset)
    assert s.tolist() == [1, 0]
    assert v_next.tolist() == [after, 0.5]
    s, v_next = if_step(current, v, theta=1.25, v_reset=v_reset)
    assert s.tolist() == [1, 0]
    assert v_next.tolist() == [after, 0.75]


@given(numerator=st.integers(-64, 256), log_theta=st.integers(-2, 2), T=st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_if_under_constant_input_is_clip_floor(numerator, log_theta, T):
    x, theta = torch.tensor([numerator / 64]), 2.0**log_theta  # dyadic: every sum below is exact
    phi, v = simulate(x, theta, T)
    assert torch.equal(phi, clip_floor(x, theta, T))
    torch.testing.assert_close(phi, x - v / T)  # phi = cbar - (v(T) - v(0)) / T


def test_clip_floor_values():
    x = torch.tensor([-1.0, 0.0, 0.24, 0.25, 0.6, 0.99, 1.0, 7.0])
    assert clip_floor(x, 1.0, 4).tolist() == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert clip_floor(torch.tensor([1.5]), 2.0, 2).tolist() == [1.0]


def test_thresholds_per_channel():
    theta = torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1, 1)
    x = torch.rand(4, 3, 5, 5)
    phi, _ = simulate(x, theta, 16)
    assert phi.shape == x.shape
    assert ((phi - clip_floor(x, theta, 16)).abs() <= theta / 16 * 1.001).all()
    assert (phi - clip_floor(x, theta, 16)).abs().mean() < 1e-3


def test_half_a_threshold_at_the_start_removes_the_flooring_bias():
    x = torch.arange(0, 1024, dtype=torch.float64) / 1024
    floored, _ = simulate(x, 1.0, 8)
    rounded, _ = simulate(x, 1.0, 8, v=torch.full_like(x, 0.5))
    assert (x - floored).mean().item() == pytest.approx(1 / 16, abs=1e-3)  # theta / (2T)
    assert (x - rounded).mean().item() == pytest.approx(0, abs=1e-3)
