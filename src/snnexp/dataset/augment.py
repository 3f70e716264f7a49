"""Augmentation of images, a whole batch at a time, on the device where the batch is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from snnexp.errors import choice, integer, require

POLICIES = {
    "cifar10": v2.AutoAugmentPolicy.CIFAR10,
    "imagenet": v2.AutoAugmentPolicy.IMAGENET,
    "svhn": v2.AutoAugmentPolicy.SVHN,
}
DRAWS = 32  # of a sub-policy a batch: images that share a draw are then few, and calls do not cost more than the work


@dataclass(frozen=True)
class Augment:
    """`augment(x, seed)`: uint8 [N, C, H, W] -> the same, each image changed by chance; a function of x and `seed`.

    In this order: `zoom`: a part of each image, of a share of its area between the two numbers and an aspect between
    3/4 and 4/3, scaled to `size` pixels square (None: to H x W), the random resized crop of Szegedy et al. (2015);
    `crop`: shift by up to so many pixels each way, the border black (pad and crop); `flip`: left and right exchanged
    for every other image; `policy`: AutoAugment (Cubuk et al., CVPR 2019) with the policy found for cifar10, imagenet
    or svhn; `cutout`: one square of so many pixels, centred anywhere in the image, grey (DeVries and Taylor 2017). 0
    and None are none. All chance is drawn on the CPU, so a GPU sees the same images. Raises InvalidValue.
    """

    zoom: Sequence[float] | None = None
    crop: int = 0
    flip: bool = False
    policy: str | None = None
    cutout: int = 0
    size: int | None = None  # set by a dataset that keeps its images larger than it shows them

    def __post_init__(self) -> None:
        if self.zoom is not None:
            zoom = self.zoom if isinstance(self.zoom, Sequence) else ()
            shares = [share for share in zoom if isinstance(share, int | float)]
            require(
                len(zoom) == len(shares) == 2 and 0 < shares[0] <= shares[1] <= 1,
                "zoom",
                self.zoom,
                "two shares of the area, [least, largest], above 0 and at most 1, or null",
            )
        integer("crop", self.crop, at_least=0)
        integer("cutout", self.cutout, at_least=0)
        require(isinstance(self.flip, bool), "flip", self.flip, "true or false")
        if self.policy is not None:
            choice("policy", self.policy, tuple(POLICIES))

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        n, random = len(x), torch.Generator().manual_seed(seed)

        def draw(below: int) -> Tensor:  # [N] int64 in 0..below-1
            return torch.randint(below, (n,), generator=random).to(x.device, non_blocking=True)

        if self.zoom:
            x = zoomed(x, drawn_boxes(n, self.zoom, random).to(x.device), self.size)
        if self.crop:
            x = shifted(x, self.crop, draw(2 * self.crop + 1), draw(2 * self.crop + 1))
        if self.flip:
            # rows of both versions: on a CPU six times as fast as torch.where
            x = torch.cat([x, x.flip(3)]).index_select(0, torch.arange(n, device=x.device) + n * draw(2))
        if self.policy:
            x = autoaugmented(x, self.policy, seed)
        if self.cutout:
            rows, columns = (_band(draw(size), size, self.cutout) for size in x.shape[2:])
            x = x.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 128)
        return x


def drawn_boxes(n: int, zoom: Sequence[float], random: torch.Generator) -> Tensor:
    """[n, 4]: (top, left, height, width) in shares of an image's sides: area uniform in `zoom`, aspect (width to
    height, in a square image) log-uniform in 3/4..4/3, place uniform."""
    area, aspect, *place = torch.rand(4, n, generator=random)
    area = zoom[0] + (zoom[1] - zoom[0]) * area
    root = ((2 * aspect - 1) * math.log(4 / 3) / 2).exp()
    sides = torch.stack([area.sqrt() / root, area.sqrt() * root]).clamp(max=1)
    return torch.cat([torch.stack(place) * (1 - sides), sides]).T


def zoomed(x: Tensor, boxes: Tensor, size: int | None) -> Tensor:
    """The parts `boxes` ([N, 4], see `drawn_boxes`) of x uint8 [N, C, H, W], bilinearly to `size` square, or H x W."""
    top, left, height, width = boxes.T
    zero = torch.zeros_like(top)
    # from an output's -1..1 to its box in the input's -1..1
    affine = torch.stack([width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], 1).view(-1, 2, 3)
    shape = [*x.shape[:2], *((size, size) if size else x.shape[2:])]
    grid = F.affine_grid(affine, shape, align_corners=False)
    return F.grid_sample(x.float(), grid, padding_mode="border", align_corners=False).round_().to(x.dtype)


def shifted(x: Tensor, pad: int, down: Tensor, right: Tensor) -> Tensor:
    """Windows of x [N, C, H, W] padded by `pad` zeros, whose corners are `down`, `right` [N] in 0..2 pad."""
    n, channels, height, width = x.shape
    padded = F.pad(x, 4 * (pad,)).contiguous()
    image, row = padded.stride(0), padded.stride(2)
    # all windows as one overlapping view, its first axis the place of the corner: a crop is then a row of it
    corners = (n - 1) * image + 2 * pad * (row + 1) + 1
    windows = padded.as_strided((corners, channels, height, width), (1, padded.stride(1), row, 1))
    return windows.index_select(0, torch.arange(n, device=x.device) * image + down * row + right)


def autoaugmented(x: Tensor, policy: str, seed: int) -> Tensor:
    """torchvision's AutoAugment on x uint8 [N, C, H, W]; a batch's images share `DRAWS` draws of a sub-policy."""
    transform = v2.AutoAugment(POLICIES[policy])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torchvision draws from the global generator
        return torch.cat([transform(part) for part in x.tensor_split(min(DRAWS, len(x)))])


def _band(centre: Tensor, size: int, length: int) -> Tensor:
    """Bool [N, size]: the `length` places around each of `centre` [N], cut at the ends."""
    place = torch.arange(size, device=centre.device) - (centre - length // 2)[:, None]
    return (place >= 0) & (place < length)
