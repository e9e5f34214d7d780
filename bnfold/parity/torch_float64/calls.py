"""One node of a graph as the operators of this package see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from bnfold.errors import ParityError

Tensor: TypeAlias = torch.Tensor
Inputs: TypeAlias = Sequence[Tensor | None]


@dataclass(frozen=True)
class Call:
    """A node. attributes: as given, else the schema's defaults; outputs: how many it has; dtype: of all floats."""

    operator: str
    name: str
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    dtype: torch.dtype

    @property
    def label(self) -> str:
        """How a sentence calls it."""
        return f"{self.operator} '{self.name or ', '.join(self.outputs)}'"

    def refuse(self, what: str) -> ParityError:
        """The error for a use that is not supported."""
        return ParityError(f"{self.label} {what}, which the torch evaluation in float64 does not know")

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def number(self, name: str) -> float:
        """An attribute that is a number: alpha, epsilon, ..."""
        return float(self.attributes[name])


def at(inputs: Inputs, place: int) -> Tensor | None:
    """An optional input."""
    return inputs[place] if place < len(inputs) else None


def need(inputs: Inputs, place: int) -> Tensor:
    """An input that the operator cannot do without. Raises ParityError."""
    found = at(inputs, place)
    if found is None:
        raise ParityError(f"an operator lacks its input {place}")
    return found


def whole(tensor: Tensor) -> list[int]:
    """The numbers of a tensor of integers: axes, sizes, pads."""
    return [int(number) for number in tensor.reshape(-1).tolist()]


def axes_of(call: Call, inputs: Inputs, place: int) -> list[int] | None:
    """Axes as an attribute (older opsets) or as an input; None where they are left out."""
    given = call.get("axes")
    if given is not None:
        return [int(axis) for axis in given]
    tensor = at(inputs, place)
    return None if tensor is None else whole(tensor)
