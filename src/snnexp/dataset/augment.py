"""Augmentation of images, a whole batch at a time, on the device where the batch is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from snnexp.errors import choice, integer, require

POLICIES = {"cifar10": v2.AutoAugmentPolicy.CIFAR10, "imagenet": v2.AutoAugmentPolicy.IMAGENET,
            "svhn": v2.AutoAugmentPolicy.SVHN}
DRAWS = 32  # of a sub-policy a batch: images that share a draw are then few, and calls do not cost more than the work


@dataclass(frozen=True)
class Augment:
    """`augment(x, seed)`: uint8 [N, C, H, W] -> the same, each image changed by chance; a function of x and `seed`.

    In this order: `crop`: shift by up to so many pixels each way, the border black (pad and crop); `flip`: left and
    right exchanged for every other image; `policy`: AutoAugment (Cubuk et al., CVPR 2019) with the policy found for
    cifar10, imagenet or svhn, null for none; `cutout`: one square of so many pixels, centred anywhere in the image,
    grey (DeVries and Taylor 2017). 0 is none. All chance is drawn on the CPU, so a GPU sees the same images. Raises
    InvalidValue.
    """

    crop: int = 0
    flip: bool = False
    policy: str | None = None
    cutout: int = 0

    def __post_init__(self) -> None:
        integer("augment.crop", self.crop, at_least=0)
        integer("augment.cutout", self.cutout, at_least=0)
        require(isinstance(self.flip, bool), "augment.flip", self.flip, "true or false")
        if self.policy is not None:
            choice("augment.policy", self.policy, tuple(POLICIES))

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        n, (height, width) = len(x), x.shape[2:]
        random = torch.Generator().manual_seed(seed)

        def draw(below: int) -> Tensor:  # [N] int64 in 0..below-1
            return torch.randint(below, (n,), generator=random).to(x.device, non_blocking=True)

        if self.crop:
            x = shifted(x, self.crop, draw(2 * self.crop + 1), draw(2 * self.crop + 1))
        if self.flip:
            # rows of both versions: on a CPU six times as fast as torch.where
            x = torch.cat([x, x.flip(3)]).index_select(0, torch.arange(n, device=x.device) + n * draw(2))
        if self.policy:
            x = autoaugmented(x, self.policy, seed)
        if self.cutout:
            rows, columns = (_band(draw(size), size, self.cutout) for size in (height, width))
            x = x.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 128)
        return x


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
