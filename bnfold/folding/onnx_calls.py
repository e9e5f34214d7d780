"""A node of an ONNX graph with what is known of its inputs and outputs, for those who state facts of it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bnfold.folding.facts import Dim
from bnfold.folding.onnx_attributes import integer, integers
from bnfold.folding.onnx_constants import Constants


@dataclass(frozen=True)
class Call:
    """A node with what is known of its inputs."""

    node: ir.Node
    opset: int
    constants: Constants

    @property
    def data(self) -> ir.Value:
        """The first input."""
        found = self.node.inputs[0]
        if found is None:
            raise ValueError("a carrier has a first input")
        return found

    def input(self, index: int) -> ir.Value | None:
        """An input by its place, None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def given(self, index: int, name: str, since: int) -> tuple[int, ...] | None:
        """Integers that are an input from opset `since` on, and an attribute before; None where they are left out."""
        return self.constants.integers(self.input(index)) if self.opset >= since else integers(self.node, name)

    @property
    def shape(self) -> tuple[Dim, ...] | None:
        """The shape of the first input."""
        return shape_of_value(self.data)

    @property
    def after(self) -> tuple[Dim, ...] | None:
        """The shape of the first output."""
        return shape_of_value(self.node.outputs[0])

    @property
    def rank(self) -> int | None:
        """The rank of the first input."""
        return None if self.shape is None else len(self.shape)

    def axes(self, given: tuple[int, ...]) -> tuple[int, ...] | None:
        """Axes of the first input, counted from the front, in the order given; None where one is there twice."""
        rank = self.rank
        if rank is None or not all(-rank <= axis < rank for axis in given):
            return None
        found = tuple(axis % rank for axis in given)
        return found if len(set(found)) == len(found) else None

    def axis(self, default: int) -> int | None:
        """The attribute `axis`, counted from the front."""
        found = self.axes((integer(self.node, "axis", default),))
        return None if found is None else found[0]

    def size(self, axis: int) -> int | None:
        """A size of the first input, None where it is not known."""
        size = None if self.shape is None else self.shape[axis]
        return size if isinstance(size, int) else None


def is_read(value: ir.Value) -> bool:
    """True when a node or the graph's output reads a value."""
    return bool(value.uses()) or value.is_graph_output()


def shape_of_value(value: ir.Value) -> tuple[Dim, ...] | None:
    """The shape of a value: numbers, symbols, None for what is not known."""
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else (size.value or None) for size in value.shape)  # '' is no symbol
