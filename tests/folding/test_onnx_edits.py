"""Each edit of the closed list, made by hand, carried out on ONNX graphs; the unfolded float64 graph is the oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx_networks import DOUBLE, FLOAT, Builder, close, evaluate, feeds, names_of, ops

from bnfold.errors import FoldError
from bnfold.folding import onnx_file
from bnfold.folding.carriers import Activation, Sum, Window
from bnfold.folding.edits import AddConstant, Bypass, Edit, Redirect, SetAffine, SetSlope, SetWeights
from bnfold.folding.expressions import (
    ONE,
    ZERO,
    Embed,
    Expr,
    Given,
    Join,
    Leaf,
    Op,
    Scalar,
    Tensor,
    Total,
    add,
    mul,
    spread,
    view,
)  # fmt: skip
from bnfold.folding.facts import Carrier, Linear, Norm, batch_norm
from bnfold.folding.onnx_edits import apply, carry_out
from bnfold.runtime import open_session, run

BOUND = 1e-12


class Facts:
    """Facts about a model's nodes by the names of their outputs, taken from the file without an adapter."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.nodes = {node.output[0]: node for node in model.graph.node}

    def tensor(self, name: str) -> Tensor:
        array = self.arrays[name]
        return Tensor(name, array.dtype.name, array.shape, name, lambda: array)

    def leaf(self, name: str) -> Leaf:
        return Leaf(self.tensor(name))

    def linear(self, output: str) -> Linear:
        node = self.nodes[output]
        given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        weight, groups = self.tensor(node.input[1]), given.get("group", 1)
        out_first = node.op_type == "Conv" or bool(given.get("transB"))
        kernel = weight.shape[2:]
        rank = len(kernel)
        pads = given.get("pads", [0] * 2 * rank)
        window = Window(
            kernel, tuple(given.get("strides", [1] * rank)), tuple(given.get("dilations", [1] * rank)),
            tuple(zip(pads[:rank], pads[rank:], strict=True)),
        ) if kernel else None  # fmt: skip
        bias = self.tensor(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        channels = weight.shape[0] if out_first else weight.shape[1] * groups
        return Linear(
            output, node.name or output, node.op_type, node.input[0], output, weight, bias, out_first, groups,
            channels, 1, given.get("alpha", 1.0), given.get("beta", 1.0), window,
        )  # fmt: skip

    def norm(self, output: str) -> Norm:
        node = self.nodes[output]
        epsilon = next(item.f for item in node.attribute if item.name == "epsilon")
        gamma, beta, mean, variance = (self.leaf(name) for name in node.input[1:])
        scale, shift = batch_norm(gamma, beta, mean, variance, Scalar(float(epsilon)))
        return Norm(output, node.name or output, "BatchNorm", node.input[0], output, scale, shift, 1, (output,))

    def step(self, output: str, kind: str, axis: int) -> Norm:
        """An Add or Mul by a stored vector."""
        node = self.nodes[output]
        by = view(self.leaf(node.input[1]), (self.arrays[node.input[1]].size,))
        scale, shift = (ONE, by) if kind == "add" else (by, ZERO)
        return Norm(output, output, "Affine", node.input[0], output, scale, shift, axis, (output,))

    def carrier(self, output: str, rule: Any) -> Carrier:
        node = self.nodes[output]
        return Carrier(output, node.name or output, node.op_type, tuple(node.input[:1]), (output,), rule)


def rows(vector: Expr, rank: int) -> Expr:
    """A vector over output channels against a weight (O, ...)."""
    return view(vector, (vector.shape[0], *(1,) * (rank - 1)))


def folded(linear: Linear, *norms: Norm) -> SetWeights:
    """The linear with the norms behind it, out_first, alpha = beta = 1."""
    weight: Expr = Leaf(linear.weight)
    bias: Expr = Leaf(linear.bias) if linear.bias else ZERO
    for norm in norms:
        along = rows(norm.scale, len(weight.shape)) if linear.out_first else norm.scale
        weight, bias = mul(along, weight), add(mul(norm.scale, bias), norm.shift)
    return SetWeights(linear, weight, bias, linear.window, linear.groups, norms, norms)


def absorbed(facts: Facts, linear: str, *norms: str) -> list[Edit]:
    made = [facts.norm(name) for name in norms]
    return [folded(facts.linear(linear), *made), *(Bypass(norm) for norm in made)]


@dataclasses.dataclass
class Edited:
    model: onnx.ModelProto
    map: tuple[dict[str, Any], ...]


def edited(model: onnx.ModelProto, edits: list[Edit]) -> Edited:
    """The edits carried out; the source stays as it is, and the result is sound."""
    before = model.SerializeToString(deterministic=True)
    found, fold_map = carry_out(onnx_file.from_proto(model), edits)
    result = onnx_file.to_proto(found)
    assert model.SerializeToString(deterministic=True) == before, "the source was changed"
    onnx.checker.check_model(result, full_check=True)
    assert names_of(result.graph.output) == names_of(model.graph.output)
    stored = names_of(result.graph.initializer)
    assert len(set(stored)) == len(stored)
    assert {entry["tensor"] for entry in fold_map} <= set(stored)
    used = {name for node in result.graph.node for name in node.input}
    inner = {name for node in model.graph.node for item in node.attribute for name in captured(item)}
    assert set(stored) <= used | inner | set(names_of(model.graph.input)), "an initialiser that nobody uses"
    return Edited(result, fold_map)


def captured(attribute: onnx.AttributeProto) -> Iterator[str]:
    for node in attribute.g.node:
        yield from node.input


Make = Callable[[Builder], Any]
Plan = Callable[[Facts], list[Edit]]


def check(make: Make, plan: Plan, *, elem: int = DOUBLE, runtime: bool = True, **given: Any) -> Edited:
    """Carry the edits out and compare with the source; every new tensor, broken, must be seen."""
    builder = Builder(DOUBLE, **given)
    outputs = make(builder)
    model = builder.model(*((outputs,) if isinstance(outputs, str) else outputs))
    inputs = feeds(model)
    truth = evaluate(model, inputs)
    result = edited(model, plan(Facts(model)))
    assert close(evaluate(result.model, inputs), truth, BOUND)
    for entry in result.map:
        assert not close(evaluate(broken(result.model, entry["tensor"]), inputs), truth, BOUND), entry["tensor"]
    if runtime and elem == DOUBLE:
        narrow = Builder(FLOAT, **given)
        outputs = make(narrow)
        low = narrow.model(*((outputs,) if isinstance(outputs, str) else outputs))
        session = open_session(edited(low, plan(Facts(low))).model.SerializeToString(), optimise=False)
        found = run(session, {name: array.astype(np.float32) for name, array in inputs.items()})
        assert close(list(found.values()), truth, 1e-4)
    return result


def broken(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (tensor,) = [tensor for tensor in copy.graph.initializer if tensor.name == name]
    array = numpy_helper.to_array(tensor).copy()
    array[...] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return copy


def roles(result: Edited) -> list[tuple[str, str]]:
    return [(entry["tensor"], entry["role"]) for entry in result.map]


def attributes(model: onnx.ModelProto, op: str) -> dict[str, Any]:
    (node,) = [node for node in model.graph.node if node.op_type == op]
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


# ---------------------------------------------------------------------------------------------- linears


def conv_bn(b: Builder) -> str:
    weight = b.const(b.values(4, 3, 3), "conv.weight")
    bias = b.const(b.values(4), "conv.bias")
    y = b.node("Conv", b.input("N", 3, 8), weight, bias, out="y", pads=[1, 1])
    return b.bn(y, 4, out="z")


def test_a_convolution_takes_a_norm_in_and_its_output_keeps_the_name():
    result = check(conv_bn, lambda f: absorbed(f, "y", "z"))
    assert ops(result.model) == ["Conv"]
    assert list(result.model.graph.node[0].output) == ["z"]
    assert roles(result) == [("conv.weight.folded", "weight"), ("conv.bias.folded", "bias")]
    assert result.map[0]["from"][-1:] == ["conv.weight"] or "conv.weight" in result.map[0]["from"]
    assert result.map[0]["linear"] == "node_y"
    assert result.map[0]["norms"] == ["node_z"]
    assert names_of(result.model.graph.initializer) == ["conv.weight.folded", "conv.bias.folded"]


def test_a_bias_that_is_none_goes():
    def plan(f: Facts) -> list[Edit]:
        linear = f.linear("y")
        return [
            dataclasses.replace(folded(linear), bias=None),
            AddConstant("y", column(f.leaf("conv.bias")), linear, ()),
        ]

    result = check(conv_bn, plan)
    assert ops(result.model) == ["Conv", "Add", "BatchNormalization"]
    assert len(result.model.graph.node[0].input) == 2


def column(vector: Expr) -> Expr:
    return view(vector, (1, *vector.shape, 1))


def gemm(b: Builder) -> str:
    x = b.input("N", 5)
    y = b.node("Gemm", x, b.const(b.values(4, 5), "w"), b.const(np.zeros(4), "c"), out="y", transB=1, alpha=0.5)
    return b.node("Relu", y, out="z")


@pytest.mark.parametrize(("opset", "count"), [(9, 3), (13, 2)])
def test_a_gemm_keeps_a_bias_of_zeros_where_its_version_needs_one(opset, count):
    def plan(f: Facts) -> list[Edit]:
        linear = f.linear("y")
        return [SetWeights(linear, mul(Scalar(0.5), Leaf(linear.weight)), None, None, 1, (), None)]

    result = check(gemm, plan, opset=opset)
    assert len(result.model.graph.node[0].input) == count
    assert attributes(result.model, "Gemm") == {"transB": 1}


def test_a_kernel_grows_and_the_window_is_written_out():
    def make(b: Builder) -> str:
        x = b.input("N", 3, 6, 5)
        w = b.const(b.values(4, 3, 1, 1), "w")
        return b.node("Relu", b.node("Conv", x, w, out="y", auto_pad="VALID", strides=[2, 1]))

    def plan(f: Facts) -> list[Edit]:
        linear = f.linear("y")
        window = Window((3, 3), (2, 1), (1, 1), ((1, 1), (1, 1)))
        weight = Embed(Leaf(linear.weight), (4, 3, 3, 3), (0, 0, 1, 1), (1, 1, 1, 1))
        return [SetWeights(linear, weight, None, window, 1, (), None)]

    result = check(make, plan)
    assert attributes(result.model, "Conv") == {
        "kernel_shape": [3, 3], "strides": [2, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "group": 1,
    }  # fmt: skip


def test_groups_become_blocks():
    def make(b: Builder) -> str:
        w = b.const(b.values(4, 2, 3), "w")
        return b.node("Relu", b.node("Conv", b.input("N", 4, 7), w, out="y", group=2, kernel_shape=[3]))

    def plan(f: Facts) -> list[Edit]:
        linear = f.linear("y")
        weight = Leaf(linear.weight)
        halves = [
            Embed(Op("mul", (weight, Given(mask, (4, 1, 1)))), (4, 4, 3), (0, start, 0), (1, 1, 1))
            for mask, start in (((1.0, 1.0, 0.0, 0.0), 0), ((0.0, 0.0, 1.0, 1.0), 2))
        ]
        return [SetWeights(linear, add(*halves), None, linear.window, 1, (), None)]

    assert attributes(check(make, plan).model, "Conv")["group"] == 1


def branches(b: Builder) -> str:
    x = b.input("N", 3, 6)
    p = b.node("Conv", x, b.const(b.values(4, 3, 3), "p.weight"), out="p", pads=[1, 1])
    q = b.node("Conv", x, b.const(b.values(4, 3, 1), "q.weight"), b.const(b.values(4), "q.bias"), out="q")
    return b.node("Add", p, q, out="s")


def merged(f: Facts) -> list[Edit]:
    p, q = f.linear("p"), f.linear("q")
    small = Embed(Leaf(q.weight), (4, 3, 3), (0, 0, 1), (1, 1, 1))
    carrier = f.carrier("s", Sum((1, 1)))
    edit = SetWeights(p, add(Leaf(p.weight), small), f.leaf("q.bias"), p.window, 1, (), None, (q,))
    return [edit, Redirect(carrier, "p")]


@pytest.mark.parametrize("tail", [False, True])
def test_parallel_branches_become_one(tail):
    def make(b: Builder) -> str:
        s = branches(b)
        return b.node("Relu", s, out="r") if tail else s

    result = check(make, merged)
    assert ops(result.model) == ["Conv", "Relu"][: 1 + tail]
    assert len(result.model.graph.initializer) == 2


def test_an_added_channel_leaves_no_stale_shape_behind():
    """The shift of a norm passes a padded convolution as one more channel of ones; the file states all shapes."""

    def make(b: Builder) -> str:
        y = b.node("Conv", b.input("N", 3, 6), b.const(b.values(4, 3, 3), "w"), b.const(b.values(4), "c"), out="y")
        r = b.node("Relu", y, out="r")
        n = b.bn(r, 4, out="n")
        z = b.node("Conv", n, b.const(b.values(2, 4, 3), "v"), out="z", pads=[1, 1])
        b.infos += [helper.make_tensor_value_info(name, b.elem, ("N", 4, 4)) for name in ("y", "r", "n")]
        return b.node("Relu", z, out="o")

    def plan(f: Facts) -> list[Edit]:
        y, z, n = f.linear("y"), f.linear("z"), f.norm("n")
        more = SetWeights(
            y, Join((Leaf(y.weight), Given((0.0,) * 9, (1, 3, 3))), 0), Join((f.leaf("c"), Given((1.0,), (1,))), 0),
            y.window, 1, (n,), None,
        )  # fmt: skip
        v = Leaf(z.weight)
        sums = Total(mul(view(n.shift, (1, 4, 1)), v), (1,))
        weight = Join((mul(view(n.scale, (1, 4, 1)), v), sums), 1)
        return [more, SetWeights(z, weight, None, z.window, 1, (n,), None), Bypass(n)]

    result = check(make, plan)
    assert ops(result.model) == ["Conv", "Relu", "Conv", "Relu"]
    stated = {value.name for value in result.model.graph.value_info if value.type.tensor_type.HasField("shape")}
    assert not stated & {"y", "r", "n"}


def dense(b: Builder) -> str:
    y = b.node("MatMul", b.input("N", 5), b.const(b.values(5, 4), "dense.weight"), out="y", name="")
    return b.bn(y, 4, out="z")


def test_the_bias_of_a_matmul_becomes_an_addition_behind_it():
    result = check(dense, lambda f: absorbed(f, "y", "z"))
    assert ops(result.model) == ["MatMul", "Add"]
    assert list(result.model.graph.node[1].output) == ["z"]
    assert roles(result) == [("dense.weight.folded", "weight"), ("dense.bias.folded", "bias")]


def test_the_addition_behind_a_matmul_goes_where_its_bias_was_taken_in():
    def make(b: Builder) -> str:
        y = b.node("MatMul", b.input("N", 5), b.const(b.values(5, 4), "w"), out="y")
        a = b.node("Add", y, b.const(b.values(4), "c"), out="a")
        return b.node("Relu", b.bn(a, 4, out="z"))

    def plan(f: Facts) -> list[Edit]:
        bias, norm = f.step("a", "add", 1), f.norm("z")
        return [folded(f.linear("y"), bias, norm), Bypass(bias), Bypass(norm)]

    assert ops(check(make, plan).model) == ["MatMul", "Add", "Relu"]


# ---------------------------------------------------------------------------------------------- norms


def middle(b: Builder) -> str:
    x = b.node("Tanh", b.input("N", 4, 5), out="t")
    return b.node("Relu", b.bn(x, 4, out="n"), out="o")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [(("scale", "shift"), ["Tanh", "BatchNormalization", "Relu"]), (("scale",), ["Tanh", "Mul", "Add", "Relu"]),
     ((), ["Tanh", "Relu"])],
)  # fmt: skip
def test_a_norm_becomes_the_cheapest_that_is_left(parts, expected):
    def plan(f: Facts) -> list[Edit]:
        n = f.norm("n")
        if len(parts) == 2:
            return [SetAffine(n, n.scale, n.shift, (n,))]
        if parts:  # a scale alone, and the shift as a constant behind it
            like = Linear("t", "t", "", "", "", f.tensor("c_1"), None, True, 1, 4, 1)
            shift = view(n.shift, (1, 4, 1))
            return [SetAffine(n, n.scale, ZERO, (n,)), AddConstant("n", shift, like, (n,))]
        return [SetAffine(n, ONE, ZERO, (n,))]

    if not parts:
        with pytest.raises(AssertionError):  # the identity is not the norm: the control of this test
            check(middle, plan)
        return
    result = check(middle, plan)
    assert ops(result.model) == expected
    if len(parts) == 2:
        assert attributes(result.model, "BatchNormalization") == {"epsilon": 0.0}
        assert roles(result) == [("node_n.scale.folded", "scale"), ("node_n.shift.folded", "shift")]


def test_a_shift_alone_is_an_addition():
    def make(b: Builder) -> str:
        y = b.node("MatMul", b.input("N", 3, 5), b.const(b.values(5, 4), "w"), out="y")
        t = b.node("Add", y, b.const(b.values(4), "c"), out="a")
        return b.node("Tanh", t, out="o")

    def plan(f: Facts) -> list[Edit]:
        step = f.step("a", "add", 2)
        return [SetAffine(step, ONE, step.shift, (step,))]

    result = check(make, plan)
    assert ops(result.model) == ["MatMul", "Add", "Tanh"]


def test_both_on_another_axis_are_a_product_and_a_sum():
    def make(b: Builder) -> str:
        t = b.node("Tanh", b.input("N", 3, 5), out="t")
        m = b.node("Mul", t, b.const(b.values(5), "m.by"), out="m")
        return b.node("Relu", b.node("Add", m, b.const(b.values(5), "a.by"), out="a"), out="o")

    def plan(f: Facts) -> list[Edit]:
        m, a = f.step("m", "mul", 2), f.step("a", "add", 2)
        both = dataclasses.replace(a, input="t", scale=m.scale, shift=a.shift, nodes=("m", "a"))
        return [SetAffine(both, both.scale, both.shift, (both,))]

    result = check(make, plan)
    assert ops(result.model) == ["Tanh", "Mul", "Add", "Relu"]
    assert [role for _, role in roles(result)] == ["scale", "shift"]


def test_numbers_for_all_axes_are_scalars():
    def make(b: Builder) -> str:
        t = b.node("Tanh", b.input("N", 3), out="t")
        return b.node("Mul", t, b.const(np.asarray(0.75), "by"), out="m")

    def plan(f: Facts) -> list[Edit]:
        norm = Norm("m", "m", "Affine", "t", "m", f.leaf("by"), ZERO, None, ("m",))
        return [SetAffine(norm, norm.scale, ZERO, (norm,))]

    result = check(make, plan)
    assert [tuple(tensor.dims) for tensor in result.model.graph.initializer] == [()]
    assert names_of(result.model.graph.output) == ["m"]


def test_edits_name_the_data_whatever_became_of_the_values():
    """A norm is set anew, then what it reads is bypassed, then a constant is added to what was bypassed."""

    def make(b: Builder) -> str:
        y = b.conv(b.input("N", 3, 6), (3, 4), out="y")
        n = b.bn(y, 4, out="n")
        r = b.node("Relu", b.bn(n, 4, out="k"), out="r")
        return b.node("Add", r, n, out="o")

    def plan(f: Facts) -> list[Edit]:
        n, k = f.norm("n"), f.norm("k")
        scaled = dataclasses.replace(folded(f.linear("y"), dataclasses.replace(n, shift=ZERO)), norms=(n,))
        return [
            scaled,
            SetAffine(k, k.scale, k.shift, (k,)),
            Bypass(n),
            AddConstant("n", column(n.shift), scaled.linear, (n,)),
        ]

    result = check(make, plan)
    assert ops(result.model) == ["Conv", "Add", "BatchNormalization", "Relu", "Add"]


def test_the_names_of_outputs_stay_where_one_value_is_two_of_them():
    def make(b: Builder) -> tuple[str, ...]:
        x = b.input("N", 4)
        one = b.const(np.ones(4), "one")
        a = b.node("Mul", x, one, out="a")
        r = b.node("Relu", x, out="r")
        return a, r, b.node("Mul", r, one, out="m"), b.node("Mul", r, one, out="k")

    def plan(f: Facts) -> list[Edit]:
        return [Bypass(f.step(name, "mul", 1)) for name in ("a", "m", "k")]

    result = check(make, plan)
    assert sorted(ops(result.model)) == ["Identity", "Identity", "Identity", "Relu"]


# ------------------------------------------------------------------------------ constants and slopes


@pytest.mark.parametrize("where", ["x", "y", "o"])
def test_a_constant_is_added_before_all_readers(where):
    def make(b: Builder) -> tuple[str, ...]:
        x = b.input(2, 3, 6)
        marks = {name: b.const(b.values(1, 3, size), f"k.{name}") for name, size in (("x", 6), ("y", 4), ("o", 4))}
        if where == "x":
            x = b.node("Add", x, marks["x"], out="x+")
        y = b.node("Conv", x, b.const(b.values(3, 3, 3), "w"), out="y")
        if where == "y":
            y = b.node("Add", y, marks["y"], out="y+")
        o = b.node("Relu", y, out="o")
        if where == "o":
            o = b.node("Add", o, marks["o"], out="o+")
        used = f"k.{where}"
        b.initializers = [tensor for tensor in b.initializers if tensor.name in (used, "w")]
        return o, b.node("Tanh", y), b.node("Tanh", x)

    def plan(f: Facts) -> list[Edit]:
        added = dataclasses.replace(f.step(f"{where}+", "add", 1), nodes=(f"{where}+",))
        linear = f.linear("y")
        return [Bypass(added), AddConstant(where, f.leaf(f"k.{where}"), linear, ())]

    result = check(make, plan)
    assert ops(result.model).count("Add") == 1
    assert ops(result.model).count("Identity") == 0


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("again", [False, True])
def test_a_slope_for_each_channel_makes_a_prelu(rank, again):
    slopes = np.array([0.5, -0.25, 2.0, 0.125])

    def make(b: Builder) -> str:
        y = b.conv(b.input("N", 3, *(5,) * (rank - 2)), (3, 4), (3,) * (rank - 2), out="y")
        slope = b.const(slopes.reshape(4, *(1,) * (rank - 2)), "slope")
        return b.node("PRelu", y, slope, out="a")

    def plan(f: Facts) -> list[Edit]:
        carrier, linear = f.carrier("a", Activation("prelu")), f.linear("y")
        slope = view(f.leaf("slope"), (4,))
        other = [SetSlope(carrier, mul(Scalar(3.0), slope), 1, linear, ())] if again else []
        return [*other, SetSlope(carrier, slope, 1, linear, ())]

    result = check(make, plan)
    assert ops(result.model) == ["Conv", "PRelu"]
    assert [role for _, role in roles(result)] == ["slope"]
    assert tuple(result.model.graph.initializer[-1].dims) == (4,) + (1,) * (rank - 2)


def test_a_slope_is_found_its_rank_where_no_shape_is_known():
    def make(b: Builder) -> str:
        y = b.conv(b.input("N", 3, 5), (3, 4), out="y")
        return b.node("Relu", b.node("LeakyRelu", y, out="a", alpha=0.5), out="o")

    def plan(f: Facts) -> list[Edit]:
        f.model.graph.input[0].type.tensor_type.ClearField("shape")
        slope = Given((0.5,) * 4, (4,))
        return [SetSlope(f.carrier("a", Activation("leaky_relu", 0.5)), slope, 1, f.linear("y"), ())]

    builder = Builder(DOUBLE)
    model = builder.model(make(builder))
    inputs = feeds(model)
    truth = evaluate(model, inputs)
    edits = plan(Facts(model))
    found, _ = carry_out(ir.from_proto(model), edits)
    assert close(evaluate(ir.to_proto(found), inputs), truth, BOUND)


# ------------------------------------------------------------------------- names, sharing, subgraphs


def test_fresh_names_never_collide():
    def make(b: Builder) -> tuple[str, ...]:
        z = conv_bn(b)
        for name in ("conv.weight.folded", "conv.bias.folded", "z.inner"):
            b.const(b.values(4), name)
        return (
            z,
            b.node("Add", "conv.weight.folded", "conv.bias.folded", out="conv.weight.folded.2"),
            b.node("Identity", "z.inner", out="z.inner.2"),
        )

    result = check(make, lambda f: absorbed(f, "y", "z"))
    assert [name for name, _ in roles(result)] == ["conv.weight.folded.3", "conv.bias.folded.2"]


def test_names_inside_subgraphs_are_taken_too():
    def make(b: Builder) -> tuple[str, str]:
        z = conv_bn(b)
        inner = helper.make_graph(
            [helper.make_node("Add", ["y", "y"], ["conv.weight.folded"])], "inner", [],
            [helper.make_tensor_value_info("conv.weight.folded", b.elem, None)],
        )  # fmt: skip
        flag = b.const(np.asarray(True), "flag")
        o = b.node("If", flag, out="o", then_branch=inner, else_branch=inner)
        b.shapes["o"] = ("N", 4, 8)
        return z, o

    def plan(f: Facts) -> list[Edit]:
        """The branch reads y, so the norm stays; a constant on y reaches into the branch."""
        linear = f.linear("y")
        without = dataclasses.replace(folded(linear), bias=None)
        return [without, AddConstant("y", column(f.leaf("conv.bias")), linear, ())]

    result = check(make, plan)
    assert "conv.weight.folded" not in names_of(result.model.graph.initializer)
    (branch,) = [node for node in result.model.graph.node if node.op_type == "If"]
    assert list(branch.attribute[0].g.node[0].input) == ["node_y.bias.add"] * 2


def shared(b: Builder) -> tuple[str, str]:
    x, w = b.input("N", 3, 6), b.const(b.values(4, 3, 3), "w")
    first = b.bn(b.node("Conv", x, w, out="y1"), 4, out="z1")
    second = b.node("Conv", b.node("Tanh", x), w, out="y2")
    return first, b.node("Relu", second, out="z2")


def test_a_shared_weight_is_not_changed_under_its_other_users():
    result = check(shared, lambda f: absorbed(f, "y1", "z1"))
    assert names_of(result.model.graph.initializer)[0] == "w"
    assert [node.input[1] for node in result.model.graph.node if node.op_type == "Conv"] == ["w.folded", "w"]


def test_one_expression_is_one_tensor():
    def plan(f: Facts) -> list[Edit]:
        (first, bypass) = absorbed(f, "y1", "z1")
        assert isinstance(first, SetWeights)
        norm = f.norm("z1")
        undone = AddConstant("y2", column(Given((0.0,) * 4, (4,))), first.linear, ())
        weight = Leaf(first.linear.weight)
        half = mul(Scalar(1.0), weight)
        other = Op("mul", (Scalar(1.0), half))
        edits: list[Edit] = [
            dataclasses.replace(first, weight=other, bias=None, norms=()),
            SetWeights(f.linear("y2"), other, None, first.window, 1, (), None),
            SetAffine(norm, norm.scale, norm.shift, (norm,)),
        ]
        assert bypass is not undone
        return edits

    result = check(shared, plan)
    assert [node.input[1] for node in result.model.graph.node if node.op_type == "Conv"] == ["w.folded"] * 2
    assert [role for _, role in roles(result)].count("weight") == 1


def test_a_constant_that_others_read_stays():
    def make(b: Builder) -> tuple[str, str]:
        z = conv_bn(b)
        return z, b.node("Neg", b.nodes[-1].input[1], out="g")

    result = check(make, lambda f: absorbed(f, "y", "z"))
    assert len(result.model.graph.initializer) == 3


def test_up_to_ir_version_3_no_new_tensor_is_listed_as_an_input():
    result = check(conv_bn, lambda f: absorbed(f, "y", "z"), ir_version=3, opset=8)
    assert names_of(result.model.graph.input) == ["x"]
    assert result.model.ir_version == 4


def test_one_bypass_alone_unlists_nothing():
    def make(b: Builder) -> str:
        return b.node("Relu", b.node("Mul", b.input("N", 4), b.const(np.ones(4), "one"), out="m"), out="o")

    result = check(make, lambda f: [Bypass(f.step("m", "mul", 1))], ir_version=3, opset=8)
    assert ops(result.model) == ["Relu"]
    assert names_of(result.model.graph.input)[0] == "x"


def test_the_same_tensor_in_half_precision_stays_half():
    builder = Builder(onnx.TensorProto.FLOAT16)
    model = builder.model(conv_bn(builder))
    result = edited(model, absorbed(Facts(model), "y", "z"))
    assert {tensor.data_type for tensor in result.model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    facts = Facts(model)
    norm = facts.norm("z")
    result = edited(model, [SetAffine(norm, norm.scale, norm.shift, (norm,))])
    assert {tensor.data_type for tensor in result.model.graph.initializer} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("change", ["linear", "norm", "value", "carrier"])
def test_a_plan_of_another_model_is_told(change):
    builder = Builder(DOUBLE)
    model = builder.model(conv_bn(builder))
    facts = Facts(model)
    linear, norm = facts.linear("y"), facts.norm("z")
    edit: Edit = {
        "linear": folded(dataclasses.replace(linear, id="nobody"), norm),
        "norm": Bypass(dataclasses.replace(norm, input="nobody")),
        "value": AddConstant("nobody", spread(ZERO, ()), linear, ()),
        "carrier": Redirect(Carrier("x", "x", "Add", ("x",), ("x",), Sum((1,))), "y"),
    }[change]
    with pytest.raises(FoldError, match="plan and model must come from one another"):
        apply(onnx_file.from_proto(model), [edit])
