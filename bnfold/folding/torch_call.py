"""A call of an ATen operator, as the rules of carriers see it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from bnfold.folding.carriers import Rule
from bnfold.folding.torch_constants import Constants
from bnfold.folding.torch_tensors import fixed_size


@dataclass(frozen=True)
class Call:
    """An operator with its arguments by name, and the fake values of its first data input and first output."""

    node: Node
    args: dict[str, Any]
    before: torch.Tensor
    after: torch.Tensor
    constants: Constants

    @property
    def rank(self) -> int:
        """The rank of the first data input."""
        return self.before.ndim

    def axis(self, given: Any) -> int | None:
        """An axis of the first data input, counted from the front; None where it is no number."""
        if isinstance(given, bool) or not isinstance(given, int) or not -self.rank <= given < self.rank:
            return None
        return given % self.rank

    def axes(self, given: Any) -> tuple[int, ...] | None:
        """Several axes, from the front and in order."""
        found = [self.axis(value) for value in (given if isinstance(given, list | tuple) else [given])]
        axes = sorted(axis for axis in found if axis is not None)
        return tuple(axes) if len(set(axes)) == len(found) else None

    def size(self, axis: int) -> int | None:
        """A size of the first data input, None where it is free."""
        return fixed_size(self.before.shape[axis])


RuleOf: TypeAlias = Callable[[Call], Rule | None]


def is_number(value: Any) -> bool:
    """True for a finite number that is no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
