"""Audits of graphs that look like the original one and are not, and of right ones that look unlike it.

T3 would see most of them on its inputs; T1 must not hold for them whatever the inputs are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from parity_networks import Array, Builder

import bnfold
from bnfold.errors import ParityError
from bnfold.parity.audit.comparing import Comparison, compare_graphs

Build = Callable[[Builder], str]


def compare(original: onnx.ModelProto, folded: onnx.ModelProto) -> Comparison:
    return compare_graphs(ir.from_proto(original), ir.from_proto(folded))


def is_certified(found: Comparison) -> bool:
    return found.is_whole and not found.wrong


def network(add: Build, *, shape: Sequence[Any] = (None, 3, 8, 8), rank: int = 4) -> onnx.ModelProto:
    """What `add` builds, an activation behind it; the same numbers each time."""
    build = Builder(np.random.default_rng(7))
    return build.model(tuple(shape), build.node("Relu", [add(build)]), rank)


def weights(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def convolution(build: Builder, op: str = "Conv", **attributes: Any) -> str:
    return build.node(op, ["input", build.constant("w", weights(3, 3, 3, 3))], strides=[2, 2], **attributes)


BORDERS: dict[str, tuple[str, Sequence[Any], dict[str, Any], dict[str, Any]]] = {
    "border of a transposed convolution": (
        "ConvTranspose", (None, 3, 8, 8), {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"},
    ),
    "size of a transposed convolution": (
        "ConvTranspose", (None, 3, 8, 8), {"output_shape": [16, 16]}, {"output_shape": [17, 17]},
    ),
    "border over free sizes": (
        "Conv", (None, 3, None, None), {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BORDERS)
def test_another_border_is_seen_where_only_the_runtime_knows_how_wide_it_is(name: str):
    op, shape, before, after = BORDERS[name]
    original = network(lambda build: convolution(build, op, **before), shape=shape)
    assert is_certified(compare(original, network(lambda build: convolution(build, op, **before), shape=shape)))
    found = compare(original, network(lambda build: convolution(build, op, **after), shape=shape))
    assert any("border or output of another size" in gap for gap in found.gaps), found.gaps


def two_branches(*, shared: bool) -> onnx.ModelProto:
    """relu(conv) + sigmoid(conv), with weights that differ in the last place of one number, or the first ones twice."""

    def add(build: Builder) -> str:
        first = weights(4, 3, 3, 3).astype(np.float32)
        second = first.copy()
        second[0, 0, 0, 0] = np.nextafter(first[0, 0, 0, 0], np.float32(9))
        a = build.node("Conv", ["input", build.constant("first", first)])
        b = a if shared else build.node("Conv", ["input", build.constant("second", second)])
        return build.node("Add", [build.node("Relu", [a]), build.node("Sigmoid", [b])])

    return network(add)


def test_one_convolution_in_the_place_of_two_is_judged_against_both():
    found = compare(two_branches(shared=False), two_branches(shared=True))
    (wrong,) = found.wrong
    assert (wrong.tensor, wrong.wrong, wrong.channels) == ("first", 1, (0,))


def dense(build: Builder, *, folded: bool, beta: float = 1.0) -> str:
    w, c = weights(6, 5), weights(6, seed=2)
    parts = {key: value.astype(np.float32).astype(np.float64) for key, value in build.statistics(6).items()}
    if not folded:
        y = build.node("Gemm", ["input", build.constant("w", w), build.constant("c", c)], transB=1)
        return build.node("BatchNormalization", [y, *(build.constant(key, value) for key, value in parts.items())])
    w, c = (array.astype(np.float32).astype(np.float64) for array in (w, c))
    scale = parts["gamma"] / np.sqrt(parts["variance"] + np.float64(np.float32(1e-5)))
    bias = scale * (c - parts["mean"]) + parts["beta"]
    inputs = ["input", build.constant("w", w * scale[:, None]), build.constant("c", bias)]
    return build.node("Gemm", inputs, transB=1, beta=beta)


def test_bias_that_gemm_takes_no_times_is_a_lost_bias():
    original = network(lambda build: dense(build, folded=False), shape=(None, 5), rank=2)
    right, wrong = (
        network(lambda build, beta=beta: dense(build, folded=True, beta=beta), shape=(None, 5), rank=2)
        for beta in (1.0, 0.0)
    )
    assert is_certified(compare(original, right))
    (tensor,) = compare(original, wrong).wrong
    assert (tensor.role, tensor.wrong) == ("bias", 6)


def biased(build: Builder, shape: tuple[int, ...] | None) -> str:
    """A convolution with a bias of its own, or with an addition of the same numbers over some axis behind it."""
    bias = weights(6, seed=3)
    inputs = ["input", build.constant("w", weights(6, 3, 3, 3))]
    if shape is None:
        return build.node("Conv", [*inputs, build.constant("c", bias)])
    return build.node("Add", [build.node("Conv", inputs), build.constant("c", np.resize(bias, shape))])


@pytest.mark.parametrize("shape", [(1, 1, 1, 6), (1, 1, 6, 1), (6,), (1, 1, 1, 5)])
def test_bias_that_is_added_over_another_axis_is_no_bias(shape: tuple[int, ...]):
    width = 7 if shape[-1] == 5 else 8
    original, right, wrong = (
        network(lambda build, given=given: biased(build, given), shape=(None, 3, 8, width))
        for given in (None, (1, 6, 1, 1), shape)
    )
    assert is_certified(compare(original, right))
    assert any("does not run over its channels" in gap for gap in compare(original, wrong).gaps)


def two_ends(*, inputs: str = "ab", outputs: str = "yz", swapped: bool = False) -> onnx.ModelProto:
    """y = relu(conv(a) - conv(b)), z = relu(conv(a) * conv(b)); inputs and outputs listed in some order."""
    build = Builder(np.random.default_rng(7))
    first, second = ("b", "a") if swapped else ("a", "b")
    u, v = (
        build.node("Conv", [name, build.constant(f"w{at}", weights(4, 3, 3, 3, seed=at))])
        for at, name in enumerate((first, second))
    )
    for op, name in (("Sub", "y"), ("Mul", "z")):
        build.nodes.append(helper.make_node("Relu", [build.node(op, [u, v])], [name]))
    listed = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3, 8, 8]) for name in inputs]
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4, 6, 6]) for name in outputs]
    graph = helper.make_graph(build.nodes, "ends", listed, given, build.tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_inputs_and_outputs_go_by_their_names_whatever_their_order():
    for folded in (two_ends(), two_ends(inputs="ba"), two_ends(outputs="zy"), two_ends(inputs="ba", outputs="zy")):
        assert bnfold.audit(folded, two_ends()).exit_code == 0


@pytest.mark.parametrize("inputs", ["ab", "ba"])
def test_exchanged_inputs_are_seen_whatever_their_order(inputs: str):
    report = bnfold.audit(two_ends(inputs=inputs, swapped=True), two_ends())
    assert [tier.status for tier in report.tiers] == ["fails", "fails"]


def test_exchanged_outputs_are_seen_whatever_their_order():
    folded = two_ends(outputs="zy")
    for node in folded.graph.node:
        node.output[:] = [{"y": "z", "z": "y"}.get(name, name) for name in node.output]
    report = bnfold.audit(folded, two_ends())
    assert [tier.status for tier in report.tiers] == ["cannot tell", "fails"]


def test_output_that_is_listed_twice_stands_for_no_two_others():
    twice, others = two_ends(outputs="yy"), two_ends(outputs="yz")
    assert bnfold.audit(twice, twice).exit_code == 0
    with pytest.raises(ParityError, match="has an output more than once"):
        bnfold.audit(others, twice)


def softmax(opset: int, **attributes: Any) -> onnx.ModelProto:
    model = network(lambda build: build.node("Softmax", [convolution(build)], **attributes))
    model.opset_import[0].version = opset
    return model


def test_operator_that_means_something_else_in_another_operator_set_is_not_matched():
    """Up to opset 12 a softmax runs over all axes from its own, which is axis 1 by default."""
    assert is_certified(compare(softmax(11), softmax(11, axis=1)))
    assert is_certified(compare(softmax(13), softmax(13, axis=-1)))
    for before, after in ((softmax(11), softmax(13)), (softmax(11, axis=1), softmax(13, axis=1))):
        assert not is_certified(compare(before, after))


def with_functions(factor: float) -> onnx.ModelProto:
    """A network that calls a function, which calls another one, which multiplies."""
    build = Builder(np.random.default_rng(7))
    y = convolution(build)
    build.nodes.append(helper.make_node("Outer", [y], ["output"], domain="own"))
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.float32(factor)))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    inner = helper.make_function(
        "own", "Inner", ["a"], ["b"], [constant, helper.make_node("Mul", ["a", "k"], ["b"])], opsets[:1]
    )
    call = helper.make_node("Inner", ["a"], ["b"], domain="own")
    outer = helper.make_function("own", "Outer", ["a"], ["b"], [call], opsets)
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3, None, None])
        for name in ("input", "output")
    ]
    graph = helper.make_graph(build.nodes, "functions", ends[:1], ends[1:], build.tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=[inner, outer])


def test_function_that_is_called_by_a_function_is_compared():
    assert is_certified(compare(with_functions(2.0), with_functions(2.0)))
    assert not is_certified(compare(with_functions(2.0), with_functions(2.00001)))
