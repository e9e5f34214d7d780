"""ONNX IR -> facts, and a plan's edits carried out on a clone. Decides nothing.

Facts name values by the names they have in the graph, so that they fit any clone of the model. Norms inside
subgraphs and functions are listed and left alone. Operators are read by the ONNX specification from opset 7 on.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import onnx_ir as ir

from bnfold.errors import FoldError
from bnfold.folding import onnx_shapes
from bnfold.folding.carriers import Transpose
from bnfold.folding.expressions import ONE, ZERO
from bnfold.folding.facts import Carrier, Graph, Linear, Node, Norm, Opaque, Reason
from bnfold.folding.onnx_attributes import integer
from bnfold.folding.onnx_calls import is_read, shape_of_value
from bnfold.folding.onnx_constants import Constants
from bnfold.folding.onnx_edits import FoldMap, apply, carry_out, clone_of, main_values
from bnfold.folding.onnx_nodes import Reader
from bnfold.folding.plan import Plan, make_plan
from bnfold.folding.report import FoldReport

__all__ = ["apply", "carry_out", "fold", "plan", "read"]


def fold(
    model: ir.Model, *, keep: Sequence[str] = (), moves: str | Sequence[str] = "default"
) -> tuple[ir.Model, FoldReport, FoldMap]:
    """Fold a model: a folded clone, the report, the fold map. The model given is not changed.

    Raises FoldError for moves or norms to keep that are not known.
    """
    made = plan(model, keep=keep, moves=moves)
    folded, fold_map = carry_out(model, made.edits)
    return folded, made.report, fold_map


def plan(model: ir.Model, *, keep: Sequence[str] = (), moves: str | Sequence[str] = "default") -> Plan:
    """What would be folded, and why the rest would not."""
    return make_plan(read(model), keep=keep, moves=moves)


def read(model: ir.Model) -> Graph:
    """The facts of a model's main graph. Shapes are inferred on a clone; what cannot be inferred stays unknown.

    The shapes that a file states of its inner values prove nothing: they may be stale, and a runtime only warns.

    Raises FoldError for a model in memory whose nodes are in no order, whose values share a name, or with a Split that
    does not have the outputs that it says.
    """
    clone = clone_of(model)
    _check_names(clone.graph)
    _check_splits(clone)
    constants = Constants(clone.graph, ir_version=clone.ir_version)
    onnx_shapes.infer(clone)
    return _Reading(clone, constants).facts()


def _check_names(graph: ir.Graph) -> None:
    """Facts know a value by its name. The checker of ONNX has seen to that, but not for a model made in memory."""
    known: dict[str, ir.Value] = {}
    for value in main_values(graph):
        if known.setdefault(str(value.name), value) is not value:
            raise FoldError(
                f"two values of the ONNX graph have the name '{value.name}'; expected names of their own; "
                "run onnx_ir.passes.common.NameFixPass on the model first"
            )


def _check_splits(model: ir.Model) -> None:
    """ONNX's own shape inference ends the process at a Split with more outputs than it says."""
    functions = [node for function in model.functions.values() for node in function.all_nodes()]
    for node in (*model.graph.all_nodes(), *functions):
        said = node.attributes.get("num_outputs") if node.op_type == "Split" else None
        if said is None or said.is_ref() or said.type != ir.AttributeType.INT:
            continue
        if said.as_int() != len(node.outputs):
            raise FoldError(
                f"Split '{_label(node)}' of the ONNX graph says num_outputs = {said.as_int()}, but has "
                f"{len(node.outputs)} outputs; expected the same number; export the model anew"
            )


class _Reading:
    """One pass over the nodes of a model's main graph."""

    def __init__(self, model: ir.Model, constants: Constants) -> None:
        self.model = model
        self.graph = model.graph
        self.constants = constants
        self.alias: dict[ir.Value, ir.Value] = {}
        self.uses: Counter[Hashable] = Counter()
        self.opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
        values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
        shapes = {str(value.name): shape_of_value(value) for value in values if value.name}
        self.shapes = {name: shape for name, shape in shapes.items() if shape is not None}
        self.ids = {str(value.name) for value in main_values(model.graph)}

    def facts(self) -> Graph:
        reader = Reader(self.constants, self.root, self._opaque, self.opset)
        nodes: list[Node] = []
        for node in self.graph:
            is_standard = self._is_standard(node)
            if is_standard and self.constants.take(node):
                continue
            self._count_uses(node)
            if is_standard and self._is_alias(node):
                continue
            fact = (reader.read(node) if is_standard else None) or self._opaque(node)
            nodes.extend(self._turned(node, fact) if isinstance(fact, Linear) else [fact])
            nodes.extend(self._out_of_reach(node))
        for value in self.graph.outputs:
            tensor = self.constants.tensor(value)
            if tensor is not None:
                self.uses[tensor.key] += 1
        return Graph(
            nodes=tuple(nodes),
            inputs=tuple(str(value.name) for value in self.graph.inputs),
            outputs=tuple(self.root(value) for value in self.graph.outputs),
            tensor_readers=dict(self.uses),
            shapes=self.shapes,
        )

    def _turned(self, node: ir.Node, linear: Linear) -> tuple[Node, ...]:
        """A Gemm that transposes its input, as a transposition and a Gemm: its axes are counted behind that."""
        if linear.kind != "Gemm" or not integer(node, "transA", 0):
            return (linear,)
        turned = self._fresh(f"{linear.input}:transposed")
        before = self.shapes.get(linear.input)
        if before is not None:
            self.shapes[turned] = before[::-1]
        carrier = Carrier(turned, linear.name, "Transpose", (linear.input,), (turned,), Transpose((1, 0)))
        return carrier, dataclasses.replace(linear, input=turned)

    def root(self, value: ir.Value) -> str:
        """The name under which a value's data first appeared."""
        return str(self.alias.get(value, value).name)

    def _is_alias(self, node: ir.Node) -> bool:
        """Identity, Dropout when it does nothing, and Cast to the same dtype hand their input on."""
        source = node.inputs[0] if node.inputs else None
        if source is None or not node.outputs or not node.outputs[0].name:
            return False
        match node.op_type:
            case "Identity":
                pass
            case "Dropout" if not self._drops(node):
                pass
            case "Cast" if source.dtype is not None and integer(node, "to", 0) == source.dtype.value:
                pass
            case _:
                return False
        self.alias[node.outputs[0]] = self.alias.get(source, source)
        return True

    def _drops(self, node: ir.Node) -> bool:
        """From opset 12 on Dropout trains only when its third input says so; before, only by is_test in opset < 7."""
        mode = node.inputs[2] if len(node.inputs) > 2 else None
        may_train = self.opset < 7 or (mode is not None and self.constants.flag(mode) is not False)
        return may_train or any(is_read(mask) for mask in node.outputs[1:])

    def _count_uses(self, node: ir.Node) -> None:
        for value in (*node.inputs, *_captured(node)):
            tensor = self.constants.tensor(value)
            if tensor is not None:
                self.uses[tensor.key] += 1

    def _opaque(self, node: ir.Node, why: Reason | None = None) -> Opaque:
        inputs = [value for value in (*node.inputs, *_captured(node)) if value is not None]
        outputs = tuple(str(value.name) for value in node.outputs if value.name)
        read = tuple(self.root(value) for value in inputs)
        measures = node.op_type in ("Shape", "Size") and self._is_standard(node)
        return Opaque(
            id=outputs[0] if outputs else self._fresh(node.op_type),
            name=_label(node),
            kind=node.op_type,
            inputs=() if measures else read,
            outputs=outputs,
            why=why,
            measures=read if measures else (),
        )

    def _is_standard(self, node: ir.Node) -> bool:
        # A function may bear the name of a standard operator; which of the two is meant is the runtime's choice.
        return node.domain == "" and node.op_identifier() not in self.model.functions

    def _out_of_reach(self, node: ir.Node) -> Iterator[Norm]:
        """Norms in the subgraphs of a node, or in functions that are called by it or in them: listed, not touched."""
        outer = _label(node)
        called: set[ir.OperatorIdentifier] = set()
        pending: list[tuple[ir.Node, Reason | None]] = [(node, None)]
        while pending:
            inner, reason = pending.pop()
            found: list[tuple[ir.Node, Reason | None]] = []
            for graph in _subgraphs(inner):
                why = Reason("INSIDE_SUBGRAPH", f"it stands inside a subgraph of {node.op_type} '{outer}'")
                found += [(item, reason or why) for item in graph]
            function = self.model.functions.get(inner.op_identifier())
            if function is not None and inner.op_identifier() not in called:
                called.add(inner.op_identifier())
                why = Reason("INSIDE_FUNCTION", f"it stands inside the function '{function.name}', called as '{outer}'")
                found += [(item, reason or why) for item in function]
            elif function is None and reason and inner.domain == "" and inner.op_type == "BatchNormalization":
                yield self._listed(f"{outer}/{_label(inner)}", reason)
            pending += reversed(found)

    def _listed(self, name: str, reason: Reason) -> Norm:
        id = self._fresh(name)
        return Norm(
            id=id, name=name, kind="BatchNorm", input=f"{id}:input", output=f"{id}:output",
            scale=ONE, shift=ZERO, axis=1, nodes=(), obstacle=reason,
        )  # fmt: skip

    def _fresh(self, id: str) -> str:
        """An id that no value has."""
        candidate, count = id, 1
        while candidate in self.ids:
            count += 1
            candidate = f"{id}#{count}"
        self.ids |= {candidate, f"{candidate}:input", f"{candidate}:output"}
        return candidate


def _label(node: ir.Node) -> str:
    """What a person calls a node that need not have a name."""
    return node.name or next((str(value.name) for value in node.outputs if value.name), node.op_type)


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Values of outer graphs that the subgraphs of a node read."""
    for graph in _subgraphs(node):
        inside = set(graph.inputs) | set(graph.initializers.values())
        inside |= {value for inner in graph.all_nodes() for value in inner.outputs}
        read = [value for inner in graph.all_nodes() for value in inner.inputs]
        yield from (value for value in (*read, *graph.outputs) if value is not None and value not in inside)
