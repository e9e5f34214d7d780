"""The first layer of a network that whitens its input: fixed kernels from the patches of the data it is trained on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bnfold.training.data import Dataset, prepare
from bnfold.training.distributed import Group
from bnfold.training.networks.airbench import Airbench

# Of airbench94 (Jordan 2024, arXiv 2404.00498): so many pictures, and what is added to every variance, so that a
# direction in which nothing ever changes is not made as large as the others.
PICTURES = 5000
FLOOR = 5e-4
_BYTES = 2**28  # of the pictures as float32: fewer of large ones
_AT_ONCE = 64
_AS_LARGE = 1 - 1e-6


def whiten(network: nn.Module, data: Dataset, device: torch.device, group: Group) -> nn.Module:
    """The same network; the layer that is to whiten, where there is one, gets its kernels, and a bias of zero.

    Several processes have the kernels of the first. network: on the CPU. device: of the group.
    """
    layer = network.whitening if isinstance(network, Airbench) else None
    if layer is not None:
        kernels = whitening_kernels(data, layer.kernel_size[0]).to(device)
        with torch.no_grad():
            layer.weight.copy_(group.of_first(kernels))
            if layer.bias is not None:
                layer.bias.zero_()
    return network


def whitening_kernels(data: Dataset, size: int) -> torch.Tensor:
    """(2 C size², C, size, size) float32, by falling variance: first each direction, then each with the other sign.

    The directions are the eigenvectors of the patches' covariance, divided by the standard deviation along them: what
    they give of the training data has variance 1, and no two go together.
    """
    channels = data.images.shape[1]
    values, count = channels * size**2, 0
    total = torch.zeros(values, dtype=torch.float64)
    for rows in _patches(data, size):
        total, count = total + rows.sum(0), count + len(rows)
    products = torch.zeros(values, values, dtype=torch.float64)
    for rows in _patches(data, size):
        centred = rows - total / count
        products += centred.T @ centred
    variances, vectors = torch.linalg.eigh(products / max(1, count - 1))
    vectors = vectors.flip(1).T  # a row each
    # An eigenvector is as good as its negative: the one whose largest number is positive. Of data that look the same
    # from both sides several are equally large but for rounding, and the first of them counts, on every machine.
    sizes = vectors.abs()
    largest = (sizes >= _AS_LARGE * sizes.amax(1, keepdim=True)).to(torch.uint8).argmax(1, keepdim=True)
    vectors *= vectors.gather(1, largest).sign()
    scaled = vectors / (variances.flip(0).clamp(min=0) + FLOOR).sqrt()[:, None]
    return torch.cat([scaled, -scaled]).reshape(-1, channels, size, size).to(torch.float32)


def _patches(data: Dataset, size: int) -> Iterator[torch.Tensor]:
    """All patches of some pictures, spread evenly over those that are trained on: (patches, C size²) float64."""
    trained = np.flatnonzero(~data.held_out)
    count = min(len(trained), PICTURES, max(1, _BYTES // (4 * data.images[0].size)))
    chosen = trained[np.linspace(0, len(trained) - 1, count).astype(np.int64)]
    for start in range(0, count, _AT_ONCE):
        images = torch.from_numpy(prepare(data.images[chosen[start : start + _AT_ONCE]], data.preprocessing))
        yield F.unfold(images.double(), size).transpose(1, 2).flatten(0, 1)
