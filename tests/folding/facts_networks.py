"""Networks of facts: a builder for one by hand, a hypothesis strategy for thousands."""

from __future__ import annotations

from typing import Any

import numpy as np
from facts_oracle import tensor
from hypothesis import strategies as st

from bnfold.folding.carriers import Activation, Sum, Window
from bnfold.folding.expressions import Leaf, Scalar, Tensor
from bnfold.folding.facts import (
    ELEMENTWISE,
    Carrier,
    Graph,
    Linear,
    Node,
    Norm,
    Opaque,
    Reason,
    Statistics,
    Step,
    affine_step,
    batch_norm,
)


class Network:
    """Adds nodes one by one; each method gives the name of the value that the node writes.

    Statistics are random and far from their defaults: gamma of both signs, a zero now and then, eps 1e-3.
    """

    def __init__(self, *, channels: int = 3, length: int = 3, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.shapes = {"x": (channels, length)}
        self.uses: dict[Any, int] = {}

    def graph(self, *outputs: str) -> Graph:
        shapes = {name: ("N", *size) for name, size in self.shapes.items()}
        return Graph(tuple(self.nodes), ("x",), outputs, dict(self.uses), shapes)

    def inputs(self, seed: int = 1) -> dict[str, Any]:
        return {"x": np.random.default_rng(seed).normal(size=(2, *self.shapes["x"]))}

    def conv(self, x: str, outputs: int | None = None, **given: Any) -> str:
        """A convolution of width 3; weight=: a tensor to share, bias=False, groups=, transposed=, alpha=, beta=."""
        inputs = self.shapes[x][0]
        channels = inputs if outputs is None else outputs
        groups, transposed = given.pop("groups", 1), given.pop("transposed", False)
        shape = (inputs, channels // groups, 3) if transposed else (channels, inputs // groups, 3)
        return self._linear(x, "Conv", shape, not transposed, groups, channels, 1, given)

    def dense(self, x: str, outputs: int | None = None, **given: Any) -> str:
        """A dense layer over the last axis; transposed=True stores the weight as (I, O)."""
        inputs = self.shapes[x][1]
        channels = inputs if outputs is None else outputs
        transposed = given.pop("transposed", False)
        shape = (inputs, channels) if transposed else (channels, inputs)
        return self._linear(x, "Linear", shape, not transposed, 1, channels, 2, given)

    def _linear(
        self, x: str, kind: str, shape: Any, out_first: bool, groups: int, channels: int, axis: int, given: Any
    ) -> str:
        id = f"n{len(self.nodes)}"
        weight = given.pop("weight", None) or tensor(f"{id}.weight", self.rng.normal(size=shape))
        self.uses[weight.key] = self.uses.get(weight.key, 0) + 1
        bias = tensor(f"{id}.bias", self.rng.normal(size=channels)) if given.pop("bias", True) else None
        if axis == 1:  # what the oracle computes: width 3, padded to equal size
            given.setdefault("window", Window((3,), (1,), (1,), ((1, 1),)))
        self.nodes.append(
            Linear(
                id, given.pop("name", id), kind, x, id, weight, bias, out_first, groups, channels,
                given.pop("axis", axis), **given,
            )
        )  # fmt: skip
        c, length = self.shapes[x]
        self.shapes[id] = (channels, length) if axis == 1 else (c, channels)
        return id

    def statistics(self, channels: int) -> dict[str, Any]:
        gamma = self.rng.choice([-1.0, 1.0], channels) * self.rng.uniform(0.4, 2.0, channels)
        gamma[self.rng.uniform(size=channels) < 0.1] = 0.0
        return {
            "gamma": gamma, "beta": self.rng.normal(size=channels), "mean": self.rng.normal(size=channels),
            "variance": self.rng.uniform(0.3, 3.0, channels),
        }  # fmt: skip

    def bn(self, x: str, *, eps: float = 1e-3, parameters: tuple[str, ...] = (), **given: Any) -> str:
        """Batch norm over axis 1; statistics may be given by name, and so may fields of the fact."""
        id = f"n{len(self.nodes)}"
        numbers = self.statistics(self.shapes[x][0])
        numbers |= {key: np.asarray(given.pop(key), np.float64) for key in list(given) if key in numbers}
        parts = Statistics(
            *(Leaf(tensor(f"{id}.{key}", numbers[key])) for key in ("gamma", "beta", "mean", "variance")), Scalar(eps)
        )
        scale, shift = batch_norm(parts.gamma, parts.beta, parts.mean, parts.variance, parts.eps)
        self.nodes.append(
            Norm(
                id, given.pop("name", id), "BatchNorm", x, id, scale, shift, 1, (id,), statistics=parts,
                parameters=parameters, **given,
            )
        )  # fmt: skip
        self.shapes[id] = self.shapes[x]
        return id

    def step(self, x: str, kind: Any, axis: int | None, values: Any = None, **given: Any) -> str:
        """x kind c, c over one axis or a literal scalar (axis None)."""
        id = f"n{len(self.nodes)}"
        if axis is None:
            by: Any = Scalar(1.5 if values is None else values)
        else:
            size = self.shapes[x][axis - 1]
            sign = self.rng.choice([-1.0, 1.0], size)
            by = Leaf(tensor(f"{id}.c", sign * self.rng.uniform(0.4, 2.0, size) if values is None else values))
        scale, shift = affine_step(kind, by)
        self.nodes.append(
            Norm(
                id, given.pop("name", id), ELEMENTWISE, x, id, scale, shift, axis, (id,), steps=(Step(kind, by),),
                **given,
            )
        )  # fmt: skip
        self.shapes[id] = self.shapes[x]
        return id

    def opaque(self, kind: str, *inputs: str, why: Reason | None = None) -> str:
        id = f"n{len(self.nodes)}"
        self.nodes.append(Opaque(id, id, kind, inputs, (id,), why))
        self.shapes[id] = self.shapes[inputs[0]]
        return id

    def activation(self, x: str, function: str = "relu") -> str:
        return self._carrier("Activation", (x,), Activation(function))

    def add(self, *inputs: str) -> str:
        return self._carrier("Add", inputs, Sum((1,) * len(inputs)))

    def _carrier(self, kind: str, inputs: tuple[str, ...], rule: Any) -> str:
        id = f"n{len(self.nodes)}"
        self.nodes.append(Carrier(id, id, kind, inputs, (id,), rule))
        self.shapes[id] = self.shapes[inputs[0]]
        return id

    def weights(self) -> list[tuple[Linear, Tensor]]:
        return [(node, node.weight) for node in self.nodes if isinstance(node, Linear)]


REFUSED = Reason("TRAINING_MODE", "it is in training mode")
HELD = Reason("INSIDE_SUBGRAPH", "it stands inside a subgraph")


@st.composite
def networks(draw: st.DrawFn) -> tuple[Network, Graph]:
    """A random network: linears of every layout, norms, elementwise chains, opaque nodes, branches, shared weights,
    norms that are refused or held, outputs anywhere."""
    size = st.integers(1, 3)
    net = Network(channels=2 * draw(size), length=draw(st.sampled_from([2, 4, 6])), seed=draw(st.integers(0, 1 << 30)))
    last = "x"
    for _ in range(draw(st.integers(2, 12))):
        # Mostly one after the other, so that something folds; sometimes a branch.
        x = last if draw(st.integers(0, 4)) else draw(st.sampled_from(list(net.shapes)))
        last = _node(draw, net, x)
    names = [name for name in net.shapes if name != "x"]
    outputs = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    read = {name for node in net.nodes for name in _inputs(node)}
    loose = [name for name in names if name not in read and name not in outputs]
    return net, net.graph(*outputs, *loose)


def _inputs(node: Node) -> tuple[str, ...]:
    return node.inputs if isinstance(node, Opaque | Carrier) else (node.input,)


def _node(draw: st.DrawFn, net: Network, x: str) -> str:
    held: dict[str, Any] = {}
    if not draw(st.integers(0, 15)):
        held = draw(st.sampled_from([{"refusal": REFUSED}, {"obstacle": HELD}]))
    match draw(st.sampled_from(["linear", "linear", "bn", "bn", "bn", "step", "step", "chain", "opaque"])):
        case "linear":
            return _linear(draw, net, x)
        case "bn":
            return net.bn(x, **held)
        case "step":
            return net.step(x, draw(st.sampled_from(["add", "sub", "mul", "div"])), draw(st.sampled_from([1, 2, None])))
        case "chain":
            axis = draw(st.sampled_from([1, 1, 1, 2]))
            for kind in ("sub", "div", "mul", "add"):
                x = net.step(x, kind, axis)
            return x
        case _:
            alike = [name for name, shape in net.shapes.items() if shape == net.shapes[x]]
            if draw(st.booleans()):
                return net.opaque("Tanh", net.opaque("Add", x, draw(st.sampled_from(alike))))
            return net.opaque(draw(st.sampled_from(["Tanh", "Flip"])), x)


def _linear(draw: st.DrawFn, net: Network, x: str) -> str:
    given: dict[str, Any] = {"bias": draw(st.booleans()), "transposed": draw(st.booleans())}
    given |= {"alpha": draw(st.sampled_from([1.0, 1.0, -0.6])), "beta": draw(st.sampled_from([1.0, 1.0, 1.7]))}
    if draw(st.integers(0, 9)) == 0:
        given["axis"] = None
    if draw(st.integers(0, 4)) == 0:
        alike = [
            (node, weight) for node, weight in net.weights()
            if node.input in net.shapes and net.shapes[node.input] == net.shapes[x]
        ]  # fmt: skip
        if alike:
            node, weight = draw(st.sampled_from(alike))
            given |= {"weight": weight, "transposed": not node.out_first, "outputs": node.channels}
            if node.kind == "Conv":
                return net.conv(x, groups=node.groups, **given)
            return net.dense(x, **given)
    if draw(st.booleans()):
        return net.conv(x, groups=draw(st.sampled_from([1, 2])) if net.shapes[x][0] % 2 == 0 else 1, **given)
    return net.dense(x, outputs=draw(st.sampled_from([2, 4])), **given)
