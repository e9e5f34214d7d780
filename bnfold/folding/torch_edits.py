"""A plan's edits carried out on a clone of an exported program.

A folded tensor takes the place and the qualified name of the one it is made from where its linear is the only one
that reads that; otherwise, and where there was none, the linear gets a new parameter beside it. What only removed
nodes used is removed with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from bnfold.errors import FoldError
from bnfold.folding import algebra
from bnfold.folding.carriers import Window
from bnfold.folding.edits import AddConstant, Bypass, Edit, Redirect, SetAffine, SetSlope, SetWeights, sources
from bnfold.folding.expressions import ONE, ZERO, Expr, leaves
from bnfold.folding.facts import Norm
from bnfold.folding.torch_clone import Clone, refresh
from bnfold.folding.torch_nodes import TRANSPOSED, arguments, operator_of
from bnfold.folding.torch_tensors import FLOATS

aten = torch.ops.aten
Role: TypeAlias = Literal["weight", "bias", "scale", "shift", "constant", "slope"]

# Where the weight and the bias of an operator stand among its arguments; None: it has no bias.
_PLACES: dict[str, tuple[int, int | None]] = {"addmm": (2, 0), "mm": (1, None), "matmul": (1, None)}


def carry_out(
    program: ExportedProgram, edits: Sequence[Edit], *, own_storage: bool = False
) -> tuple[ExportedProgram, tuple[dict[str, Any], ...]]:
    """A clone of the program with the edits carried out, and the fold map.

    own_storage: the clone shares no tensor with the program; otherwise it shares those that the edits leave alone.
    Raises FoldError when an edit names a node that the program does not have.
    """
    editor = _Editor(program, own_storage=own_storage)
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
    def __init__(self, source: ExportedProgram, *, own_storage: bool) -> None:
        self._clone = Clone(source, own_storage=own_storage)
        self._dead: list[Node] = []
        self._changed: set[Node] = set()  # nodes whose fake values are to be computed anew
        self._shared: dict[int, Node] = {}  # new weights by the expression that they are made from
        self._map: list[dict[str, Any]] = []

    # Linears

    def set_weights(self, edit: SetWeights) -> None:
        """Another weight, bias and window for a linear."""
        node = self._clone.operation(edit.linear.id)
        arguments_of = arguments(node)
        node.args = tuple(
            arguments_of[argument.name] for argument in _schema(node).arguments if not argument.kwarg_only
        )
        node.kwargs = {}  # alpha and beta are absorbed; the default of both is 1
        if (edit.window, edit.groups) != (edit.linear.window, edit.linear.groups) and edit.window is not None:
            self._set_window(node, edit, edit.window)
        weight_at, bias_at = _PLACES.get(operator_of(node), (1, 2))
        self._set_weight(node, edit, weight_at)
        self._set_bias(node, edit, bias_at)

    def _set_weight(self, node: Node, edit: SetWeights, at: int) -> None:
        given = node.args[at]
        made = self._shared.get(id(edit.weight))
        if made is None:
            array = edit.weight_values()
            chain = [given]
            while isinstance(chain[-1], Node) and chain[-1].op != "placeholder" and chain[-1].args:
                chain.append(chain[-1].args[0])
            stored = chain[-1]
            is_own = all(isinstance(item, Node) and len(item.users) == 1 for item in chain)
            is_kept = len(chain) == 1 or array.shape == edit.linear.weight.shape
            name = edit.linear.weight.name
            if is_own and is_kept and isinstance(stored, Node) and self._clone.target(stored) == name:
                self._clone.store(stored, array)
                self._changed.update(stored.users if array.shape != edit.linear.weight.shape else ())
                self._record("weight", name, edit.linear.name, edit.weight, edit.norms)
                self._shared[id(edit.weight)] = stored
                return
            old = self._clone.tensor(name)
            made = self._clone.parameter(name, array, like=old, trains=old.requires_grad)
            self._record("weight", self._clone.target(made), edit.linear.name, edit.weight, edit.norms)
            self._shared[id(edit.weight)] = made
        is_turned = operator_of(node) in _PLACES and edit.linear.out_first
        node.update_arg(at, self._clone.call_before(node, aten.t.default, made) if is_turned else made)
        self._changed.add(node)
        self._dead.extend(item for item in (given,) if isinstance(item, Node))

    def _set_bias(self, node: Node, edit: SetWeights, at: int | None) -> None:
        values = edit.bias_values()
        given = None if at is None else node.args[at]
        if values is None or edit.bias is None:
            if isinstance(given, Node) and at is not None:
                self._drop_bias(node, at)
                self._dead.append(given)
            return
        if isinstance(given, Node) and self._is_own_bias(given, edit):
            self._clone.store(given, values)
            bias = given
        else:
            weight = self._clone.tensor(edit.linear.weight.name)
            name = _beside(edit.linear.weight.name, "bias")
            bias = self._clone.parameter(name, values, like=weight, trains=weight.requires_grad)
            self._dead.extend(item for item in (given,) if isinstance(item, Node))
            if at is not None:
                node.update_arg(at, bias)
            else:
                total = self._clone.call_after(node, aten.add.Tensor, node, bias)
                self._clone.substitute(node, total, but=lambda user: user is total)
        self._record("bias", self._clone.target(bias), edit.linear.name, edit.bias, edit.norms)

    def _drop_bias(self, node: Node, at: int) -> None:
        if operator_of(node) == "addmm":
            node.target = aten.mm.default
            node.args = node.args[1:]
        else:
            node.update_arg(at, None)

    def _is_own_bias(self, given: Node, edit: SetWeights) -> bool:
        """True for a stored bias over the channels that the linear has to itself."""
        target = self._clone.target(given)
        return (
            bool(target) and len(given.users) == 1 and list(self._clone.tensor(target).shape) == [edit.linear.channels]
        )

    def _set_window(self, node: Node, edit: SetWeights, window: Window) -> None:
        """Rewrite stride, padding, dilation and groups; uneven padding becomes a pad in front."""
        pads = window.pads
        if pads is None:
            raise FoldError(f"{edit.linear.label} is to have padding chosen at run time, which torch has not")
        given = arguments(node)
        if any(begin != end for begin, end in pads):
            if str(node.target) in TRANSPOSED or given.get("transposed"):
                raise FoldError(
                    f"{edit.linear.label} is to have uneven padding, which torch has not; please report this"
                )
            widths = [width for pair in reversed(pads) for width in pair]
            padded = self._clone.call_before(node, aten.constant_pad_nd.default, node.args[0], widths, 0.0)
            given["input"], pads = padded, ((0, 0),) * len(pads)
        given |= {
            "stride": list(window.stride), "padding": [begin for begin, _ in pads], "dilation": list(window.dilation),
            "groups": edit.groups,
        }  # fmt: skip
        if str(node.target).endswith(".padding"):
            node.target = getattr(aten, operator_of(node)).default
        node.args = tuple(given[argument.name] for argument in _schema(node).arguments)
        self._changed.add(node)

    # Norms, sums and activations

    def bypass(self, edit: Bypass) -> None:
        """Whoever reads a norm reads its input."""
        self._replace_norm(edit.norm, self._source_of(edit.norm))

    def redirect(self, edit: Redirect) -> None:
        """Whoever reads a sum reads another value."""
        node, to = self._clone.operation(edit.carrier.id), self._clone.value(edit.to)
        self._note_strides(node, to)
        self._clone.substitute(node, to)
        self._dead.append(node)

    def set_affine(self, edit: SetAffine) -> None:
        """A product and a sum in place of a norm."""
        source = data = self._source_of(edit.norm)
        last = self._clone.operation(edit.norm.output)
        parts: tuple[tuple[Role, Any, Expr, Expr], ...] = (
            ("scale", aten.mul.Tensor, edit.scale, ONE), ("shift", aten.add.Tensor, edit.shift, ZERO),
        )  # fmt: skip
        for role, operator, expr, neutral in parts:
            if expr == neutral:
                continue
            rank = source.meta["val"].ndim
            shape = [-1 if at == edit.norm.axis else 1 for at in range(edit.norm.axis or 0, rank)] if expr.shape else []
            constant = self._constant(f"{edit.norm.name}.{role}", expr, source, shape)
            self._record(role, self._clone.target(constant), edit.norm.name, expr, edit.norms)
            after = last if data is source else data
            data = self._clone.call_after(after, operator, data, constant)
        self._replace_norm(edit.norm, data)

    def add_constant(self, edit: AddConstant) -> None:
        """A sum with a constant before all readers of a value."""
        node = self._clone.value(edit.value)
        name = _beside(edit.like.weight.name, "constant")
        constant = self._constant(name, edit.constant, node, list(edit.constant.shape))
        self._record("constant", self._clone.target(constant), edit.like.name, edit.constant, edit.norms)
        total = self._clone.call_after(node, aten.add.Tensor, node, constant)
        self._clone.substitute(node, total, but=lambda user: user is total)

    def set_slope(self, edit: SetSlope) -> None:
        """A PReLU in place of an activation; on another axis than 1 it is written out."""
        node = self._clone.operation(edit.carrier.id)
        source = node.all_input_nodes[0]
        rank = source.meta["val"].ndim
        shape = [-1] if edit.axis == 1 else [-1 if at == edit.axis else 1 for at in range(edit.axis, rank)]
        slope = self._constant(_beside(edit.like.weight.name, "slope"), edit.slope, source, shape)
        self._record("slope", self._clone.target(slope), edit.like.name, edit.slope, edit.norms)
        if edit.axis == 1:
            made = self._clone.call_after(node, aten.prelu.default, source, slope)
        else:
            scaled = self._clone.call_after(node, aten.mul.Tensor, source, slope)
            is_above = self._clone.call_after(scaled, aten.gt.Scalar, source, 0)
            made = self._clone.call_after(is_above, aten.where.self, is_above, source, scaled)
        self._note_strides(node, made)
        self._clone.substitute(node, made)
        self._dead.append(node)

    def finish(self) -> tuple[ExportedProgram, tuple[dict[str, Any], ...]]:
        """The edited program and the fold map."""
        self._clone.sweep(self._dead)
        refresh(self._clone.graph, [node for node in self._clone.graph.nodes if node in self._changed])
        return self._clone.program(), tuple(self._map)

    def _source_of(self, norm: Norm) -> Node:
        """The node that a norm reads: its input, or a copy of that."""
        first = self._clone.operation(norm.nodes[0])
        source = next((item for item in first.all_input_nodes if self._carries(item, norm.input)), None)
        if source is None:
            raise FoldError(f"{norm.label} does not read '{norm.input}'; plan and program must come from one another")
        return source

    def _carries(self, node: Node, name: str) -> bool:
        """True when a node hands on the data of the named value: it, or a copy of it further down."""
        wanted = self._clone.value(name)
        while node is not wanted:
            if node.op != "call_function" or not node.all_input_nodes:
                return False
            node = node.all_input_nodes[0]
        return True

    def _replace_norm(self, norm: Norm, by: Node) -> None:
        last = self._clone.operation(norm.output)
        source = self._source_of(norm)
        chain = [self._clone.operation(name) for name in norm.nodes]
        self._note_strides(last, by)
        self._clone.substitute(last, by)
        for node in chain:  # what reads a step's shape or dtype can read the input's
            for user in [user for user in node.users if user not in chain]:
                user.replace_input_with(node, source)
        self._dead.extend(reversed(chain))

    def _note_strides(self, old: Node, new: Node) -> None:
        """Where other strides come out, the shapes of what reads them are computed anew."""
        before, after = old.meta.get("val"), new.meta.get("val")
        if not isinstance(before, torch.Tensor) or str(before.stride()) != str(getattr(after, "stride", tuple)()):
            self._changed.update(old.users)

    def _constant(self, name: str, expr: Expr, data: Node, shape: list[int]) -> Node:
        """A new parameter in the dtype of the data."""
        value = data.meta["val"]
        array = np.asarray(algebra.rounded(expr, FLOATS[value.dtype])).reshape(shape)
        tensors = [self._clone.known(tensor.name) for tensor in leaves(expr)]
        trains = any(tensor is not None and tensor.requires_grad for tensor in tensors)
        return self._clone.parameter(name, array, like=torch.empty(0, device=value.device), trains=trains)

    def _record(self, role: Role, tensor: str, linear: str, expr: Expr, norms: Sequence[Norm]) -> None:
        entry = {"tensor": tensor, "role": role, "linear": linear, "from": list(sources(expr))}
        self._map.append({**entry, "norms": [norm.name for norm in norms]})


def _beside(name: str, last: str) -> str:
    """The name of a tensor beside another: 'conv.bias' for 'conv.weight', 'kernel_bias' for 'kernel'."""
    owner, _, own = name.rpartition(".")
    stem = last if own == "weight" else f"{own}_{last}"
    return f"{owner}.{stem}" if owner else stem


def _schema(node: Node) -> Any:
    return node.target._schema  # type: ignore[union-attr]
