"""Small ONNX networks with norms whose statistics are nothing like their defaults."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from bnfold.folding import onnx_graph
from bnfold.parity.local.spans import with_outputs
from bnfold.parity.oracle import run_float64

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = {
    "float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE,
    "float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16,
}  # fmt: skip


def numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


@dataclass
class Builder:
    """Collects nodes and initialisers; every method returns the name of its output."""

    rng: np.random.Generator
    dtype: str = "float32"
    nodes: list[Any] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)
    count: int = 0

    def constant(self, name: str, values: Array) -> str:
        array = np.asarray(values)
        if array.dtype.kind == "f":
            array = array.astype(numpy_dtype(self.dtype))
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        self.count += 1
        output = f"{op.lower()}_{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def normal(self, *shape: int) -> Array:
        return self.rng.normal(size=shape)

    def weight(self, *shape: int) -> Array:
        return self.normal(*shape) / np.sqrt(max(1, int(np.prod(shape[1:]))))

    def statistics(self, channels: int, variance: float = 1.0) -> dict[str, Array]:
        return {
            "gamma": self.normal(channels) * self.rng.choice([1.0, 0.01, 3.0], channels),
            "beta": self.normal(channels),
            "mean": self.normal(channels) * np.sqrt(variance) * 2,
            "variance": np.exp(self.normal(channels)) * variance,
        }

    def batch_norm(self, x: str, name: str, channels: int, *, eps: float = 1e-5, variance: float = 1.0) -> str:
        parts = [self.constant(f"{name}.{k}", v) for k, v in self.statistics(channels, variance).items()]
        return self.node("BatchNormalization", [x, *parts], epsilon=eps)

    def hand_written(self, x: str, name: str, shape: tuple[int, ...], *, eps: float = 1e-3) -> str:
        """(x - mean) / sqrt(var + eps) * gamma + beta, with the root computed in the graph."""
        parts = {
            k: self.constant(f"{name}.{k}", v.reshape(shape)) for k, v in self.statistics(int(np.prod(shape))).items()
        }
        root = self.node("Sqrt", [self.node("Add", [parts["variance"], self.constant(f"{name}.eps", np.array(eps))])])
        x = self.node("Div", [self.node("Sub", [x, parts["mean"]]), root])
        return self.node("Add", [self.node("Mul", [x, parts["gamma"]]), parts["beta"]])

    def model(self, x_shape: tuple[Any, ...], output: str, y_rank: int) -> onnx.ModelProto:
        """The model from "input" of x_shape to "output" (renamed), first axis free."""
        elem = DTYPES[self.dtype]
        for node in self.nodes:
            if output in node.output:
                node.output[:] = ["output"]
            node.input[:] = ["output" if name == output else name for name in node.input]
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", elem, ["n", *x_shape[1:]])],
            [helper.make_tensor_value_info("output", elem, ["n", *[None] * (y_rank - 1)])],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


@dataclass(frozen=True)
class Layer:
    """One linear with norms behind it, and the input that it takes."""

    kind: str = "conv"
    dims: int = 2
    inputs: int = 4
    outputs: int = 6
    groups: int = 1
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    bias: bool = True
    transposed: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    norm: str = "bn"
    eps: float = 1e-5
    variance: float = 1.0
    dtype: str = "float32"
    seed: int = 0


def add_layer(build: Builder, x: str, layer: Layer, name: str) -> str:
    y = _linear(build, x, layer, name)
    spatial = (1,) * layer.dims if layer.kind in ("conv", "conv_transpose") else ()
    for position, kind in enumerate(layer.norm.split("+")):
        if kind == "bn":
            y = build.batch_norm(y, f"{name}.bn{position}", layer.outputs, eps=layer.eps, variance=layer.variance)
        elif kind == "hand":
            y = build.hand_written(y, f"{name}.norm{position}", (layer.outputs, *spatial))
    return y


def _linear(build: Builder, x: str, layer: Layer, name: str) -> str:
    kernel = (layer.kernel,) * layer.dims
    per_group = layer.inputs // layer.groups
    bias = [build.constant(f"{name}.linear.bias", build.normal(layer.outputs))] if layer.bias else []
    if layer.kind == "conv":
        weight = build.constant(f"{name}.linear.weight", build.weight(layer.outputs, per_group, *kernel))
    elif layer.kind == "conv_transpose":
        shape = (layer.inputs, layer.outputs // layer.groups, *kernel)
        weight = build.constant(f"{name}.linear.weight", build.weight(*shape))
    else:
        transposed = layer.transposed and layer.kind == "gemm"
        shape = (layer.outputs, layer.inputs) if transposed else (layer.inputs, layer.outputs)
        weight = build.constant(f"{name}.linear.weight", build.weight(*shape))
    if layer.kind == "gemm":
        return build.node("Gemm", [x, weight, *bias], alpha=layer.alpha, beta=layer.beta, transB=int(layer.transposed))
    if layer.kind == "matmul":
        y = build.node("MatMul", [x, weight])
        return build.node("Add", [y, *bias]) if bias else y
    return build.node(
        "Conv" if layer.kind == "conv" else "ConvTranspose",
        [x, weight, *bias],
        group=layer.groups,
        kernel_shape=kernel,
        strides=[layer.stride] * layer.dims,
        dilations=[layer.dilation] * layer.dims,
        pads=[layer.padding] * 2 * layer.dims,
    )


def single(layer: Layer) -> onnx.ModelProto:
    """A network of one layer."""
    build = Builder(np.random.default_rng(layer.seed), layer.dtype)
    shape = input_shape(layer)
    y = add_layer(build, "input", layer, "layer")
    return build.model(shape, y, len(shape))


def input_shape(layer: Layer, batch: int = 2) -> tuple[int, ...]:
    if layer.kind in ("gemm", "matmul"):
        return (batch, layer.inputs)
    side = (layer.kernel - 1) * layer.dilation + 1 + 3
    return (batch, layer.inputs, *(side,) * layer.dims)


def inputs_for(model: onnx.ModelProto, seed: int = 0, batch: int = 3) -> dict[str, Array]:
    """Standard normal inputs of the shapes that the graph states."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = [dim.dim_value or batch for dim in kind.shape.dim]
        found[value.name] = rng.normal(size=shape).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return found


def small_cnn(seed: int = 0, dtype: str = "float32") -> onnx.ModelProto:
    """Three convolutions with norms of both kinds, pooling, a dense layer with a norm, a classifier without.

    Takes (n, 1, 8, 8), gives (n, 10). The statistics are roughly those of its inputs, so that its answers vary.
    """
    model = onnx.ModelProto()
    model.ParseFromString(_small_cnn(seed, dtype))
    return model


@functools.cache
def _small_cnn(seed: int, dtype: str) -> bytes:
    build = Builder(np.random.default_rng(seed), dtype)
    x, channels = "input", 1
    for at, (outputs, norm) in enumerate(((8, "bn"), (12, "hand"), (16, "bn"))):
        layer = Layer(inputs=channels, outputs=outputs, padding=1, bias=at != 2, norm=norm)
        x = build.node("Relu", [add_layer(build, x, layer, f"block{at}")])
        channels = outputs
    x = build.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = build.node("Flatten", [x])
    dense = Layer(kind="gemm", inputs=channels * 16, outputs=20, transposed=True, alpha=0.5, beta=2.0)
    x = build.node("Relu", [add_layer(build, x, dense, "dense")])
    x = add_layer(build, x, Layer(kind="gemm", inputs=20, outputs=10, norm="none"), "head")
    model = build.model((None, 1, 8, 8), x, 2)
    for name in ("block0.bn0", "block1.norm0", "block2.bn0", "dense.bn0"):
        _calibrate(model, name, build.rng)
    return model.SerializeToString()


def _calibrate(model: onnx.ModelProto, norm: str, rng: np.random.Generator) -> None:
    """Set a norm's mean and variance to about those of its input on random data."""
    reader = next(node for node in model.graph.node if f"{norm}.mean" in node.input)
    x = {"input": np.random.default_rng(0).normal(size=(32, 1, 8, 8))}
    inner = onnx.ModelProto.FromString(with_outputs(model, [reader.input[0]]))
    values = run_float64(inner, x)[reader.input[0]]
    axes = tuple(axis for axis in range(values.ndim) if axis != 1)
    found = {"mean": values.mean(axes), "variance": values.var(axes)}
    for tensor in model.graph.initializer:
        for part, wanted in found.items():
            if tensor.name == f"{norm}.{part}":
                old = numpy_helper.to_array(tensor)
                near = wanted * np.exp(0.1 * rng.normal(size=wanted.shape))
                tensor.CopyFrom(numpy_helper.from_array(near.reshape(old.shape).astype(old.dtype), tensor.name))


def spellings() -> dict[str, onnx.ModelProto]:
    """Networks of one site each, written as exporters and people write them."""
    return {make.__name__.lstrip("_"): make(Builder(np.random.default_rng(7))) for make in _SPELLINGS}


def _dense_over_the_last_of_three_axes(build: Builder) -> onnx.ModelProto:
    y = build.node("MatMul", ["input", build.constant("w", build.normal(5, 7))])
    y = build.node("Add", [build.constant("c", build.normal(7)), y])
    return build.model((None, 4, 5), build.hand_written(y, "norm", (7,)), 3)


def _identities_between_and_same_padding(build: Builder) -> onnx.ModelProto:
    x = build.node("Identity", ["input"])
    y = build.node("Conv", [x, build.constant("w", build.normal(6, 3, 3, 3))], auto_pad="SAME_UPPER", strides=[2, 2])
    y = build.batch_norm(build.node("Identity", [y]), "first", 6)
    return build.model((None, 3, 7, 7), build.batch_norm(build.node("Dropout", [y]), "second", 6), 4)


def _parameters_in_constant_nodes(build: Builder) -> onnx.ModelProto:
    def constant(values: Array) -> str:
        return build.node("Constant", [], value=numpy_helper.from_array(values.astype(np.float32)))

    y = build.node("Conv", ["input", constant(build.normal(6, 3, 3, 3))])
    y = build.node("BatchNormalization", [y, *map(constant, build.statistics(6).values())])
    return build.model((None, 3, 7, 7), y, 4)


def _bias_and_factor_as_nodes(build: Builder) -> onnx.ModelProto:
    y = build.node("Conv", ["input", build.constant("w", build.normal(6, 3, 3, 3))])
    y = build.node("Add", [y, build.constant("c", build.normal(6, 1, 1))])
    y = build.node("Mul", [build.batch_norm(y, "norm", 6), build.constant("factor", np.array(0.3))])
    return build.model((None, 3, 7, 7), y, 4)


def _scale_and_shift_computed_in_the_graph(build: Builder) -> onnx.ModelProto:
    y = build.node("MatMul", ["input", build.constant("w", build.normal(4, 6))])
    parts = {k: build.constant(k, v) for k, v in build.statistics(6).items()}
    total = build.node("Add", [parts["variance"], build.constant("eps", np.array(1e-3))])
    scale = build.node("Div", [parts["gamma"], build.node("Sqrt", [total])])
    shift = build.node("Sub", [parts["beta"], build.node("Mul", [parts["mean"], scale])])
    return build.model((None, 4), build.node("Add", [build.node("Mul", [y, scale]), shift]), 2)


def _reciprocal_root(build: Builder) -> onnx.ModelProto:
    y = build.node("Gemm", ["input", build.constant("w", build.normal(4, 6))], alpha=0.7, transA=1)
    parts = {k: build.constant(k, v) for k, v in build.statistics(6).items()}
    total = build.node("Add", [parts["variance"], build.constant("eps", np.array(1e-3))])
    root = build.node("Reciprocal", [build.node("Sqrt", [total])])
    y = build.node("Mul", [build.node("Sub", [y, parts["mean"]]), root])
    y = build.node("Add", [build.node("Mul", [parts["gamma"], y]), parts["beta"]])
    model = build.model((None, 4), y, 2)
    for size, name in zip(model.graph.input[0].type.tensor_type.shape.dim, ("four", "n"), strict=True):
        size.Clear()
        size.dim_param = name
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    return model


_SPELLINGS = (
    _dense_over_the_last_of_three_axes, _identities_between_and_same_padding, _parameters_in_constant_nodes,
    _bias_and_factor_as_nodes, _scale_and_shift_computed_in_the_graph, _reciprocal_root,
)  # fmt: skip


def fold(model: onnx.ModelProto) -> tuple[ir.Model, ir.Model, Any]:
    """(reference, folded, report) as ONNX IR."""
    reference = ir.from_proto(model)
    folded, report, _ = onnx_graph.fold(reference)
    return reference, folded, report


@st.composite
def layers(draw: st.DrawFn, dtypes: tuple[str, ...] = ("float32",)) -> Layer:
    """Any kind of linear and norm, with the statistics that break folds: negative gamma, tiny variance, eps 0."""
    kind = draw(st.sampled_from(["conv", "conv", "conv_transpose", "gemm", "matmul"]))
    groups = draw(st.sampled_from([1, 2, 3])) if kind.startswith("conv") else 1
    return Layer(
        kind=kind,
        dims=draw(st.integers(1, 3)),
        inputs=groups * draw(st.integers(1, 3)),
        outputs=groups * draw(st.integers(1, 3)),
        groups=groups,
        kernel=draw(st.integers(1, 3)),
        stride=draw(st.integers(1, 2)),
        dilation=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 1)),
        bias=draw(st.booleans()),
        transposed=draw(st.booleans()),
        alpha=draw(st.sampled_from([1.0, 0.3, -2.0])),
        beta=draw(st.sampled_from([1.0, 0.7, 0.0])),
        norm=draw(st.sampled_from(["bn", "hand", "bn+bn", "hand+bn"])),
        eps=draw(st.sampled_from([1e-5, 1e-3, 0.0])),
        variance=draw(st.sampled_from([1.0, 1e-4, 1e-10, 1e4])),
        dtype=draw(st.sampled_from(dtypes)),
        seed=draw(st.integers(0, 10_000)),
    )
