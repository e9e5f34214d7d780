"""A plan's edits carried out on a clone of an ONNX IR model.

Folded tensors become new initialisers with names of their own (the old name on a changed tensor has misled people,
and a fresh name that collides has cost a network its accuracy: pytorch#169178). What only the removed nodes used is
removed with them; everything else stays as it is, names of graph inputs and outputs included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from bnfold.errors import FoldError
from bnfold.folding import algebra
from bnfold.folding.carriers import Window
from bnfold.folding.edits import AddConstant, Bypass, Edit, Redirect, SetAffine, SetSlope, SetWeights, sources
from bnfold.folding.expressions import ONE, ZERO, Array, Expr, Given
from bnfold.folding.facts import Norm
from bnfold.folding.onnx_clone import Clone, clone_of, main_values, unlist_constants
from bnfold.folding.onnx_shapes import Known, known_values

__all__ = [
    "FOLDED_SUFFIX", "FoldMap", "NewTensor", "apply", "carry_out", "clone_of", "fold_map_of", "main_values", "replay",
    "unlist_constants",
]  # fmt: skip

FOLDED_SUFFIX = ".folded"

FoldMap: TypeAlias = tuple[dict[str, Any], ...]
Role: TypeAlias = Literal["weight", "bias", "scale", "shift", "constant", "slope"]
Numbers: TypeAlias = Callable[[Expr, str], Array]  # the values of an expression in a dtype


@dataclass(frozen=True)
class NewTensor:
    """A tensor that a fold makes. tensor: its name; owner: the name of the node that reads it; expr: what it is."""

    tensor: str
    role: Role
    owner: str
    expr: Expr
    norms: tuple[Norm, ...]


def fold_map_of(made: Sequence[NewTensor]) -> FoldMap:
    """For each folded tensor its role, its sources, and the norms that it absorbed."""
    return tuple(
        {
            "tensor": new.tensor, "role": new.role, "linear": new.owner, "from": list(sources(new.expr)),
            "norms": [norm.name for norm in new.norms],
        }
        for new in made
    )  # fmt: skip


def apply(model: ir.Model, edits: Sequence[Edit]) -> ir.Model:
    """A clone of the model with the edits carried out; the model given is not changed.

    Raises FoldError when an edit names a value that the model does not have.
    """
    return carry_out(model, edits)[0]


def carry_out(model: ir.Model, edits: Sequence[Edit]) -> tuple[ir.Model, FoldMap]:
    """As `apply`, with the fold map: for each folded tensor its role, its sources, and the norms that it absorbed.

    Tensors that are made of nothing (the mean of zeros of a norm that was reduced) are not in the map.
    Raises FoldError when an edit names a value that the model does not have.
    """
    edited, made = replay(model, edits, algebra.rounded)
    return edited, fold_map_of(made)


def replay(model: ir.Model, edits: Sequence[Edit], numbers: Numbers) -> tuple[ir.Model, tuple[NewTensor, ...]]:
    """As `carry_out`, with the new tensors' values from `numbers`, and with what each of them is.

    Raises FoldError when an edit names a value that the model does not have.
    """
    editor = _Editor(model, numbers)
    for edit in edits:
        match edit:
            case SetWeights():
                editor.set_weights(edit)
            case Bypass():
                editor.bypass(edit)
            case Redirect():
                editor.redirect(edit)
            case SetAffine():
                editor.set_affine(edit)
            case AddConstant():
                editor.add_constant(edit)
            case SetSlope():
                editor.set_slope(edit)
    return editor.finish()


class _Editor:
    def __init__(self, model: ir.Model, numbers: Numbers) -> None:
        self._model = model
        self._numbers = numbers
        self._clone = Clone(model)
        self._made: dict[tuple[int, str], tuple[Expr, ir.Value]] = {}  # by expression and dtype; holds the expression
        self._slopes: dict[str, ir.Node] = {}
        self._plain: dict[tuple[str, float, tuple[int, ...]], ir.Value] = {}
        self._has_other_sizes = False
        self._new: list[NewTensor] = []

    # Linears

    def set_weights(self, edit: SetWeights) -> None:
        """Another weight, bias and window for a linear."""
        linear, node = edit.linear, self._clone.node(edit.linear.id)
        if (edit.window, edit.groups) != (linear.window, linear.groups) and edit.window is not None:
            _set_window(node, edit.window, edit.groups, edit.weight.shape[2:])
        self._has_other_sizes |= edit.weight.shape[:2] != linear.weight.shape[:2]
        for name in ("alpha", "beta") if linear.kind == "Gemm" else ():  # absorbed; the default of both is 1
            node.attributes.pop(name, None)
        made = self._made.get((id(edit.weight), edit.weight_dtype))
        if made is None:
            weight = self._clone.initializer(
                linear.weight.name + FOLDED_SUFFIX, self._numbers(edit.weight, edit.weight_dtype)
            )
            self._made[id(edit.weight), edit.weight_dtype] = edit.weight, weight
            self._record("weight", weight, linear.name, edit.weight, edit.norms)
        else:
            weight = made[1]
        self._clone.put(node, 1, weight)
        self._set_bias(node, edit)

    def _set_bias(self, node: ir.Node, edit: SetWeights) -> None:
        linear = edit.linear
        if edit.bias is None:
            self._clone.put(node, 2, self._no_bias(edit) if len(node.inputs) > 2 else None)
            return
        name = linear.bias.name if linear.bias else _sibling(linear.weight.name, "bias")
        bias = self._clone.initializer(name + FOLDED_SUFFIX, self._numbers(edit.bias, edit.bias_dtype))
        self._record("bias", bias, linear.name, edit.bias, edit.norms)
        if linear.kind == "MatMul":
            self._add_behind(self._clone.value(linear.output), bias)
        else:
            self._clone.put(node, 2, bias)

    def _no_bias(self, edit: SetWeights) -> ir.Value | None:
        """Nothing, but for a Gemm before opset 11, which must have a bias."""
        opset = self._model.opset_imports.get("", 0)
        is_needed = edit.linear.kind == "Gemm" and opset < 11
        return self._constant(edit.bias_dtype, 0.0, edit.linear.channels) if is_needed else None

    # Norms, sums and activations

    def bypass(self, edit: Bypass) -> None:
        """Whoever reads a norm reads its input."""
        self._replace_norm(edit.norm, self._clone.value(edit.norm.input))

    def redirect(self, edit: Redirect) -> None:
        """Whoever reads a sum reads another value."""
        node = self._clone.node(edit.carrier.id)
        self._clone.replace(node.outputs[0], self._clone.value(edit.to))
        self._clone.drop(node)

    def set_affine(self, edit: SetAffine) -> None:
        """A product, a sum, or a plain BatchNormalization in place of a norm."""
        norm, takes = edit.norm, self._clone.node(edit.norm.output)
        data = self._clone.value(norm.input)
        known = self._known.get(norm.input, Known())
        dtype = known.dtype or next((tensor.dtype for tensor in norm.constants), "float32")
        has_both = edit.scale != ONE and edit.shift != ZERO
        sizes = {expr.shape for expr in (edit.scale, edit.shift)} - {()}
        if sizes and norm.axis == 1 and (has_both or known.rank is None):
            self._replace_norm(norm, self._batch_norm(edit, data, dtype, max(sizes)))
            return
        parts: tuple[tuple[Role, str, Expr, Expr], ...] = (
            ("scale", "Mul", edit.scale, ONE), ("shift", "Add", edit.shift, ZERO),
        )  # fmt: skip
        for role, operator, expr, neutral in parts:
            if expr != neutral:
                shape = self._along(norm.axis or 0, known.rank, norm.label) if expr.shape else ()
                constant = self._stored(f"{norm.name}.{role}", expr, dtype, shape)
                self._record(role, constant, norm.name, expr, edit.norms)
                name, before = f"{takes.name or norm.output}.{role}", data
                data = self._clone.operation(operator, [data, constant], like=data, name=name)
                self._clone.insert(data, behind=before)
        self._replace_norm(norm, data)

    def _batch_norm(self, edit: SetAffine, data: ir.Value, dtype: str, shape: tuple[int, ...]) -> ir.Value:
        """BatchNormalization with mean 0, variance 1 and epsilon 0. Source: ONNX BatchNormalization-7 to -15."""
        inputs = [data]
        parts: tuple[tuple[Role, Expr], ...] = (("scale", edit.scale), ("shift", edit.shift))
        for role, expr in parts:
            array = np.broadcast_to(self._numbers(expr, dtype), shape).copy()
            inputs.append(self._clone.initializer(f"{edit.norm.name}.{role}{FOLDED_SUFFIX}", array))
            self._record(role, inputs[-1], edit.norm.name, expr, edit.norms)
        inputs += [self._constant(dtype, 0.0, *shape), self._constant(dtype, 1.0, *shape)]
        takes = self._clone.node(edit.norm.output)
        name = f"{edit.norm.output}.reduced"
        made = self._clone.operation("BatchNormalization", inputs, like=data, name=name, takes=takes)
        made.producer().attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)  # type: ignore[union-attr]
        self._clone.insert(made, behind=data)
        return made

    def add_constant(self, edit: AddConstant) -> None:
        """A sum with a constant before all readers of a value."""
        value = self._clone.value(edit.value)
        dtype = self._known.get(edit.value, Known()).dtype or edit.like.weight.dtype
        constant = self._stored(_sibling(edit.like.weight.name, "constant"), edit.constant, dtype)
        self._record("constant", constant, edit.like.name, edit.constant, edit.norms)
        self._add_behind(value, constant)

    def set_slope(self, edit: SetSlope) -> None:
        """A PReLU in place of an activation; of two slopes for the same one the later counts."""
        carrier, weight = edit.carrier, edit.like.weight
        known = self._known.get(carrier.inputs[0], Known())
        shape = self._along(edit.axis, known.rank, carrier.label)
        slope = self._stored(_sibling(weight.name, "slope"), edit.slope, known.dtype or weight.dtype, shape)
        self._record("slope", slope, edit.like.name, edit.slope, edit.norms)
        made = self._slopes.get(carrier.id)
        if made is not None:
            self._clone.put(made, 1, slope)
            return
        node = self._clone.node(carrier.id)
        old = node.outputs[0]
        inputs = [value for value in (node.inputs[0], slope) if value is not None]
        new = self._clone.operation("PRelu", inputs, like=old, name=f"{carrier.id}.slope", takes=node)
        self._clone.insert(new, behind=old)
        self._clone.replace(old, new)
        self._clone.drop(node)
        self._slopes[carrier.id] = new.producer()  # type: ignore[assignment]

    def finish(self) -> tuple[ir.Model, tuple[NewTensor, ...]]:
        """The edited model and those new tensors that are still in it."""
        if self._has_other_sizes:
            self._clone.forget_shapes()
        model = self._clone.finish()
        return model, tuple(new for new in self._new if new.tensor in model.graph.initializers)

    @cached_property
    def _known(self) -> dict[str, Known]:
        """What shape inference knows of the source's values."""
        return known_values(self._model)

    def _replace_norm(self, norm: Norm, new: ir.Value) -> None:
        source = self._clone.value(norm.input)
        chain, last = [self._clone.node(name) for name in norm.nodes], self._clone.node(norm.output)
        for node in chain:  # what reads a step's shape can read the input's
            if node is not last:
                self._clone.reroute(node.outputs[0], source, within=set(chain))
            self._clone.drop(node)
        self._clone.replace(last.outputs[0], new)

    def _add_behind(self, value: ir.Value, constant: ir.Value) -> None:
        producer = value.producer()
        name = (producer.name if producer is not None else None) or str(value.name)
        total = self._clone.operation("Add", [value, constant], like=value, name=f"{name}.bias")
        self._clone.insert(total, behind=value)
        self._clone.replace(value, total, but=total.producer())

    def _stored(self, name: str, expr: Expr, dtype: str, shape: tuple[int, ...] | None = None) -> ir.Value:
        array = self._numbers(expr, dtype)
        return self._clone.initializer(name + FOLDED_SUFFIX, array if shape is None else array.reshape(shape))

    def _constant(self, dtype: str, number: float, *shape: int) -> ir.Value:
        """A constant with one number in every place; there is one of each kind in the model."""
        key = (dtype, number, shape)
        if key not in self._plain:
            array = algebra.rounded(Given((number,), (1,) * len(shape)), dtype)
            name = {0.0: "zeros", 1.0: "ones"}[number]
            self._plain[key] = self._clone.initializer(name, np.broadcast_to(array, shape).copy())
        return self._plain[key]

    def _along(self, axis: int, rank: int | None, label: str) -> tuple[int, ...]:
        """The shape of a vector that is broadcast along an axis of data of a rank."""
        if rank is None:
            raise FoldError(f"{label} is to get numbers along axis {axis}, but the rank of its data is not known")
        return (-1, *(1,) * (rank - axis - 1))

    def _record(self, role: Role, value: ir.Value, linear: str, expr: Expr, norms: Sequence[Norm]) -> None:
        self._new.append(NewTensor(str(value.name), role, linear, expr, tuple(norms)))


def _set_window(node: ir.Node, window: Window, groups: int, kernel: Sequence[int]) -> None:
    """Write a window out. Where it is padded at run time, auto_pad stays. Source: ONNX Conv-11, ConvTranspose-11."""
    given: dict[str, Sequence[int]] = {
        "kernel_shape": kernel, "strides": window.stride, "dilations": window.dilation,
    }  # fmt: skip
    if window.pads is not None:
        node.attributes.pop("auto_pad", None)
        node.attributes.pop("output_shape", None)
        given["pads"] = [*(begin for begin, _ in window.pads), *(end for _, end in window.pads)]
    if any(window.output_padding):
        given["output_padding"] = window.output_padding
    for name, sizes in given.items():
        node.attributes[name] = ir.AttrInt64s(name, list(sizes))
    node.attributes["group"] = ir.AttrInt64("group", groups)


def _sibling(weight: str, role: str) -> str:
    """The name that a bias beside this weight would have: conv1.weight -> conv1.bias."""
    owner, _, last = weight.rpartition(".")
    return f"{owner}.{role}" if owner and last == "weight" else f"{weight}.{role}"
