"""Time in the batch: the layout, the scan of a site, and the one owner of T."""

import pytest
import torch
from torch import Tensor, nn

from snnexp.errors import InvalidValue
from snnexp.timefold import Site, TimeFold, fold, unfold


class Sum(Site):
    """Emits the running sum of its input over time."""

    def step(self, current: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        total = current if state is None else state + current
        return total, total


def test_layout_is_step_major_and_unfold_is_a_view():
    x = torch.arange(24).view(3, 2, 4)  # [T, N, C]
    assert torch.equal(fold(x)[:2], x[0])  # rows 0..N-1 are step 0
    assert torch.equal(unfold(fold(x), 3), x)
    assert unfold(x.view(6, 4), 3).data_ptr() == x.data_ptr()
    with pytest.raises(RuntimeError):
        unfold(torch.zeros(7, 4), 3)


def test_a_site_scans_and_keeps_nothing():
    site = Sum()
    site.T = 3
    x = torch.rand(6, 4)
    assert torch.allclose(unfold(site(x), 3), unfold(x, 3).cumsum(0))
    assert torch.equal(site(x), site(x))


@pytest.mark.parametrize("shape", [(5, 3, 2), (5, 3, 2, 4, 4)])
def test_temporal_input_arrives_in_order(shape):
    frames = torch.randint(0, 200, shape, dtype=torch.uint8)  # [N, T, ...]
    out = TimeFold(Sum(), 3, temporal=True)(frames)
    assert out.dtype == torch.float32
    assert torch.equal(out, frames.float().cumsum(1).transpose(0, 1))


def test_static_input_is_shown_at_each_step():
    x = torch.rand(5, 2)
    assert torch.allclose(TimeFold(Sum(), 4, temporal=False)(x), torch.stack([x * t for t in (1, 2, 3, 4)]))


def test_plain_modules_see_time_as_batch():
    norm = nn.BatchNorm1d(2)
    x = torch.rand(5, 3, 2)
    TimeFold(norm, 3, temporal=True)(x)
    assert torch.allclose(norm.running_mean, 0.1 * x.mean((0, 1)), atol=1e-6)


def test_one_owner_of_T():
    net = TimeFold(nn.Sequential(nn.Linear(2, 2), Sum(), nn.Sequential(Sum())), 4, temporal=False)
    assert list(net.sites()) == ["1", "2.0"]
    assert [site.T for site in net.sites().values()] == [4, 4]
    net.T = 2
    assert [site.T for site in net.sites().values()] == [2, 2]
    assert net(torch.rand(5, 2)).shape == (2, 5, 2)
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(InvalidValue, match="T="):
            net.T = wrong


def test_frames_of_another_length_are_refused():
    with pytest.raises(InvalidValue, match="T=4 is not allowed: it must be 8"):
        TimeFold(Sum(), 4, temporal=True)(torch.zeros(2, 8, 3))
