"""ONNX IR -> the bytes of an .onnx file, in which each large weight is copied once.

A message that is written by protocol buffers is copied as it grows. Here the graph goes through them without its
initialisers, which are put behind it: fields may stand in any order (encoding specification, "Field order").
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.errors import FoldError
from bnfold.folding.onnx_tensors import stored
from bnfold.folding.onnx_wire import GRAPH, INITIALIZER, LARGE, RAW_DATA, WHOLE, head

LARGEST = (1 << 31) - 1  # bytes of a message


def to_bytes(model: ir.Model) -> bytes:
    """The bytes of a model with all of its tensors in it. Raises FoldError for more than fit a file of this kind."""
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    large = {name: tensor for name, tensor in tensors.items() if tensor is not None and _is_plain(tensor)}
    try:
        for name in large:
            model.graph.initializers[name].const_value = ir.tensor([0.0], dtype=ir.DataType.FLOAT, name=name)
        proto = ir.to_proto(model)
    finally:
        for name, tensor in large.items():
            model.graph.initializers[name].const_value = tensor
    fields: list[bytes | memoryview] = []
    for target in proto.graph.initializer:
        fields += _large(target.name, large[target.name]) if target.name in large else _small(target)
    del proto.graph.initializer[:]
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    rest = proto.SerializeToString()
    length = len(graph) + sum(len(field) for field in fields)
    if len(rest) + length + 16 > LARGEST:
        raise FoldError(
            f"the folded model has {length / 2**30:.1f} GiB, more than the 2 GiB of one .onnx file; fold the path of "
            "the model and save the result with external data"
        )
    return b"".join([rest, head(GRAPH, length), graph, *fields])


def _is_plain(tensor: ir.TensorProtocol) -> bool:
    """True for a large tensor of which the memory is what the file holds."""
    is_kept = not isinstance(stored(tensor), ir.serde.TensorProtoTensor)
    return is_kept and tensor.dtype in WHOLE and tensor.nbytes >= LARGE


def _small(tensor: onnx.TensorProto) -> Iterator[bytes]:
    content = tensor.SerializeToString()
    yield head(INITIALIZER, len(content))
    yield content


def _large(name: str, tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    start = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    if tensor.doc_string:
        start.doc_string = tensor.doc_string
    for key, value in tensor.metadata_props.items():
        start.metadata_props.add(key=key, value=value)
    little = tensor.dtype.numpy().newbyteorder("<")
    data = np.ascontiguousarray(tensor.numpy(), little).reshape(-1).view(np.uint8).data
    before = start.SerializeToString() + head(RAW_DATA, len(data))
    yield head(INITIALIZER, len(before) + len(data)) + before
    yield data
