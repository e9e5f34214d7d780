"""One of the two networks of an audit: its facts, its nodes, and what is constant in it.

Nothing here is found by name across the two: other tools keep the original name on a tensor that they changed, or
give new ones to everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from bnfold.folding import algebra, onnx_graph, onnx_shapes
from bnfold.folding.carriers import Concat, Pad, Pool, Reshape, Select, Transpose
from bnfold.folding.expressions import (
    Array,
    Expr,
    Given,
    Join,
    Leaf,
    Op,
    Scalar,
    operands,
    size_of,
    spread,
    view,
)  # fmt: skip
from bnfold.folding.facts import Carrier, Dim, Graph, Linear, Node, Norm
from bnfold.folding.onnx_clone import clone_of, unlist_constants
from bnfold.folding.onnx_constants import Constants
from bnfold.folding.onnx_edits import NewTensor

Content = tuple[object, ...]


@dataclass(frozen=True)
class Chain:
    """What stands between a value and whoever reads it: the norms, first one first, behind what is no norm."""

    source: str
    norms: tuple[Norm, ...]


@dataclass(frozen=True, eq=False)
class Side:
    """A network. made: by name, tensors that are zero in the model and stand for an expression.

    is_torch: it was exported, and its literals, float32 in ONNX, are decimals that were written in float64.
    """

    model: ir.Model
    graph: Graph
    constants: Constants
    made: Mapping[str, NewTensor] = field(default_factory=dict)
    is_torch: bool = False
    contents: dict[str, Content] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> dict[str, ir.Node]:
        """The ONNX node that writes a value."""
        return {str(value.name): node for node in self.model.graph for value in node.outputs if value.name}

    @cached_property
    def outputs(self) -> dict[str, str]:
        """By the name of each output of the graph that under which its data first appeared."""
        return dict(zip((str(value.name) for value in self.model.graph.outputs), self.graph.outputs, strict=True))

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """Every linear, in topological order."""
        return tuple(node for node in self.graph.nodes if isinstance(node, Linear))

    @cached_property
    def norms(self) -> tuple[Norm, ...]:
        """The norms, without other affine steps (a bias, a factor)."""
        return tuple(norm for norm in self.graph.norms if norm.is_norm)

    def producer(self, value: str) -> Node | None:
        """What writes a value, None for an input or a constant of the graph."""
        return self.graph.producers.get(value)

    def root(self, value: ir.Value) -> str:
        """The name under which a value's data first appeared."""
        while str(value.name) not in self.graph.producers:
            node = value.producer()
            if node is None or not node.inputs or node.inputs[0] is None:
                break
            value = node.inputs[0]
        return str(value.name)

    def chain(self, value: str) -> Chain:
        """The affine steps before a reader of a value."""
        norms: list[Norm] = []
        node = self.producer(value)
        while True:
            passed = None if node is None else self.passed(node)
            if passed is not None:
                value = passed
            elif isinstance(node, Norm) and is_affine(node):
                norms.append(node)
                value = node.input
            else:
                break
            node = self.producer(value)
        return Chain(value, tuple(reversed(norms)))

    def behind(self, linear: Linear) -> Chain:
        """The affine steps right behind a linear, up to the first value that is read otherwise, or twice."""
        norms: list[Norm] = []
        value = linear.output
        while True:
            readers = self.graph.readers.get(value, ())
            node = self.graph.by_id.get(readers[0]) if len(readers) == 1 else None
            if not isinstance(node, Norm) or not is_affine(node):
                return Chain(linear.output, tuple(norms))
            norms.append(node)
            value = node.output

    def passed(self, node: Node) -> str | None:
        """What a node hands on unchanged; None for one that does something."""
        if isinstance(node, Norm):
            return node.input if _is_nothing(node) else None
        if not isinstance(node, Carrier):
            return None
        shapes = self.graph.shapes.get(node.inputs[0]), self.graph.shapes.get(node.outputs[0])
        return node.inputs[0] if _does_nothing(node, *shapes) else None

    def constant(self, value: ir.Value) -> Array | None:
        """The numbers of a constant, in float64 where the graph computes them; None for what is none."""
        if value in self.constants.overridable:
            return None
        stored = self.constants.stored(value)
        expr = self.constants.get(value)
        if stored is not None and expr is not None and stored.shape == expr.shape:
            return stored.load()
        if expr is not None:
            return algebra.evaluate(expr).hi
        tensor = value.const_value if value.is_initializer() else None
        node = value.producer()
        if node is not None and node.op_type == "Constant" and "value" in node.attributes:
            tensor = node.attributes["value"].as_tensor()
        if tensor is not None:
            return np.asarray(tensor.numpy())
        found = self.constants.integers(value)
        return None if found is None else np.asarray(found, np.int64)

    def content(self, norm: Norm) -> Content:
        """What a norm computes, whatever it is called: equal for norms that are the same, bit for bit."""
        if norm.id not in self.contents:
            self.contents[norm.id] = _content(norm)
        return self.contents[norm.id]

    def exact(self, expr: Expr) -> Expr:
        """An expression with what the made tensors stand for in their place, and literals as they were written."""
        if not self.made and not self.is_torch:
            return expr
        match expr:
            case Scalar(value) if self.is_torch and float(np.float32(value)) == value:
                return Scalar(float(str(np.float32(value))))
            case Leaf(tensor) if tensor.name in self.made:
                known = self.made[tensor.name].expr
                if size_of(known) == size_of(expr):
                    return view(known, expr.shape)
                return spread(view(known, (1,) * len(expr.shape)), expr.shape)
            case _ if not operands(expr):
                return expr
        return _with_operands(expr, tuple(self.exact(part) for part in operands(expr)))


def side_of(model: ir.Model, made: tuple[NewTensor, ...] = (), *, is_torch: bool = False) -> Side:
    """Read a model. Raises FoldError for one that cannot be read."""
    model = clone_of(model)
    unlist_constants(model)
    graph = onnx_graph.read(model)
    clone = clone_of(model)
    constants = Constants(clone.graph, ir_version=clone.ir_version)
    onnx_shapes.infer(clone)
    for node in clone.graph:
        if node.domain == "" and node.op_identifier() not in clone.functions:
            constants.take(node)
    return Side(clone, graph, constants, {new.tensor: new for new in made}, is_torch)


def is_affine(norm: Norm) -> bool:
    """True for a map with known numbers; a norm that computes its statistics is a node like any other."""
    if norm.parameters:
        return False
    return norm.is_elementwise or norm.statistics is not None


def _is_nothing(norm: Norm) -> bool:
    """True for `0 + x` and `1 * x`, with which some networks begin a sum."""
    if not norm.is_elementwise or norm.refusal or size_of(norm.scale) > 1 or size_of(norm.shift) > 1:
        return False
    scale, shift = algebra.magnitude(norm.scale), algebra.magnitude(norm.shift)
    return bool((scale == 1).all() and (shift == 0).all())


Sizes = tuple[Dim, ...]


def _does_nothing(node: Carrier, before: Sizes | None, after: Sizes | None) -> bool:
    match node.rule:
        case Reshape():
            return before is not None and before == after and sum(not isinstance(size, int) for size in before) <= 1
        case Transpose(perm):
            return perm == tuple(range(len(perm)))
        case Pad(axes=axes):
            return not axes
        case Pool(axes=axes, window=None, keepdims=True):  # over 1 x 1
            return before is not None and all(before[axis] == 1 for axis in axes)
        case Concat():
            return len(node.inputs) == 1
        case Select(axes):
            return all(_takes_all(before or (), axis, indices) for axis, indices in axes)
    return False


def _takes_all(shape: Sizes, axis: int, indices: tuple[int, ...] | None) -> bool:
    size = shape[axis] if axis < len(shape) else None
    return isinstance(size, int) and indices == tuple(range(size))


def same_bits(left: Array, right: Array) -> bool:
    """True for one dtype, one shape, the same bits."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype.kind in "OUS":
        return bool(np.array_equal(left, right))
    return np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()


def _content(norm: Norm) -> Content:
    code = norm.refusal.code if norm.refusal else ""
    if norm.statistics is not None:
        stated = norm.statistics
        parts = (stated.gamma, stated.beta, stated.mean, stated.variance, stated.eps)
        return ("BatchNorm", code, *(_bytes(part) for part in parts))
    return ("Affine", code, norm.axis, _bytes(norm.scale), _bytes(norm.shift))


def _bytes(expr: Expr) -> bytes:
    value = algebra.evaluate(expr)
    return value.hi.tobytes() + value.lo.tobytes()


def _with_operands(expr: Expr, parts: tuple[Expr, ...]) -> Expr:
    match expr:
        case Op():
            return dataclasses.replace(expr, args=parts)
        case Join():
            return dataclasses.replace(expr, parts=parts)
        case Scalar() | Leaf() | Given():
            return expr
    return dataclasses.replace(expr, of=parts[0])
