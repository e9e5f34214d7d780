"""ONNX shape inference on a model of which the weights stay where they are: only their sizes go in.

onnx_ir's own pass moves every initialiser to the inputs and back, looking each up in a list: quadratic in their number.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

_SMALL = 1000  # bytes: shapes, axes and pads, which other shapes may hang on
_SMALL_FLOATS = 64  # bytes: the scales of a Resize


def infer_shapes(model: ir.Model) -> None:
    """Enter what can be inferred of the values of the main graph, in place; nothing where inference fails.

    Shapes that are known already are believed.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(_without_weights(model), check_type=True, data_prop=True)
    except Exception:  # of several kinds; a shape that stays unknown is no fault of the model
        return
    types = {info.name: info.type for infos in (inferred.graph.value_info, inferred.graph.output) for info in infos}
    for node in model.graph:
        for value in node.outputs:
            if value.name in types:
                _enter(value, types[value.name])


def _enter(value: ir.Value, found: onnx.TypeProto) -> None:
    shape = ir.serde.deserialize_type_proto_for_shape(found)
    if shape is not None:
        value.shape = shape
    known = ir.serde.deserialize_type_proto_for_type(found)
    if known is not None and value.dtype != known.dtype:
        value.type = known


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    proto.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    graph = proto.graph
    graph.name = model.graph.name or "graph"
    for value in model.graph.inputs:
        ir.serde.serialize_value_into(graph.input.add(), value)
    listed = set(model.graph.inputs)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and _counts(tensor):
            added = graph.initializer.add()
            ir.serde.serialize_tensor_into(added, tensor)
            added.name = str(value.name)
        elif tensor is not None and value not in listed:
            _declare(graph.input.add(), str(value.name), tensor)
        elif value not in listed:
            ir.serde.serialize_value_into(graph.input.add(), value)
    for node in model.graph:
        constant = node.attributes.get("value") if node.op_type == "Constant" and not node.domain else None
        if constant is not None and not constant.is_ref() and not _counts(constant.as_tensor()):
            _declare(graph.input.add(), str(node.outputs[0].name), constant.as_tensor())
            continue
        ir.serde.serialize_node_into(graph.node.add(), node)
        for value in node.outputs:
            if value.shape is not None and value.name and not value.is_graph_output():
                ir.serde.serialize_value_into(graph.value_info.add(), value)
    for value in model.graph.outputs:
        ir.serde.serialize_value_into(graph.output.add(), value)
    return proto


def _counts(tensor: ir.TensorProtocol) -> bool:
    """True for a tensor whose numbers may say something of shapes."""
    if tensor.dtype == ir.DataType.STRING:
        return False
    return bool(tensor.nbytes <= (_SMALL_FLOATS if tensor.dtype.is_floating_point() else _SMALL))


def _declare(info: onnx.ValueInfoProto, name: str, tensor: ir.TensorProtocol) -> None:
    info.name = name
    info.type.tensor_type.elem_type = int(tensor.dtype)
    info.type.tensor_type.shape.SetInParent()
    for size in tensor.shape.numpy():
        info.type.tensor_type.shape.dim.add(dim_value=size)
