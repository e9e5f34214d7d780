"""Single ONNX nodes -> linears and norms, by the operator specifications (Conv-11, ConvTranspose-11, Gemm-13,
MatMul-13, BatchNormalization-7 to -15, Add/Sub/Mul/Div-7 to -14).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from bnfold.folding.carriers import Window
from bnfold.folding.expressions import ONE, ZERO, Expr, Scalar, Tensor, View, leaves, shape_of
from bnfold.folding.facts import (
    ELEMENTWISE,
    Carrier,
    Linear,
    Node,
    Norm,
    Opaque,
    Reason,
    Statistics,
    Step,
    affine_step,
    batch_norm,
    constant_axis,
    parent_name,
)
from bnfold.folding.onnx_attributes import integer, is_understood, number
from bnfold.folding.onnx_carriers import carrier
from bnfold.folding.onnx_constants import FLOATS, Constants
from bnfold.folding.onnx_windows import window_of

_STEPS: dict[str, Literal["add", "sub", "mul", "div"]] = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}
_CONV = ("kernel_shape", "strides", "pads", "auto_pad", "dilations", "group")
_LINEARS = {
    "Conv": _CONV,
    "ConvTranspose": (*_CONV, "output_padding", "output_shape"),
    "Gemm": ("alpha", "beta", "transA", "transB"),
    "MatMul": (),
}
_DEFAULT_EPSILON = float(np.float32(1e-5))  # BatchNormalization's default, a float32 attribute


class Reader:
    """Reads nodes of one graph.

    `root` gives the name under which a value's data first appeared, `opaque` the fact of a node that is no linear.
    """

    def __init__(
        self,
        constants: Constants,
        root: Callable[[ir.Value], str],
        opaque: Callable[[ir.Node, Reason | None], Opaque],
        opset: int,
    ) -> None:
        self._constants = constants
        self._root = root
        self._opaque = opaque
        self._opset = opset

    def read(self, node: ir.Node) -> Node | None:
        """The fact that a node of the standard operator set states, None when nothing is known of it."""
        if _input(node, 0) is None or not node.outputs or not node.outputs[0].name or self._opset < 7:
            return None
        match node.op_type:
            case "Conv" | "ConvTranspose":
                return self._linear(node, self._conv)
            case "Gemm":
                return self._linear(node, self._gemm)
            case "MatMul":
                return self._linear(node, self._matmul)
            case "BatchNormalization":
                return self._batch_norm(node)
            case "Add" | "Sub" | "Mul" | "Div":
                return self._step(node) or self._carrier(node)
        return self._carrier(node)

    def _carrier(self, node: ir.Node) -> Carrier | None:
        stated = carrier(node, self._constants, self._opset)
        if stated is None:
            return None
        return Carrier(
            id=_id(node), name=_name(node), kind=node.op_type, rule=stated.rule,
            inputs=tuple(self._root(value) for value in stated.inputs),
            outputs=tuple(str(value.name) for value in stated.outputs),
        )  # fmt: skip

    # Linears

    def _linear(self, node: ir.Node, describe: Callable[[ir.Node, Tensor], Linear | Opaque | None]) -> Node | None:
        if not is_understood(node, self._opset, _LINEARS[node.op_type]):
            return None
        weight = self._constants.tensor(_input(node, 1))
        if weight is None:
            return self._unusable(node, "weight", _input(node, 1))
        if 0 in weight.shape:
            return None
        bias = _input(node, 2)
        if bias is not None and self._constants.stored(bias) is None:
            return self._unusable(node, "bias", bias)
        return describe(node, weight)

    def _unusable(self, node: ir.Node, role: str, value: ir.Value | None) -> Opaque:
        label = _label(node)
        if value is not None and value in self._constants.overridable:
            why = Reason(
                "OVERRIDABLE_WEIGHT",
                f"the {role} '{value.name}' of {label} is also an input of the graph, so a caller may override it",
            )
        else:
            why = Reason("COMPUTED_WEIGHT", f"the {role} of {label} is computed, not a stored constant")
        return self._opaque(node, why)

    def _conv(self, node: ir.Node, weight: Tensor) -> Linear | Opaque | None:
        """Conv has the weight (O, I/g, *K), ConvTranspose (I, O/g, *K)."""
        groups, window = integer(node, "group", 1), window_of(node, weight.shape[2:])
        if len(weight.shape) < 3 or groups < 1 or weight.shape[0] % groups or window is None:
            return None
        out_first = node.op_type == "Conv"
        channels = weight.shape[0] if out_first else weight.shape[1] * groups
        return self._made(node, weight, out_first=out_first, groups=groups, channels=channels, axis=1, window=window)

    def _gemm(self, node: ir.Node, weight: Tensor) -> Linear | Opaque | None:
        if len(weight.shape) != 2:
            return None
        out_first = bool(integer(node, "transB", 0))
        channels = weight.shape[0 if out_first else 1]
        alpha, beta = number(node, "alpha", 1.0), number(node, "beta", 1.0)
        return self._made(
            node, weight, out_first=out_first, groups=1, channels=channels, axis=1, alpha=alpha, beta=beta
        )

    def _matmul(self, node: ir.Node, weight: Tensor) -> Linear | Opaque | None:
        if len(weight.shape) != 2 or node.inputs[0] is None:
            return None
        shape = node.inputs[0].shape
        axis = None if shape is None else len(shape) - 1
        return self._made(node, weight, out_first=False, groups=1, channels=weight.shape[1], axis=axis)

    def _made(
        self, node: ir.Node, weight: Tensor, *, out_first: bool, groups: int, channels: int, axis: int | None,
        alpha: float = 1.0, beta: float = 1.0, window: Window | None = None,
    ) -> Linear | Opaque:  # fmt: skip
        value = _input(node, 2)
        bias, expr = self._constants.stored(value), self._constants.get(value)
        if expr is not None and shape_of(expr) not in ((channels,), (1, channels)) and math.prod(shape_of(expr)) != 1:
            return self._opaque(
                node, Reason("BIAS_SHAPE", f"the bias of {_label(node)} does not run over its channels")
            )
        return Linear(
            id=_id(node), name=parent_name((weight,)) or _name(node), kind=node.op_type,
            input=self._root(node.inputs[0]), output=str(node.outputs[0].name),  # type: ignore[arg-type]
            weight=weight, bias=bias, out_first=out_first, groups=groups, channels=channels, axis=axis,
            alpha=alpha, beta=beta, window=window,
        )  # fmt: skip

    # Norms

    def _batch_norm(self, node: ir.Node) -> Norm:
        given = [self._constants.get(value) for value in node.inputs[1:5]]
        known = [expr for expr in given if expr is not None and len(shape_of(expr)) == 1]
        refusal = self._not_fixed(node) or (None if len(known) == 4 else self._unknown_statistics(node))
        obstacle = None
        if refusal is not None and refusal.code in ("OVERRIDABLE_WEIGHT", "PER_ACTIVATION"):
            refusal, obstacle = None, refusal
        scale: Expr = ONE
        shift: Expr = ZERO
        statistics = None
        if len(known) == 4:
            gamma, beta, mean, variance = known
            epsilon = Scalar(number(node, "epsilon", _DEFAULT_EPSILON))
            statistics = Statistics(gamma, beta, mean, variance, epsilon)
            scale, shift = batch_norm(gamma, beta, mean, variance, epsilon)
            if len({shape_of(expr) for expr in known}) != 1:
                scale, shift, statistics = ONE, ZERO, None
                obstacle = Reason("MALFORMED", "its scale, bias, mean and variance are not of one length")
        owner = parent_name(tuple(tensor for expr in known for tensor in leaves(expr)))
        return Norm(
            id=_id(node), name=owner or _name(node), kind="BatchNorm", input=self._root(node.inputs[0]),  # type: ignore[arg-type]
            output=str(node.outputs[0].name), scale=scale, shift=shift, axis=1, nodes=(_id(node),),
            statistics=statistics, refusal=refusal, obstacle=obstacle,
            parameters=self._computed(node.inputs[1:5]),
        )  # fmt: skip

    def _computed(self, values: Sequence[ir.Value | None]) -> tuple[str, ...]:
        return tuple(self._root(value) for value in values if value is not None and self._constants.get(value) is None)

    def _not_fixed(self, node: ir.Node) -> Reason | None:
        extra = [value for value in node.outputs[1:] if value.name]  # left out: no name
        if integer(node, "training_mode", 0) or (extra and self._opset < 14):
            return Reason(
                "TRAINING_MODE", "it is in training mode and normalises by the batch; export the network in eval mode"
            )
        if integer(node, "spatial", 1) != 1:
            return Reason("PER_ACTIVATION", "it normalises each activation by itself (spatial = 0), not each channel")
        return None

    def _unknown_statistics(self, node: ir.Node) -> Reason:
        for value in node.inputs[1:5]:
            if value in self._constants.overridable:
                return Reason(
                    "OVERRIDABLE_WEIGHT",
                    f"its parameter '{value.name}' is also an input of the graph, so a caller may override it",
                )
        return Reason("COMPUTED_STATISTICS", "its scale, bias, mean and variance are not all stored constants")

    def _step(self, node: ir.Node) -> Norm | None:
        """x + c, c + x, x - c, x * c, c * x, x / c with a constant c over at most one axis of x."""
        if len(node.inputs) != 2 or node.attributes:  # the broadcasting attributes of opset < 7
            return None
        left, right = node.inputs
        by, data = self._constants.get(right), left
        if by is None and node.op_type in ("Add", "Mul"):
            by, data = self._constants.get(left), right
        if by is None or data is None or data.dtype not in FLOATS or data.shape is None:
            return None
        axis = constant_axis(shape_of(by), [size if isinstance(size, int) else None for size in data.shape])
        if axis == "none":
            return None
        kind = _STEPS[node.op_type]
        by = View(by, (math.prod(shape_of(by)),) if isinstance(axis, int) else ())
        scale, shift = affine_step(kind, by)
        return Norm(
            id=_id(node), name=parent_name(leaves(by)) or _name(node), kind=ELEMENTWISE, input=self._root(data),
            output=str(node.outputs[0].name), scale=scale, shift=shift, axis=axis, nodes=(_id(node),),
            steps=(Step(kind, by),),
        )  # fmt: skip


def _id(node: ir.Node) -> str:
    return str(node.outputs[0].name)


def _name(node: ir.Node) -> str:
    return node.name or _id(node)


def _label(node: ir.Node) -> str:
    return f"{node.op_type} '{_name(node)}'"


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
