"""An .onnx file from anywhere -> ONNX IR, or one sentence that says what is wrong with it.

Large weights are never held more often than needed: those of a file stay in the file, mapped into memory, and come
into a ModelProto one by one.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Message

from bnfold.errors import FoldError, first_line
from bnfold.folding.onnx_tensors import held, let_go, mapped, stored
from bnfold.folding.onnx_wire import LARGE, WHOLE, map_file, split

OLDEST_OPSET = 7  # older operators broadcast and normalise by other rules


def load_model(path: Path | str) -> ir.Model:
    """Read a model; weights stay on disk until they are used. Raises FoldError for what is no sound ONNX model.

    External data must lie in the model's own folder: a path that leaves it, absolute or through a link, is refused.
    The files must stay as they are for as long as the model is in use.
    """
    path = Path(path)
    if not path.is_file():
        raise FoldError(f"{path} is not there or not a file; expected an ONNX model")
    return _load(_Files(path), str(path))


def load_bytes(data: bytes, label: str = "the ONNX model") -> ir.Model:
    """Read a model out of the bytes of a file; large tensors stay in them. Raises FoldError as `load_model` does."""
    return _load(_Files(Path(), data), label)


def _load(files: _Files, label: str) -> ir.Model:
    try:
        proto = files.read()
    except (DecodeError, UnicodeDecodeError, ValueError, OSError) as problem:
        raise FoldError(f"{label} is no ONNX model: it cannot be read as one ({_reason(problem)})") from None
    if not proto.graph.node and not proto.graph.output:
        raise FoldError(f"{label} is no ONNX model: it has no graph; expected at least one node and one output")
    for tensor in _tensors(proto):
        files.check(tensor, label)
        _check_data(tensor, label)
    _check(_without_data(proto), label)
    model = _from_proto(proto, label)
    _replace_tensors(model, files.mapped)
    return model


def from_proto(proto: onnx.ModelProto, label: str = "the ONNX model", *, hold: bool = False) -> ir.Model:
    """A model in memory as ONNX IR. Raises FoldError when the ONNX checker refuses it, or its data are in a file.

    hold: keep large weights once they are read, until they are let go; asking a message for its data copies them.
    """
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise _nowhere_to_look(tensor, label)
        _check_data(tensor, label)
    _check(_without_data(proto), label)
    model = _from_proto(proto, label)
    for value in model.graph.initializers.values() if hold else ():
        if isinstance(value.const_value, ir.serde.TensorProtoTensor) and _is_large(value.const_value.raw):
            value.const_value = held(value.const_value)
    return model


def _nowhere_to_look(tensor: onnx.TensorProto, label: str) -> FoldError:
    return FoldError(
        f"{label} has the data of tensor '{tensor.name}' in a file, and no folder to look for it; "
        "fold the path of the model, or load it with its external data"
    )


def to_proto(model: ir.Model, *, consume: bool = False) -> onnx.ModelProto:
    """ONNX IR as a ModelProto with all of its tensors in it.

    consume: the model loses each large tensor once it is written, so that they are not all held twice.
    """
    _replace_tensors(model, _readable)
    large = {
        name: (value, value.const_value)
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= LARGE
    }
    try:
        for name, (value, _) in large.items():
            value.const_value = ir.tensor([0.0], dtype=ir.DataType.FLOAT, name=name)
        proto = ir.to_proto(model)
    finally:
        for value, tensor in large.values():
            value.const_value = tensor
    for target in proto.graph.initializer:
        if target.name in large:
            name = target.name
            value, tensor = large.pop(name)
            target.Clear()
            ir.serde.serialize_tensor_into(target, stored(tensor))
            target.name = name
            if consume:
                let_go(tensor)
                value.const_value = None
    return proto


def own_tensors(model: ir.Model) -> ir.Model:
    """The model with copies of all tensors that are in memory, in place; it then shares no storage with another."""
    _replace_tensors(model, _copied)
    return model


Change: TypeAlias = Callable[[ir.TensorProtocol], ir.TensorProtocol]


def _replace_tensors(model: ir.Model, change: Change) -> None:
    """Change every tensor of a model in place: initialisers and attributes, in subgraphs and functions too."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = change(value.const_value)
    nodes = [
        *model.graph.all_nodes(),
        *(node for function in model.functions.values() for node in function.all_nodes()),
    ]
    for node in nodes:
        for name, attribute in list(node.attributes.items()):
            if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                changed = change(tensor)
                if changed is not tensor:
                    node.attributes[name] = ir.AttrTensor(name, changed)
            elif not attribute.is_ref() and attribute.type == ir.AttributeType.TENSORS:
                node.attributes[name] = ir.AttrTensors(name, [change(tensor) for tensor in attribute.as_tensors()])


def _copied(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor) or tensor.dtype == ir.DataType.STRING:
        return tensor
    return ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)


def _readable(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor in a file as one that is read when it is written out; any other as it is."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.LazyTensor(lambda: ir.Tensor(tensor.numpy()), tensor.dtype, tensor.shape, name=tensor.name)


def _has_foreign_text(message: Message) -> bool:
    """True when a string somewhere in a message is not UTF-8; protobuf hands such a one on as bytes."""
    for field, value in message.ListFields():
        items = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == field.TYPE_STRING and any(isinstance(item, bytes) for item in items):
            return True
        if field.type == field.TYPE_MESSAGE and any(_has_foreign_text(item) for item in items):
            return True
    return False


def _from_proto(proto: onnx.ModelProto, label: str) -> ir.Model:
    if _has_foreign_text(proto):
        raise FoldError(f"{label} is no sound ONNX model: it has a name that is not UTF-8")
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise FoldError(f"{label} has a sparse initialiser '{name}'; expected dense tensors; store it as one")
    try:
        model = ir.from_proto(proto)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as problem:
        raise FoldError(f"{label} is no sound ONNX model: {_reason(problem)}") from None
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx"))
    if opset is not None and opset < OLDEST_OPSET:
        raise FoldError(
            f"{label} uses opset {opset}, expected {OLDEST_OPSET} or later; convert it with onnx.version_converter"
        )
    return model


def _check(proto: onnx.ModelProto, label: str) -> None:
    """Raise FoldError for what the ONNX checker refuses. proto: without the data of large tensors."""
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as problem:
        raise FoldError(f"{label} is no sound ONNX model: {_reason(problem)}") from None


def _without_data(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for the checker, in which external and large tensors are empty."""
    light = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            _copy(light, field.name, value)
    for field, value in proto.graph.ListFields():
        if field.name != "initializer":
            _copy(light.graph, field.name, value)
    light.graph.SetInParent()
    for tensor in proto.graph.initializer:
        added = light.graph.initializer.add()
        if _is_large(tensor):
            _empty(added, tensor.name, tensor.data_type)
        else:
            added.CopyFrom(tensor)
    for tensor in _tensors(light):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            name, data_type = tensor.name, tensor.data_type
            tensor.Clear()
            _empty(tensor, name, data_type)
    return light


def _is_large(tensor: onnx.TensorProto) -> bool:
    """True for raw data of LARGE bytes or more, if their length has been checked."""
    if tensor.data_type not in WHOLE or not tensor.HasField("raw_data"):
        return False
    return bool(math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize >= LARGE)


def _empty(tensor: onnx.TensorProto, name: str, data_type: int) -> None:
    tensor.name, tensor.data_type, tensor.raw_data = name, data_type, b""
    tensor.dims.append(0)


def _copy(target: Message, field: str, value: object) -> None:
    if isinstance(value, Message):
        getattr(target, field).CopyFrom(value)
    elif isinstance(value, str | bytes | int | float):
        setattr(target, field, value)
    else:
        getattr(target, field).extend(value)


def _check_data(tensor: onnx.TensorProto, label: str) -> None:
    """Raise FoldError for data that are not as many as a tensor's sizes say; the checker of ONNX lets some pass."""
    if tensor.data_type not in WHOLE:
        return
    is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
    elements, itemsize = math.prod(tensor.dims), int(ir.DataType(tensor.data_type).itemsize)
    found = {field: len(getattr(tensor, field)) for field in _COUNTED}
    if tensor.HasField("raw_data"):
        found["raw_data"] = len(tensor.raw_data)
    wanted = elements * itemsize if found.get("raw_data") else elements
    if min(tensor.dims, default=0) < 0 or sorted(filter(None, found.values())) != [wanted] * (
        elements > 0 and not is_external
    ):
        what = " and ".join(f"{count} in {field}" for field, count in found.items() if count) or "none"
        needed = "all of its data in a file" if is_external else f"{elements} numbers of {itemsize} bytes"
        raise FoldError(
            f"{label} is no sound ONNX model: tensor '{tensor.name}' of sizes {list(tensor.dims)} has {what}; "
            f"expected {needed}"
        )


_COUNTED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def _tensors(proto: onnx.ModelProto) -> Iterable[onnx.TensorProto]:
    """Every tensor of a model; no public iterator covers attributes too."""
    return onnx.external_data_helper._get_all_tensors(proto)


class _Files:
    """The files that the data of a model lie in: its own, or the bytes of that, and those beside it."""

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        self._path = path
        self._bytes = data
        self._maps: dict[Path, mmap.mmap | bytes] = {}
        self._own = ""  # as what location tensors name the model's own file

    def read(self) -> onnx.ModelProto:
        """The model without its large tensors. Raises what the parser raises."""
        if self._bytes is None and self._path.suffix not in (".onnx", ".pb"):  # perhaps one of the text formats
            return onnx.load(str(self._path), load_external_data=False)
        data = map_file(self._path) if self._bytes is None else self._bytes
        if not data:
            return onnx.ModelProto()
        found = split(data)
        if found is None:
            return _parsed(data[:])
        self._own = found.location
        self._maps[self._path] = data
        return _parsed(found.proto)

    def check(self, tensor: onnx.TensorProto, label: str) -> None:
        """Raise FoldError unless external data are where they should be, inside the folder of the model."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if self._own and location == self._own:
            self._check_extent(tensor, entries, self._path.name, len(self._maps[self._path]))
        elif self._bytes is not None:
            raise _nowhere_to_look(tensor, label)
        else:
            self._check_extent(tensor, entries, location, self._target(tensor.name, location).stat().st_size)

    def mapped(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """A tensor in a file as one in mapped memory; any other as it is."""
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        location = os.fspath(tensor.location)
        path = self._path if self._own and location == self._own else self._path.parent / location
        if tensor.dtype not in WHOLE or tensor.nbytes == 0:
            tensor.base_dir = path.parent
            return tensor
        if path not in self._maps:
            data = map_file(path)
            if data is None:
                raise FoldError(f"{self._path}: the external data file '{location}' is empty; save the model again")
            self._maps[path] = data
        return mapped(self._maps[path], tensor.offset or 0, tensor.dtype, tensor.shape, tensor.name)

    def _target(self, name: str, location: str) -> Path:
        folder = self._path.parent.resolve()
        target = Path(os.path.realpath(folder / location))
        if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
            raise FoldError(
                f"{self._path}: tensor '{name}' points at external data '{location}' outside the model's folder; "
                "expected a file beside the model"
            )
        if not target.is_file():
            raise FoldError(f"{self._path}: the external data file '{location}' of tensor '{name}' is missing")
        if target.stat().st_nlink > 1:  # it may be anybody's file, under a name in this folder
            raise FoldError(f"{self._path}: the external data file '{location}' has several hard links; make it a copy")
        return target

    def _check_extent(self, tensor: onnx.TensorProto, entries: dict[str, str], location: str, available: int) -> None:
        try:
            expected = math.ceil(math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize)
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
        except (ValueError, TypeError):
            offset = length = expected = -1
        if offset < 0 or length != expected or offset + length > available:
            found = f"offset {entries.get('offset', 0)}, length {entries.get('length', 'not given')}"
            raise FoldError(
                f"{self._path}: tensor '{tensor.name}' is not where it should be in its external data file "
                f"'{location}' of {available} bytes ({found}); save the model again"
            )


def _parsed(content: bytes) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.ParseFromString(content)
    return proto


def _reason(problem: BaseException) -> str:
    while problem.__cause__ is not None:  # what wraps it says only where it happened
        problem = problem.__cause__
    return first_line(problem)
