"""What a kind of network is: its name, the keys that it takes, and how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

# Checkpoints are held to this too: what a stranger wrote must not make a network that does not fit the memory.
MAX_WIDTH = 65536
MAX_BLOCKS = 640  # the deepest that its paper trains, ResNet-1202, has 600


@dataclass(frozen=True)
class Kind:
    """args: a dataclass whose fields `bnfold.training.fields.key` declares. build: (shape, classes, args) -> module.

    shape: of one input, without the batch.
    """

    name: str
    args: type
    build: Callable[[tuple[int, ...], int, Any], nn.Module]


def check_blocks(count: int) -> None:
    """Raise ValueError for more blocks than a network has; to build them would take minutes before anything fails."""
    if count > MAX_BLOCKS:
        raise ValueError(f"it would have {count} blocks, expected up to {MAX_BLOCKS}")
