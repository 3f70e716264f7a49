"""Contracts of the parts of a training: surrogate, neuron, dataset, model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from snnexp.dataset.base import Data
from snnexp.neuron.clip import Clip
from snnexp.neuron.lif import LIF
from snnexp.surrogate import checked_surrogate, curve, primitive
from snnexp.surrogate.sine import Sine
from snnexp.timefold import Normalize, Site, TimeFold, unfold


class SurrogateContract:
    """`make` returns a surrogate: forward is the Heaviside step, backward the derivative of its primitive.

    `tolerance`: the largest difference allowed between backward and `slope`. `shift`: moves the grid, whose step is
    0.001, off the corners of the primitive.
    """

    tolerance: float = 1e-6
    shift: float = 0.00037

    def make(self) -> Any:
        raise NotImplementedError

    def slope(self, surrogate: Any, x: Tensor) -> Tensor | None:
        """Return the expected derivative at x: the numeric derivative of the primitive; None if there is no primitive.
        Override it if backward differs on purpose, for example by a cap."""
        h = 1e-7
        above, below = primitive(surrogate, x + h), primitive(surrogate, x - h)
        return None if above is None or below is None else (above - below) / (2 * h)

    def test_forward_is_exactly_heaviside(self) -> None:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            tiny = torch.finfo(dtype).smallest_normal
            x = torch.tensor([*torch.linspace(-3, 3, 601).tolist(), 0.0, tiny, -tiny, 1e30, -1e30], dtype=dtype)
            spikes = checked_surrogate(self.make())(x)
            assert spikes.dtype == dtype
            assert torch.equal(spikes, torch.where(x >= 0, 1.0, 0.0).to(dtype))

    def test_backward_is_finite(self) -> None:
        x = torch.cat([torch.linspace(-3, 3, 6001), torch.tensor([0.0, 1e-30, -1e-30, 1e30, -1e30])])
        derivative = curve(self.make(), x).derivative
        assert derivative.isfinite().all(), x[~derivative.isfinite()]

    def test_backward_is_the_derivative_of_the_primitive(self) -> None:
        surrogate, x = self.make(), torch.arange(-3, 3, 1e-3, dtype=torch.float64) + self.shift
        slope = self.slope(surrogate, x)
        if slope is not None:
            difference = (curve(surrogate, x).derivative - slope).abs()
            assert difference.max() <= self.tolerance, f"{difference.max():.3g} at x = {x[difference.argmax()]:.5f}"

    def test_it_can_be_saved(self) -> None:
        surrogate, x = self.make(), torch.linspace(-2, 2, 100)
        again = pickle.loads(pickle.dumps(surrogate))
        assert torch.equal(curve(again, x).derivative, curve(surrogate, x).derivative)


class NeuronContract:
    """`make` returns a spiking `Site`: [T*N, ...] -> spikes of the same shape, which are the same step by step."""

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
        assert torch.equal(pickle.loads(pickle.dumps(site))(x), first)

    def test_any_shape_and_layout(self) -> None:
        site = self.site(4)
        for shape in ((8,), (8, 3), (8, 3, 5, 5)):
            assert site(torch.rand(shape)).shape == shape
        x = torch.rand(8, 3, 5, 5).to(memory_format=torch.channels_last)
        assert torch.equal(site(x), site(x.contiguous()))


class DatasetContract:
    """`make` returns `Data`, the same at each call: labels in range, disjoint splits, shapes as stated."""

    def make(self) -> Data:
        raise NotImplementedError

    def test_shapes_and_labels(self) -> None:
        data = self.make()
        assert isinstance(data, Data)
        for split in (data.train, data.val, data.test):
            assert len(split) > 0
            x, y = next(split.batches(2))
            x = data.augment(x, 0) if data.augment and split is data.train else x  # it may cut samples to their shape
            assert tuple(x.shape[2 if data.temporal or data.averaged else 1 :]) == tuple(data.shape)
            assert y.dtype == torch.int64
            labels = split.y[split.index]
            assert 0 <= int(labels.min()) <= int(labels.max()) < len(data.classes)

    def test_no_sample_is_in_two_splits(self) -> None:
        data = self.make()
        splits = (data.train, data.val, data.test)
        rows = [(split.x.data_ptr(), row) for split in splits for row in split.index.tolist()]
        assert len(rows) == len(set(rows))

    def test_it_is_the_same_each_time(self) -> None:
        first, second = self.make(), self.make()
        for name in ("train", "val", "test"):
            one, other = getattr(first, name), getattr(second, name)
            assert torch.equal(one.index, other.index)
            for a, b in zip(next(one.batches(8)), next(other.batches(8)), strict=True):
                assert torch.equal(a, b)

    def test_augmentation_and_normalisation(self) -> None:
        data = self.make()
        x, _ = next(data.train.batches(4))
        if data.augment:
            first, again = data.augment(x.clone(), 1), data.augment(x.clone(), 1)
            assert torch.equal(first, again), "the augmentation depends on more than the batch and the seed"
        if data.normalize:
            assert len(data.normalize[0]) == data.shape[0]
            assert Normalize(*data.normalize)(x).isfinite().all()


class ModelContract:
    """`make(shape, classes, neuron)` returns a module from [T*N, *shape] to [T*N, classes], the same for a seed.

    `shape`: the input that is tried. The module calls `neuron()` where an activation belongs, so that it is an SNN with
    a spiking neuron and an ANN with another.
    """

    shape: tuple[int, ...] = (3, 16, 16)
    neurons: ClassVar[Mapping[str, Callable[[], nn.Module]]] = {"clip": lambda: Clip(1.0), "lif": lambda: LIF(Sine())}

    def make(self, shape: tuple[int, ...], classes: int, neuron: Callable[[], nn.Module]) -> nn.Module:
        raise NotImplementedError

    def network(self, neuron: Callable[[], nn.Module]) -> tuple[TimeFold, Tensor]:
        """Return a network of 4 classes for 2 steps, and inputs [8, *shape]."""
        torch.manual_seed(0)
        return TimeFold(self.make(self.shape, 4, neuron), 2, temporal=False), torch.randn(8, *self.shape)

    def test_with_every_neuron_it_is_an_ann_or_an_snn_and_trains(self) -> None:
        for name, neuron in self.neurons.items():
            spiking, (net, x) = isinstance(neuron(), Site), self.network(neuron)
            before = {key: value.detach().clone() for key, value in net.named_parameters()}
            out = net(x)
            assert (out.shape, bool(net.sites())) == ((2 if spiking else 1, 8, 4), spiking), name
            torch.autograd.backward(nn.functional.cross_entropy(out.mean(0), torch.arange(8) % 4))
            assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters()), name
            torch.optim.SGD(net.parameters(), 0.1).step()
            changed = [key for key, value in net.named_parameters() if not torch.equal(value, before[key])]
            assert any("weight" in key for key in changed), f"{name}: no weight learns"
            # Spikes may be too few for a gradient everywhere.
            assert spiking or len(changed) >= 0.5 * len(before), f"{name}: most parameters do not learn"

    def test_a_seed_repeats_and_weights_can_be_loaded(self) -> None:
        (net, x), (again, _) = (self.network(next(iter(self.neurons.values()))) for _ in range(2))
        net.eval()
        again.eval()
        assert torch.equal(net(x), again(x))
        with torch.no_grad():
            for p in again.parameters():
                p.add_(0.1)
        assert not torch.equal(net(x), again(x))
        again.load_state_dict(copy.deepcopy(net.state_dict()))
        assert torch.equal(net(x), again(x))
