"""Augment images, a whole batch at a time, on the device of the batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from snnexp.errors import boolean, choice, integer, require

POLICIES = {name: v2.AutoAugmentPolicy(name) for name in ("cifar10", "imagenet", "svhn")}
DRAWS = 32  # of sub-policies per batch: few images share one, and the calls cost less than the work


@dataclass(frozen=True)
class Augment:
    """`augment(x, seed)` returns a random change of each uint8 image in x [N, C, H, W], determined by x and `seed`.

    The steps, in this order: `zoom`, the random resized crop of Szegedy et al. (2015), takes a part of each image with
    a share of the area between the two numbers and an aspect ratio between 3/4 and 4/3, and scales it to `size` pixels
    square (None: to H x W); `crop` shifts by up to that many pixels in each direction and fills with black (pad and
    crop); `flip` mirrors each image left to right with probability 1/2; `policy` applies AutoAugment (Cubuk et al.,
    CVPR 2019) with the policy found for cifar10, imagenet or svhn; `cutout` greys a square with a side of that many
    pixels, centred anywhere in the image (DeVries and Taylor 2017). 0, False and None switch a step off. All random
    numbers are drawn on the CPU, so a GPU sees the same images. Raises InvalidValue.
    """

    zoom: Sequence[float] | None = None
    crop: int = 0
    flip: bool = False
    policy: str | None = None
    cutout: int = 0
    size: int | None = None  # set by a dataset that stores its images larger than it shows them

    def __post_init__(self) -> None:
        if self.zoom is not None:
            zoom = self.zoom if isinstance(self.zoom, Sequence) else ()
            shares = [share for share in zoom if isinstance(share, int | float)]
            fits = len(zoom) == len(shares) == 2 and 0 < shares[0] <= shares[1] <= 1
            allowed = "two shares of the area, [least, largest], above 0 and at most 1, or null"
            require(fits, "zoom", self.zoom, allowed)
        integer("crop", self.crop, at_least=0)
        integer("cutout", self.cutout, at_least=0)
        boolean("flip", self.flip)
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
            # indexing both versions is six times as fast as torch.where on a CPU
            x = torch.cat([x, x.flip(3)]).index_select(0, torch.arange(n, device=x.device) + n * draw(2))
        if self.policy:
            x = autoaugmented(x, self.policy, seed)
        if self.cutout:
            rows, columns = (_band(draw(size), size, self.cutout) for size in x.shape[2:])
            x = x.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 128)
        return x


def drawn_boxes(n: int, zoom: Sequence[float], random: torch.Generator) -> Tensor:
    """Draw boxes [n, 4] as (top, left, height, width) in shares of an image's sides: area uniform in `zoom`, aspect
    ratio (width to height, in a square image) log-uniform in 3/4..4/3, position uniform."""
    area, aspect, *place = torch.rand(4, n, generator=random)
    area = zoom[0] + (zoom[1] - zoom[0]) * area
    root = ((2 * aspect - 1) * math.log(4 / 3) / 2).exp()
    sides = torch.stack([area.sqrt() / root, area.sqrt() * root]).clamp(max=1)
    return torch.cat([torch.stack(place) * (1 - sides), sides]).T


def zoomed(x: Tensor, boxes: Tensor, size: int | None) -> Tensor:
    """Scale the parts `boxes` ([N, 4], see `drawn_boxes`) of uint8 x [N, C, H, W] bilinearly, to `size` or H x W."""
    top, left, height, width = boxes.T
    zero = torch.zeros_like(top)
    # maps the output's -1..1 to its box within the input's -1..1
    affine = torch.stack([width, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], 1).view(-1, 2, 3)
    shape = [*x.shape[:2], *((size, size) if size else x.shape[2:])]
    grid = F.affine_grid(affine, shape, align_corners=False)
    return F.grid_sample(x.float(), grid, padding_mode="border", align_corners=False).round_().to(x.dtype)


def shifted(x: Tensor, pad: int, down: Tensor, right: Tensor) -> Tensor:
    """Pad x [N, C, H, W] by `pad` zeros and cut H x W windows with corners `down`, `right` [N] in 0..2 pad."""
    n, channels, height, width = x.shape
    padded = F.pad(x, 4 * (pad,)).contiguous()
    image, row = padded.stride(0), padded.stride(2)
    # one overlapping view holds all windows, indexed by the position of the corner: a crop is one row of it
    corners = (n - 1) * image + 2 * pad * (row + 1) + 1
    windows = padded.as_strided((corners, channels, height, width), (1, padded.stride(1), row, 1))
    return windows.index_select(0, torch.arange(n, device=x.device) * image + down * row + right)


def autoaugmented(x: Tensor, policy: str, seed: int) -> Tensor:
    """Apply torchvision's AutoAugment to x uint8 [N, C, H, W]; a batch shares `DRAWS` draws of a sub-policy."""
    transform = v2.AutoAugment(POLICIES[policy])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torchvision draws from the global generator
        return torch.cat([transform(part) for part in x.tensor_split(min(DRAWS, len(x)))])


def _band(centre: Tensor, size: int, length: int) -> Tensor:
    """Return a mask, bool [N, size], of the `length` places around each `centre` [N], cut at the ends."""
    place = torch.arange(size, device=centre.device) - (centre - length // 2)[:, None]
    return (place >= 0) & (place < length)
