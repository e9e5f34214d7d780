"""Small ONNX networks with norms; random statistics, gamma of both signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]


class Builder:
    """Collects nodes and tensors. width: channels."""

    def __init__(self, seed: int, width: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.width = width
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, name: str, values: Array) -> str:
        """A tensor; floats become float32."""
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        """A node; gives the name of its output."""
        output = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"node_{len(self.nodes)}", **attributes))
        return output

    def normal(self, *shape: int) -> Array:
        """Standard normal numbers."""
        return self.rng.normal(size=shape)

    def statistics(self, name: str, channels: int, shape: tuple[int, ...] = ()) -> list[str]:
        """Gamma, beta, mean and variance."""
        values = {
            "weight": self.normal(channels) * self.rng.choice([1.0, 0.01, 3.0], channels),
            "bias": self.normal(channels),
            "running_mean": 2 * self.normal(channels),
            "running_var": np.exp(self.normal(channels)),
        }
        return [self.constant(f"{name}.{key}", v.reshape(shape or (-1,))) for key, v in values.items()]

    def norm(self, x: str, name: str, channels: int, **attributes: Any) -> str:
        """BatchNormalization."""
        return self.node("BatchNormalization", [x, *self.statistics(name, channels)], epsilon=1e-5, **attributes)

    def conv(self, x: str, name: str, i: int, o: int, kernel: int = 3, *, bias: bool = True, **attributes: Any) -> str:
        """A convolution, padded to keep the size."""
        groups = attributes.get("group", 1)
        fan_in = i // groups * kernel**2
        weight = self.constant(f"{name}.weight", self.normal(o, i // groups, kernel, kernel) / np.sqrt(fan_in))
        rest = [self.constant(f"{name}.bias", self.normal(o))] if bias else []
        attributes.setdefault("pads", [kernel // 2] * 4)
        return self.node("Conv", [x, weight, *rest], kernel_shape=[kernel] * 2, **attributes)

    def model(self, x_shape: list[Any], y: str, rank: int) -> onnx.ModelProto:
        """The network from "input" to "output"."""
        self.nodes.append(helper.make_node("Identity", [y], ["output"], name="last"))
        shape = [x_shape[0], *[None] * (rank - 1)]
        graph = helper.make_graph(
            self.nodes, "network",
            [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, x_shape)],
            [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, shape)],
            self.tensors,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def classifier(b: Builder) -> onnx.ModelProto:
    """Convolutions of all kinds with a norm behind each, and a dense layer with one."""
    c = b.width
    x = b.node("Relu", [b.norm(b.conv("input", "stem", 3, c), "bn1", c)])
    x = b.node("Relu", [b.norm(b.conv(x, "depthwise", c, c, group=c, bias=False), "bn2", c)])
    weight = b.constant("up.weight", b.normal(c, c, 2, 2) / np.sqrt(4 * c))
    x = b.norm(b.node("ConvTranspose", [x, weight], kernel_shape=[2, 2], strides=[2, 2]), "bn3", c)
    x = b.node("Flatten", [b.node("GlobalAveragePool", [b.node("Relu", [x])])])
    fc = [b.constant("fc.weight", b.normal(10, c) / np.sqrt(c)), b.constant("fc.bias", b.normal(10))]
    return b.model(["N", 3, 8, 8], b.norm(b.node("Gemm", [x, *fc], transB=1), "bn4", 10), 2)


def residual(b: Builder) -> onnx.ModelProto:
    """Two branches with norms, summed; the skip has a 1x1 convolution of its own."""
    c = b.width
    x = b.node("Relu", [b.norm(b.conv("input", "one", 3, c), "bn1", c)])
    x = b.norm(b.conv(x, "two", c, c), "bn2", c)
    skip = b.norm(b.conv("input", "skip", 3, c, kernel=1), "bn3", c)
    return b.model(["N", 3, 8, 8], b.node("Relu", [b.node("Add", [x, skip])]), 4)


def dense(b: Builder) -> onnx.ModelProto:
    """MatMul with its bias as a node, a norm behind; then a Gemm with one."""
    c = b.width
    x = b.node("MatMul", ["input", b.constant("one.weight", b.normal(12, c) / 4)])
    x = b.node("Relu", [b.norm(b.node("Add", [x, b.constant("one.bias", b.normal(c))]), "bn1", c)])
    rest = [b.constant("two.weight", b.normal(5, c) / np.sqrt(c)), b.constant("two.bias", b.normal(5))]
    return b.model(["N", 12], b.norm(b.node("Gemm", [x, *rest], transB=1), "bn2", 5), 2)


def padded(b: Builder) -> onnx.ModelProto:
    """A border of its own before a convolution, a Dropout and an Identity on the way."""
    c = b.width
    pads = b.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    x = b.node("Pad", ["input", pads], mode="constant")
    x = b.node("Relu", [b.norm(b.conv(x, "one", 3, c, pads=[0] * 4), "bn1", c)])
    x = b.node("Identity", [b.node("Dropout", [x])])
    return b.model(["N", 3, 8, 8], b.norm(b.conv(x, "two", c, c, kernel=1), "bn2", c), 4)


def left_over(b: Builder) -> onnx.ModelProto:
    """Norms that most tools leave: behind a concatenation, first of all, written by hand."""
    c = b.width
    x = b.norm("input", "bn0", 3)
    parts = [b.conv(x, "one", 3, c), b.norm(b.conv(x, "two", 3, c), "bn1", c)]
    x = b.node("Relu", [b.norm(b.node("Concat", parts, axis=1), "bn2", 2 * c)])
    gamma, beta, mean, variance = b.statistics("bn3", c, (c, 1, 1))
    root = b.node("Sqrt", [b.node("Add", [variance, b.constant("bn3.eps", np.array(1e-3))])])
    x = b.node("Div", [b.node("Sub", [b.conv(x, "three", 2 * c, c, kernel=1), mean]), root])
    return b.model(["N", 3, 8, 8], b.node("Add", [b.node("Mul", [x, gamma]), beta]), 4)


def training_mode(b: Builder) -> onnx.ModelProto:
    """A norm in training mode, which normalises by the batch."""
    c = b.width
    x = b.conv("input", "conv", 3, c)
    inputs = [x, *b.statistics("bn", c)]
    outputs = ["normed", "mean_out", "var_out"]
    b.nodes.append(helper.make_node("BatchNormalization", inputs, outputs, name="bn", epsilon=1e-5, training_mode=1))
    return b.model(["N", 3, 8, 8], "normed", 4)


def another_axis(b: Builder) -> onnx.ModelProto:
    """A product, turned over, then a norm: its channels are what was the batch."""
    c = b.width
    x = b.node("MatMul", ["input", b.constant("dense.weight", b.normal(4, c))])
    return b.model([c, 4], b.node("Relu", [b.norm(b.node("Transpose", [x], perm=[1, 0]), "bn", c)]), 2)


def scaled_width(b: Builder) -> onnx.ModelProto:
    """A convolution times a factor for each column, of which there are as many as channels."""
    c = b.width
    x = b.node("Mul", [b.conv("input", "conv", 3, c), b.constant("columns", b.normal(1, 1, 1, c))])
    return b.model(["N", 3, c, c], x, 4)


Make = Callable[[Builder], onnx.ModelProto]
RIGHT: dict[str, Make] = {make.__name__: make for make in (classifier, residual, dense, padded, left_over)}
WRONG: dict[str, Make] = {make.__name__: make for make in (training_mode, another_axis, scaled_width)}
WRONG_TOOL = {"training_mode": "onnxscript", "another_axis": "onnxruntime", "scaled_width": "onnxslim"}
