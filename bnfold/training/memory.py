"""A batch that does not fit the memory of the device: which one would."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bnfold.errors import DataError
from bnfold.training.distributed import ALONE, Group


def does_not_fit(
    size: int, device: torch.device, attempt: Callable[[int], None], smallest: int, group: Group = ALONE
) -> DataError:
    """The sentence for a batch size, once it has failed. attempt: a forward and a backward pass with so many samples.
    smallest: what the network can train on at all.

    The size is halved until one goes through; the state of an optimiser that has not stepped yet is not counted.
    In several processes nothing is tried, as the others would have to try along.
    """
    if group.size > 1:
        return DataError(
            f"train.batch_size is {size}, and its share for process {group.rank} of {group.size} does not fit the "
            f"memory of the device '{device}'; set a lower one or start more processes"
        )
    largest = size // 2
    while largest >= smallest and not _goes_through(largest, device, attempt):
        largest //= 2
    if largest < smallest:
        neither = f", and neither does a batch of {smallest}" if size > smallest else ""
        return DataError(
            f"train.batch_size is {size}, which does not fit the memory of the device '{device}'{neither}; take a "
            "smaller network or smaller images"
        )
    return DataError(
        f"train.batch_size is {size}, which does not fit the memory of the device '{device}'; a step of {largest} went "
        f"through: set train.batch_size={largest}{' or lower' if largest > smallest else ''}"
    )


def _goes_through(size: int, device: torch.device, attempt: Callable[[int], None]) -> bool:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        attempt(size)
    except torch.OutOfMemoryError:
        return False
    return True
