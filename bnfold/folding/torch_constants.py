"""What is constant in an exported program, as expressions over its parameters, buffers and lifted tensors.

A constant is such a tensor that nothing in the graph writes to, or elementwise arithmetic and reshaping of
constants. Views are followed by shape: row-major order stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from bnfold.folding.expressions import ZERO, Expr, Leaf, Op, Scalar, Tensor, View, div, mul, shape_of, sqrt, view
from bnfold.folding.torch_tensors import (
    FLOATS,
    fixed_size,
    is_exact,
    is_plain,
    key_of,
    stored_tensor,
    to_numpy,
    written_nodes,
)

_LARGEST = 64  # operations; expressions are walked recursively and as trees; of larger ones nothing is known

# Operators whose output is their input: the same data, whatever the memory.
SAME = {
    "aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default",
    "aten.detach_.default", "aten.lift_fresh_copy.default", "aten.lift_fresh.default",
}  # fmt: skip
CASTS = {
    "aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten.to.other", "aten._to_copy.default",
    "aten.type_as.default",
}  # fmt: skip
_VIEWS = {
    "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.view_as.default",
    "aten.reshape_as.default", "aten.flatten.using_ints", "aten.unflatten.int", "aten.unsqueeze.default",
    "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims",
}  # fmt: skip
_EXPANSIONS = {"aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default"}
_TURNS = {"aten.t.default", "aten.transpose.int", "aten.permute.default", "aten.numpy_T.default", "aten.mT.default"}
BINARY: dict[str, Literal["add", "sub", "mul", "div"]] = {
    "aten.add.Tensor": "add", "aten.add.Scalar": "add", "aten.sub.Tensor": "sub", "aten.sub.Scalar": "sub",
    "aten.mul.Tensor": "mul", "aten.mul.Scalar": "mul", "aten.div.Tensor": "div", "aten.div.Scalar": "div",
}  # fmt: skip


@dataclass(frozen=True)
class Constant:
    """A constant of the graph: the tensors it is made of, and how, where that is known.

    `transposed`: the expression is a stored matrix of which this is the transpose.
    """

    tensors: tuple[Tensor, ...]
    expr: Expr | None
    transposed: bool = False
    size: int = 0


class Constants:
    """The constants of one program, filled node by node in topological order."""

    def __init__(self, program: ExportedProgram) -> None:
        self._found: dict[Node, Constant] = {}
        self.owners: dict[Node, str] = {}  # qualified names of the tensors that the program holds
        specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs if hasattr(spec.arg, "name")}
        stored: dict[Node, tuple[str, torch.Tensor]] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in specs:
                tensor = stored_tensor(program, specs[node.name].target)
                if specs[node.name].kind != InputKind.USER_INPUT and isinstance(tensor, torch.Tensor):
                    self.owners[node] = str(specs[node.name].target)
                    if is_plain(tensor):
                        stored[node] = (self.owners[node], tensor)
        self._written = written_nodes(program, stored)
        self._found.update(
            {node: _stored(name, tensor) for node, (name, tensor) in stored.items() if node not in self._written}
        )

    def get(self, node: Any) -> Constant | None:
        """What is known of a constant node, None for anything else."""
        return self._found.get(node) if isinstance(node, Node) else None

    def expr(self, node: Any) -> Expr | None:
        """The expression of a float constant whose shape is that of the node, None for anything else."""
        constant = self.get(node)
        if constant is None or constant.expr is None or constant.transposed:
            return None
        return constant.expr if shape_of(constant.expr) == static_shape(node) else None

    def stored(self, node: Any) -> Tensor | None:
        """The handle of a stored tensor that a node is, in its dtype, perhaps under another shape or transposed."""
        constant = self.get(node)
        expr = None if constant is None else constant.expr
        while isinstance(expr, View):
            expr = expr.of
        is_cast = isinstance(expr, Leaf) and expr.tensor.dtype != FLOATS.get(dtype_of(node))  # type: ignore[arg-type]
        return expr.tensor if isinstance(expr, Leaf) and not is_cast else None

    def integers(self, node: Any) -> tuple[int, ...] | None:
        """The values of a stored vector of integers, None for anything else."""
        while isinstance(node, Node) and node.op == "call_function" and str(node.target) in SAME and self.get(node):
            node = node.args[0]
        constant = self.get(node)
        if constant is None or node.op != "placeholder" or len(constant.tensors) != 1:
            return None
        (tensor,) = constant.tensors
        values = tensor.load() if len(tensor.shape) == 1 and tensor.dtype in ("int32", "int64") else None
        return None if values is None else tuple(int(value) for value in values)

    def is_written(self, node: Node) -> bool:
        """True when the graph writes to the memory of a node."""
        return node in self._written

    def take(self, node: Node) -> bool:
        """Enter a node that is constant; true when it is one."""
        if node in self._found:
            return True
        if node.op != "call_function" or node in self._written:
            return False
        name = str(node.target)
        nodes = [item for item in node.all_input_nodes if isinstance(item.meta.get("val"), torch.Tensor)]
        if name in _EXPANSIONS:
            nodes = nodes[:1]
        if not nodes or not all(item in self._found for item in nodes):
            # An item of a constant tuple is constant too.
            if not (node.all_input_nodes and all(item in self._found for item in node.all_input_nodes)):
                return False
            nodes = node.all_input_nodes
        parts = [self._found[item] for item in nodes]
        tensors = tuple(dict.fromkeys(tensor for part in parts for tensor in part.tensors))
        operands: list[Node] = []  # each as often as it is used: v * v has the tree of v twice
        torch.fx.map_arg((node.args, node.kwargs), operands.append)
        size = 1 + sum(self._found[item].size for item in operands if item in self._found)
        expr, transposed = self._derived(node, name) if size <= _LARGEST else (None, False)
        self._found[node] = Constant(tensors, expr, transposed, size)
        return True

    def _derived(self, node: Node, name: str) -> tuple[Expr | None, bool]:
        of = node.args[0] if node.args else None
        constant = self.get(of)
        if name in SAME and constant is not None:
            return constant.expr, constant.transposed
        if name in _TURNS and isinstance(of, Node):
            return self._turned(node, of)
        if constant is None or constant.transposed or not isinstance(of, Node):
            return (self._arithmetic(node, name), False)
        if name in CASTS:
            return (constant.expr if is_exact(dtype_of(of), dtype_of(node)) else None), False
        if name in _EXPANSIONS:
            return constant.expr, False
        if name in _VIEWS or (name == "aten.slice.Tensor" and static_shape(node) == static_shape(of)):
            shape, inner = static_shape(node), self.expr(of)
            return (view(inner, shape) if inner is not None and shape is not None else None), False
        return self._arithmetic(node, name), False

    def _turned(self, node: Node, of: Node) -> tuple[Expr | None, bool]:
        """A transpose: of a stored matrix, or one that moves no axis past another of more than one element."""
        constant, before, after = self.get(of), static_shape(of), static_shape(node)
        if constant is None or constant.expr is None or before is None or after is None:
            return None, False
        if not constant.transposed and shape_of(constant.expr) != before:
            return None, False
        is_order_kept = [size for size in before if size != 1] == [size for size in after if size != 1] and (
            len({size for size in before if size != 1}) == sum(size != 1 for size in before)
        )
        if constant.transposed:
            is_back = len(before) == 2 and after == shape_of(constant.expr) and before == after[::-1]
            return (constant.expr, False) if is_back and _swaps(node) else (None, False)
        if is_order_kept:
            return view(constant.expr, after), False
        if len(before) == 2 and isinstance(constant.expr, Leaf) and _swaps(node):
            return constant.expr, True
        return None, False

    def _arithmetic(self, node: Node, name: str) -> Expr | None:
        dtype = dtype_of(node)
        if dtype not in FLOATS or any(not is_exact(dtype_of(item), dtype) for item in node.all_input_nodes):
            return None
        args = [self.operand(item) for item in node.args]
        if not args or args[0] is None:
            return None
        match name:
            case "aten.sqrt.default":
                return sqrt(args[0])
            case "aten.rsqrt.default":
                return div(Scalar(1.0), sqrt(args[0]))
            case "aten.reciprocal.default":
                return div(Scalar(1.0), args[0])
            case "aten.neg.default":
                return Op("sub", (ZERO, args[0]))
            case "aten.square.default":
                return Op("mul", (args[0], args[0]))
            case "aten.pow.Tensor_Scalar":
                return _power(args[0], node.args[1])
            case "aten.rsub.Scalar" if len(args) == 2 and args[1] is not None and not node.kwargs:
                return Op("sub", (args[1], args[0]))
        if name not in BINARY or len(args) != 2 or args[1] is None:
            return None
        right = scaled(args[1], node)
        return None if right is None else Op(BINARY[name], (args[0], right))

    def operand(self, value: Any) -> Expr | None:
        """The expression of an operand: a constant (as it was before any expansion), or a literal number."""
        if isinstance(value, bool):
            return None
        if isinstance(value, int | float):
            return Scalar(float(value))
        constant = self.get(value)
        return None if constant is None or constant.transposed else constant.expr


def scaled(by: Expr, node: Node) -> Expr | None:
    """The right operand of an addition or subtraction times its alpha; None for any other keyword."""
    alpha = node.kwargs.get("alpha", 1)
    if set(node.kwargs) - {"alpha"} or isinstance(alpha, bool) or not isinstance(alpha, int | float):
        return None
    return by if alpha == 1 else mul(Scalar(float(alpha)), by)


def static_shape(node: Any) -> tuple[int, ...] | None:
    """The shape of a node's tensor, None where a size is not fixed or it has no tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, torch.Tensor):
        return None
    sizes = tuple(size for size in map(fixed_size, value.shape) if size is not None)
    return sizes if len(sizes) == value.ndim else None


def dtype_of(node: Any) -> torch.dtype | None:
    """The dtype of a node's tensor, None where it has none."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.dtype if isinstance(value, torch.Tensor) else None


def _stored(name: str, tensor: torch.Tensor) -> Constant:
    shape = tuple(int(size) for size in tensor.shape)
    dtype = FLOATS.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    handle = Tensor(name, dtype, shape, key_of(tensor, name), lambda: to_numpy(tensor))
    if tensor.dtype not in FLOATS:
        return Constant((handle,), None)
    return Constant((handle,), Scalar(float(tensor.detach())) if shape == () else Leaf(handle))


def _power(of: Expr, exponent: Any) -> Expr | None:
    match exponent:
        case 0.5:
            return sqrt(of)
        case -0.5:
            return div(Scalar(1.0), sqrt(of))
        case 2:
            return Op("mul", (of, of))
        case -1:
            return div(Scalar(1.0), of)
    return None


def _swaps(node: Node) -> bool:
    """True for a transpose of a matrix that exchanges its two axes."""
    match str(node.target):
        case "aten.transpose.int":
            return {int(axis) % 2 for axis in node.args[1:3]} == {0, 1}  # type: ignore[arg-type]
        case "aten.permute.default":
            return [int(axis) % 2 for axis in node.args[1]] == [1, 0]  # type: ignore[union-attr, arg-type]
    return True
