"""ONNX IR -> facts, and a plan's edits carried out on a clone. Decides nothing.

Facts name values by the names they have in the graph, so that they fit any clone of the model. Norms inside
subgraphs and functions are listed and left alone. Operators are read by the ONNX specification from opset 7 on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from bnfold.folding.facts import ONE, ZERO, Graph, Node, Norm, Opaque, Reason
from bnfold.folding.onnx_constants import Constants
from bnfold.folding.onnx_edits import FoldMap, apply, carry_out
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
    """The facts of a model's main graph. Shapes are inferred on a clone; what cannot be inferred stays unknown."""
    clone = model.clone()
    common_passes.ShapeInferencePass(strict_mode=False)(clone)
    return _Reading(clone).facts()


class _Reading:
    """One pass over the nodes of a model's main graph."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.constants = Constants(model.graph, ir_version=model.ir_version)
        self.alias: dict[ir.Value, ir.Value] = {}
        self.uses: Counter[Hashable] = Counter()
        self.opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))

    def facts(self) -> Graph:
        reader = Reader(self.constants, self.root, self.opset)
        nodes: list[Node] = []
        for node in self.graph:
            if self.constants.take(node):
                continue
            self._count_uses(node)
            if self._is_alias(node):
                continue
            nodes.append(reader.read(node) or self._opaque(node))
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
        )

    def root(self, value: ir.Value) -> str:
        """The name under which a value's data first appeared."""
        while value in self.alias:
            value = self.alias[value]
        return str(value.name)

    def _is_alias(self, node: ir.Node) -> bool:
        """Identity, and Dropout when it does nothing, hand their input on."""
        if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
            return False
        if node.op_type == "Identity":
            self.alias[node.outputs[0]] = node.inputs[0]
            return True
        # From opset 12 on Dropout trains only when its third input says so; before, only by is_test in opset < 7.
        if node.op_type != "Dropout" or self.opset < 7 or len(node.inputs) > 2:
            return False
        if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
            return False
        self.alias[node.outputs[0]] = node.inputs[0]
        return True

    def _count_uses(self, node: ir.Node) -> None:
        for value in (*node.inputs, *_captured(node)):
            tensor = self.constants.tensor(value)
            if tensor is not None:
                self.uses[tensor.key] += 1

    def _opaque(self, node: ir.Node, why: Reason | None = None) -> Opaque:
        inputs = [value for value in (*node.inputs, *_captured(node)) if value is not None]
        outputs = tuple(str(value.name) for value in node.outputs)
        return Opaque(
            id=outputs[0] if outputs else str(node.name),
            name=node.name or (outputs[0] if outputs else ""),
            kind=node.op_type,
            inputs=tuple(self.root(value) for value in inputs),
            outputs=outputs,
            why=why,
        )

    def _out_of_reach(self, node: ir.Node) -> Iterator[Norm]:
        """Norms in the subgraphs of a node, or in the function that it calls: listed, not touched."""
        outer = node.name or str(node.outputs[0].name)
        for attribute in node.attributes.values():
            for graph in _graphs(attribute):
                reason = Reason("INSIDE_SUBGRAPH", f"it stands inside a subgraph of {node.op_type} '{outer}'")
                yield from (_listed(inner, outer, reason) for inner in graph.all_nodes() if _is_batch_norm(inner))
        function = self.model.functions.get(node.op_identifier())
        if function is not None:
            reason = Reason("INSIDE_FUNCTION", f"it stands inside the function '{function.name}', called as '{outer}'")
            yield from (_listed(inner, outer, reason) for inner in function.all_nodes() if _is_batch_norm(inner))


def _graphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else ()


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Values of outer graphs that the subgraphs of a node read."""
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            inside = set(graph.inputs) | set(graph.initializers.values())
            inside |= {value for inner in graph.all_nodes() for value in inner.outputs}
            read = [value for inner in graph.all_nodes() for value in inner.inputs]
            yield from (value for value in (*read, *graph.outputs) if value is not None and value not in inside)


def _is_batch_norm(node: ir.Node) -> bool:
    return node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx")


def _listed(node: ir.Node, outer: str, reason: Reason) -> Norm:
    name = f"{outer}/{node.name or node.outputs[0].name}"
    return Norm(
        id=name, name=name, kind="BatchNorm", input=f"{name}:input", output=f"{name}:output",
        scale=ONE, shift=ZERO, axis=1, nodes=(), obstacle=reason,
    )  # fmt: skip
