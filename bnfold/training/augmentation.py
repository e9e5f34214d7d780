"""Augmentation of a batch on its device, in the memory format that it comes in. What happens to which image is drawn on
the CPU, so that every device sees the same images.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from bnfold.training.recipe import Augmentation


def augment(images: torch.Tensor, wanted: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Images (N, C, H, W) as the network takes them, each shifted, mirrored and cut out as the recipe says."""
    if wanted.shift:
        images = shift(images, wanted.shift, generator)
    if wanted.flip:
        images = flip(images, generator)
    if wanted.cutout:
        images = cut_out(images, wanted.cutout, generator)
    return images


def shift(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by up to `most` pixels in each direction; zeros come in."""
    count, _, height, width = images.shape
    rows, columns = torch.randint(0, 2 * most + 1, (2, count), generator=generator).to(images.device)
    # A view of all windows, (N, C, rows, columns, H, W): one index for each image, not one for each pixel.
    windows = F.pad(images, (most, most, most, most)).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, rows, columns]


def flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image mirrored left to right, or not, with equal chances."""
    chosen = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def cut_out(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """A square of zeros in each image, centred anywhere in it (DeVries and Taylor 2017, arXiv 1708.04552)."""
    count, _, height, width = images.shape
    centres = torch.rand(2, count, generator=generator).to(images.device)
    top = (centres[0] * height).floor()[:, None] - size // 2
    left = (centres[1] * width).floor()[:, None] - size // 2
    rows, columns = (torch.arange(length, device=images.device)[None] for length in (height, width))
    cut_rows = (rows >= top) & (rows < top + size)
    cut_columns = (columns >= left) & (columns < left + size)
    return torch.where((cut_rows[:, :, None] & cut_columns[:, None, :])[:, None], 0.0, images)
