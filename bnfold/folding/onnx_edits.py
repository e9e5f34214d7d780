"""A plan's edits carried out on a clone of an ONNX IR model.

Folded tensors become new initialisers with names of their own (the old name on a changed tensor has misled people,
and a fresh name that collides has cost a network its accuracy: pytorch#169178). What only the removed norms used is
removed with them; everything else stays as it is, names of graph inputs and outputs included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import onnx_ir as ir

from bnfold.errors import FoldError
from bnfold.folding.edits import Bypass, Edit, SetWeights
from bnfold.folding.expressions import Array

FOLDED_SUFFIX = ".folded"


FoldMap: TypeAlias = tuple[dict[str, Any], ...]


def apply(model: ir.Model, edits: Sequence[Edit]) -> ir.Model:
    """A clone of the model with the edits carried out; the model given is not changed.

    Raises FoldError when an edit names a value that the model does not have.
    """
    return carry_out(model, edits)[0]


def carry_out(model: ir.Model, edits: Sequence[Edit]) -> tuple[ir.Model, FoldMap]:
    """As `apply`, with the fold map: for each folded tensor its role, its sources, and the norms that it absorbed.

    Raises FoldError when an edit names a value that the model does not have.
    """
    clone = clone_of(model)
    editor = _Editor(clone)
    for edit in edits:
        match edit:
            case SetWeights():
                editor.set_weights(edit)
            case Bypass():
                editor.bypass(edit)
    editor.sweep()
    return clone, tuple(editor.fold_map)


def clone_of(model: ir.Model) -> ir.Model:
    """A clone of a model; it shares the tensors of the constants, which nobody writes to.

    Raises FoldError for a model made in memory whose nodes read values before they are written, or by nobody.
    """
    try:
        return model.clone()
    except (RuntimeError, ValueError, KeyError) as problem:
        while problem.__cause__ is not None:
            problem = problem.__cause__  # type: ignore[assignment]
        raise FoldError(
            "the ONNX model in memory cannot be copied, because its nodes are not in topological order or read a value "
            f"that no node writes ({str(problem)[:200]}); call model.graph.sort() or mend the model first"
        ) from None


def unlist_constants(model: ir.Model) -> None:
    """Take initialisers off the graph inputs, where they had to be listed up to IR version 3, and go to version 4."""
    if model.ir_version >= 4:
        return
    initialised = set(model.graph.initializers.values())
    kept = [value for value in model.graph.inputs if value not in initialised]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    model.ir_version = 4


class _Editor:
    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._graph = model.graph
        self._taken = {str(value.name) for value in _all_values(model.graph)}
        self._values = {str(value.name): value for value in main_values(model.graph)}
        self._dead: list[ir.Node] = []
        self._unused: list[ir.Value] = []
        self.fold_map: list[dict[str, Any]] = []

    def set_weights(self, edit: SetWeights) -> None:
        node = self._producer(edit.linear.id)
        weight = self._initializer(edit.linear.weight.name, edit.weight())
        self._put(node, 1, weight)
        bias_name = edit.linear.bias.name if edit.linear.bias else _sibling(edit.linear.weight.name, "bias")
        stored = self._initializer(bias_name, edit.bias())
        norms = [norm.name for norm in edit.absorbed]
        roles: tuple[tuple[Literal["weight", "bias"], ir.Value], ...] = (("weight", weight), ("bias", stored))
        for role, value in roles:
            entry = {"tensor": value.name, "role": role, "linear": edit.linear.name}
            self.fold_map.append({**entry, "from": list(edit.sources(role)), "norms": norms})
        if edit.linear.kind == "MatMul":
            self._add_behind(node, stored)
            return
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        self._put(node, 2, stored)
        for name in ("alpha", "beta"):  # absorbed; the default of both is 1
            node.attributes.pop(name, None)

    def bypass(self, edit: Bypass) -> None:
        before, after = self._values[edit.norm.input], self._values[edit.norm.output]
        is_output = after.is_graph_output()
        after.replace_all_uses_with(before, replace_graph_outputs=True)
        if is_output:
            name, after.name = after.name, self._fresh(f"{after.name}.unfolded")
            before.name = name
            before.shape, before.type = after.shape, after.type
        self._values[edit.norm.output] = before
        self._dead.extend(self._producer(name) for name in edit.norm.nodes if name != edit.norm.output)
        last = after.producer()
        if last is not None:
            self._dead.append(last)

    def sweep(self) -> None:
        """Remove the nodes of absorbed norms, then what only they used."""
        queue = list(dict.fromkeys(reversed(self._dead)))
        while queue:
            node = queue.pop(0)
            if node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
                continue
            inputs = [value for value in node.inputs if value is not None]
            self._graph.remove(node, safe=True)
            queue.extend(producer for value in inputs if (producer := value.producer()) is not None)
            self._unused.extend(value for value in inputs if value.is_initializer())
        if self.fold_map:
            unlist_constants(self._model)  # fresh initialisers are not listed
        listed = set(self._graph.inputs)
        for value in self._unused:
            if not value.uses() and not value.is_graph_output() and value not in listed:
                self._graph.initializers.pop(str(value.name), None)

    def _producer(self, name: str) -> ir.Node:
        value = self._values.get(name)
        node = None if value is None else value.producer()
        if node is None:
            raise FoldError(f"the model has no node that writes '{name}'; plan and model must come from one another")
        return node

    def _put(self, node: ir.Node, index: int, value: ir.Value) -> None:
        old = node.inputs[index]
        if old is not None and old.is_initializer():
            self._unused.append(old)
        elif old is not None and (producer := old.producer()) is not None:
            self._dead.append(producer)
        node.replace_input_with(index, value)

    def _initializer(self, name: str, array: Array) -> ir.Value:
        fresh = self._fresh(name + FOLDED_SUFFIX)
        tensor = ir.tensor(array, name=fresh)
        value = ir.Value(name=fresh, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _fresh(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{name}.{count}"
        self._taken.add(candidate)
        return candidate

    def _add_behind(self, node: ir.Node, bias: ir.Value) -> None:
        output = node.outputs[0]
        users = tuple(output.uses())
        total = ir.Value(name=self._fresh(f"{output.name}.biased"), shape=output.shape, type=output.type)
        name = self._fresh(f"{node.name or output.name}.bias")
        added = ir.node("Add", inputs=[output, bias], outputs=[total], name=name)
        node.append(added)
        for user, index in users:
            user.replace_input_with(index, total)
        self._values[str(output.name)] = total


def _sibling(weight: str, role: str) -> str:
    """The name that a bias beside this weight would have: conv1.weight -> conv1.bias."""
    owner, _, last = weight.rpartition(".")
    return f"{owner}.{role}" if owner and last == "weight" else f"{weight}.{role}"


def main_values(graph: ir.Graph) -> list[ir.Value]:
    """The named values of a graph without those of its subgraphs, each once."""
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return [value for value in dict.fromkeys(values) if value.name]


def _all_values(graph: ir.Graph) -> list[ir.Value]:
    return [value for part in (graph, *graph.subgraphs()) for value in main_values(part)]
