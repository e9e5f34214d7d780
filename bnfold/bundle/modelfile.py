"""What a bundle lets into an ONNX file: known operators, declared sizes that are there, no data from elsewhere.

The checks read the protobuf message only: nothing is allocated from a declared size, no path in the file is
followed. What a graph computes when it runs is not foreseen here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from bnfold.bundle.manifest import MAX_RANK, SIDECAR, TensorSpec
from bnfold.errors import BundleError

if TYPE_CHECKING:
    import onnx

# What ONNX Runtime 1.31 reads. Newer files would be refused by it with a stack of C++ frames.
MAX_IR_VERSION = 13
MIN_IR_VERSION = 3
MAX_OPSET = 26
DOMAINS = ("", "ai.onnx")

_MAX_NESTING = 16  # graphs within attributes within graphs; protobuf itself stops at 33
_BITS = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "BOOL": 8,
    "FLOAT16": 16, "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128, "BFLOAT16": 16,
    "FLOAT8E4M3FN": 8, "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8, "FLOAT8E8M0": 8,
    "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2,
}  # fmt: skip
_FIELDS = {  # onnx.proto, TensorProto: which field holds which types where there is no raw_data
    "float_data": ("FLOAT", "COMPLEX64"),
    "double_data": ("DOUBLE", "COMPLEX128"),
    "int64_data": ("INT64",),
    "uint64_data": ("UINT32", "UINT64"),
    "string_data": ("STRING",),
}
_NUMPY_NAMES = {
    "FLOAT": "float32", "DOUBLE": "float64", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "BOOL": "bool",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
}  # fmt: skip


def parse_model(data: bytes, what: str) -> onnx.ModelProto:
    """Parse the bytes of an ONNX file. Raises BundleError when they are none."""
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise _bad(what, "is no ONNX model", "a serialised ModelProto") from None
    if not model.HasField("graph"):
        raise _bad(what, "has no graph", "a serialised ModelProto")
    return model


def check_model(model: onnx.ModelProto, what: str, *, sidecar_bytes: int | None = None) -> None:
    """Raise BundleError for a model that a bundle must not hold.

    That is: an IR version or operator set that the runtime does not read, an operator of another domain than ONNX's
    own, a Constant without exactly one value, local functions, training information, a sparse tensor, a tensor whose
    data is not as large as its shape says, and external data other than a span of the sidecar, of which sidecar_bytes
    is the size (None: there is none).
    """
    _check_versions(model, what)
    for graph in _graphs(model.graph, what):
        _check_nodes(graph, what)
        for tensor in graph.initializer:
            _check_tensor(tensor, what, sidecar_bytes)


def tensor_specs(model: onnx.ModelProto, what: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The specs of a model's inputs (initialisers left out) and outputs.

    Raises BundleError when one is no tensor, or its type or rank is not stated.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [_spec(value, what) for value in model.graph.input if value.name not in constants]
    return tuple(inputs), tuple(_spec(value, what) for value in model.graph.output)


def check_specs(model: onnx.ModelProto, what: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Raise BundleError unless the graph has these inputs and outputs, in this order.

    A size that the manifest leaves free must be free in the graph; one that it states may be free there.
    """
    found = tensor_specs(model, what)
    for side, graph_specs, manifest_specs in (("inputs", found[0], inputs), ("outputs", found[1], outputs)):
        if len(graph_specs) != len(manifest_specs) or not all(map(_agrees, graph_specs, manifest_specs)):
            wanted = f"those of the manifest, {_show(manifest_specs)}"
            raise _bad(what, f"has the {side} {_show(graph_specs)}", wanted)


def _check_versions(model: onnx.ModelProto, what: str) -> None:
    if not MIN_IR_VERSION <= model.ir_version <= MAX_IR_VERSION:
        wanted = f"{MIN_IR_VERSION} to {MAX_IR_VERSION}, which the runtime reads"
        raise _bad(what, f"has IR version {model.ir_version}", wanted)
    for entry in model.opset_import:
        if entry.domain not in DOMAINS:
            raise _bad(what, f"imports the operator domain {entry.domain!r:.120}", "the ONNX domain alone")
        if not 1 <= entry.version <= MAX_OPSET:
            wanted = f"1 to {MAX_OPSET}, which the runtime reads"
            raise _bad(what, f"imports operator set {entry.version}", wanted)
    if len(model.opset_import) != 1:
        raise _bad(what, f"imports {len(model.opset_import)} operator sets", "one")
    if model.functions or model.training_info:
        raise _bad(what, "has local functions or training information", "a graph alone")


def _graphs(graph: onnx.GraphProto, what: str) -> Iterator[onnx.GraphProto]:
    """The graph and those in the attributes of its nodes, to any depth up to the cap."""
    level = [graph]
    for _ in range(_MAX_NESTING):
        yield from level
        attributes = [attribute for outer in level for node in outer.node for attribute in node.attribute]
        level = [inner for attribute in attributes for inner in attribute.graphs]
        level += [attribute.g for attribute in attributes if attribute.HasField("g")]
        if not level:
            return
    raise _bad(what, f"nests graphs deeper than {_MAX_NESTING}", "a flat graph")


def _check_nodes(graph: onnx.GraphProto, what: str) -> None:
    # A sparse tensor may declare any dense size, which the runtime would allocate.
    sparse = bool(graph.sparse_initializer)
    for node in graph.node:
        if node.domain not in DOMAINS:
            raise _bad(what, f"has the operator {node.domain + '::' + node.op_type!r:.160}", "ONNX's own operators")
        if node.op_type == "Constant" and len(node.attribute) != 1:
            # The specification has exactly one; the runtime takes the first, other readers another one.
            found = f"has the Constant {', '.join(node.output)!r:.120} with {len(node.attribute)} values"
            raise _bad(what, found, "one value a constant")
        for attribute in node.attribute:
            sparse = sparse or attribute.HasField("sparse_tensor") or bool(attribute.sparse_tensors)
            for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])):
                _check_tensor(tensor, what, None)
    if sparse:
        raise _bad(what, "has a sparse tensor", "dense tensors")


def _check_tensor(tensor: onnx.TensorProto, what: str, sidecar_bytes: int | None) -> None:
    import onnx

    name = f"{what}, tensor {tensor.name!r:.120},"
    kind = _type_name(tensor.data_type)
    if len(tensor.dims) > MAX_RANK or min(tensor.dims, default=0) < 0:
        raise _bad(name, f"has the shape {tensor.dims[:MAX_RANK]}", f"at most {MAX_RANK} sizes, none negative")
    if kind not in _BITS and kind != "STRING":
        raise _bad(name, f"has the data type {kind}", "a type that the runtime reads")
    elements = math.prod(tensor.dims)
    needed = (elements * _BITS.get(kind, 0) + 7) // 8
    if tensor.HasField("segment"):
        raise _bad(name, "is split in segments", "a whole tensor")
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        _check_external(tensor, name, needed, sidecar_bytes)
    else:
        _check_inline(tensor, name, kind, elements)


def _check_inline(tensor: onnx.TensorProto, name: str, kind: str, elements: int) -> None:
    """Exactly one field holds the data, and holds as much as the shape says."""
    bits = _BITS.get(kind, 8)
    typed = next((field for field, kinds in _FIELDS.items() if kind in kinds), "int32_data")
    if tensor.HasField("raw_data") and kind != "STRING":
        field, needed = "raw_data", (elements * bits + 7) // 8
    elif bits < 8:  # packed, one byte in each int32
        field, needed = typed, (elements * bits + 7) // 8
    else:
        field, needed = typed, elements * (2 if kind.startswith("COMPLEX") else 1)
    found = len(getattr(tensor, field))
    filled = [other for other in (*_FIELDS, "int32_data", "raw_data") if len(getattr(tensor, other))]
    if found != needed or filled not in ([], [field]):
        raise _bad(
            name, f"has {found} entries in {field} for the shape {list(tensor.dims)}", f"{needed} and no other data"
        )


def _check_external(tensor: onnx.TensorProto, name: str, needed: int, sidecar_bytes: int | None) -> None:
    import onnx

    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if sidecar_bytes is None or location != SIDECAR:
        wanted = f"it in the model, or in the hashed {SIDECAR} of a model above 2 GB"
        raise _bad(name, f"has its data in another file, {location!r:.120}", wanted)
    offset, length = (_number(entries.get(key, "")) for key in ("offset", "length"))
    if set(entries) != {"location", "offset", "length"} or len(tensor.external_data) != len(entries):
        raise _bad(name, "has unclear external data", "one location, offset and length")
    if length != needed or offset < 0 or offset + length > sidecar_bytes:
        found = f"has {length} bytes at {offset} of {SIDECAR}, which has {sidecar_bytes},"
        raise _bad(name, found, f"{needed} bytes inside the file")
    inline = any(len(getattr(tensor, field)) for field in (*_FIELDS, "int32_data", "raw_data"))
    if tensor.data_location != onnx.TensorProto.EXTERNAL or inline:
        raise _bad(name, "has both inline and external data", "one of them")


def _number(text: str) -> int:
    """The number that decimal digits stand for, -1 for any other text."""
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else -1


def _spec(value: onnx.ValueInfoProto, what: str) -> TensorSpec:
    tensor = value.type.tensor_type
    kind = _type_name(tensor.elem_type) if value.type.HasField("tensor_type") else "no tensor"
    if kind not in _NUMPY_NAMES:
        raise _bad(f"{what}, {value.name!r:.120},", f"is of type {kind}", "a tensor of numbers")
    if not tensor.HasField("shape") or len(tensor.shape.dim) > MAX_RANK:
        raise _bad(f"{what}, {value.name!r:.120},", "has no stated shape", f"one of at most {MAX_RANK} sizes")
    sizes = (size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim)
    return TensorSpec(value.name, _NUMPY_NAMES[kind], tuple(sizes))


def _agrees(graph: TensorSpec, manifest: TensorSpec) -> bool:
    same = (graph.name, graph.dtype, len(graph.shape)) == (manifest.name, manifest.dtype, len(manifest.shape))
    return same and all(found in (stated, -1) for found, stated in zip(graph.shape, manifest.shape, strict=True))


def _show(specs: Sequence[TensorSpec]) -> str:
    shown = [f"{spec.name!r:.80} {spec.dtype} {list(spec.shape)}" for spec in specs[:8]]
    return ", ".join(shown) or "(none)"


def _type_name(number: int) -> str:
    import onnx

    names: Mapping[int, str] = {value: name for name, value in onnx.TensorProto.DataType.items()}
    return names.get(number, str(number))


def _bad(what: str, found: str, expected: str) -> BundleError:
    return BundleError(f"{what} {found}; expected {expected}; export the network in that form and build the bundle")
