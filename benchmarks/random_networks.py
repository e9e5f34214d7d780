"""Random deep ONNX networks for the parity campaign: every kind of linear, norm and branch, statistics from data.

A network grows layer by layer; each node is run in float64 as it is added, so that the norms get the statistics of
what they really see, times random factors. Scales have both signs. A convolution or a dense layer counts as a layer.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bnfold.parity.float64_operators import OPERATORS

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = {"float32": np.float32, "float16": np.float16}
OPSET = 18
ROWS = 4
CHANNELS = (6, 8, 12, 16)
SIDE = 8


class Network:
    """A network under construction; methods add nodes and give the name of a value. layers: linears so far."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = DTYPES[dtype]
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.data: dict[str, Array] = {}
        self.layers = 0
        self.count = 0
        self.eps = float(self.rng.choice([1e-3, 1e-5, 1e-2]))

    def pick(self, options: Sequence[Any]) -> Any:
        """One of some things."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        """True so often."""
        return bool(self.rng.random() < share)

    def channels(self, x: str) -> int:
        """Of a value (N, C, ...)."""
        return int(self.data[x].shape[1])

    def stored(self, values: Any) -> str:
        """A constant. Floats are of the network's dtype."""
        array = np.asarray(values)
        array = array.astype(self.dtype) if array.dtype.kind == "f" else array
        self.count += 1
        name = f"t{self.count}"
        self.tensors.append(numpy_helper.from_array(array, name))
        self.data[name] = array.astype(np.float64) if array.dtype.kind == "f" else array
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output and run it."""
        return self.several(op, 1, *inputs, **attributes)[0]

    def several(self, op: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node and run it."""
        self.count += 1
        names = [f"{op.lower()}{self.count}" + (f"_{at}" if at else "") for at in range(outputs)]
        node = helper.make_node(op, inputs, names, name=f"n{self.count}", **attributes)
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(self.data[name].dtype), None)
            for name in dict.fromkeys(inputs)
        ]
        graph = helper.make_graph([node], "one", infos, [helper.make_empty_tensor_value_info(name) for name in names])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        results = ReferenceEvaluator(model, new_ops=list(OPERATORS)).run(
            None, {i.name: self.data[i.name] for i in infos}
        )
        self.data |= dict(zip(names, map(np.asarray, results), strict=True))
        self.nodes.append(node)
        return names

    # Linears

    def conv(
        self, x: str, outputs: int, kernel: int, *, groups: int = 1, bias: bool | None = None, stride: int = 1,
        padding: int | None = None,
    ) -> str:  # fmt: skip
        """Conv; padded to keep its size unless told otherwise."""
        self.layers += 1
        fan_in = self.channels(x) // groups * kernel * kernel
        shape = outputs, self.channels(x) // groups, kernel, kernel
        given = [self.stored(self.rng.normal(size=shape) * math.sqrt(2 / fan_in))]
        if self.chance(0.5) if bias is None else bias:
            given.append(self.stored(0.2 * self.rng.normal(size=outputs)))
        pads = [kernel // 2 if padding is None else padding] * 4
        return self.node("Conv", x, *given, kernel_shape=[kernel] * 2, pads=pads, group=groups, strides=[stride] * 2)

    def transposed(self, x: str, outputs: int) -> str:
        """ConvTranspose that keeps the size, without a bias."""
        self.layers += 1
        w = self.stored(self.rng.normal(size=(self.channels(x), outputs, 3, 3)) * math.sqrt(2 / 9 / self.channels(x)))
        return self.node("ConvTranspose", x, w, kernel_shape=[3, 3], pads=[1] * 4)

    def dense(self, x: str, outputs: int) -> str:
        """Gemm in either layout and with factors, or MatMul and Add."""
        self.layers += 1
        inputs = self.data[x].shape[-1]
        w = self.rng.normal(size=(inputs, outputs)) * math.sqrt(1.5 / inputs)
        c = 0.2 * self.rng.normal(size=outputs)
        kind = self.pick(("gemm", "turned", "matmul"))
        if kind == "matmul":
            return self.node("Add", self.node("MatMul", x, self.stored(w)), self.stored(c))
        turned = kind == "turned"
        factors = {"alpha": 0.5, "beta": 2.0} if self.chance(0.3) else {}
        return self.node("Gemm", x, self.stored(w.T if turned else w), self.stored(c), transB=int(turned), **factors)

    # Norms

    def norm(self, x: str) -> str:
        """BatchNormalization, or the same by hand."""
        gamma, beta, mean, variance = self.statistics(x)
        if self.chance(0.75):
            given = [self.stored(part) for part in (gamma, beta, mean, variance)]
            return self.node("BatchNormalization", x, *given, epsilon=self.eps)
        shape = (-1, *[1] * (self.data[x].ndim - 2))
        parts = [self.stored(part.reshape(shape)) for part in (gamma, beta, mean, variance)]
        y = self.node("Sub", x, parts[2])
        if self.chance(0.5):
            root = self.node("Sqrt", self.node("Add", parts[3], self.stored(np.asarray(self.eps))))
            y = self.node("Div", y, root)
        else:
            y = self.node("Mul", y, self.stored(1 / np.sqrt(variance + self.eps).reshape(shape)))
        return self.node("Add", self.node("Mul", y, parts[0]), parts[1])

    def statistics(self, x: str) -> tuple[Array, Array, Array, Array]:
        """gamma of both signs, beta, and about the mean and variance that the value has."""
        values = self.data[x]
        axes = tuple(axis for axis in range(values.ndim) if axis != 1)
        count, rng = values.shape[1], self.rng
        deviation = values.std(axes)
        near = np.exp(0.3 * rng.normal(size=count))
        mean = values.mean(axes) + 0.2 * deviation * rng.normal(size=count)
        gamma = rng.uniform(0.4, 1.4, size=count) * rng.choice([-1.0, 1.0, 1.0], size=count)
        return gamma, 0.3 * rng.normal(size=count), mean, np.maximum(values.var(axes), 1e-2) * near

    def act(self, x: str) -> str:
        """An activation."""
        kind = self.pick(("Relu", "Relu", "Relu", "Clip", "LeakyRelu", "HardSwish", "Silu"))
        if kind == "Clip":
            return self.node("Clip", x, self.stored(np.asarray(0.0)), self.stored(np.asarray(6.0)))
        if kind == "LeakyRelu":
            return self.node("LeakyRelu", x, alpha=0.1)
        return self.node("Mul", x, self.node("Sigmoid", x)) if kind == "Silu" else self.node(kind, x)

    # The whole

    def model(self, y: str) -> onnx.ModelProto:
        """The checked model from "x" to y, first axis free."""
        elem = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        inputs = [helper.make_tensor_value_info("x", elem, ["n", *self.data["x"].shape[1:]])]
        outputs = [helper.make_tensor_value_info(y, elem, ["n", *self.data[y].shape[1:]])]
        graph = helper.make_graph(self.nodes, "network", inputs, outputs, self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


# Blocks: each puts something with at least one layer behind a value of (N, C, H, W) and gives one of that kind.


def plain(b: Network, x: str) -> str:
    c, outputs = b.channels(x), b.pick(CHANNELS)
    groups = b.pick([g for g in (1, 1, 2) if c % g == 0 and outputs % g == 0])
    return b.act(b.norm(b.conv(x, outputs, b.pick((1, 3, 3)), groups=groups, padding=None)))


def separable(b: Network, x: str) -> str:
    """MobileNet: depthwise and pointwise, a norm behind each."""
    c = b.channels(x)
    y = b.act(b.norm(b.conv(x, c, 3, groups=c, bias=False)))
    return b.norm(b.conv(y, b.pick(CHANNELS), 1, bias=False))


def residual(b: Network, x: str) -> str:
    c = b.channels(x)
    y = b.act(b.norm(b.conv(x, c, 3)))
    y = b.node("Add", b.norm(b.conv(y, c, 3)), x if b.chance(0.7) else b.norm(b.conv(x, c, 1)))
    return b.act(y)


def pre_activation(b: Network, x: str) -> str:
    c = b.channels(x)
    y = b.conv(b.act(b.norm(x)), c, 3)
    return b.node("Add", x, b.conv(b.act(b.norm(y)), c, b.pick((1, 3))))


def norm_first(b: Network, x: str) -> str:
    """A norm before a linear, with nothing in between: it goes forward."""
    return b.act(b.conv(b.norm(x), b.pick(CHANNELS), b.pick((1, 1, 3))))


def inverted(b: Network, x: str) -> str:
    """MobileNetV2's block."""
    c = b.channels(x)
    y = b.act(b.norm(b.conv(x, 2 * c, 1, bias=False)))
    y = b.act(b.norm(b.conv(y, 2 * c, 3, groups=2 * c, bias=False)))
    return b.node("Add", x, b.norm(b.conv(y, c, 1, bias=False)))


def concatenated(b: Network, x: str) -> str:
    """DenseNet: new channels beside the old ones, then a narrow layer with a norm before and one behind."""
    y = b.conv(b.act(b.norm(x)), 8, 3, bias=False)
    y = b.node("Concat", x, y, axis=1)
    return b.norm(b.conv(b.act(b.norm(y)), b.pick(CHANNELS), 1, bias=False))


def joined(b: Network, x: str) -> str:
    """Inception: convolutions side by side, one norm behind the concatenation."""
    parts = [b.conv(x, 4, 3), b.conv(x, 4, 1)]
    parts.append(b.node("AveragePool", parts[-1], kernel_shape=[3, 3], pads=[1] * 4))
    return b.act(b.norm(b.node("Concat", *parts, axis=1)))


def branches(b: Network, x: str) -> str:
    """RepVGG: 3x3, 1x1 and identity, a norm behind each, summed."""
    c = b.channels(x)
    y = b.node("Add", b.norm(b.conv(x, c, 3, bias=False)), b.norm(b.conv(x, c, 1, bias=False)))
    return b.act(b.node("Add", y, b.norm(x)) if b.chance(0.7) else y)


def shuffled(b: Network, x: str) -> str:
    """ShuffleNetV2: half of the channels pass; the halves are joined."""
    c = b.channels(x)
    one, two = b.several("Split", 2, x, axis=1, num_outputs=2)
    two = b.act(b.norm(b.conv(two, c // 2, 1)))
    two = b.norm(b.conv(two, c // 2, 3, groups=c // 2, bias=False))
    return b.node("Concat", one, two, axis=1)


def expanded(b: Network, x: str) -> str:
    return b.act(b.norm(b.transposed(x, b.pick(CHANNELS))))


def excited(b: Network, x: str) -> str:
    """Squeeze and excitation."""
    c = b.channels(x)
    y = b.norm(b.conv(x, c, 3))
    gate = b.node("Relu", b.conv(b.node("GlobalAveragePool", y), 4, 1))
    return b.node("Mul", y, b.node("Sigmoid", b.conv(gate, c, 1)))


BLOCKS: tuple[Callable[[Network, str], str], ...] = (
    plain, plain, separable, residual, residual, pre_activation, norm_first, norm_first, inverted, concatenated, joined,
    branches, shuffled, expanded, excited,
)  # fmt: skip


def network(seed: int, depth: int = 24, dtype: str = "float32") -> tuple[onnx.ModelProto, int]:
    """A network of at least so many layers, input "x" of (n, 3, 8, 8), and how many it has."""
    b = Network(seed, dtype)
    b.data["x"] = b.rng.normal(size=(ROWS, 3, SIDE, SIDE))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = b.norm("x") if b.chance(0.3) else "x"
        x = b.act(b.norm(b.conv(x, b.pick(CHANNELS), 3)))
        while b.layers < depth - 2:
            x = b.pick(BLOCKS)(b, x)
            if b.chance(0.1) and b.data[x].shape[2] > 4:
                x = b.node(b.pick(("MaxPool", "AveragePool")), x, kernel_shape=[2, 2], strides=[2, 2])
        x = b.node("Flatten", b.node("GlobalAveragePool", x)) if b.chance(0.5) else b.node("Flatten", x)
        x = b.act(b.norm(b.dense(x, 12)))
        y = b.dense(x, 10)
    return b.model(y), b.layers


def inputs(model: onnx.ModelProto, seed: int, rows: int = ROWS) -> dict[str, Array]:
    """Normal inputs."""
    (value,) = model.graph.input
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [dim.dim_value or rows for dim in value.type.tensor_type.shape.dim]
    return {value.name: np.random.default_rng((seed, 1)).normal(size=shape).astype(dtype)}
