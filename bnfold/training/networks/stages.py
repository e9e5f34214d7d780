"""Stages of blocks: how many each has, and which of them halve the size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from bnfold.training.fields import key
from bnfold.training.networks.kind import check_blocks

Blocks: TypeAlias = int | tuple[int, ...]

# The key `blocks` of every kind that has stages of them.
BLOCKS = key("blocks of each stage, or one number for all", 1, low=1, high=32)


def of_each_stage(counts: Blocks, widths: Sequence[int], what: str) -> tuple[int, ...]:
    """A count for each width; one alone is that of all. what: is counted, in words.

    Raises ValueError for another number of counts, and for more blocks than a network has.
    """
    counts = (counts,) if isinstance(counts, int) else counts
    if len(counts) not in (1, len(widths)):
        raise ValueError(f"{len(counts)} {what} stand beside {len(widths)} widths, expected as many, or one")
    counts = counts * len(widths) if len(counts) == 1 else counts
    check_blocks(sum(counts))
    return counts


def width_and_stride(widths: Sequence[int], blocks: Blocks) -> Iterator[tuple[int, int]]:
    """Of each block: the first of every stage but the first one halves the size."""
    for stage, (width, count) in enumerate(zip(widths, of_each_stage(blocks, widths, "blocks"), strict=True)):
        for block in range(count):
            yield width, 2 if stage > 0 and block == 0 else 1
