"""What shape inference knows of the values of an ONNX graph. Weights do not go through it.

The shapes that a file states of its inner values prove nothing: they may be stale, and a runtime only warns. Only
those of the graph's inputs, which a runtime enforces, and of stored tensors are believed.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from bnfold.folding.onnx_clone import clone_of, main_values
from bnfold.folding.onnx_constants import FLOATS
from bnfold.folding.onnx_inference import infer_shapes

# Operators whose output has the rank of their first input whatever that is.
_SAME_RANK = {
    "AveragePool", "BatchNormalization", "Clip", "Dropout", "Elu", "Gelu", "GlobalAveragePool", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MaxPool", "Mish", "PRelu", "Pad", "Relu", "Sigmoid", "Swish",
    "Tanh",
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """The dtype of a value, if it is one that a fold knows, and its number of axes."""

    dtype: str | None = None
    rank: int | None = None


def known_values(model: ir.Model) -> dict[str, Known]:
    """What is known of the values of the main graph, by name. The model is not changed."""
    clone = clone_of(model)
    infer(clone)
    ranks = _ranks(clone.graph)
    return {
        str(value.name): Known(None if value.dtype is None else FLOATS.get(value.dtype), ranks.get(value))
        for value in main_values(clone.graph)
    }


def _ranks(graph: ir.Graph) -> dict[ir.Value, int]:
    """The number of axes of values. A convolution says it by its weight, also where its input has no known shape."""
    ranks = {value: len(value.shape) for value in main_values(graph) if value.shape is not None}
    for node in graph:
        if node.domain or not node.inputs or node.inputs[0] is None or node.outputs[0] in ranks:
            continue
        like = node.inputs[1] if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 1 else None
        if node.op_type in _SAME_RANK:
            like = node.inputs[0]
        if like is not None and like in ranks:
            ranks[node.outputs[0]] = ranks[like]
    return ranks


def infer(model: ir.Model) -> None:
    """Infer the shapes of a model's values in place; what cannot be inferred stays unknown.

    Initialisers that a caller may override lose their values: shapes may not hang on them.
    """
    if model.ir_version >= 4:
        for value in model.graph.inputs:
            model.graph.initializers.pop(str(value.name), None)
            value.const_value = None
    _forget_shapes(model)
    infer_shapes(model)
    if _complete(model.graph):  # what lies behind may be inferred now
        infer_shapes(model)


def _complete(graph: ir.Graph) -> bool:
    """Give linears of which nothing was inferred what their weights say of them; true where there are any."""
    found = False
    for node in graph:
        weight = node.inputs[1] if not node.domain and len(node.inputs) > 1 else None
        if weight is None or weight.shape is None or not node.outputs or node.outputs[0].shape is not None:
            continue
        sizes: list[int | None] = [None] * len(weight.shape)
        match node.op_type:
            case "Conv" | "ConvTranspose" if len(sizes) > 2:
                group = node.attributes.get("group")
                groups = 1 if group is None or group.is_ref() or node.op_type == "Conv" else group.as_int()
                channels = weight.shape[0 if node.op_type == "Conv" else 1]
                sizes[1] = channels * groups if isinstance(channels, int) else None
            case "Gemm" if len(sizes) == 2:
                pass
            case _:
                continue
        node.outputs[0].shape = ir.Shape(sizes)
        if node.outputs[0].dtype is None and weight.dtype is not None:
            node.outputs[0].dtype = weight.dtype
        found = True
    return found


def _forget_shapes(model: ir.Model) -> None:
    """Keep the shapes of the graph's inputs, which a runtime enforces, and those of stored tensors."""
    graphs = [model.graph, *model.graph.subgraphs()]
    for function in model.functions.values():
        graphs += [function.graph, *function.subgraphs()]
    for graph in graphs:
        given = set() if graph is not model.graph else set(graph.inputs)
        inner = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
        for value in inner:
            if value not in given and not value.is_initializer():
                value.shape = None
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.shape = ir.Shape(int(size) for size in value.const_value.shape.numpy())
