"""Single nodes of an exported program -> linears and norms, by the schemas of ATen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from bnfold.folding import facts
from bnfold.folding.carriers import Window
from bnfold.folding.expressions import ONE, ZERO, Expr, Leaf, Scalar, Tensor, leaves, shape_of, view
from bnfold.folding.facts import (
    ELEMENTWISE,
    Linear,
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
from bnfold.folding.torch_constants import BINARY, Constants, dtype_of, scaled
from bnfold.folding.torch_tensors import FLOATS, dimensions, fixed_size, integers, is_exact, is_inplace

# Spatial axes by operator; None: as many as its weight has beyond two.
CONVS: dict[str, int | None] = {
    **{f"aten.conv{n}d.{kind}": n for n in (1, 2, 3) for kind in ("default", "padding")},
    "aten.convolution.default": None,
    "aten._convolution.default": None,
}
TRANSPOSED: dict[str, int | None] = {
    "aten.conv_transpose1d.default": 1, "aten.conv_transpose2d.input": 2, "aten.conv_transpose3d.input": 3,
}  # fmt: skip
NORMS = {
    "batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional", "_batch_norm_no_update", "_batch_norm_with_update",
    "_batch_norm_with_update_functional", "cudnn_batch_norm", "miopen_batch_norm", "instance_norm",
}  # fmt: skip
# They read a tensor's shape, dtype or device, never its data.
METADATA = {
    "sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "sym_is_contiguous", "_assert_tensor_metadata",
}  # fmt: skip
_NEVER_TRAINS = ("_native_batch_norm_legit_no_training", "_batch_norm_no_update")
_ALWAYS_TRAINS = ("_batch_norm_with_update", "_batch_norm_with_update_functional")


class Reader:
    """Reads nodes of one program. `root` gives the name under which a value's data first appeared."""

    def __init__(self, constants: Constants, root: Callable[[Node], str]) -> None:
        self._constants = constants
        self._root = root

    def read(self, node: Node) -> facts.Node | None:
        """The fact that a node states, None when nothing is known of it."""
        operator = operator_of(node)
        if not operator or is_inplace(node) or not node.args or not isinstance(node.args[0], Node):
            return None
        if str(node.target) in CONVS or str(node.target) in TRANSPOSED:
            return self._conv(node)
        match operator:
            case "linear":
                return self._linear(node)
            case "addmm":
                return self._addmm(node)
            case "mm" | "matmul":
                return self._matmul(node)
        return self._step(node) if str(node.target) in BINARY else None

    # Linears

    def _conv(self, node: Node) -> Linear | Opaque | None:
        args = arguments(node)
        transposed = str(node.target) in TRANSPOSED or args.get("transposed") is True
        kind = "ConvTranspose" if transposed else "Conv"
        weight = self._weight(args["weight"])
        if not isinstance(weight, Tensor):
            return self._unusable(node, kind, "weight")
        groups = args["groups"]
        spatial = len(weight.shape) - 2
        if not isinstance(groups, int) or weight.shape[0] % groups:
            return None
        if (CONVS | TRANSPOSED)[str(node.target)] not in (None, spatial):
            return None
        window = window_of(args, weight.shape[2:], transposed=transposed)
        if window is None:
            return None
        channels = weight.shape[1] * groups if transposed else weight.shape[0]
        axis = _rank(node) - spatial - 1
        return self._made(
            node, kind, args["input"], weight, args["bias"], axis, channels,
            groups=groups, out_first=not transposed, window=window,
        )  # fmt: skip

    def _linear(self, node: Node) -> Linear | Opaque | None:
        args = arguments(node)
        kind = "Gemm" if _rank(node) == 2 else "MatMul"
        weight = self._weight(args["weight"])
        if not isinstance(weight, Tensor) or len(weight.shape) != 2:
            return self._unusable(node, kind, "weight")
        axis = _rank(node) - 1
        return self._made(node, kind, args["input"], weight, args["bias"], axis, weight.shape[0], out_first=True)

    def _addmm(self, node: Node) -> Linear | Opaque | None:
        args = arguments(node)
        alpha, beta = args["alpha"], args["beta"]
        if not all(isinstance(value, int | float) for value in (alpha, beta)):
            return None
        weight, out_first = self._matrix(args["mat2"])
        if weight is None:
            return self._unusable(node, "Gemm", "weight")
        return self._made(
            node, "Gemm", args["mat1"], weight, args["self"], 1, weight.shape[0 if out_first else 1],
            out_first=out_first, alpha=float(alpha), beta=float(beta),
        )  # fmt: skip

    def _matmul(self, node: Node) -> Linear | Opaque | None:
        data, other = node.args[0], node.args[1]
        if self._constants.get(other) is None:
            return None  # a product of two activations, as in attention
        weight, out_first = self._matrix(other)
        if weight is None:
            return self._unusable(node, "MatMul", "weight")
        channels = weight.shape[0 if out_first else 1]
        return self._made(node, "MatMul", data, weight, None, _rank(node) - 1, channels, out_first=out_first)

    def _made(
        self, node: Node, kind: str, data: Any, weight: Tensor, given: Any, axis: int, channels: int, *,
        out_first: bool, groups: int = 1, alpha: float = 1.0, beta: float = 1.0, window: Window | None = None,
    ) -> Linear | Opaque | None:  # fmt: skip
        if not isinstance(data, Node) or 0 in weight.shape:
            return None
        bias = None if given is None else self._bias(given, channels)
        if given is not None and bias is None:
            return self._unusable(node, kind, "bias")
        return Linear(
            id=node.name, name=parent_name((weight,)) or node.name, kind=kind, input=self._root(data),
            output=node.name, weight=weight, bias=bias, out_first=out_first, groups=groups, channels=channels,
            axis=axis, alpha=alpha, beta=beta, window=window,
        )  # fmt: skip

    def _weight(self, value: Any) -> Tensor | None:
        expr = self._constants.expr(value)
        return self._constants.stored(value) if isinstance(expr, Leaf) else None

    def _matrix(self, value: Any) -> tuple[Tensor | None, bool]:
        """A stored matrix, and whether the graph uses its transpose."""
        constant = self._constants.get(value)
        if constant is None or not isinstance(constant.expr, Leaf) or len(constant.expr.tensor.shape) != 2:
            return None, False
        return self._constants.stored(value), constant.transposed

    def _bias(self, value: Any, channels: int) -> Tensor | None:
        """A stored bias over the output channels, also as a row (1, channels)."""
        expr = self._constants.expr(value)
        if expr is None or shape_of(expr) not in ((channels,), (1, channels)):
            return None
        return self._constants.stored(value)

    def _unusable(self, node: Node, kind: str, role: str) -> Opaque:
        why = Reason("COMPUTED_WEIGHT", f"the {role} of {kind} '{node.name}' is computed, not a stored constant")
        inputs = [item for item in node.all_input_nodes if self._constants.get(item) is None]
        return Opaque(node.name, node.name, kind, tuple(self._root(item) for item in inputs), (node.name,), why)

    # Norms

    def norm(self, node: Node, output: Node) -> Norm | None:
        """A norm operator whose normalised data is `output` (the node itself, or the first item of its tuple)."""
        operator = operator_of(node)
        args = arguments(node)
        given = [args.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
        if operator == "instance_norm" and given[2] is None:
            return None  # normalises every sample by itself, in eval mode too
        known = [self._constants.expr(value) for value in given]
        refusal = _not_fixed(operator, args) or self._unknown(given, known)
        scale: Expr = ONE
        shift: Expr = ZERO
        statistics = None
        mean, variance = known[2:]
        if refusal is None and mean is not None and variance is not None:
            gamma, beta = known[0] or ONE, known[1] or ZERO
            epsilon = Scalar(float(args["eps"] if "eps" in args else args["epsilon"]))
            statistics = Statistics(gamma, beta, mean, variance, epsilon)
            scale, shift = batch_norm(gamma, beta, mean, variance, epsilon)
        nodes = (node.name,) if output is node else (node.name, output.name)
        return Norm(
            id=output.name, name=self._owner(given) or node.name,
            kind="InstanceNorm" if operator == "instance_norm" else "BatchNorm",
            input=self._root(args["input"]), output=output.name, scale=scale, shift=shift, axis=1, nodes=nodes,
            statistics=statistics, refusal=refusal, parameters=self._computed(given),
        )  # fmt: skip

    def _computed(self, given: list[Any]) -> tuple[str, ...]:
        return tuple(self._root(node) for node in given if isinstance(node, Node) and not self._constants.get(node))

    def _unknown(self, given: list[Any], known: list[Expr | None]) -> Reason | None:
        missing = any(value is not None and expr is None for value, expr in zip(given, known, strict=True))
        if missing or any(expr is not None and len(shape_of(expr)) != 1 for expr in known):
            return Reason("COMPUTED_STATISTICS", "its scale, bias, mean and variance are not all stored constants")
        return None

    def _owner(self, given: list[Any]) -> str:
        """The module that owns the parameters of a norm, by the names that they have in the source."""
        names = {self._constants.owners.get(value) for value in given if value is not None}
        parents = {name.rpartition(".")[0] for name in names if name}
        return parents.pop() if len(parents) == 1 else ""

    def _step(self, node: Node) -> Norm | None:
        """x + c, c + x, x - c, x * c, c * x, x / c with a constant c over at most one axis of x."""
        kind = BINARY[str(node.target)]
        if len(node.args) != 2:
            return None
        data, other = node.args
        if kind in ("add", "mul") and not node.kwargs and self._constants.get(data) is not None:
            data, other = other, data
        by = self._constants.operand(other)
        by = None if by is None else scaled(by, node)
        if by is None or not isinstance(data, Node) or self._constants.get(data) is not None:
            return None
        before, after = data.meta.get("val"), node.meta.get("val")
        if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
            return None
        # A wider constant would promote the activation, a larger one would broadcast it.
        if before.dtype not in FLOATS or after.dtype != before.dtype or dimensions(before) != dimensions(after):
            return None
        if not all(is_exact(dtype_of(item), before.dtype) for item in node.all_input_nodes):
            return None
        axis = constant_axis(shape_of(by), [fixed_size(size) for size in before.shape])
        if axis == "none":
            return None
        if not isinstance(by, Scalar):
            by = view(by, (math.prod(shape_of(by)),) if isinstance(axis, int) else ())
        scale, shift = affine_step(kind, by)
        return Norm(
            id=node.name, name=parent_name(leaves(by)) or node.name, kind=ELEMENTWISE, input=self._root(data),
            output=node.name, scale=scale, shift=shift, axis=axis, nodes=(node.name,), steps=(Step(kind, by),),
        )  # fmt: skip


def operator_of(node: Node) -> str:
    """The name of an ATen operator without its overload, '' for anything else."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return ""
    return node.target._schema.name.removeprefix("aten::")


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an operator by name, defaults filled in."""
    found = {}
    for at, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if at < len(node.args):
            found[argument.name] = node.args[at]
        else:
            found[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return found


def window_of(args: dict[str, Any], kernel: tuple[int, ...], *, transposed: bool) -> Window | None:
    """The window of a convolution by its arguments; None where they are not all fixed."""
    count = len(kernel)
    stride, dilation = integers(args["stride"], count), integers(args["dilation"], count)
    if stride is None or dilation is None:
        return None
    pads: tuple[tuple[int, int], ...] | None
    match args["padding"]:
        case "valid":
            pads = ((0, 0),) * count
        case "same":
            totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
            pads = tuple((total // 2, total - total // 2) for total in totals)
        case given:
            widths = integers(given, count)
            pads = None if widths is None else tuple((width, width) for width in widths)
    output_padding = integers(args["output_padding"], count) if transposed else ()
    if pads is None or output_padding is None:
        return None
    return Window(kernel, stride, dilation, pads, output_padding)


def _not_fixed(operator: str, args: dict[str, Any]) -> Reason | None:
    if args.get("running_mean") is None or args.get("running_var") is None:
        return Reason(
            "NO_RUNNING_STATS",
            "it keeps no running statistics and normalises by the batch; train it with track_running_stats=True",
        )
    trains = args.get("training", args.get("use_input_stats", operator in _ALWAYS_TRAINS))
    if trains and operator not in _NEVER_TRAINS:
        return Reason(
            "TRAINING_MODE", "it is in training mode and normalises by the batch; export the network in eval mode"
        )
    return None


def _rank(node: Node) -> int:
    value = node.meta.get("val")
    return value.ndim if isinstance(value, torch.Tensor) else 0
