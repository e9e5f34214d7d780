"""An .onnx file from anywhere -> ONNX IR, or one sentence that says what is wrong with it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from bnfold.errors import FoldError

OLDEST_OPSET = 7  # older operators broadcast and normalise by other rules


def load_model(path: Path | str) -> ir.Model:
    """Read a model; weights stay on disk until they are used. Raises FoldError for what is no sound ONNX model.

    External data must lie in the model's own folder: a path that leaves it, absolute or through a link, is refused.
    """
    path = Path(path)
    if not path.is_file():
        raise FoldError(f"{path} is not there or not a file; expected an ONNX model")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, UnicodeDecodeError, ValueError, OSError) as problem:
        raise FoldError(f"{path} is no ONNX model: it cannot be read as one ({_first_line(problem)})") from None
    if not proto.graph.node and not proto.graph.output:
        raise FoldError(f"{path} is no ONNX model: it has no graph; expected at least one node and one output")
    for tensor in onnx.external_data_helper._get_all_tensors(proto):  # no public iterator covers attributes too
        _check_external(path, tensor)
    _check(proto, str(path), where=path)
    return _from_proto(proto, str(path), base=path.parent)


def from_proto(proto: onnx.ModelProto, label: str = "the ONNX model") -> ir.Model:
    """A model in memory as ONNX IR. Raises FoldError when the ONNX checker refuses it, or its data are in a file."""
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise FoldError(
                f"{label} has the data of tensor '{tensor.name}' in a file, and no folder to look for it; "
                "fold the path of the model, or load it with its external data"
            )
    _check(proto, label, where=None)
    return _from_proto(proto, label, base=None)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """ONNX IR as a ModelProto with all of its tensors in it."""
    return ir.to_proto(ir.external_data.load_to_model(model))


def own_tensors(model: ir.Model) -> ir.Model:
    """The model with copies of all tensors that are in memory, in place; it then shares no storage with another."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _copied(value.const_value)
    nodes = [
        *model.graph.all_nodes(),
        *(node for function in model.functions.values() for node in function.all_nodes()),
    ]
    for node in nodes:
        for name, attribute in list(node.attributes.items()):
            if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, _copied(attribute.as_tensor()))
            elif not attribute.is_ref() and attribute.type == ir.AttributeType.TENSORS:
                node.attributes[name] = ir.AttrTensors(name, [_copied(tensor) for tensor in attribute.as_tensors()])
    return model


def _copied(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor) or tensor.dtype == ir.DataType.STRING:
        return tensor
    return ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


def _has_foreign_text(message: Message) -> bool:
    """True when a string somewhere in a message is not UTF-8; protobuf hands such a one on as bytes."""
    for field, value in message.ListFields():
        items = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == field.TYPE_STRING and any(isinstance(item, bytes) for item in items):
            return True
        if field.type == field.TYPE_MESSAGE and any(_has_foreign_text(item) for item in items):
            return True
    return False


def _from_proto(proto: onnx.ModelProto, label: str, *, base: Path | None) -> ir.Model:
    if _has_foreign_text(proto):
        raise FoldError(f"{label} is no sound ONNX model: it has a name that is not UTF-8")
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise FoldError(f"{label} has a sparse initialiser '{name}'; expected dense tensors; store it as one")
    try:
        model = ir.from_proto(proto)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as problem:
        raise FoldError(f"{label} is no sound ONNX model: {_first_line(problem)}") from None
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    if opset is not None and opset < OLDEST_OPSET:
        raise FoldError(
            f"{label} uses opset {opset}, expected {OLDEST_OPSET} or later; convert it with onnx.version_converter"
        )
    if base is not None:
        ir.external_data.set_base_dir(model.graph, base)
    return model


def _check(proto: onnx.ModelProto, label: str, *, where: Path | None) -> None:
    try:
        onnx.checker.check_model(proto if where is None else str(where))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as problem:
        raise FoldError(f"{label} is no sound ONNX model: {_first_line(problem)}") from None


def _check_external(path: Path, tensor: onnx.TensorProto) -> None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    folder = path.parent.resolve()
    target = Path(os.path.realpath(folder / location))
    if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
        raise FoldError(
            f"{path}: tensor '{tensor.name}' points at external data '{location}' outside the model's folder; "
            "expected a file beside the model"
        )
    if not target.is_file():
        raise FoldError(f"{path}: the external data file '{location}' of tensor '{tensor.name}' is missing")
    _check_extent(path, tensor, location, target.stat().st_size)


def _check_extent(path: Path, tensor: onnx.TensorProto, location: str, available: int) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        expected = math.ceil(math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize)
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    except (ValueError, TypeError):
        offset = length = expected = -1
    if offset < 0 or length != expected or offset + length > available:
        raise FoldError(
            f"{path}: tensor '{tensor.name}' is not where it should be in its external data file '{location}' of "
            f"{available} bytes (offset {entries.get('offset', 0)}, length {entries.get('length', 'not given')}); "
            "save the model again"
        )


def _first_line(problem: BaseException) -> str:
    while problem.__cause__ is not None:  # what wraps it says only where it happened
        problem = problem.__cause__
    text = str(problem).strip()
    return text.splitlines()[0][:200].rstrip(" :") if text else type(problem).__name__
