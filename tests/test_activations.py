"""relu, clip, qcfs: the activations that make a network an ANN. Values, exact gradients, and no time."""

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from snnexp.dynamics import clip_floor, if_step
from snnexp.errors import InvalidValue
from snnexp.neuron.clip import SMALLEST, Clip
from snnexp.neuron.qcfs import QCFS
from snnexp.timefold import Dropout, Normalize, Site, TimeFold, fold, unfold

CONF = Path(__file__).parents[1] / "conf" / "neuron"
GRID = torch.arange(-1, 4, 1 / 64, dtype=torch.float64)  # dyadic: holds 0, the bound 2 and every step of h exactly
LEVELS = [1, 2, 4, 8, 16]


def reference(z, lam, L):
    """QCFS through autograd, with a straight-through floor."""
    u = (z / lam).clamp(0, 1) * L + 0.5
    return lam * (u + (u.floor() - u).detach()) / L


def gradients(h, z, lam, weight):
    return torch.autograd.grad((h * weight).sum(), [z, lam])


@pytest.mark.parametrize("L", LEVELS)
@pytest.mark.parametrize("lam", [2.0, 0.7])
def test_qcfs_is_autograd_of_its_straight_through_formula(L, lam):
    z, module = GRID.clone().requires_grad_(), QCFS(L, lam).double()
    weight = torch.rand(len(GRID), dtype=torch.float64)
    expected = reference(z, module.bound, L)
    assert torch.equal(module(z), expected)
    torch.testing.assert_close(
        gradients(module(z), z, module.bound, weight),
        gradients(expected, z, module.bound, weight),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("L", LEVELS)
def test_qcfs_gradients_are_those_of_the_equations(L):
    z, module = GRID.clone().requires_grad_(), QCFS(L, 2.0).double()
    h = module(z)
    below, above = z.detach() < 0, z.detach() > 2
    assert torch.autograd.grad(h.sum(), z, retain_graph=True)[0].tolist() == (~below & ~above).double().tolist()
    expected = torch.where(above, 1.0, torch.where(below, 0.0, (h - z).detach() / 2))
    for k in range(0, len(GRID), 7):  # one place at a time
        (got,) = torch.autograd.grad(h[k], module.bound, retain_graph=True)
        assert got.item() == pytest.approx(expected[k].item(), abs=1e-15)


@pytest.mark.parametrize("L", LEVELS)
def test_qcfs_gradients_are_finite_differences_where_it_is_smooth(L):
    """With the floor's remainder frozen, h is smooth off the corners 0 and lam, and its slopes are the gradients."""
    z, lam, eps = GRID + 0.003, torch.tensor(2.0, dtype=torch.float64), 1e-6
    u = (z / lam).clamp(0, 1) * L + 0.5
    frozen = u.floor() - u

    def smooth(z, lam):
        return lam * ((z / lam).clamp(0, 1) * L + 0.5 + frozen) / L

    by_z = (smooth(z + eps, lam) - smooth(z - eps, lam)) / (2 * eps)
    by_lam = (smooth(z, lam + eps) - smooth(z, lam - eps)) / (2 * eps)
    module, x = QCFS(L, 2.0).double(), z.clone().requires_grad_()
    got_z, got_lam = gradients(module(x), x, module.bound, torch.ones_like(z))
    torch.testing.assert_close(got_z, by_z, rtol=0, atol=1e-8)
    assert got_lam.item() == pytest.approx(by_lam.sum().item(), abs=1e-6)


@pytest.mark.parametrize("L", LEVELS)
def test_qcfs_is_what_an_if_neuron_emits_in_L_steps_from_half_the_threshold(L):
    lam, h = 2.0, QCFS(L, 2.0).double()(GRID)
    assert torch.equal(h.detach(), clip_floor(GRID + lam / (2 * L), lam, L))
    v, n = torch.full_like(GRID, lam / 2), torch.zeros_like(GRID)
    for _ in range(L):
        s, v = if_step(GRID, v, lam)
        n += s
    assert torch.equal(h.detach(), lam * n / L)


def test_clip_is_autograd_of_clip():
    z, module = GRID.clone().requires_grad_(), Clip(2.0).double()
    h = module(z)
    assert torch.equal(h.detach(), GRID.clamp(0, 2))
    to_z, to_bound = gradients(h, z, module.bound, torch.ones_like(z))
    assert to_z.tolist() == ((GRID >= 0) & (GRID <= 2)).double().tolist()
    assert to_bound.item() == (GRID > 2).sum()


@pytest.mark.parametrize("kind", [Clip, QCFS])
def test_the_bound_is_one_scalar_learnt_or_fixed(kind):
    assert [tuple(p.shape) for p in kind().parameters()] == [()]
    fixed = kind(trainable=False)
    assert not list(fixed.parameters())
    assert set(fixed.state_dict()) == {"bound"}
    x = torch.randn(4, 3, requires_grad=True)
    fixed(x).sum().backward()
    assert x.grad.any()


@pytest.mark.parametrize("kind", [Clip, QCFS])
def test_a_bound_pulled_to_zero_stays_finite_and_comes_back(kind):
    module = kind()
    with torch.no_grad():
        module.bound.fill_(-1.0)
    h = module(torch.ones(3))
    assert h.tolist() == pytest.approx(3 * [SMALLEST])
    (-h.sum()).backward()
    assert module.bound.grad.item() == -3.0  # descent raises it
    assert module.threshold.item() == pytest.approx(SMALLEST)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", [Clip, QCFS])
def test_reduced_precision_keeps_the_type_of_the_input(kind, dtype):
    module, z = kind(), torch.randn(64, dtype=dtype, requires_grad=True)
    h = module(z)
    assert h.dtype == dtype
    h.sum().backward()
    assert (z.grad.dtype, module.bound.grad.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("name", ["relu", "clip", "qcfs"])
def test_an_activation_is_no_site_and_keeps_nothing(name):
    module = instantiate(OmegaConf.load(CONF / f"{name}.yaml"))
    assert not isinstance(module, Site)
    x = torch.randn(8, 3, 5, 5)
    assert torch.equal(module(x), module(x))
    assert module(x).min() == 0
    assert module(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Clip, "bound", 0),
        (Clip, "bound", "4"),
        (Clip, "trainable", 1),
        (QCFS, "lam", -1.0),
        (QCFS, "lam", math.inf),
        (QCFS, "L", 0),
        (QCFS, "L", 2.5),
        (QCFS, "trainable", "yes"),
    ],
)
def test_refused(kind, name, value):
    with pytest.raises(InvalidValue) as error:
        kind(**{name: value})
    assert (error.value.name, error.value.value) == (name, value)


# What carries them: time, dropout, normalisation ----------------------------------------------------------------------


def test_a_network_without_sites_has_no_time_unless_its_input_has():
    seen = []
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    net.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    still = TimeFold(net, 8, temporal=False)
    assert (still.T, still(torch.rand(5, 2)).shape, seen) == (1, (1, 5, 3), [5])
    still.T = 4
    assert still.T == 1
    moving = TimeFold(net, 8, temporal=True)
    assert (moving.T, moving(torch.rand(5, 8, 2)).shape, seen[-1]) == (8, (8, 5, 3), 40)


def test_dropout_draws_one_mask_for_all_steps():
    drop = Dropout(0.25)
    drop.T = 4
    out = unfold(drop(fold(torch.ones(4, 1000, 10))), 4)
    assert all(torch.equal(out[0], step) for step in out)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    x = torch.rand(8, 3)
    assert drop.eval()(x) is x
    with pytest.raises(InvalidValue, match="dropout"):
        Dropout(1.0)


def test_normalisation_is_part_of_the_network_and_of_its_weights():
    x = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.5, 0.25, 0.0), (0.25, 0.5, 1.0)
    net = TimeFold(nn.Flatten(), 1, temporal=False, front=Normalize(mean, std))
    expected = (x / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(net(x)[0], expected.flatten(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net(x.float())[0], net(x)[0])
    assert set(net.state_dict()) == {"front.mean", "front.std"}
    with pytest.raises(InvalidValue, match="std"):
        Normalize((0.5,), (0.0,))
