"""What a kind of network is: its name, the keys that it takes, and how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

# Checkpoints are held to this too: what a stranger wrote must not make a network that does not fit the memory.
MAX_WIDTH = 65536


@dataclass(frozen=True)
class Kind:
    """args: a dataclass whose fields `bnfold.training.fields.key` declares. build: (shape, classes, args) -> module.

    shape: of one input, without the batch.
    """

    name: str
    args: type
    build: Callable[[tuple[int, ...], int, Any], nn.Module]
