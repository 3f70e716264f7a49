"""Contracts of the parts of a training: surrogate, neuron, dataset, model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from snnexp.dataset.base import Data
from snnexp.neuron.clip import Clip
from snnexp.neuron.lif import LIF
from snnexp.surrogate import checked_surrogate, curve, primitive
from snnexp.surrogate.sine import Sine
from snnexp.timefold import Site, TimeFold, unfold


class SurrogateContract:
    """`make` returns a surrogate: forward is the Heaviside step, backward the derivative of its primitive.

    `tolerance`: the largest difference between backward and the primitive's slope. `shift`: moves the grid of points
    with step 0.001 off the corners of the primitive.
    """

    tolerance: ClassVar[float] = 1e-6
    shift: ClassVar[float] = 0.00037

    def make(self) -> Any:
        raise NotImplementedError

    def grid(self) -> Tensor:
        """Return the points at which derivatives are compared, in double precision."""
        return torch.arange(-3, 3, 1e-3, dtype=torch.float64) + self.shift

    def test_forward_is_exactly_heaviside(self) -> None:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            tiny = torch.finfo(dtype).smallest_normal
            x = torch.tensor([*torch.linspace(-3, 3, 601).tolist(), 0.0, tiny, -tiny, 1e30, -1e30], dtype=dtype)
            spikes = checked_surrogate(self.make())(x)
            assert spikes.dtype == dtype
            assert torch.equal(spikes, torch.where(x >= 0, 1.0, 0.0).to(dtype))

    def test_backward_is_finite(self) -> None:
        x = torch.cat([torch.linspace(-3, 3, 6001), torch.tensor([0.0, 1e-30, -1e-30, 1e30, -1e30])])
        assert curve(self.make(), x).derivative.isfinite().all()

    def test_backward_is_the_derivative_of_the_primitive(self) -> None:
        surrogate, x, h = self.make(), self.grid(), 1e-7
        above, below = primitive(surrogate, x + h), primitive(surrogate, x - h)
        if above is not None and below is not None:
            difference = (curve(surrogate, x).derivative - (above - below) / (2 * h)).abs()
            assert difference.max() <= self.tolerance, f"{difference.max():.3g} at x = {x[difference.argmax()]:.5f}"


class NeuronContract:
    """`make` returns a spiking `Site`: [T*N, ...] -> spikes of the same shape, and the same spikes step by step."""

    def make(self) -> Site:
        raise NotImplementedError

    def site(self, T: int) -> Site:
        """Return a site for T steps."""
        site = self.make()
        site.T = T
        return site

    @staticmethod
    def currents(T: int, N: int = 4, features: int = 3) -> Tensor:
        """Return inputs [T*N, features] around a threshold of 1."""
        return torch.randn(T * N, features, generator=torch.Generator().manual_seed(0)) + 0.3

    def test_it_spikes_and_learns(self) -> None:
        site, x = self.site(5), self.currents(5).requires_grad_()
        assert isinstance(site, Site)
        spikes = site(x)
        assert spikes.shape == x.shape
        assert set(spikes.unique().tolist()) == {0.0, 1.0}
        gradients = torch.autograd.grad(spikes.sum(), [x, *site.parameters()])
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert gradients[0].any()

    def test_streaming_gives_the_same_spikes(self) -> None:
        site, x, state, out = self.site(5), self.currents(5), None, []
        for current in unfold(x, 5):
            spikes, state = site.step(current, state)
            out.append(spikes)
        assert torch.equal(torch.cat(out), site(x))

    def test_nothing_is_kept_between_calls(self) -> None:
        site, x = self.site(5), self.currents(5)
        first = site(x)
        site(torch.full((5 * 7, 2), 9.0))  # another batch, another shape
        site.step(torch.ones(4, 3), None)
        assert torch.equal(site(x), first)
        assert torch.equal(copy.deepcopy(site)(x), first)

    def test_any_shape_and_layout(self) -> None:
        site = self.site(4)
        for shape in ((8,), (8, 3), (8, 3, 5, 5)):
            assert site(torch.rand(shape)).shape == shape
        x = torch.rand(8, 3, 5, 5).to(memory_format=torch.channels_last)
        assert torch.equal(site(x), site(x.contiguous()))


class DatasetContract:
    """`make` returns `Data`, each time the same: labels in range, splits apart, shapes as they say."""

    def make(self) -> Data:
        raise NotImplementedError

    def test_shapes_and_labels(self) -> None:
        data = self.make()
        assert isinstance(data, Data)
        for split in (data.train, data.val, data.test):
            assert len(split) > 0
            x, y = next(split.batches(2))
            assert tuple(x.shape[2 if data.temporal or data.averaged else 1 :]) == tuple(data.shape)
            assert y.dtype == torch.int64
            labels = split.y[split.index]
            assert 0 <= int(labels.min()) <= int(labels.max()) < len(data.classes)

    def test_no_sample_is_in_two_splits(self) -> None:
        data = self.make()
        splits = (data.train, data.val, data.test)
        rows = [(split.x.data_ptr(), row) for split in splits for row in split.index.tolist()]
        assert len(rows) == len(set(rows))

    def test_it_repeats(self) -> None:
        first, second = self.make(), self.make()
        for name in ("train", "val", "test"):
            one, other = getattr(first, name), getattr(second, name)
            assert torch.equal(one.index, other.index)
            for a, b in zip(next(one.batches(8)), next(other.batches(8)), strict=True):
                assert torch.equal(a, b)


class ModelContract:
    """`make(shape, classes, neuron)` returns a module from [T*N, *shape] to [T*N, classes], the same for a seed.

    `shape`: the input that is tried. The module calls `neuron()` where an activation belongs, so that it is an SNN with
    a spiking neuron and an ANN with another.
    """

    shape: ClassVar[tuple[int, ...]] = (3, 16, 16)

    def make(self, shape: tuple[int, ...], classes: int, neuron: Callable[[], nn.Module]) -> nn.Module:
        raise NotImplementedError

    def network(self, neuron: Callable[[], nn.Module]) -> tuple[TimeFold, Tensor]:
        """Return a network of 4 classes for 2 steps, and inputs [8, *shape]."""
        torch.manual_seed(0)
        return TimeFold(self.make(self.shape, 4, neuron), 2, temporal=False), torch.randn(8, *self.shape)

    def test_the_same_class_is_ann_and_snn(self) -> None:
        ann, x = self.network(lambda: Clip(1.0))
        assert (ann(x).shape, len(ann.sites())) == ((1, 8, 4), 0)
        snn, x = self.network(lambda: LIF(Sine()))
        assert snn(x).shape == (2, 8, 4)
        assert snn.sites()

    def test_it_learns(self) -> None:
        for neuron in (lambda: Clip(1.0), lambda: LIF(Sine())):
            net, x = self.network(neuron)
            torch.autograd.backward(nn.functional.cross_entropy(net(x).mean(0), torch.arange(8) % 4))
            gradients = [p.grad for p in net.parameters() if p.grad is not None]
            assert gradients
            assert all(gradient.isfinite().all() for gradient in gradients)

    def test_a_seed_repeats_and_weights_come_back(self) -> None:
        (net, x), (again, _) = self.network(lambda: Clip(1.0)), self.network(lambda: Clip(1.0))
        net.eval()
        again.eval()
        assert torch.equal(net(x), again(x))
        with torch.no_grad():
            for p in again.parameters():
                p.add_(0.1)
        again.load_state_dict(net.state_dict())
        assert torch.equal(net(x), again(x))
