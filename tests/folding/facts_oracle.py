"""A float64 interpreter of facts, with and without a plan's edits: what a fold must leave as it was.

Values are arrays of shape (N, C, L). A linear over axis 1 is a convolution along L padded with zeros to equal size;
one over axis 2 is a dense layer. Nothing here knows how a norm is folded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bnfold.folding.edits import Bypass, Edit, SetAffine, SetWeights
from bnfold.folding.expressions import Expr, Leaf, Op, Scalar, Tensor, View
from bnfold.folding.facts import Graph, Linear, Norm, Opaque

OPAQUE = {
    "Tanh": lambda x: np.tanh(x),
    "Add": lambda *xs: sum(xs),
    "Flip": lambda x: np.tanh(x[:, ::-1, ::-1]),
}


def tensor(name: str, values: Any) -> Tensor:
    array = np.asarray(values)
    return Tensor(name, array.dtype.name, array.shape, name, lambda: array)


def number(expr: Expr) -> Any:
    """The value of an expression in plain float64."""
    match expr:
        case Scalar(value):
            return np.float64(value)
        case Leaf(of):
            return of.load().astype(np.float64)
        case View(of, shape):
            return number(of).reshape(shape)
        case Op("sqrt", (of,)):
            return np.sqrt(number(of))
        case Op(kind, (left, right)):
            function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[kind]
            return function(number(left), number(right))
    raise TypeError(expr)


def linear(node: Linear, weight: Any, bias: Any, x: Any) -> Any:
    if not node.out_first:  # (I, O/g, *K) -> (O, I/g, *K)
        per_group = weight.shape[0] // node.groups
        parts = [weight[g * per_group : (g + 1) * per_group].swapaxes(0, 1) for g in range(node.groups)]
        weight = np.concatenate(parts)
    if weight.ndim == 2:
        result = node.alpha * (x @ weight.T)
        shape = (1, 1, -1)
    else:
        outputs, inputs, kernel = weight.shape
        result = np.zeros((x.shape[0], outputs, x.shape[2]))
        padded = np.pad(x, ((0, 0), (0, 0), (kernel // 2, kernel)))
        for o in range(outputs):
            group = o // (outputs // node.groups)
            for i in range(inputs):
                for k in range(kernel):
                    result[:, o] += weight[o, i, k] * padded[:, group * inputs + i, k : k + x.shape[2]]
        result *= node.alpha
        shape = (1, -1, 1)
    return result if bias is None else result + node.beta * bias.reshape(shape)


def norm(node: Norm, x: Any) -> Any:
    """The map of a norm; a refused one is made something that is no affine map at all."""

    def along(expr: Expr) -> Any:
        value = number(expr)
        if value.size == 1:
            return value.reshape(())
        return value.reshape([-1 if axis == node.axis else 1 for axis in range(3)])

    result = along(node.scale) * x + along(node.shift)
    return np.tanh(result) if node.refusal else result


def run(graph: Graph, inputs: Mapping[str, Any], edits: Sequence[Edit] = ()) -> list[Any]:
    """The graph outputs. With edits, as an adapter carries them out."""
    unknown = [edit for edit in edits if not isinstance(edit, SetWeights | Bypass | SetAffine)]
    if unknown:
        raise TypeError(f"facts_interpreter carries out {unknown[0]}, this does not")
    changed = {edit.linear.id: edit for edit in edits if isinstance(edit, SetWeights)}
    affine = {edit.norm.output: edit for edit in edits if isinstance(edit, SetAffine)}
    gone = {id for edit in edits if isinstance(edit, Bypass) for id in edit.norm.nodes}
    alias = {edit.norm.output: edit.norm.input for edit in edits if isinstance(edit, Bypass)}
    values = dict(inputs)

    def read(name: str) -> Any:
        while name in alias:
            name = alias[name]
        return values[name]

    for node in graph.nodes:
        if isinstance(node, Linear):
            weight = node.weight.load().astype(np.float64)
            bias = None if node.bias is None else node.bias.load().astype(np.float64)
            if node.id in changed:
                node, edit = dataclasses.replace(node, alpha=1.0, beta=1.0), changed[node.id]
                weight = edit.weight_values().astype(np.float64)
                bias = None if edit.bias is None else edit.bias_values().astype(np.float64)
            values[node.output] = linear(node, weight, bias, read(node.input))
        elif isinstance(node, Opaque):
            values[node.outputs[0]] = OPAQUE[node.kind](*(read(name) for name in node.inputs))
        elif node.id in affine:
            edit = affine[node.id]
            left = dataclasses.replace(edit.norm, scale=edit.scale, shift=edit.shift)
            values[node.output] = norm(left, read(left.input))
        elif node.id not in gone:
            extra = sum(float(read(name).mean()) for name in node.parameters)
            values[node.output] = norm(node, read(node.input)) + extra
    return [read(name) for name in graph.outputs]


def agree(left: Sequence[Any], right: Sequence[Any], bound: float = 1e-9) -> bool:
    """True when all outputs are finite and differ by no more than a bound relative to their size."""
    if len(left) != len(right):
        return False
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
            return False
        if np.abs(a - b).max(initial=0.0) > bound * (1.0 + np.abs(a).max(initial=0.0)):
            return False
    return True
