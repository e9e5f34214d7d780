"""Passes on ONNX IR that take the exporter's debris away and leave every stored tensor as it is.

The exporter spells out shapes that are known, biases that are not there and gammas of one. Constant folding takes
them away, but must not touch what is computed from a parameter: a norm written by hand would lose its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Set

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript import optimizer

_CONVS = ("Conv", "ConvTranspose")
_BROADCASTING = ("Add", "Sub", "Mul", "Div")


def clean(model: ir.Model, stored: Set[str]) -> None:
    """Clean a freshly translated model in place. stored: names of initialisers that come from the source."""
    common_passes.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=_keeps(stored))
        _settle_reshapes(model.graph)
        _drop_expansions(model.graph)
        common_passes.RemoveUnusedNodesPass()(model)
    _drop_zero_biases(model.graph, stored)
    common_passes.IdentityEliminationPass()(model)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.RemoveUnusedNodesPass()(model)
    common_passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common_passes.RemoveUnusedOpsetsPass()(model)
    common_passes.OutputFixPass()(model)
    common_passes.ClearMetadataAndDocStringPass()(model)
    common_passes.TopologicalSortPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None


def _keeps(stored: Set[str]) -> Callable[[ir.Node], bool | None]:
    def should_fold(node: ir.Node) -> bool | None:
        reads = any(value is not None and value.is_initializer() and value.name in stored for value in node.inputs)
        return False if reads else None

    return should_fold


def _settle_reshapes(graph: ir.Graph) -> None:
    """A literal target for every Reshape of which all sizes but one are known, so that the batch stays free.

    0 copies the size of the input at that axis, which shape inference can follow; -1 is what remains.
    """
    for node in list(graph):
        if node.op_type != "Reshape" or node.domain not in ("", "ai.onnx"):
            continue
        before, after = (None if value is None else value.shape for value in (node.inputs[0], node.outputs[0]))
        if before is None or after is None or node.inputs[1] is None or node.inputs[1].const_value is not None:
            continue
        target = _target(before, after)
        if target is None:
            continue
        tensor = ir.tensor(np.asarray(target, np.int64))
        literal = ir.node("Constant", inputs=[], attributes={"value": tensor})
        node.prepend(literal)
        node.replace_input_with(1, literal.outputs[0])
        node.attributes.pop("allowzero", None)


def _target(before: ir.Shape, after: ir.Shape) -> list[int] | None:
    target = []
    for axis, size in enumerate(after):
        if isinstance(size, int):
            target.append(size)
        elif axis < len(before) and size.value is not None and before[axis] == size:
            target.append(0)
        else:
            target.append(-1)
    literal_zero = any(size == 0 for size in after)
    return None if target.count(-1) > 1 or literal_zero else target


def _drop_expansions(graph: ir.Graph) -> None:
    """An operand need not be expanded to the size of the other one: the operator broadcasts it."""
    for node in list(graph):
        if node.op_type != "Expand" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
            continue
        expanded = node.outputs[0]
        for user, index in tuple(expanded.uses()):
            if user.op_type not in _BROADCASTING or user.domain not in ("", "ai.onnx"):
                continue
            other, result = user.inputs[1 - index], user.outputs[0]
            if other is None or other is expanded or None in (other.shape, result.shape):
                continue
            if other.shape == result.shape == expanded.shape:
                user.replace_input_with(index, node.inputs[0])


def _drop_zero_biases(graph: ir.Graph, stored: Set[str]) -> None:
    """A convolution without a bias was given one of zeros."""
    for node in graph.all_nodes():
        if node.op_type not in _CONVS or len(node.inputs) < 3:
            continue
        bias = node.inputs[2]
        if bias is None or bias.name in stored or bias.const_value is None:
            continue
        if not np.asarray(bias.const_value.numpy()).astype(np.float64).any():
            node.resize_inputs(2)
            if bias.is_initializer() and not bias.uses():
                graph.initializers.pop(str(bias.name), None)
