"""ExportedProgram -> facts, and a plan's edits carried out on a clone. Decides nothing.

Facts name values by the names of their nodes in the graph. Norms inside the branches of control flow are listed and
left alone. An operator that nothing is known of, or that writes in place, is opaque.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from bnfold.folding import facts
from bnfold.folding.carriers import Pool, Rule, Split
from bnfold.folding.expressions import ONE, ZERO
from bnfold.folding.facts import Carrier, Dim, Graph, Norm, Opaque, Reason
from bnfold.folding.plan import Plan, make_plan
from bnfold.folding.report import FoldReport
from bnfold.folding.torch_carriers import carrier
from bnfold.folding.torch_constants import CASTS, SAME, Constants, dtype_of
from bnfold.folding.torch_edits import carry_out
from bnfold.folding.torch_layout import is_whole
from bnfold.folding.torch_modules import fold_copy, graph_module
from bnfold.folding.torch_nodes import METADATA, NORMS, Reader, arguments, operator_of
from bnfold.folding.torch_tensors import dimensions
from bnfold.folding.torch_trace import plainly_written, trace_module

FoldMap: TypeAlias = tuple[dict[str, Any], ...]

_DROPOUTS = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
_DROPOUTS |= {f"{name}_" for name in _DROPOUTS}


def fold_module(
    module: torch.nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    dynamic_shapes: Any = None,
    keep: Sequence[str] = (),
    moves: str | Sequence[str] = "default",
) -> tuple[torch.nn.Module, FoldReport, FoldMap]:
    """Fold a module: a folded module in eval mode, the report, the fold map. The module given is not changed.

    The result is a deep copy with edited parameters and torch.nn.Identity in place of each folded norm wherever
    every site is a module that is called once; otherwise a torch.fx.GraphModule on parameters of its own.

    Raises FoldError when the module cannot be traced, or for moves or norms to keep that are not known.
    """
    program = trace_module(module, example_inputs, dynamic_shapes=dynamic_shapes)
    made = make_plan(read_program(program), keep=keep, moves=moves)
    edited, fold_map = carry_out(program, made.edits)
    folded = fold_copy(module, program, edited, made.edits, example_inputs, dynamic_shapes=dynamic_shapes)
    return folded if folded is not None else graph_module(edited), made.report, fold_map


def inspect_module(
    module: torch.nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    dynamic_shapes: Any = None,
    keep: Sequence[str] = (),
    moves: str | Sequence[str] = "default",
) -> FoldReport:
    """What would be folded, and why the rest would not; nothing is folded. Raises as `fold_module`."""
    program = trace_module(module, example_inputs, dynamic_shapes=dynamic_shapes)
    return plan_program(program, keep=keep, moves=moves).report


def fold_program(
    program: ExportedProgram, *, keep: Sequence[str] = (), moves: str | Sequence[str] = "default"
) -> tuple[ExportedProgram, FoldReport, FoldMap]:
    """Fold an exported program: a folded program with the same signature and dynamic shapes, the report, the map.

    Raises FoldError for moves or norms to keep that are not known.
    """
    program = plainly_written(program)
    made = make_plan(read_program(program), keep=keep, moves=moves)
    edited, fold_map = carry_out(program, made.edits, own_storage=True)
    return edited, made.report, fold_map


def plan_program(program: ExportedProgram, *, keep: Sequence[str] = (), moves: str | Sequence[str] = "default") -> Plan:
    """What would be folded, and why the rest would not."""
    return make_plan(read_program(plainly_written(program)), keep=keep, moves=moves)


def read_program(program: ExportedProgram) -> Graph:
    """The facts of an exported program, one exported in training mode included."""
    return _Reading(program).read()


class _Reading:
    """One pass over the nodes of a program."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.constants = Constants(program)
        self.alias: dict[Node, Node] = {}
        self.items: set[Node] = set()  # of tuples that carriers write: values, not nodes of their own
        self.uses: Counter[Hashable] = Counter()
        self.reader = Reader(self.constants, self.root)

    def read(self) -> Graph:
        """The facts."""
        nodes: list[facts.Node] = []
        inputs: list[str] = []
        outputs: list[Node] = []
        shapes: dict[str, tuple[Dim, ...]] = {}
        for node in self.program.graph.nodes:
            if self.constants.take(node):
                continue
            self._count_uses(node)
            if node.op == "placeholder":
                inputs.append(node.name)
            elif node.op == "output":
                torch.fx.map_arg(node.args, outputs.append)
            elif node.op == "call_function" and not self._is_alias(node) and node not in self.items:
                nodes.extend(self._read_node(node))
            if _is_tensor(node):
                shapes[node.name] = dimensions(node.meta["val"])
        return Graph(
            nodes=tuple(nodes),
            inputs=tuple(inputs),
            outputs=tuple(self.root(node) for node in outputs),
            tensor_readers=dict(self.uses),
            shapes=shapes,
        )

    def root(self, node: Node) -> str:
        """The name under which a value's data first appeared."""
        while node in self.alias:
            node = self.alias[node]
        return node.name

    def _read_node(self, node: Node) -> Iterator[facts.Node]:
        name = operator_of(node)
        if name in METADATA or _is_size(node):
            return
        if name in NORMS:
            items = tuple(user.name for user in node.users if user.target is operator.getitem)
            yield self._norm(node) or dataclasses.replace(self._opaque(node), outputs=(node.name, *items))
            return
        yield (self._is_intact(node) and (self.reader.read(node) or self._carrier(node))) or self._opaque(node)
        yield from self._out_of_reach(node)

    def _is_intact(self, node: Node) -> bool:
        """False where the graph writes in place to what a node reads or writes: that holds for a time only."""
        inputs = [item for item in node.all_input_nodes if not self.constants.get(item)]
        return not any(self.constants.is_written(item) for item in (node, *inputs))

    def _carrier(self, node: Node) -> Carrier | None:
        stated = carrier(node, self.constants)
        outputs = None if stated is None else self._outputs(node, stated.rule)
        if stated is None or outputs is None:
            return None
        inputs = tuple(self.root(item) for item in stated.inputs)
        return Carrier(outputs[0], node.name, operator_of(node), inputs, outputs, stated.rule)

    def _outputs(self, node: Node, rule: Rule) -> tuple[str, ...] | None:
        """The names of a carrier's values; None where its tuple is used as such."""
        if _is_tensor(node):
            return (node.name,)
        items: dict[int, Node] = {}
        for user in node.users:
            if user.target is not operator.getitem or not isinstance(user.args[1], int):
                return None
            first = items.setdefault(user.args[1], user)
            if first is not user:
                self.alias[user] = first
        self.items.update(user for user in node.users)
        count = (
            len(rule.sizes) if isinstance(rule, Split) else 2 if isinstance(rule, Pool) and rule.gives_indices else 1
        )
        return tuple(items[at].name if at in items else f"{node.name}:{at}" for at in range(count))

    def _norm(self, node: Node) -> Norm | None:
        """A norm operator; one that gives a tuple is known by the first item, if the others are not read."""
        if _is_tensor(node):
            return self.reader.norm(node, node)
        items = [user for user in node.users if user.target is operator.getitem]
        data = [user for user in items if user.args[1] == 0]
        norm = self.reader.norm(node, data[0]) if len(data) == 1 else None
        is_read = len(items) != len(node.users) or any(user.users for user in items if user.args[1] != 0)
        if norm is None or not is_read or norm.refusal:
            return norm
        return None

    def _is_alias(self, node: Node) -> bool:
        """Operators that hand the data of their input on, and the items of a norm's tuple."""
        of = node.args[0] if node.args else None
        if not isinstance(of, Node):
            return False
        name = operator_of(node)
        if node.target is operator.getitem and operator_of(of) in NORMS:
            return True
        is_same = (
            str(node.target) in SAME
            or (str(node.target) in CASTS and dtype_of(node) == dtype_of(of))
            or (name in _DROPOUTS and arguments(node).get("train") is False)
            or is_whole(node)
        )  # fmt: skip
        if is_same:
            self.alias[node] = of
        return is_same

    def _count_uses(self, node: Node) -> None:
        def counted(item: Node) -> Node:
            constant = self.constants.get(item)
            for tensor in constant.tensors if constant else ():
                self.uses[tensor.key] += 1
            return item

        if operator_of(node) not in METADATA:
            torch.fx.map_arg((node.args, node.kwargs), counted)

    def _opaque(self, node: Node) -> Opaque:
        inputs = [
            item
            for item in node.all_input_nodes
            if self.constants.get(item) is None and item.op != "get_attr" and not _is_size(item)
        ]
        return Opaque(
            id=node.name,
            name=node.name,
            kind=operator_of(node) or getattr(node.target, "__name__", str(node.target)),
            inputs=tuple(self.root(item) for item in inputs),
            outputs=(node.name,),
        )

    def _out_of_reach(self, node: Node) -> Iterator[Norm]:
        """Norms in the branches of control flow, and in the branches of these: listed, not touched."""
        reason = Reason("INSIDE_SUBGRAPH", f"it stands inside a branch of {node.target} '{node.name}'")
        for name in _norms_in_branches(self.program.graph_module, node):
            yield Norm(
                id=name, name=name, kind="BatchNorm", input=f"{name}:input", output=f"{name}:output",
                scale=ONE, shift=ZERO, axis=1, nodes=(), obstacle=reason,
            )  # fmt: skip


def _norms_in_branches(owner: torch.nn.Module, node: Node) -> Iterator[str]:
    """Norm operators in the graphs that a node calls, by the path that leads to them."""
    for branch in node.all_input_nodes:
        inner = getattr(owner, str(branch.target), None) if branch.op == "get_attr" else None
        if not isinstance(inner, GraphModule):
            continue
        for found in inner.graph.nodes:
            names = (found.name,) if operator_of(found) in NORMS else _norms_in_branches(inner, found)
            yield from (f"{branch.target}/{name}" for name in names)


def _is_size(node: Node) -> bool:
    """True for a number that is made of sizes alone, and for what is only asserted of such."""
    is_number = not isinstance(node.meta.get("val"), torch.Tensor | list | tuple | dict) and "val" in node.meta
    if operator_of(node) in METADATA:
        return True
    inputs = [item.meta.get("val") for item in node.all_input_nodes]
    return is_number and bool(inputs) and all(isinstance(value, torch.SymInt | torch.SymBool | int) for value in inputs)


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
