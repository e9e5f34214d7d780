"""A plan's edits carried out on a clone of an exported program.

A folded tensor takes the place and the qualified name of the one it is made from (planning made sure that nobody
else reads it); a linear without a bias of its own gets a new parameter. Tensors are replaced, never written to, so
that what shares storage with them stays as it is. What only the removed norms used is removed with them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputSpec, TensorArgument
from torch.fx import Graph, GraphModule, Node

from bnfold.errors import FoldError
from bnfold.folding.edits import Bypass, Edit, SetWeights
from bnfold.folding.expressions import Array
from bnfold.folding.torch_nodes import operator_of
from bnfold.folding.torch_tensors import is_inplace, stored_tensor, to_torch
from bnfold.folding.torch_trace import quiet


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
    editor.sweep()
    return editor.program(), tuple(editor.fold_map)


def bias_name(edit: SetWeights, taken: Sequence[str] | set[str]) -> str:
    """The qualified name of a linear's new bias: beside its weight, and not taken."""
    owner, _, last = edit.linear.weight.name.rpartition(".")
    stem = "bias" if last == "weight" else f"{last}_bias"
    name = candidate = f"{owner}.{stem}" if owner else stem
    number = 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


class _Editor:
    def __init__(self, source: ExportedProgram, *, own_storage: bool) -> None:
        self._source = source
        self._graph = Graph()
        copies: dict[Node, Node] = {}
        result = self._graph.graph_copy(source.graph, val_map=copies, return_output_node=True)
        if not isinstance(result, tuple):
            raise FoldError("the exported program has no output node; export the network again")
        output = self._graph.output(result[0])
        output.meta = copy.copy(result[1].meta)
        self._output = output
        self._nodes = {old.name: new for old, new in copies.items()}
        self._specs: list[tuple[InputSpec, Node | None]] = [
            (spec, self._nodes[spec.arg.name] if hasattr(spec.arg, "name") else None)
            for spec in source.graph_signature.input_specs
        ]
        tensors = (dict(source.state_dict), dict(source.constants))
        own = _cloned(tensors) if own_storage else tensors
        self._state: dict[str, Any] = own[0]
        self._constants: dict[str, Any] = own[1]
        self._dead: list[Node] = []
        self.fold_map: list[dict[str, Any]] = []

    def set_weights(self, edit: SetWeights) -> None:
        node = self._node(edit.linear.id)
        self._store(edit.linear.weight.name, edit.weight())
        self._record(edit, "weight", edit.linear.weight.name)
        at = {"addmm": 0, "mm": -1, "matmul": -1}.get(operator_of(node), 2)
        target = self._own_bias(edit, node, at)
        if target is not None:
            self._store(target, edit.bias())
        else:
            target = bias_name(edit, self._taken())
            bias = self._new_parameter(target, edit.bias(), beside=edit.linear.weight.name)
            self._attach(node, at, bias)
        if operator_of(node) == "addmm":
            node.kwargs = {}  # alpha and beta are absorbed; the default of both is 1
        self._record(edit, "bias", target)

    def bypass(self, edit: Bypass) -> None:
        first, last = self._node(edit.norm.nodes[0]), self._node(edit.norm.output)
        source = next((item for item in first.all_input_nodes if self._carries(item, edit.norm.input)), None)
        if source is None:
            raise FoldError(
                f"{edit.norm.label} does not read '{edit.norm.input}'; plan and program must come from one another"
            )
        chain = [self._node(name) for name in edit.norm.nodes]
        last.replace_all_uses_with(source, propagate_meta=False)
        for node in chain:  # what reads a step's shape or dtype can read the input's
            for user in [user for user in node.users if user not in chain]:
                user.replace_input_with(node, source)
        self._nodes[edit.norm.output] = source
        self._dead.extend(reversed(chain))

    def sweep(self) -> None:
        """Remove the nodes of absorbed norms, then what only they used, parameters included."""
        queue = list(self._dead)
        unused: list[Node] = []
        erased: set[Node] = set()
        while queue:
            node = queue.pop(0)
            if node in erased or node.users:
                continue
            if node.op == "placeholder":
                unused.append(node)
            elif node.op == "call_function" and not is_inplace(node):
                inputs = node.all_input_nodes
                self._graph.erase_node(node)
                erased.add(node)
                queue.extend(inputs)
        owners = {self._target(node).rpartition(".")[0] for node in unused}
        for spec, holder in list(self._specs):
            # What else the owner of a folded norm keeps (the count of batches) goes with it.
            if holder is None or holder.users or spec.kind == InputKind.USER_INPUT:
                continue
            owner = str(spec.target).rpartition(".")[0]
            if holder in unused or (owner and owner in owners and spec.kind == InputKind.BUFFER):
                self._specs.remove((spec, holder))
                self._state.pop(str(spec.target), None)
                self._constants.pop(str(spec.target), None)
                self._graph.erase_node(holder)

    def program(self) -> ExportedProgram:
        """The edited program."""
        inputs = [
            InputSpec(spec.kind, _renamed(spec.arg, node), spec.target, spec.persistent) for spec, node in self._specs
        ]
        results: list[Any] = []
        torch.utils._pytree.tree_map(results.append, list(self._output.args[0]))
        outputs = [
            OutputSpec(spec.kind, _renamed(spec.arg, node if isinstance(node, Node) else None), spec.target)
            for spec, node in zip(self._source.graph_signature.output_specs, results, strict=True)
        ]
        with quiet():
            return ExportedProgram(
                root=GraphModule(copy.deepcopy(self._source.graph_module), self._graph),
                graph=self._graph,
                graph_signature=ExportGraphSignature(inputs, outputs),
                state_dict=self._state,
                range_constraints=copy.deepcopy(self._source.range_constraints),
                module_call_graph=copy.deepcopy(self._source.module_call_graph),
                example_inputs=copy.deepcopy(self._source.example_inputs),
                constants=self._constants,
                verifiers=self._source.verifiers,
            )

    def _node(self, name: str) -> Node:
        if name not in self._nodes:
            raise FoldError(f"the program has no node '{name}'; plan and program must come from one another")
        return self._nodes[name]

    def _carries(self, node: Node, name: str) -> bool:
        """True when a node hands on the data of the named value: it, or a copy of it further down."""
        wanted = self._node(name)
        while node is not wanted:
            if node.op != "call_function" or not node.all_input_nodes:
                return False
            node = node.all_input_nodes[0]
        return True

    def _own_bias(self, edit: SetWeights, node: Node, at: int) -> str | None:
        """The name of the bias that the linear has to itself, None where it needs a new one."""
        given = node.args[at] if 0 <= at < len(node.args) else None
        if not isinstance(given, Node) or given.op != "placeholder" or len(given.users) != 1:
            return None
        target = self._target(given)
        old = stored_tensor(self._source, target)
        return target if list(old.shape) == [edit.linear.channels] else None

    def _attach(self, node: Node, at: int, bias: Node) -> None:
        if at >= 0:
            args = list(node.args) + [None] * (at + 1 - len(node.args))
            self._dead.extend(item for item in (args[at],) if isinstance(item, Node))
            args[at] = bias
            node.args = tuple(args)
            return
        with self._graph.inserting_after(node):
            total = self._graph.call_function(torch.ops.aten.add.Tensor, (node, bias))
        total.meta = copy.copy(node.meta)
        node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total, propagate_meta=False)

    def _store(self, target: str, array: Array) -> None:
        home = self._state if target in self._state else self._constants
        home[target] = _like(home[target], array)

    def _new_parameter(self, target: str, array: Array, *, beside: str) -> Node:
        at = next(index for index, (spec, _) in enumerate(self._specs) if spec.target == beside)
        neighbour = self._specs[at][1]
        old = stored_tensor(self._source, beside)
        parameter = torch.nn.Parameter(to_torch(array, old), requires_grad=old.requires_grad)
        if neighbour is None:
            raise FoldError(f"the program has no input for '{beside}'; plan and program must come from one another")
        with self._graph.inserting_after(neighbour):
            node = self._graph.placeholder(re.sub(r"\W", "_", f"p_{target}"))
        node.meta["val"] = neighbour.meta["val"].fake_mode.from_tensor(parameter, static_shapes=True)
        self._specs.insert(at + 1, (InputSpec(InputKind.PARAMETER, TensorArgument(node.name), target), node))
        self._state[target] = parameter
        return node

    def _record(self, edit: SetWeights, role: Literal["weight", "bias"], target: str) -> None:
        norms = [norm.name for norm in edit.absorbed]
        entry = {"tensor": target, "role": role, "linear": edit.linear.name}
        self.fold_map.append({**entry, "from": list(edit.sources(role)), "norms": norms})

    def _target(self, node: Node) -> str:
        return next((str(spec.target) for spec, holder in self._specs if holder is node), "")

    def _taken(self) -> set[str]:
        return {*self._state, *self._constants}


def _cloned(tables: tuple[dict[str, Any], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables with every tensor cloned; what was one tensor under two names is one again."""
    clones: dict[int, torch.Tensor] = {}
    for value in [value for table in tables for value in table.values() if isinstance(value, torch.Tensor)]:
        if id(value) not in clones:
            clone = value.detach().clone()
            is_parameter = isinstance(value, torch.nn.Parameter)
            clones[id(value)] = torch.nn.Parameter(clone, value.requires_grad) if is_parameter else clone
    state, constants = ({name: clones.get(id(value), value) for name, value in table.items()} for table in tables)
    return state, constants


def _like(old: torch.Tensor, array: Array) -> torch.Tensor:
    new = to_torch(array, old)
    is_parameter = isinstance(old, torch.nn.Parameter)
    return torch.nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new


def _renamed(argument: Any, node: Node | None) -> Any:
    """The argument of a signature under the name that its node has now."""
    if node is None or not hasattr(argument, "name"):
        return argument
    renamed = copy.copy(argument)
    renamed.name = node.name
    return renamed
