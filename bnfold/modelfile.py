"""What a bundle lets into an ONNX file: known operators, declared sizes that are there, no data from elsewhere.

The checks read the protobuf message only; nothing is allocated from a declared size, and no path in the file is followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bnfold.errors import BundleError
from bnfold.manifest import SIDECAR, TensorSpec

if TYPE_CHECKING:
    import onnx

# What ONNX Runtime 1.31 reads. Newer files would be refused by it with a stack of C++ frames.
MAX_IR_VERSION = 13
MIN_IR_VERSION = 3
MAX_OPSET = 26
DOMAINS = ("", "ai.onnx")

_MAX_NESTING = 32  # graphs within attributes within graphs
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

    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        raise _bad(what, "is no ONNX model", "a serialised ModelProto") from None
    if not model.HasField("graph"):
        raise _bad(what, "has no graph", "a serialised ModelProto")
    return model


def check_model(model: onnx.ModelProto, what: str, *, sidecar_bytes: int | None = None) -> None:
    """Raise BundleError for a model that a bundle must not hold.

    That is: an IR version or operator set that the runtime does not read, an operator of another domain than ONNX's own, local functions,
    training information, a tensor whose declared size is not that of its data, and external data other than a span
    inside the sidecar, of which sidecar_bytes is the size (None: there is no sidecar).
    """
    _check_versions(model, what)
    for graph in _graphs(model.graph, what):
        for node in graph.node:
            if node.domain not in DOMAINS:
                raise _bad(
                    what,
                    f"has the operator {node.domain}::{node.op_type}"[:200],
                    "operators of the ONNX domain",
                )
    for tensor in _tensors(model.graph, what):
        _check_tensor(tensor, what, sidecar_bytes)


def tensor_specs(model: onnx.ModelProto, what: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The specs of a model's inputs (initialisers left out) and outputs.

    Raises BundleError when one is no tensor, or its type or rank is not stated.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [_spec(value, what) for value in model.graph.input if value.name not in constants]
    return tuple(inputs), tuple(_spec(value, what) for value in model.graph.output)


def check_specs(
    model: onnx.ModelProto, what: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Raise BundleError unless the graph has these inputs and outputs, in this order.

    A size that the manifest leaves free must be free in the graph; one that it states may be free there.
    """
    found = tensor_specs(model, what)
    for side, graph_specs, manifest_specs in (("inputs", found[0], inputs), ("outputs", found[1], outputs)):
        same = len(graph_specs) == len(manifest_specs) and all(map(_agrees, graph_specs, manifest_specs))
        if not same:
            raise _bad(
                what,
                f"has the {side} {_show(graph_specs)}",
                f"those of the manifest, {_show(manifest_specs)}",
            )


def _check_versions(model: onnx.ModelProto, what: str) -> None:
    if not MIN_IR_VERSION <= model.ir_version <= MAX_IR_VERSION:
        raise _bad(
            what,
            f"has IR version {model.ir_version}",
            f"{MIN_IR_VERSION} to {MAX_IR_VERSION}, which the runtime reads",
        )
    domains = [entry.domain for entry in model.opset_import]
    for entry in model.opset_import:
        if entry.domain not in DOMAINS:
            raise _bad(what, f"imports the operator domain {entry.domain!r:.120}", "the ONNX domain alone")
        if not 1 <= entry.version <= MAX_OPSET:
            raise _bad(
                what, f"imports operator set {entry.version}", f"1 to {MAX_OPSET}, which the runtime reads"
            )
    if len(domains) != 1:
        raise _bad(what, f"imports {len(domains)} operator sets", "one")
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


def _tensors(graph: onnx.GraphProto, what: str) -> Iterator[onnx.TensorProto]:
    for inner in _graphs(graph, what):
        yield from inner.initializer
        sparse = list(inner.sparse_initializer)
        for node in inner.node:
            for attribute in node.attribute:
                yield from attribute.tensors
                sparse += attribute.sparse_tensors
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("sparse_tensor"):
                    sparse.append(attribute.sparse_tensor)
        for tensor in sparse:
            yield tensor.values
            yield tensor.indices


def _check_tensor(tensor: onnx.TensorProto, what: str, sidecar_bytes: int | None) -> None:
    import onnx

    name = f"{what}, tensor {tensor.name!r:.120},"
    kind = _type_name(tensor.data_type)
    elements = 1
    if len(tensor.dims) > 32 or any(size < 0 for size in tensor.dims):
        raise _bad(name, f"has the shape {list(tensor.dims)[:40]}", "at most 32 sizes, none negative")
    for size in tensor.dims:
        elements *= size
    if kind not in _BITS and kind != "STRING":
        raise _bad(name, f"has the data type {kind}", "a type that the runtime reads")
    needed = (elements * _BITS.get(kind, 0) + 7) // 8
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        _check_external(tensor, name, needed, sidecar_bytes)
        return
    if tensor.HasField("segment"):
        raise _bad(name, "is split in segments", "a whole tensor")
    _check_inline(tensor, name, kind, elements, needed)


def _check_inline(tensor: onnx.TensorProto, name: str, kind: str, elements: int, needed: int) -> None:
    """Exactly one field holds the data, and holds as much as the shape says."""
    field = next((field for field, kinds in _FIELDS.items() if kind in kinds), "int32_data")
    filled = [other for other in (*_FIELDS, "int32_data") if len(getattr(tensor, other))]
    if tensor.HasField("raw_data") and kind != "STRING":
        if filled or len(tensor.raw_data) != needed:
            raise _bad(
                name,
                f"has {len(tensor.raw_data)} bytes of raw data for the shape {list(tensor.dims)}",
                f"{needed} bytes",
            )
        return
    count = needed if _BITS.get(kind, 8) < 8 else elements * (2 if kind.startswith("COMPLEX") else 1)
    if len(getattr(tensor, field)) != count or filled not in ([], [field]) or tensor.HasField("raw_data"):
        raise _bad(
            name,
            f"has {len(getattr(tensor, field))} values in {field} for the shape {list(tensor.dims)}",
            f"{count}",
        )


def _check_external(tensor: onnx.TensorProto, name: str, needed: int, sidecar_bytes: int | None) -> None:
    import onnx

    entries = {entry.key: entry.value for entry in tensor.external_data}
    if sidecar_bytes is None or entries.get("location") != SIDECAR:
        raise _bad(
            name,
            f"is kept in the external file {entries.get('location')!r:.120}",
            f"data inside the model or in a hashed {SIDECAR}",
        )
    numbers = [entries.get(key, "") for key in ("offset", "length")]
    if (
        set(entries) != {"location", "offset", "length"}
        or len(entries) != len(tensor.external_data)
        or not all(number.isascii() and number.isdigit() and len(number) < 16 for number in numbers)
    ):
        raise _bad(name, "has unclear external data", "one location, offset and length")
    offset, length = map(int, numbers)
    if length != needed or offset + length > sidecar_bytes:
        raise _bad(
            name,
            f"has {length} bytes at {offset} of {SIDECAR} ({sidecar_bytes} bytes)",
            f"{needed} bytes inside the file",
        )
    if tensor.data_location != onnx.TensorProto.EXTERNAL or tensor.HasField("raw_data"):
        raise _bad(name, "has both inline and external data", "one of them")


def _spec(value: onnx.ValueInfoProto, what: str) -> TensorSpec:
    kind = _type_name(value.type.tensor_type.elem_type) if value.type.HasField("tensor_type") else "no tensor"
    if kind not in _NUMPY_NAMES or not value.type.tensor_type.HasField("shape"):
        raise _bad(
            what,
            f"has {value.name!r:.120} of type {kind} and no stated shape"[:240],
            "tensors of a number type with a stated rank",
        )
    sizes = value.type.tensor_type.shape.dim
    return TensorSpec(
        value.name,
        _NUMPY_NAMES[kind],
        tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes),
    )


def _agrees(graph: TensorSpec, manifest: TensorSpec) -> bool:
    return (
        (graph.name, graph.dtype, len(graph.shape)) == (manifest.name, manifest.dtype, len(manifest.shape))
        and all(stated in (free, -1) for stated, free in zip(graph.shape, manifest.shape, strict=True))
    )  # fmt: skip


def _show(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name!r:.80} {spec.dtype} {list(spec.shape)}" for spec in specs[:8]) or "(none)"


def _type_name(number: int) -> str:
    import onnx

    try:
        return onnx.TensorProto.DataType.Name(number)  # type: ignore[arg-type]
    except ValueError:
        return str(number)


def _bad(what: str, found: str, expected: str) -> BundleError:
    return BundleError(f"{what} {found}; expected {expected}; export the network again with bnfold")
