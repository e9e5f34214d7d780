"""What is constant in an ONNX graph, as expressions over its initialisers.

A constant is an initialiser that no caller may override, the output of a Constant node, or elementwise arithmetic
and reshaping of such. Up to IR version 3 every initialiser is also listed as a graph input and is a constant all the
same; from version 4 on one that is listed may be overridden by a caller, and is no constant here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from bnfold.folding import algebra
from bnfold.folding.expressions import ZERO, Array, Expr, Leaf, Op, Operator, Scalar, Tensor, View, div, shape_of, sqrt

FLOATS = {
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
}
_WIDTH = {"float16": 1, "bfloat16": 1, "float32": 2, "float64": 3}
INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_FEW, _MANY = 16, 1 << 16  # elements: scales of axes; indices of channels
_LARGEST = 64  # operations; expressions are walked recursively and as trees; larger ones are not taken for constants
_SAME_NUMBERS = {"Identity", "Reshape", "Unsqueeze", "Squeeze"}
_BINARY: dict[str, Operator] = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}


class Constants:
    """The constants of one graph, filled node by node in topological order."""

    def __init__(self, graph: ir.Graph, *, ir_version: int) -> None:
        listed = {value.name for value in graph.inputs} if ir_version >= 4 else set()
        self._exprs: dict[ir.Value, Expr] = {}
        self._size: dict[ir.Value, int] = {}
        self._stored: dict[ir.Value, Tensor] = {}
        self._integers: dict[ir.Value, Array] = {}
        self._flags: dict[ir.Value, bool] = {}
        self.overridable: set[ir.Value] = set()
        for name, value in graph.initializers.items():
            if name in listed:
                self.overridable.add(value)
            elif value.const_value is not None:
                self._enter(value, value.const_value, str(name))

    def get(self, value: ir.Value | None) -> Expr | None:
        """The expression of a float constant, None for anything else."""
        return None if value is None else self._exprs.get(value)

    def tensor(self, value: ir.Value | None) -> Tensor | None:
        """The handle of a float constant that is one stored tensor (not an expression), None for anything else."""
        return self.stored(value) if isinstance(self.get(value), Leaf) else None

    def stored(self, value: ir.Value | None) -> Tensor | None:
        """The handle of a stored tensor that the value is, in its dtype, perhaps under another shape."""
        return None if value is None else self._stored.get(value)

    def integers(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """A constant of integers (a shape, axes, pads), flattened; None for anything else."""
        found = None if value is None else self._integers.get(value)
        return None if found is None else tuple(int(item) for item in found.reshape(-1))

    def indices(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """A constant vector of integers; None for anything else."""
        found = None if value is None else self._integers.get(value)
        return self.integers(value) if found is not None and found.ndim == 1 else None

    def numbers(self, value: ir.Value | None) -> tuple[float, ...] | None:
        """A float constant of few elements (scales of axes), flattened; None for anything else."""
        expr = self.get(value)
        if expr is None or math.prod(shape_of(expr)) > _FEW:
            return None
        return tuple(float(item) for item in algebra.evaluate(expr).hi.reshape(-1))

    def number(self, value: ir.Value | None) -> float | None:
        """A float constant that is one number; None for anything else."""
        found = self.numbers(value)
        return found[0] if found is not None and len(found) == 1 else None

    def flag(self, value: ir.Value | None) -> bool | None:
        """A constant that is one truth value; None for anything else."""
        return None if value is None else self._flags.get(value)

    def take(self, node: ir.Node) -> bool:
        """Enter the output of a node of the standard operator set that is constant; true when it is one."""
        if len(node.outputs) != 1:
            return False
        output = node.outputs[0]
        if node.op_type == "Constant":
            tensor = _constant_tensor(node)
            if tensor is not None:
                self._enter(output, tensor, str(output.name))
            return True
        if node.inputs and node.inputs[0] in self._integers:
            return self._take_integers(node)
        if not node.inputs or self.get(node.inputs[0]) is None:
            return False
        expr = self._derived(node)
        size = sum(self._size.get(value, 0) for value in node.inputs if value is not None)
        size += node.op_type not in ("Identity", "Cast")
        if expr is None or size > _LARGEST:
            return False
        self._exprs[output] = expr
        self._size[output] = size
        stored = self.stored(node.inputs[0])
        if stored is not None and (node.op_type in _SAME_NUMBERS or (node.op_type == "Cast" and _keeps_dtype(node))):
            self._stored[output] = stored
        elif node.op_type == "Transpose" and isinstance(expr, Leaf):
            self._stored[output] = expr.tensor
        return True

    def _enter(self, value: ir.Value, tensor: ir.TensorProtocol, name: str) -> None:
        shape = tuple(int(size) for size in tensor.shape.numpy())
        if tensor.dtype in INTEGERS and math.prod(shape) <= _MANY:
            self._integers[value] = np.asarray(tensor.numpy())
        if tensor.dtype == ir.DataType.BOOL and math.prod(shape) == 1:
            self._flags[value] = bool(tensor.numpy().reshape(-1)[0])
        if tensor.dtype not in FLOATS:
            return

        def load() -> Array:
            return np.asarray(tensor.numpy())

        self._stored[value] = Tensor(name, FLOATS[tensor.dtype], shape, name, load)
        self._exprs[value] = Leaf(self._stored[value]) if shape else Scalar(float(load()))

    def _take_integers(self, node: ir.Node) -> bool:
        """Enter what an exporter makes of constant integers (pads, shapes) by putting them together anew."""
        parts = [self._integers.get(value) for value in node.inputs if value is not None]
        first = parts[0]
        found: Array | None = None
        match node.op_type:
            case "Identity":
                found = first
            case "Cast":
                to = node.attributes.get("to")
                is_integer = to is not None and not to.is_ref() and ir.DataType(to.as_int()) in INTEGERS
                found = first if is_integer else None
            case "Concat":
                known = [part for part in parts if part is not None]
                is_known = len(known) == len(node.inputs) and all(part.ndim == 1 for part in known)
                found = np.concatenate(known) if is_known else None
            case "Reshape" | "Unsqueeze" | "Squeeze" if first is not None:
                shape = _reshaped(node, first.shape, self)
                found = None if shape is None else first.reshape(shape)
        if found is None:
            return False
        self._integers[node.outputs[0]] = found
        return True

    def _derived(self, node: ir.Node) -> Expr | None:
        of = self.get(node.inputs[0])
        if of is None:
            return None
        match node.op_type:
            case "Identity":
                return of
            case "Cast":
                return of if _widens(node) or _keeps_dtype(node) else None
            case "Reshape" | "Unsqueeze" | "Squeeze":
                shape = _reshaped(node, shape_of(of), self)
                return None if shape is None else View(of, shape)
            case "Transpose":
                return _transposed(node, of)
            case "Sqrt":
                return sqrt(of)
            case "Reciprocal":
                return div(Scalar(1.0), of)
            case "Neg":
                return Op("sub", (ZERO, of))
            case "Pow":
                return _power(of, self.get(node.inputs[1])) if len(node.inputs) == 2 else None
            case "Add" | "Sub" | "Mul" | "Div" if len(node.inputs) == 2 and not node.attributes:
                return self._binary(node.op_type, of, self.get(node.inputs[1]))
        return None

    def _binary(self, op_type: str, left: Expr, right: Expr | None) -> Expr | None:
        if right is None:
            return None
        try:
            np.broadcast_shapes(shape_of(left), shape_of(right))
        except ValueError:
            return None
        return Op(_BINARY[op_type], (left, right))


def _cast(node: ir.Node) -> tuple[str | None, str | None]:
    """The dtypes of a Cast before and after, None for what is no floating-point dtype of a fold."""
    source, target = node.inputs[0], node.attributes.get("to")
    if source is None or source.dtype is None or target is None or target.is_ref():
        return None, None
    return FLOATS.get(source.dtype), FLOATS.get(ir.DataType(target.as_int()))


def _widens(node: ir.Node) -> bool:
    before, after = _cast(node)
    return before is not None and after is not None and _WIDTH[before] < _WIDTH[after]


def _keeps_dtype(node: ir.Node) -> bool:
    before, after = _cast(node)
    return before is not None and before == after


def _transposed(node: ir.Node, of: Expr) -> Expr | None:
    """The transpose of a stored matrix, as dense layers have it, is a matrix of the same key."""
    given = node.attributes.get("perm")
    if not isinstance(of, Leaf) or len(of.tensor.shape) != 2 or (given is not None and given.is_ref()):
        return None
    tensor = of.tensor
    if given is not None and tuple(given.as_ints()) != (1, 0):
        return None
    return Leaf(dataclasses.replace(tensor, shape=tensor.shape[::-1], load=lambda: tensor.load().T))


def _power(of: Expr, exponent: Expr | None) -> Expr | None:
    if exponent == Scalar(0.5):
        return sqrt(of)
    return div(Scalar(1.0), sqrt(of)) if exponent == Scalar(-0.5) else None


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        match name:
            case "value":
                return attribute.as_tensor()
            case "value_float":
                return ir.tensor(np.float32(attribute.as_float()))
            case "value_floats":
                return ir.tensor(np.asarray(attribute.as_floats(), np.float32))
            case "value_int":
                return ir.tensor(np.int64(attribute.as_int()))
            case "value_ints":
                return ir.tensor(np.asarray(attribute.as_ints(), np.int64))
    return None


def _reshaped(node: ir.Node, shape: tuple[int, ...], constants: Constants) -> tuple[int, ...] | None:
    """The shape after Reshape, Unsqueeze or Squeeze of a constant; None when it cannot be told."""
    if len(node.inputs) > 1:
        given = constants.integers(node.inputs[1])
    else:
        attribute = node.attributes.get("axes")
        given = tuple(attribute.as_ints()) if attribute is not None else None
    if given is None:
        return None
    match node.op_type:
        case "Reshape":
            allow_zero = node.attributes.get("allowzero")
            literal_zeros = allow_zero is not None and allow_zero.as_int() != 0
            return None if literal_zeros and 0 in given else _target(shape, given)
        case "Unsqueeze":
            rank = len(shape) + len(given)
            axes = {axis % rank for axis in given}
            rest = iter(shape)
            return tuple(1 if axis in axes else next(rest) for axis in range(rank)) if len(axes) == len(given) else None
        case _:
            axes = {axis % len(shape) for axis in given} if shape else set()
            ones = all(shape[axis] == 1 for axis in axes)
            return tuple(size for axis, size in enumerate(shape) if axis not in axes) if ones else None


def _target(shape: tuple[int, ...], given: Sequence[int]) -> tuple[int, ...] | None:
    if any(size == 0 and axis >= len(shape) for axis, size in enumerate(given)):
        return None
    sizes = [shape[axis] if size == 0 else size for axis, size in enumerate(given)]
    known = math.prod(size for size in sizes if size != -1)
    total = math.prod(shape)
    if -1 in sizes and known > 0 and sizes.count(-1) == 1 and total % known == 0:
        sizes[sizes.index(-1)] = total // known
    return tuple(sizes) if math.prod(sizes) == total and min(sizes, default=0) >= 0 else None
