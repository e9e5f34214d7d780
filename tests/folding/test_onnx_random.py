"""Random ONNX graphs: whatever the plan does, the graph computes what it computed."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_networks import DOUBLE, FLOAT, Builder, broken, close, evaluate, feeds, fold_of, outcomes

from bnfold.runtime import open_session, run

RELAXED = [HealthCheck.too_slow, HealthCheck.data_too_large]
Plan = list[tuple[str, int, dict[str, Any]]]
"""What to add, where to (an index from the end of what there is), and how."""


@st.composite
def plans(draw: st.DrawFn) -> tuple[bool, int, Plan]:
    """A network of rank 2 or rank 3, a seed, and its nodes."""
    is_flat = draw(st.booleans())
    linears = ["gemm", "matmul"] if is_flat else ["conv", "transposed", "matmul"]
    norms = ["bn", "bn", "chain", "step"]
    others = ["bias", "identity", "tanh", "relu", "add", "dropout"]
    kinds: list[str] = []
    for _ in range(draw(st.integers(1, 4))):  # mostly a linear, perhaps something, then a norm
        kinds.append(draw(st.sampled_from(linears * 4 + others)))
        kinds += draw(
            st.lists(st.sampled_from(["identity", "bias", "bias", "dropout", "identity", "relu"]), max_size=1)
        )
        kinds += draw(st.lists(st.sampled_from(norms), min_size=1, max_size=2))
        kinds += draw(st.lists(st.sampled_from(others), max_size=1))
    nodes: Plan = []
    for kind in kinds:
        back = draw(st.sampled_from([0, 0, 0, 0, 0, 0, 1, 3]))
        given_ = {
            "bias": draw(st.booleans()), "groups": draw(st.integers(1, 2)), "axis": draw(st.sampled_from([1, 1, 2])),
            "trans": draw(st.booleans()), "alpha": draw(st.sampled_from([1.0, -0.5])), "left": draw(st.booleans()),
            "share": draw(st.integers(0, 5)) == 0, "op": draw(st.sampled_from(["Add", "Sub", "Mul", "Div"])),
            "output": draw(st.integers(0, 9)) == 0, "negative": draw(st.booleans()),
        }  # fmt: skip
        nodes.append((kind, back, given_))
    return is_flat, draw(st.integers(0, 1 << 20)), nodes


class Grown:
    """A plan carried out on a builder. Every axis but the batch is 4 long, so that no axis looks unlike another."""

    def __init__(self, b: Builder, is_flat: bool, plan: Plan) -> None:
        self.b, self.is_flat = b, is_flat
        self.values = [b.input("N", 4) if is_flat else b.input("N", 4, 4)]
        self.weights: dict[str, str] = {}
        self.read: set[str] = set()
        self.outputs: list[str] = []
        for kind, back, given_ in plan:
            x = self.values[-1 - back % len(self.values)]
            self.read.add(x)
            y = getattr(self, kind)(x, given_)
            self.values.append(y)
            if given_["output"]:
                self.outputs.append(y)

    def model(self) -> Any:
        loose = [name for name in self.values[1:] if name not in self.read and name not in self.outputs]
        return self.b.model(*self.outputs, *loose)

    def weight(self, kind: str, given_: dict[str, Any], *shape: int) -> str:
        key = f"{kind}{shape}"
        if not given_["share"] or key not in self.weights:
            self.weights[key] = self.b.const(self.b.values(*shape) / 2.0)
        return self.weights[key]

    def bias_of(self, given_: dict[str, Any]) -> list[str]:
        return [self.b.const(self.b.values(4))] if given_["bias"] else []

    def vector(self, given_: dict[str, Any], *, positive: bool = False) -> str:
        values = self.b.values(4, positive=positive) * (1.0 if not given_["negative"] or not positive else -1.0)
        return self.b.const(values[:, None] if given_["axis"] == 1 and not self.is_flat else values)

    def conv(self, x: str, given_: dict[str, Any]) -> str:
        groups = given_["groups"]
        w = self.weight("conv", given_, 4, 4 // groups, 3)
        return self.b.node("Conv", x, w, *self.bias_of(given_), group=groups, pads=[1, 1])

    def transposed(self, x: str, given_: dict[str, Any]) -> str:
        groups = given_["groups"]
        w = self.weight("transposed", given_, 4, 4 // groups, 3)
        return self.b.node("ConvTranspose", x, w, *self.bias_of(given_), group=groups, pads=[1, 1])

    def gemm(self, x: str, given_: dict[str, Any]) -> str:
        w = self.weight("dense", given_, 4, 4)
        factors = {"alpha": given_["alpha"], "beta": 0.75, "transB": int(given_["trans"])}
        return self.b.node("Gemm", x, w, *self.bias_of(given_), **factors)

    def matmul(self, x: str, given_: dict[str, Any]) -> str:
        y = self.b.node("MatMul", x, self.weight("dense", given_, 4, 4))
        if not given_["bias"]:
            return y
        c = self.b.const(self.b.values(4))
        return self.b.node("Add", *((c, y) if given_["left"] else (y, c)))

    def bn(self, x: str, _given: dict[str, Any]) -> str:
        return self.b.bn(x, 4)

    def chain(self, x: str, given_: dict[str, Any]) -> str:
        b = self.b
        x = b.node("Sub", x, self.vector(given_))
        deviation = b.node(
            "Sqrt", b.node("Add", self.vector({**given_, "negative": False}, positive=True), b.const(np.asarray(0.125)))
        )
        x = b.node("Mul", x, b.node("Reciprocal", deviation)) if given_["left"] else b.node("Div", x, deviation)
        if given_["bias"]:
            x = b.node("Mul", self.vector(given_), x)
        return b.node("Add", x, self.vector(given_))

    def step(self, x: str, given_: dict[str, Any]) -> str:
        c = self.b.const(np.asarray(1.5)) if given_["groups"] == 2 else self.vector(given_, positive=True)
        swap = given_["left"] and given_["op"] in ("Add", "Mul")
        return self.b.node(given_["op"], *((c, x) if swap else (x, c)))

    def bias(self, x: str, given_: dict[str, Any]) -> str:
        return self.b.node("Add", x, self.vector(given_))

    def identity(self, x: str, _given: dict[str, Any]) -> str:
        return self.b.node("Identity", x)

    def dropout(self, x: str, _given: dict[str, Any]) -> str:
        return self.b.node("Dropout", x)

    def tanh(self, x: str, _given: dict[str, Any]) -> str:
        return self.b.node("Tanh", x)

    def relu(self, x: str, _given: dict[str, Any]) -> str:
        return self.b.node("Relu", x)

    def add(self, x: str, given_: dict[str, Any]) -> str:
        other = self.values[0] if given_["left"] else self.values[len(self.values) // 2]
        self.read.add(other)
        return self.b.node("Add", x, other)


@settings(max_examples=120, suppress_health_check=RELAXED)
@given(plans())
def test_no_fold_changes_what_a_random_graph_computes(made):
    is_flat, seed, plan = made
    wide = Grown(Builder(DOUBLE, seed=seed), is_flat, plan).model()
    low = Grown(Builder(FLOAT, seed=seed), is_flat, plan).model()
    inputs = feeds(wide)
    truth = evaluate(wide, inputs)
    folded, result = fold_of(wide), fold_of(low)
    assert outcomes(folded) == outcomes(result)
    assert close(evaluate(folded.model, inputs), truth, 1e-10)
    session = open_session(result.model.SerializeToString(), optimise=False)
    found = run(session, {name: array.astype(np.float32) for name, array in inputs.items()})
    assert close(list(found.values()), truth, 2e-4)


def test_random_graphs_fold_often_and_a_broken_fold_is_seen():
    """Negative control of the test above, on the same strategy."""
    reasons: list[str] = []
    seen: list[bool] = []

    @settings(max_examples=150, suppress_health_check=list(HealthCheck), database=None)
    @given(plans())
    def look(made: Any) -> None:
        is_flat, seed, plan = made
        model = Grown(Builder(DOUBLE, seed=seed), is_flat, plan).model()
        result = fold_of(model)
        reasons.extend(row.reason or row.outcome for row in result.report.norms)
        if result.fold_map:
            inputs = feeds(model)
            truth = evaluate(model, inputs)
            models = broken(result, result.fold_map[-1]["tensor"])
            seen.append(any(not close(evaluate(wrong, inputs), truth, 1e-10) for wrong in models))

    look()
    assert {"folded", "OTHER_READER", "NO_LINEAR_BEFORE", "AXIS_MISMATCH"} <= set(reasons)
    assert reasons.count("folded") > 60
    # A ReLU that is never above zero, or a gamma of zero, hides a few.
    assert len(seen) > 30
    assert sum(seen) > 0.9 * len(seen)
