"""A small ONNX network, drafted node by node, its numbers drawn by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]

_ELEMENTS = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "float64": onnx.TensorProto.DOUBLE}


@dataclass
class Draft:
    """Collects nodes and tensors; every method gives the name of its output. The graph's input is "input"."""

    rng: np.random.Generator
    dtype: str = "float32"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, values: Array) -> str:
        """A stored tensor; numbers in the dtype of the network."""
        array = np.asarray(values)
        self.tensors.append(
            numpy_helper.from_array(array.astype(self.dtype) if array.dtype.kind == "f" else array, name)
        )
        return name

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """A node with one output."""
        output = f"{operator.lower()}_{len(self.nodes) + 1}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=f"node_{output}", **attributes))
        return output

    def normal(self, *shape: int) -> Array:
        """Standard normal numbers."""
        return self.rng.normal(size=shape)

    def weight(self, *shape: int) -> Array:
        """Normal numbers, scaled by the size of what each output is made of."""
        found: Array = self.normal(*shape) / np.sqrt(max(1, int(np.prod(shape[1:]))))
        return found

    def statistics(self, channels: int) -> dict[str, Array]:
        """gamma of both signs and several sizes, beta, mean, variance; (channels,) each."""
        sizes = self.rng.permuted(np.resize([1.0, -1.0, 0.1, 2.0, -0.5], channels))
        return {
            "gamma": sizes * self.rng.uniform(0.8, 1.25, channels),
            "beta": self.normal(channels),
            "mean": self.normal(channels),
            "variance": np.exp(self.normal(channels)),
        }

    def batch_norm(self, x: str, name: str, channels: int, *, eps: float = 1e-4, **parts: Array) -> str:
        """BatchNormalization with random statistics, those given aside."""
        made = {**self.statistics(channels), **parts}
        return self.node(
            "BatchNormalization", [x, *(self.constant(f"{name}.{k}", v) for k, v in made.items())], epsilon=eps
        )

    def hand_written(self, x: str, name: str, shape: tuple[int, ...], *, eps: float = 1e-3) -> str:
        """(x - mean) / sqrt(variance + eps) * gamma + beta, the root computed in the graph."""
        made = self.statistics(int(np.prod(shape)))
        parts = {k: self.constant(f"{name}.{k}", v.reshape(shape)) for k, v in made.items()}
        total = self.node("Add", [parts["variance"], self.constant(f"{name}.eps", np.array(eps))])
        x = self.node("Div", [self.node("Sub", [x, parts["mean"]]), self.node("Sqrt", [total])])
        return self.node("Add", [self.node("Mul", [x, parts["gamma"]]), parts["beta"]])

    def conv(
        self, x: str, name: str, inputs: int, outputs: int, kernel: int = 3, *, dims: int = 2, bias: bool = True,
        **attributes: Any,
    ) -> str:  # fmt: skip
        """Conv with a square kernel; attributes as ONNX has them."""
        per_group = inputs // attributes.get("group", 1)
        parts = [self.constant(f"{name}.weight", self.weight(outputs, per_group, *[kernel] * dims))]
        parts += [self.constant(f"{name}.bias", self.normal(outputs))] if bias else []
        return self.node("Conv", [x, *parts], kernel_shape=[kernel] * dims, **attributes)

    def dense(self, x: str, name: str, inputs: int, outputs: int, **attributes: Any) -> str:
        """Gemm with the outputs first."""
        weight = self.constant(f"{name}.weight", self.weight(outputs, inputs))
        return self.node(
            "Gemm", [x, weight, self.constant(f"{name}.bias", self.normal(outputs))], transB=1, **attributes
        )

    def model(self, shape: Sequence[int | str], output: str, rank: int) -> onnx.ModelProto:
        """The model from "input", of a shape without the batch, to "output" of a rank; the batch size is free."""
        element = _ELEMENTS[self.dtype]
        for node in self.nodes:
            node.output[:] = ["output" if name == output else name for name in node.output]
            node.input[:] = ["output" if name == output else name for name in node.input]
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", element, ["n", *shape])],
            [helper.make_tensor_value_info("output", element, ["n", *[None] * (rank - 1)])],
            self.tensors,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
