"""Augmentation of a batch on its device. What happens to which image is drawn on the CPU, so that every device sees the
same images.
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
    count, channels, height, width = images.shape
    device = images.device
    offsets = torch.randint(0, 2 * most + 1, (2, count), generator=generator).to(device)
    padded = F.pad(images, (most, most, most, most))
    rows = (offsets[0][:, None] + torch.arange(height, device=device))[:, None, :, None]
    columns = (offsets[1][:, None] + torch.arange(width, device=device))[:, None, None, :]
    samples = torch.arange(count, device=device)[:, None, None, None]
    return padded[samples, torch.arange(channels, device=device)[None, :, None, None], rows, columns]


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
    return images.masked_fill((cut_rows[:, :, None] & cut_columns[:, None, :])[:, None], 0)
