"""The backend test data that the onnx package ships, as networks with something to fold.

Its converted networks and operator cases hold one layer each: a norm with random statistics (gamma of both signs) is
put behind it and, in another network, before it, with a linear on the other side where the layer is none. Weights that
are inputs of a case become initialisers. The `light` architectures make their weights with ConstantOfShape; these, and
the few that are stored, become random initialisers, and a norm follows each convolution of those that have none.
"""

from __future__ import annotations

import importlib
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from onnx import helper, numpy_helper, version_converter

from bnfold.errors import ParityError
from bnfold.parity.oracle import run_float64

Array = np.ndarray[Any, np.dtype[Any]]

DATA = Path(onnx.backend.test.__file__).parent / "data"
FLOAT = onnx.TensorProto.FLOAT
LINEARS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CONVERTED_TO = 13  # the operator set that models of opset 6, which bnfold does not read, are converted to
BATCHES = 4  # the case's own inputs, and three random ones of the same shapes
LARGEST = 4096  # elements of an input, above which there is but one
# Operators whose cases are taken: linears and norms, and what a fold may pass.
OPERATORS = (
    "batch_normalization", "conv", "convtranspose", "gemm", "matmul", "averagepool", "maxpool", "globalaveragepool",
    "globalmaxpool", "relu", "leakyrelu", "prelu", "elu", "clip", "concat", "add", "sub", "mul", "div", "pad",
    "reshape", "transpose", "slice", "gather", "split", "depthtospace", "spacetodepth", "flatten", "squeeze",
    "unsqueeze", "identity", "dropout", "reducemax", "reducemean", "hardswish", "gelu", "upsample",
)  # fmt: skip
_PARAMETERS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "BatchNormalization": 1}
_DATA_ALL = ("Concat", "Add", "Sub", "Sum", "Mul", "Div")  # every input is data


@dataclass(frozen=True)
class Case:
    """A model, and inputs by name for it."""

    family: str
    name: str
    model: onnx.ModelProto
    batches: tuple[dict[str, Array], ...]


# The families


def converted(kind: str) -> Iterator[Case]:
    """kind: "pytorch-converted", "pytorch-operator" or "simple"; the models as shipped, read anew each time."""
    for folder in sorted((DATA / kind).iterdir()):
        path = folder / "model.onnx"
        if path.is_file():
            yield Case(kind, folder.name, onnx.load(path), ())


def readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at an operator set that bnfold reads, weights no inputs any more."""
    if model.opset_import[0].version < 7:
        model = version_converter.convert_version(model, CONVERTED_TO)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)
    return model


def with_inputs(kind: str) -> Iterator[Case]:
    """The converted networks at an operator set that bnfold reads, with random inputs; weights are no inputs."""
    for case in converted(kind):
        model = readable(case.model)
        found = Case(kind, case.name, model, batches_of(model, case.name))
        is_linear = any(node.op_type in LINEARS for node in model.graph.node)
        yield _promoted(found) if is_linear and len(model.graph.input) > 1 else found


def operator_cases(operators: Sequence[str] = OPERATORS) -> Iterator[Case]:
    """The node test cases of some operators, in float32, parameters promoted to initialisers."""
    for module in operators:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some compute infinities on purpose
            importlib.import_module(f"onnx.backend.test.case.node.{module}")
    from onnx.backend.test.case.node import _NodeTestCases

    seen = set()
    for case in sorted(_NodeTestCases, key=lambda case: case.name):
        model = case.model
        if len(model.graph.node) != 1 or case.name in seen or not case.data_sets:
            continue
        node = model.graph.node[0]
        module = node.op_type.lower().replace("batchnormalization", "batch_normalization")
        is_random = case.name.startswith("test_training_dropout")
        if module not in operators or node.domain or is_random or not _is_float32(model):
            continue
        seen.add(case.name)
        given = {
            value.name: np.asarray(array) for value, array in zip(model.graph.input, case.data_sets[0][0], strict=True)
        }
        clone = onnx.ModelProto()
        clone.CopyFrom(model)
        yield _promoted(Case("operators", case.name, clone, (given,)))


def shipped(name: str) -> Case:
    """An architecture as it is in the package, its weights computed."""
    return Case("light", name, onnx.load(DATA / "light" / f"light_{name}.onnx"), ())


def light(name: str) -> Case:
    """An architecture with random weights, and one input picture."""
    model = shipped(name).model
    rng = _rng(name)
    made = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "ConstantOfShape"}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {out: tuple(numpy_helper.to_array(stored[of])) for out, of in made.items()}
    shapes |= {name: tuple(tensor.dims) for name, tensor in stored.items() if tensor.data_type == FLOAT}
    roles = _roles(model.graph)
    nodes = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    read = {name for node in nodes for name in node.input}
    tensors = [
        numpy_helper.from_array(_drawn(rng, roles.get(name, "other"), shape), name)
        for name, shape in shapes.items() if name in read
    ]  # fmt: skip
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in shapes and tensor.name in read]
    inputs = [value for value in model.graph.input if value.name not in stored]
    # A softmax over random logits answers 0 and 1, whatever they are: what it reads is an output, too.
    logits = [node.input[0] for node in nodes if node.op_type == "Softmax"]
    graph = helper.make_graph(nodes, "light", inputs, model.graph.output, [*tensors, *kept])
    found = helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(found).graph.value_info
    found.graph.output.extend(value for value in inferred if value.name in logits)
    if not any(node.op_type == "BatchNormalization" for node in nodes):
        _norm_behind_each_convolution(found.graph, {name: shape[0] for name, shape in shapes.items()}, rng)
    return Case("light", name, found, (_pictures(inputs, rng),))


LIGHT = tuple(sorted(path.stem.removeprefix("light_") for path in (DATA / "light").glob("*.onnx")))


# Something to fold


def chained(case: Case) -> Iterator[Case]:
    """The case with a norm behind it, and with a norm before it; nothing where it has no channels there."""
    for side in ("behind", "before"):
        rng = _rng(case.name + side)
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        is_linear = any(node.op_type in LINEARS for node in model.graph.node)
        source, target = _data_input(case), model.graph.output[0].name
        result = _shape_of(model, case.batches[0], target)
        if source is None or result is None or len(result) < 2 or len(case.batches[0][source].shape) < 2:
            continue
        shape = case.batches[0][source].shape
        if side == "behind":
            if not is_linear:
                _before(model, source, shape, "linear", rng)
            _behind(model, target, result, "norm", rng)
        else:
            _before(model, source, shape, "norm", rng)
            if not is_linear:
                _behind(model, target, result, "linear", rng)
        yield Case(case.family, f"{case.name}, norm {side}", model, _more(case.batches, rng))


def batches_of(model: onnx.ModelProto, name: str) -> tuple[dict[str, Array], ...]:
    """Random inputs of the shapes that the model states."""
    rng = _rng(name)
    given = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value or 2 for dim in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        whole = np.issubdtype(dtype, np.integer)
        given[value.name] = (rng.integers(0, 2, shape) if whole else rng.normal(size=shape)).astype(dtype)
    return (given,)


def _more(batches: Sequence[dict[str, Array]], rng: Any) -> tuple[dict[str, Array], ...]:
    first = batches[0]
    if max(array.size for array in first.values()) > LARGEST:
        return (first,)
    return (
        first,
        *(
            {
                name: rng.normal(size=array.shape).astype(array.dtype) if array.dtype.kind == "f" else array
                for name, array in first.items()
            }
            for _ in range(BATCHES - 1)
        ),
    )


def _data_input(case: Case) -> str | None:
    floats = (name for name, array in case.batches[0].items() if array.dtype == np.float32 and array.size)
    return next(floats, None)


def _shape_of(model: onnx.ModelProto, inputs: dict[str, Array], name: str) -> tuple[int, ...] | None:
    """The shape of an output, None where the float64 evaluator cannot say it, or where it is no float32."""
    (value,) = [value for value in model.graph.output if value.name == name]
    if value.type.tensor_type.elem_type != FLOAT:
        return None
    try:
        found = run_float64(model, inputs)[name]
    except ParityError:
        return None
    return found.shape if found.size else None


def _behind(model: onnx.ModelProto, name: str, shape: Sequence[int], kind: str, rng: Any) -> None:
    """A norm or a linear behind an output, which keeps its name and shape."""
    inner = f"{name}.inner"
    for node in model.graph.node:
        node.output[:] = [inner if output == name else output for output in node.output]
        node.input[:] = [inner if one == name else one for one in node.input]
    model.graph.node.extend(_nodes(model, kind, inner, name, shape, rng))


def _before(model: onnx.ModelProto, name: str, shape: Sequence[int], kind: str, rng: Any) -> None:
    inner = f"{name}.first"
    for node in model.graph.node:
        node.input[:] = [inner if one == name else one for one in node.input]
    for node in reversed(_nodes(model, kind, name, inner, shape, rng)):
        model.graph.node.insert(0, node)


def _nodes(
    model: onnx.ModelProto, kind: str, x: str, y: str, shape: Sequence[int], rng: Any
) -> list[onnx.NodeProto]:  # fmt: skip
    """BatchNormalization (around a MatMul of more axes: of the last one, by hand), or a linear."""
    is_last = len(shape) > 2 and any(node.op_type == "MatMul" for node in model.graph.node)
    channels, stem = shape[-1] if is_last else shape[1], f"added.{kind}"

    def stored(part: str, role: str, *size: int) -> str:
        name = f"{stem}.{part}"
        model.graph.initializer.append(numpy_helper.from_array(_drawn(rng, role, size), name))
        return name

    if kind == "norm" and is_last:
        scaled = helper.make_node(
            "Mul", [x, stored("gamma", "gamma", channels)], [f"{stem}.scaled"], name=f"{stem}.scale"
        )
        return [scaled, helper.make_node("Add", [scaled.output[0], stored("beta", "beta", channels)], [y], name=stem)]
    if kind == "norm":
        parts = [stored(role, role, channels) for role in ("gamma", "beta", "mean", "variance")]
        return [helper.make_node("BatchNormalization", [x, *parts], [y], name=stem, epsilon=1e-4)]
    weight = stored("weight", "weight", channels, channels, *[1] * (len(shape) - 2))
    bias = stored("bias", "bias", channels)
    if len(shape) == 2:
        return [helper.make_node("Gemm", [x, weight, bias], [y], name=stem, transB=1)]
    return [helper.make_node("Conv", [x, weight, bias], [y], name=stem)]


# Promotion


def _is_float32(model: onnx.ModelProto) -> bool:
    """Every tensor in and out is float32, or an integer that is a parameter."""
    values = (*model.graph.input, *model.graph.output)
    kinds = {value.type.tensor_type.elem_type for value in values if value.type.HasField("tensor_type")}
    allowed = {FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
    return all(value.type.HasField("tensor_type") for value in values) and FLOAT in kinds and kinds <= allowed


def _promoted(case: Case) -> Case:
    """Second and later inputs as initialisers: random weights and statistics, anything else as it is given."""
    model, (given,) = case.model, case.batches
    node = next((node for node in model.graph.node if node.op_type in LINEARS), model.graph.node[0])
    if node.op_type in _DATA_ALL:
        return case
    rng = _rng(case.name)
    roles = _roles(model.graph)
    names = [name for name in node.input[1:] if name in given]
    for name in dict.fromkeys(names):
        array = given[name]
        if node.op_type in _PARAMETERS and array.dtype == np.float32:
            array = _drawn(rng, roles.get(name, "other"), array.shape)
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    inputs = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return Case(case.family, case.name, model, ({key: x for key, x in given.items() if key not in names},))


def _roles(graph: onnx.GraphProto) -> dict[str, str]:
    """What each parameter is, by the node that reads it, also through an Unsqueeze."""
    by_input = {
        **dict.fromkeys(LINEARS, ("", "weight", "bias")),
        "BatchNormalization": ("", "gamma", "beta", "mean", "variance"),
        "Mul": ("", "gamma"), "Add": ("", "beta"),
    }  # fmt: skip
    roles: dict[str, str] = {}
    for node in reversed(graph.node):
        pairs = zip(node.input, by_input.get(node.op_type, ()), strict=False)
        roles |= {name: role for name, role in pairs if role}
        if node.op_type == "Unsqueeze" and node.output[0] in roles:
            roles[node.input[0]] = roles[node.output[0]]
    return roles


def _drawn(rng: Any, role: str, shape: Sequence[int]) -> Array:
    """Random numbers that keep activations near one through fifty layers."""
    if role == "gamma":
        found = rng.uniform(0.5, 1.5, size=shape) * rng.choice([-1.0, 1.0], size=shape)
    elif role == "variance":
        found = rng.uniform(0.5, 2.0, size=shape)
    elif role == "weight":
        found = rng.standard_normal(shape, np.float32) * np.float32(1.3 / np.sqrt(max(1, np.prod(shape[1:]))))
    else:
        found = 0.3 * rng.normal(size=shape)
    return np.asarray(found, np.float32)


def _norm_behind_each_convolution(graph: onnx.GraphProto, channels: dict[str, int], rng: Any) -> None:
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "Conv":
            continue
        count, name = channels[node.input[1]], node.output[0]
        node.output[0] = f"{name}.linear"
        parts = [f"{name}.{role}" for role in ("gamma", "beta", "mean", "variance")]
        graph.initializer.extend(
            numpy_helper.from_array(_drawn(rng, part.rsplit(".", 1)[1], (count,)), part) for part in parts
        )
        nodes.append(helper.make_node("BatchNormalization", [node.output[0], *parts], [name], name=f"{name}.norm"))
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def _pictures(inputs: Sequence[onnx.ValueInfoProto], rng: Any) -> dict[str, Array]:
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inputs}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _rng(name: str) -> Any:
    return np.random.default_rng(zlib.crc32(name.encode()))
