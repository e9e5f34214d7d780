"""A clone of an ONNX IR model under surgery: values by the names of the source, fresh names, what nobody uses.

Facts speak of values by the names that they have in the source. A value that was replaced hands its name's meaning on:
whoever asks for it gets the value that carries its data now.
"""

from __future__ import annotations

from collections import deque

import onnx_ir as ir

from bnfold.errors import FoldError
from bnfold.folding.expressions import Array
from bnfold.folding.onnx_tensors import let_go


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


def main_values(graph: ir.Graph) -> list[ir.Value]:
    """The named values of a graph without those of its subgraphs, each once."""
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return [value for value in dict.fromkeys(values) if value.name]


class Clone:
    """A clone that is changed node by node; `finish` removes what only removed nodes used."""

    def __init__(self, model: ir.Model) -> None:
        self.model = clone_of(model)
        self._graph = self.model.graph
        self._taken = {str(value.name) for part in self._graphs() for value in main_values(part)}
        self._names = {str(node.name) for part in self._graphs() for node in part}  # a runtime wants them unique
        self._source = {str(value.name): value for value in main_values(self._graph)}
        self._now: dict[ir.Value, ir.Value] = {}
        self._dead: list[ir.Node] = []
        self._unused: list[ir.Value] = []

    def value(self, name: str) -> ir.Value:
        """The value that carries the data that the source's value of this name has. Raises FoldError for no such."""
        value = self._source.get(name)
        if value is None:
            raise FoldError(f"the model has no value '{name}'; plan and model must come from one another")
        while value in self._now:
            value = self._now[value]
        return value

    def node(self, name: str) -> ir.Node:
        """The node of the source that writes a value. Raises FoldError where there is none."""
        value = self._source.get(name)
        node = None if value is None else value.producer()
        if node is None:
            raise FoldError(f"the model has no node that writes '{name}'; plan and model must come from one another")
        return node

    def initializer(self, name: str, array: Array) -> ir.Value:
        """A new initialiser; its name is the one given, or one like it."""
        fresh = self.fresh(name)
        tensor = ir.tensor(array, name=fresh)
        value = ir.Value(name=fresh, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def fresh(self, name: str) -> str:
        """The name given, or one like it that no value of the model has."""
        return _fresh(name, self._taken)

    def operation(
        self, op_type: str, inputs: list[ir.Value], *, like: ir.Value, name: str, takes: ir.Node | None = None
    ) -> ir.Value:
        """A new node that stands nowhere yet; gives its output, which has the type and shape of `like`.

        takes: a node that is to go, whose name it takes over.
        """
        output = ir.Value(name=self.fresh(f"{name}.{op_type.lower()}"), shape=like.shape, type=like.type)
        made = ir.node(op_type, inputs=inputs, outputs=[output], name=_fresh(name, self._names))
        if takes is not None and takes.name:
            made.name, takes.name = takes.name, made.name
        return output

    def insert(self, value: ir.Value, *, behind: ir.Value) -> None:
        """Put the node that writes a value right behind the one that writes another, or first of all."""
        node, anchor = value.producer(), behind.producer()
        if node is None:
            raise ValueError(f"{value.name} is written by no node")
        first = next(iter(self._graph), None)
        if anchor is not None:
            self._graph.insert_after(anchor, node)
        elif first is not None:
            self._graph.insert_before(first, node)
        else:
            self._graph.append(node)

    def put(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Give a node another input. The one that it had goes, if nobody else uses it."""
        if index >= len(node.inputs):
            if value is None:
                return
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        node.replace_input_with(index, value)
        if index == len(node.inputs) - 1 and value is None:
            node.resize_inputs(index)
        if old is not None:
            self._let_go(old)

    def drop(self, node: ir.Node) -> None:
        """Remove a node in the end, unless somebody still uses it."""
        self._dead.append(node)

    def replace(self, old: ir.Value, new: ir.Value, *, but: ir.Node | None = None) -> None:
        """Whoever reads the old value, graph outputs included, reads the new one. but: a node that goes on with it."""
        if old is new:
            return
        for user, index in old.uses():
            if user is not but:
                user.replace_input_with(index, new)
        self._now[old] = new
        if not old.is_graph_output():
            return
        for graph in self._graphs():
            for at, output in enumerate(graph.outputs):
                if output is old:
                    graph.outputs[at] = self._output(old, new) if graph is self._graph else new

    def reroute(self, old: ir.Value, new: ir.Value, *, within: set[ir.Node]) -> None:
        """Whoever reads the old value and is not one of these nodes reads the new one; names keep their meaning."""
        for user, index in old.uses():
            if user not in within:
                user.replace_input_with(index, new)

    def forget_shapes(self) -> None:
        """Forget what is stated of the shapes of inner values; those of inputs, outputs and constants stay."""
        for graph in self._graphs():
            for node in graph:
                for value in node.outputs:
                    if not value.is_graph_output() or graph is not self._graph:
                        value.shape = None

    def finish(self) -> ir.Model:
        """The model without what only removed nodes used; up to IR version 3 its constants are unlisted."""
        queue = deque(dict.fromkeys(reversed(self._dead)))
        while queue:
            node = queue.popleft()
            if node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
                continue
            inputs = [value for value in node.inputs if value is not None]
            self._graph.remove(node, safe=True)
            queue.extend(producer for value in inputs if (producer := value.producer()) is not None)
            self._unused.extend(value for value in inputs if value.is_initializer())
        if self._taken - self._source.keys():
            unlist_constants(self.model)  # fresh initialisers are not listed
        listed = set(self._graph.inputs)
        for value in self._unused:
            if not value.uses() and not value.is_graph_output() and value not in listed:
                self._graph.initializers.pop(str(value.name), None)
        return self.model

    def _output(self, old: ir.Value, new: ir.Value) -> ir.Value:
        """The value that is a graph output in place of the old one, under its name: the new one, or a copy of it."""
        name = str(old.name)
        old.name = self.fresh(f"{name}.inner")
        if new.producer() is None or new.is_graph_output():  # its name is not free to be changed
            copy = self.operation("Identity", [new], like=old, name=name)
            self.insert(copy, behind=new)
            new = copy
        new.name = name
        new.shape, new.type = old.shape, old.type
        return new

    def _let_go(self, value: ir.Value) -> None:
        producer = value.producer()
        if producer is not None:
            self._dead.append(producer)
        elif value.is_initializer():
            self._unused.append(value)
            if not value.uses():
                let_go(value.const_value)

    def _graphs(self) -> list[ir.Graph]:
        return [self._graph, *self._graph.subgraphs()]


def _fresh(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}.{count}"
    taken.add(candidate)
    return candidate
