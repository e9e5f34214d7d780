"""ONNX models to fold, of random weights and statistics: needs onnx and numpy alone, so that any tool can run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BOTTLENECKS = (3, 8, 36, 3)  # ResNet-152: He et al. 2015 (arXiv 1512.03385), table 1


class Network:
    """A graph under construction; the weights are float32, gamma has both signs."""

    def __init__(self, *shape: int | str) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node; gives the name of its output."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def constant(self, name: str, array: Any) -> str:
        """A stored tensor in float32."""
        self.stored.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def normal(self, *shape: int) -> Any:
        """Random numbers in float32."""
        return self.rng.standard_normal(shape, np.float32)

    def norm(self, x: str, channels: int) -> str:
        """Batch norm with statistics far from their defaults."""
        name = f"bn{len(self.stored)}"
        parts = (
            self.normal(channels) + np.where(self.rng.random(channels) < 0.9, 1.0, -1.0), self.normal(channels),
            self.normal(channels), self.rng.random(channels) + 0.5,
        )  # fmt: skip
        keys = ("weight", "bias", "running_mean", "running_var")
        names = [self.constant(f"{name}.{key}", part) for key, part in zip(keys, parts, strict=True)]
        return self.add("BatchNormalization", x, *names, epsilon=1e-5)

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
        """A convolution without bias, and its norm."""
        weight = self.normal(outputs, inputs, kernel, kernel) * np.float32((2.0 / (inputs * kernel * kernel)) ** 0.5)
        name = self.constant(f"conv{len(self.stored)}.weight", weight)
        pad = kernel // 2
        y = self.add("Conv", x, name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
        return self.norm(y, outputs)

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        """A dense layer as a Gemm."""
        weight = self.constant(f"fc{len(self.stored)}.weight", self.normal(outputs, inputs) * np.float32(inputs**-0.5))
        return self.add("Gemm", x, weight, self.constant(f"fc{len(self.stored)}.bias", self.normal(outputs)), transB=1)

    def model(self, output: str, shape: Sequence[int | str]) -> onnx.ModelProto:
        """The graph with one output."""
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, "network", self.inputs, outputs, self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resnet152() -> onnx.ModelProto:
    """The graph of ResNet-152: 155 convolutions, each with a norm behind it; 60 million weights, 241 MB."""
    net = Network("N", 3, 224, 224)
    x = net.add("Relu", net.conv("x", 3, 64, 7, 2))
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inputs = 64
    for stage, blocks in enumerate(BOTTLENECKS):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = net.add("Relu", net.conv(x, inputs, width, 1))
            y = net.add("Relu", net.conv(y, width, width, 3, stride))
            y = net.conv(y, width, 4 * width, 1)
            x = x if block else net.conv(x, inputs, 4 * width, 1, stride)
            x = net.add("Relu", net.add("Add", y, x))
            inputs = 4 * width
    x = net.add("Flatten", net.add("GlobalAveragePool", x), axis=1)
    return net.model(net.dense(x, inputs, 1000), ("N", 1000))


def chain(norms: int) -> onnx.ModelProto:
    """Convolutions 3x3 of 8 channels, each with a norm and a ReLU."""
    net = Network("N", 8, 16, 16)
    x = "x"
    for _ in range(norms):
        x = net.add("Relu", net.conv(x, 8, 8, 3))
    return net.model(x, ("N", 8, 16, 16))


def save_dense_stack(path: Path, layers: int, width: int, *, external: bool) -> int:
    """Write dense layers with norms behind a small convolution; gives the bytes of the weights.

    Each layer has 4 * width * width bytes. external: they lie in a file beside the model, written one by one.
    """
    net = Network("N", 3, 8, 8)
    x = net.add("Flatten", net.add("GlobalAveragePool", net.conv("x", 3, width, 3)), axis=1)
    data = path.with_suffix(".data")
    with data.open("wb") as file:
        for _ in range(layers):
            x = net.add("Relu", net.norm(net.dense(x, width, width), width))
            for tensor in net.stored:
                if external and len(tensor.raw_data) > 1 << 20:
                    place, length = file.tell(), file.write(tensor.raw_data)
                    onnx.external_data_helper.set_external_data(tensor, data.name, place, length)
                    tensor.ClearField("raw_data")
    model = net.model(x, ("N", width))
    path.write_bytes(model.SerializeToString())
    if not external:
        data.unlink()
    return sum(int(np.prod(tensor.dims)) * 4 for tensor in net.stored)


BUILDERS = {"resnet152": resnet152}
