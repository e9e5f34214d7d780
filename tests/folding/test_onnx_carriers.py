"""Each kind of carrier as ONNX writes it, from opset 7 to the newest: the exact fact, and what makes it opaque."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_networks import Builder

from bnfold.errors import FoldError
from bnfold.folding.carriers import (
    Activation,
    Concat,
    Pad,
    Pool,
    Reshape,
    Resize,
    Rule,
    Select,
    Shuffle,
    Split,
    Sum,
    Transpose,
    Window,
)
from bnfold.folding.facts import Carrier, Graph, Linear, Opaque
from bnfold.folding.onnx_graph import read

NEWEST = onnx.defs.onnx_opset_version()
X = (2, 4, 6, 8)
SPACE = (2, 3)
INT64 = TensorProto.INT64


def facts(b: Builder, *outputs: str) -> Graph:
    """The facts of a graph, without the checker: some of these graphs are not sound."""
    results = [helper.make_tensor_value_info(name, b.outputs.get(name, b.elem), None) for name in outputs]
    graph = helper.make_graph(b.nodes, "graph", b.inputs, results, b.initializers)
    imports = [helper.make_opsetid("", b.opset), *(helper.make_opsetid(name, 1) for name in b.domains)]
    return read(ir.serde.deserialize_model(helper.make_model(graph, opset_imports=imports, ir_version=b.ir_version)))


def stated(op: str, opset: int, *inputs: Any, shape: Any = X, results: int = 1, **attributes: Any) -> Any:
    """The rule of one node: inputs are constants, names of more data, or '' for one that is left out."""
    b = Builder(opset=opset)
    names = [b.input(*shape)]
    for given in inputs:
        if isinstance(given, str) and given:
            b.input(*shape, name=given)
        names.append(given if isinstance(given, str) else b.const(np.asarray(given)))
    outputs = [f"y{at}" for at in range(results)]
    b.nodes.append(helper.make_node(op, names, outputs, name="n", **attributes))
    (node,) = facts(b, *outputs[: 1 if op == "MaxPool" else None]).nodes
    assert isinstance(node, Carrier | Opaque)
    assert (node.id, node.name, node.kind) == ("y0", "n", op)
    if isinstance(node, Opaque):
        return None
    data = ("x", *(given for given in inputs if isinstance(given, str) and given))
    assert (node.inputs, node.outputs) == (data, tuple(outputs[: 1 if op == "MaxPool" else None]))
    return node.rule


def window(kernel: int = 3, stride: int = 1, pad: Any = 0, dilation: int = 1, *, ceil: bool = False) -> Window:
    pads = pad if isinstance(pad, tuple) else ((pad, pad),) * 2
    return Window((kernel,) * 2, (stride,) * 2, (dilation,) * 2, pads, ceil=ceil)


def i64(*values: int) -> Any:
    return np.array(values, np.int64)


RELU6, RELU = Activation("relu6"), Activation("relu")
POOL = {"kernel_shape": [3, 3]}

Case = tuple[str, int, tuple[Any, ...], dict[str, Any], Rule | None]

ACTIVATIONS: list[Case] = [
    *(("Relu", opset, (), {}, RELU) for opset in (7, 13, 14, NEWEST)),
    ("LeakyRelu", 7, (), {}, Activation("leaky_relu", float(np.float32(0.01)))),
    ("LeakyRelu", 16, (), {"alpha": 0.25}, Activation("leaky_relu", 0.25)),
    ("LeakyRelu", 16, (), {"alpha": float("nan")}, None),
    ("LeakyRelu", 16, (), {"alpha": 1}, None),  # an integer is not what the operator takes
    ("LeakyRelu", 16, (), {"alpha": 0.25, "beta": 2.0}, None),
    ("PRelu", 9, (np.ones((4, 1, 1)),), {}, Activation("prelu")),
    ("PRelu", 9, ("slope",), {}, None),
    ("Clip", 7, (), {"min": 0.0, "max": 6.0}, RELU6),
    ("Clip", 7, (), {"min": 0.0}, RELU),
    ("Clip", 7, (), {"max": 6.0}, None),
    ("Clip", 7, (), {}, None),
    ("Clip", 11, (), {"min": 0.0, "max": 6.0}, None),  # attributes that went away mean nothing
    ("Clip", 11, (0.0, 6.0), {}, RELU6),
    ("Clip", NEWEST, (0.0, 6.0), {}, RELU6),
    ("Clip", 12, (0.0,), {}, RELU),
    ("Clip", 12, (0.0, ""), {}, RELU),
    ("Clip", 12, (0.0, np.inf), {}, RELU),
    ("Clip", 12, ("", 6.0), {}, None),
    ("Clip", 12, (0.0, 5.0), {}, None),
    ("Clip", 12, (-1.0, 1.0), {}, None),
    ("Clip", 12, (0.0, "high"), {}, None),
    ("Elu", 7, (), {}, Activation("elu")),
    ("Elu", 22, (), {"alpha": 0.5}, Activation("elu")),
    ("Elu", 22, (), {"alpha": -0.5}, None),
    ("Elu", 22, (), {"alpha": 0.0}, None),
    ("Gelu", 20, (), {}, Activation("gelu")),
    ("Gelu", 20, (), {"approximate": "tanh"}, Activation("gelu")),
    ("Gelu", 20, (), {"approximate": "quick"}, None),
    ("Gelu", 19, (), {}, None),  # there is none
    ("HardSwish", 14, (), {}, Activation("hardswish")),
    ("Mish", 18, (), {}, Activation("mish")),
    ("Swish", 24, (), {}, Activation("silu")),
    ("Swish", 24, (), {"alpha": 1.702}, None),
    *((op, 22, (), {}, None) for op in ("Sigmoid", "Tanh", "HardSigmoid", "Softplus", "Selu", "Erf", "Softmax")),
]

SUMS: list[Case] = [
    ("Add", 7, ("z",), {}, Sum((1, 1))),
    ("Add", NEWEST, ("z",), {}, Sum((1, 1))),
    ("Sub", 14, ("z",), {}, Sum((1, -1))),
    ("Sum", 8, ("z", "v"), {}, Sum((1, 1, 1))),
    ("Sum", 8, (), {}, None),
    ("Sum", 8, ("z", np.ones(4)), {}, None),
    ("Add", 14, (np.ones(X[1:]),), {}, None),  # a constant over several axes
    ("Mul", 14, ("z",), {}, None),
    ("Div", 14, ("z",), {}, None),
    ("Concat", 7, ("z",), {"axis": 1}, Concat(1)),
    ("Concat", 13, ("z", "v"), {"axis": -1}, Concat(3)),
    ("Concat", 13, (np.ones(X),), {"axis": 1}, None),
    ("Concat", 13, ("z",), {"axis": 4}, None),
    ("Concat", 13, ("z",), {}, None),
]

POOLS: list[Case] = [
    ("MaxPool", 7, (), POOL, Pool("max", SPACE, window())),
    (
        "MaxPool",
        12,
        (),
        {**POOL, "strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [2, 2], "ceil_mode": 1},
        Pool("max", SPACE, window(3, 2, 1, 2, ceil=True)),
    ),
    ("MaxPool", 12, (), {**POOL, "pads": [0, 1, 2, 3]}, Pool("max", SPACE, window(pad=((0, 2), (1, 3))))),
    ("MaxPool", 12, (), {**POOL, "storage_order": 1}, Pool("max", SPACE, window())),
    ("MaxPool", 12, (), {**POOL, "storage_order": 2}, None),
    ("MaxPool", 12, (), {}, None),
    ("MaxPool", 12, (), {"kernel_shape": [3]}, None),
    ("MaxPool", 12, (), {**POOL, "strides": [2]}, None),
    ("MaxPool", 12, (), {**POOL, "pads": [-1, 0, 0, 0]}, None),
    ("MaxPool", 7, (), {**POOL, "storage_order": 0}, None),  # from opset 8 on
    ("MaxPool", 12, (), {**POOL, "auto_pad": "VALID"}, Pool("max", SPACE, window())),
    ("MaxPool", 12, (), {**POOL, "auto_pad": "SAME_UPPER"}, Pool("max", SPACE, window(pad=1))),
    (
        "MaxPool",
        12,
        (),
        {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"},
        Pool("max", SPACE, window(2, pad=((0, 1), (0, 1)))),
    ),
    (
        "MaxPool",
        12,
        (),
        {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"},
        Pool("max", SPACE, window(2, pad=((1, 0), (1, 0)))),
    ),
    (
        "MaxPool",
        12,
        (),
        {**POOL, "auto_pad": "SAME_UPPER", "strides": [2, 2]},
        Pool("max", SPACE, Window((3, 3), (2, 2), (1, 1), None)),
    ),
    ("AveragePool", 7, (), POOL, Pool("average", SPACE, window())),
    (
        "AveragePool",
        10,
        (),
        {**POOL, "count_include_pad": 1, "pads": [1] * 4, "ceil_mode": 1},
        Pool("average", SPACE, window(pad=1, ceil=True), counts_padding=True),
    ),
    ("AveragePool", 19, (), {**POOL, "dilations": [2, 2]}, Pool("average", SPACE, window(dilation=2))),
    ("AveragePool", 18, (), {**POOL, "dilations": [2, 2]}, None),
    ("AveragePool", 7, (), {**POOL, "ceil_mode": 1}, None),
    *(("GlobalAveragePool", opset, (), {}, Pool("average", SPACE)) for opset in (7, NEWEST)),
    ("GlobalMaxPool", 7, (), {}, Pool("max", SPACE)),
    ("GlobalLpPool", 7, (), {}, None),
    ("LpPool", 11, (), POOL, None),
    ("ReduceMean", 7, (), {"axes": [2, 3]}, Pool("average", SPACE)),
    ("ReduceMean", 17, (), {"axes": [-1, 2], "keepdims": 0}, Pool("average", SPACE, keepdims=False)),
    ("ReduceMean", 17, (), {"axes": [0]}, Pool("average", (0,))),
    ("ReduceMean", 18, (), {"axes": [2, 3]}, None),  # an input by now
    ("ReduceMean", 18, (i64(-1, 2),), {"keepdims": 0}, Pool("average", SPACE, keepdims=False)),
    ("ReduceMax", 13, (), {"axes": [1]}, Pool("max", (1,))),
    ("ReduceMax", 20, (i64(2, 3),), {}, Pool("max", SPACE)),
    ("ReduceMean", 17, (), {}, None),  # of everything
    ("ReduceMean", 17, (), {"axes": [0, 1, 2, 3]}, None),
    ("ReduceMean", 17, (), {"axes": [1, -3]}, None),
    ("ReduceMean", 18, (), {"noop_with_empty_axes": 1}, None),
    ("ReduceMean", 18, (i64(),), {}, None),
    ("ReduceSum", 13, (i64(2),), {}, None),
]

UP = np.array([1, 1, 2, 2], np.float32)
TWICE = i64(2, 4, 12, 8)

RESIZES: list[Case] = [
    ("Upsample", 7, (), {"scales": [1.0, 1.0, 2.0, 2.0]}, Resize(SPACE)),
    ("Upsample", 7, (), {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "linear"}, Resize(SPACE)),
    ("Upsample", 7, (), {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "bilinear"}, None),
    ("Upsample", 9, (UP,), {}, Resize(SPACE)),
    ("Upsample", 10, (UP,), {}, None),  # gone by then
    ("Resize", 10, (UP,), {"mode": "linear"}, Resize(SPACE)),
    ("Resize", 10, (np.array([1, 2, 1, 1.5], np.float32),), {}, Resize((1, 3))),
    ("Resize", 10, ("scales",), {}, None),
    ("Resize", 11, (np.ones(8), UP), {}, Resize(SPACE)),
    ("Resize", 13, ("", UP), {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}, Resize(SPACE)),
    ("Resize", 13, ("", "", TWICE), {"coordinate_transformation_mode": "align_corners"}, Resize((2,))),
    ("Resize", 13, ("", np.zeros(0), TWICE), {"nearest_mode": "floor", "mode": "nearest"}, Resize((2,))),
    ("Resize", 18, ("", np.array([2.0])), {"axes": [-1], "antialias": 1, "mode": "linear"}, Resize((3,))),
    ("Resize", 18, ("", "", i64(12, 8)), {"axes": [2, 3]}, Resize((2,))),
    (
        "Resize",
        18,
        ("", "", i64(12, 8)),
        {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"},
        Resize(SPACE),
    ),
    ("Resize", 19, ("", UP), {"coordinate_transformation_mode": "half_pixel_symmetric"}, Resize(SPACE)),
    (
        "Resize",
        13,
        (np.array([0, 0, 0, 0, 1, 1, 1, 1.0]), UP),
        {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 2.0},
        Resize((0, 1, 2, 3), True, 2.0),
    ),
    ("Resize", 11, (np.ones(8), UP), {"coordinate_transformation_mode": "tf_half_pixel_for_nn"}, None),
    ("Resize", 13, ("", UP), {"mode": "lanczos"}, None),
    ("Resize", 13, ("", UP), {"antialias": 1}, None),
]

PADS: list[Case] = [
    ("Pad", 7, (), {"pads": [0, 0, 1, 0, 0, 0, 0, 2]}, Pad("constant", SPACE)),
    ("Pad", 10, (), {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "mode": "reflect"}, Pad("reflect", SPACE)),
    ("Pad", 10, (), {"pads": [0, 0, 0, 1, 0, 0, 0, 0], "value": 1.5}, Pad("constant", (3,), 1.5)),
    ("Pad", 11, (i64(0, 0, 0, 1, 0, 0, 0, 0),), {}, Pad("constant", (3,))),
    ("Pad", 13, (i64(0, 1, 0, 0, 0, 0, 0, 0), -2.0), {}, Pad("constant", (1,), -2.0)),
    ("Pad", 13, (i64(0, 0, 0, 1, 0, 0, 0, 0), ""), {"mode": "edge"}, Pad("edge", (3,))),
    ("Pad", 18, (i64(1, 0, 0, 2), "", i64(-1, 2)), {}, Pad("constant", SPACE)),
    ("Pad", 19, (i64(0, 0, 0, 1, 0, 0, 0, 1),), {"mode": "wrap"}, Pad("wrap", (3,))),
    ("Pad", 13, (i64(0, 0, 0, 0, 0, 0, 0, 0),), {}, Pad("constant", ())),
    ("Pad", 13, (i64(0, 0, 0, -1, 0, 0, 0, 0),), {}, None),
    ("Pad", 13, (i64(0, 0, 0, 1),), {}, None),
    ("Pad", 13, (i64(0, 0, 0, 1, 0, 0, 0, 0), np.inf), {}, None),
    ("Pad", 13, (i64(0, 0, 0, 1, 0, 0, 0, 0), "value"), {}, None),
    ("Pad", 13, (i64(0, 0, 0, 1, 0, 0, 0, 0),), {"mode": "mirror"}, None),
]

LAYOUT: list[Case] = [
    ("Reshape", 7, (i64(2, -1),), {}, Reshape()),
    ("Reshape", 14, (i64(0, 4, -1),), {"allowzero": 0}, Reshape()),
    ("Flatten", 7, (), {}, Reshape()),
    ("Flatten", 13, (), {"axis": -1}, Reshape()),
    ("Unsqueeze", 11, (), {"axes": [1]}, Reshape()),
    ("Unsqueeze", 13, (i64(-1),), {}, Reshape()),
    ("Transpose", 7, (), {"perm": [0, 2, 3, 1]}, Transpose((0, 2, 3, 1))),
    ("Transpose", NEWEST, (), {}, Transpose((3, 2, 1, 0))),
    ("Transpose", 13, (), {"perm": [0, 1, 1, 2]}, None),
    ("DepthToSpace", 7, (), {"blocksize": 2}, Shuffle(1, 4, up=True, channel_first=False)),
    ("DepthToSpace", 11, (), {"blocksize": 2, "mode": "CRD"}, Shuffle(1, 4, up=True, channel_first=True)),
    ("DepthToSpace", 13, (), {"blocksize": 2, "mode": "RDC"}, None),
    ("DepthToSpace", 10, (), {"blocksize": 2, "mode": "CRD"}, None),
    ("SpaceToDepth", 7, (), {"blocksize": 2}, Shuffle(1, 4, up=False, channel_first=False)),
    ("SpaceToDepth", 13, (), {"blocksize": 2, "mode": "CRD"}, None),
]


def taken(*parts: Any) -> Select:
    return Select(tuple((axis, None if at is None else tuple(at)) for axis, at in parts))


BIG = 2**31 - 1

PARTS: list[Case] = [
    ("Slice", 7, (), {"starts": [1], "ends": [3], "axes": [1]}, taken((1, [1, 2]))),
    ("Slice", 9, (), {"starts": [0, -3], "ends": [1, 100], "axes": [0, 1]}, taken((0, [0]), (1, [1, 2, 3]))),
    ("Slice", 9, (), {"starts": [1], "ends": [2]}, taken((0, [1]))),
    ("Slice", 10, (i64(0), i64(4), i64(1), i64(2)), {}, taken((1, [0, 2]))),
    ("Slice", 13, (i64(-1), i64(-100), i64(-3), i64(-1)), {}, taken((1, [3, 2, 1, 0]))),
    ("Slice", 13, (i64(-1), i64(-5), i64(1), i64(-1)), {}, taken((1, [3, 2, 1, 0]))),
    ("Slice", 13, (i64(100), i64(0), i64(1), i64(-2)), {}, taken((1, [3, 1]))),
    ("Slice", 13, (i64(1), i64(-1), i64(1)), {}, taken((1, [1, 2]))),
    ("Slice", 13, (i64(0), i64(BIG), i64(1)), {}, Select(())),
    ("Slice", 13, (i64(0, 1), i64(BIG, 3), i64(3, 1)), {}, taken((1, [1, 2]))),
    ("Slice", 13, (np.array([1], np.int32), np.array([3], np.int32), np.array([1], np.int32)), {}, taken((1, [1, 2]))),
    ("Slice", 13, (i64(3), i64(1), i64(1)), {}, None),  # nothing is left
    ("Slice", 13, (i64(0), i64(4), i64(1), i64(0)), {}, None),
    ("Slice", 13, (i64(0, 0), i64(4, 4), i64(1, -3)), {}, None),
    ("Slice", 13, (i64(0), i64(4), i64(4)), {}, None),
    ("Gather", 7, (i64(2, 0, 3),), {"axis": 1}, taken((1, [2, 0, 3]))),
    ("Gather", 13, (i64(-1, -1),), {"axis": -3}, taken((1, [3, 3]))),
    ("Gather", 13, (i64(1),), {}, taken((0, [1]))),
    ("Gather", 13, (np.array([2, 0], np.int32),), {"axis": 1}, taken((1, [2, 0]))),
    ("Gather", 13, (np.int64(1),), {"axis": 1}, None),
    ("Gather", 13, (i64(1, 2).reshape(1, 2),), {"axis": 1}, None),
    ("Gather", 13, (i64(4),), {"axis": 1}, None),
]


@pytest.mark.parametrize("case", [*ACTIVATIONS, *SUMS, *POOLS, *RESIZES, *PADS, *LAYOUT, *PARTS], ids=str)
def test_what_a_node_is_as_a_carrier(case: Case) -> None:
    op, opset, inputs, attributes, rule = case
    assert stated(op, opset, *inputs, **attributes) == rule


@pytest.mark.parametrize(
    ("opset", "inputs", "attributes", "results", "sizes"),
    [
        (7, (), {"axis": 1}, 2, (2, 2)),
        (7, (), {"axis": -3, "split": [1, 3]}, 2, (1, 3)),
        (11, (), {"split": [1, 1]}, 2, None),  # of axis 0
        (13, (i64(3, 1),), {"axis": 1}, 2, (3, 1)),
        (13, (i64(3, 2),), {"axis": 1}, 2, None),
        (13, (i64(4, 0),), {"axis": 1}, 2, None),
        (13, (), {"axis": 1}, 3, None),
        (18, (), {"axis": 1, "num_outputs": 3}, 3, None),  # 2, 2, and nothing
        (18, (), {"axis": 2, "num_outputs": 4}, 4, None),  # 2, 2, 2, and nothing
        (18, (), {"axis": 3, "num_outputs": 3}, 3, (3, 3, 2)),
        (13, (i64(2, 2),), {"axis": 1, "split": [2, 2]}, 2, None),
    ],
)
def test_what_a_split_is(opset, inputs, attributes, results, sizes) -> None:
    axis = attributes.get("axis", 0) % 4
    if sizes is None and attributes.get("split") == [1, 1]:
        sizes = (1, 1)
    rule = stated("Split", opset, *inputs, results=results, **attributes)
    assert rule == (None if sizes is None else Split(axis, sizes))


@pytest.mark.parametrize("said", [1, 3])
def test_a_split_with_other_outputs_than_it_says_is_refused(said: int) -> None:
    with pytest.raises(FoldError, match=f"num_outputs = {said}, but has 2 outputs"):
        stated("Split", 18, axis=1, num_outputs=said, results=2)


@pytest.mark.parametrize("how", ["not there", "not read", "read", "graph output"])
def test_the_indices_of_a_maxpool_are_an_output_where_they_are_read(how: str) -> None:
    b = Builder(opset=12)
    outputs = ["y"] if how == "not there" else ["y", "i"]
    b.nodes.append(helper.make_node("MaxPool", [b.input(*X)], outputs, kernel_shape=[3, 3]))
    b.outputs["i"] = INT64
    if how == "read":
        b.node("Cast", "i", to=TensorProto.FLOAT, out="j")
    node = facts(b, "y", *{"read": ["j"], "graph output": ["i"]}.get(how, [])).nodes[0]
    is_read = how in ("read", "graph output")
    assert isinstance(node, Carrier)
    assert node.outputs == (("y", "i") if is_read else ("y",))
    assert node.rule == Pool("max", SPACE, window(), gives_indices=is_read)


def test_squeeze_needs_a_rank_that_is_known() -> None:
    assert stated("Squeeze", 13, i64(2), shape=(2, 4, 1, 3)) == Reshape()
    assert stated("Squeeze", 11, shape=(2, 4, 1, 3), axes=[2]) == Reshape()
    assert stated("Squeeze", 13, shape=(2, 4, 1, 3)) == Reshape()
    assert stated("Squeeze", 13, shape=(2, 4, "a", 3)) is None


def test_parts_of_an_axis_whose_size_is_free_are_not_known() -> None:
    free = (2, "C", 6, 8)
    assert stated("Gather", 13, i64(1), shape=free, axis=1) == taken((1, None))
    assert stated("Slice", 13, i64(1), i64(3), i64(1), shape=free) == taken((1, None))
    assert stated("Slice", 13, i64(0), i64(BIG), i64(1), shape=free) == Select(())
    assert stated("Split", 13, shape=free, axis=1, results=2) is None
    assert stated("Split", 13, i64(1, 2), shape=free, axis=1, results=2) == Split(1, (1, 2))


def test_integers_and_other_dtypes_are_opaque() -> None:
    for op in ("Relu", "Add", "Flatten"):
        b = Builder(opset=14, elem=INT64)
        names = [b.input(*X), *([b.input(*X, name="z")] if op == "Add" else [])]
        (node,) = facts(b, b.node(op, *names)).nodes
        assert isinstance(node, Opaque)


def test_an_opset_that_is_newer_than_onnx_is_not_read() -> None:
    assert stated("Relu", NEWEST + 1) is None


def test_an_attribute_that_refers_to_that_of_a_function_is_not_read() -> None:
    b = Builder(opset=16)
    y = b.node("LeakyRelu", b.input(*X))
    attribute = b.nodes[0].attribute.add()
    attribute.name, attribute.ref_attr_name, attribute.type = "alpha", "a", onnx.AttributeProto.FLOAT
    assert isinstance(facts(b, y).nodes[0], Opaque)


# ---------------------------------------------------------------------------------- linears


@pytest.mark.parametrize(
    ("op", "attributes", "expected"),
    [
        ("Conv", {}, Window((3, 2), (1, 1), (1, 1), ((0, 0), (0, 0)))),
        (
            "Conv",
            {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 3], "group": 2},
            Window((3, 2), (2, 1), (1, 3), ((1, 2), (0, 1))),
        ),
        ("Conv", {"auto_pad": "VALID"}, Window((3, 2), (1, 1), (1, 1), ((0, 0), (0, 0)))),
        ("Conv", {"auto_pad": "SAME_UPPER"}, Window((3, 2), (1, 1), (1, 1), ((1, 1), (0, 1)))),
        ("Conv", {"auto_pad": "SAME_LOWER"}, Window((3, 2), (1, 1), (1, 1), ((1, 1), (1, 0)))),
        ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, Window((3, 2), (2, 2), (1, 1), None)),
        ("Conv", {"kernel_shape": [3, 3]}, None),
        ("Conv", {"output_padding": [0, 0]}, None),
        ("Conv", {"strides": [1]}, None),
        ("Conv", {"pads": [0, 0, -1, 0]}, None),
        ("ConvTranspose", {}, Window((3, 2), (1, 1), (1, 1), ((0, 0), (0, 0)), (0, 0))),
        (
            "ConvTranspose", {"strides": [2, 2], "output_padding": [1, 0], "group": 2, "pads": [1, 0, 0, 0]},
            Window((3, 2), (2, 2), (1, 1), ((1, 0), (0, 0)), (1, 0)),
        ),
        ("ConvTranspose", {"output_shape": [8, 9]}, Window((3, 2), (1, 1), (1, 1), None, (0, 0))),
        ("ConvTranspose", {"auto_pad": "SAME_UPPER"}, Window((3, 2), (1, 1), (1, 1), None, (0, 0))),
    ],
)  # fmt: skip
def test_the_window_of_a_convolution(op: str, attributes: dict[str, Any], expected: Window | None) -> None:
    b = Builder(opset=17)
    weight = b.const(b.values(4, 4 // attributes.get("group", 1), 3, 2))
    (node,) = facts(b, b.node(op, b.input(*X), weight, **attributes)).nodes
    if expected is None:
        assert isinstance(node, Opaque)
    else:
        assert isinstance(node, Linear)
        assert node.window == expected
        assert node.is_transposed == (op == "ConvTranspose")


def test_a_gemm_that_transposes_its_input_reads_a_transposition() -> None:
    b = Builder(opset=17)
    first, second = facts(b, b.node("Gemm", b.input(3, "N"), b.const(b.values(3, 4)), transA=1, out="y")).nodes
    assert isinstance(first, Carrier)
    assert isinstance(second, Linear)
    assert (first.inputs, first.rule) == (("x",), Transpose((1, 0)))
    assert second.input == first.outputs[0]


# ---------------------------------------------------------------------------------- shapes


def test_shapes_of_a_dynamic_network() -> None:
    b = Builder(opset=17)
    y = b.conv(b.input("N", 3, "H", 8), (3, 4), (3, 3), pads=[1, 1, 1, 1], out="y")
    b.node("Relu", y, out="r")
    b.node("Flatten", "r", out="f")
    shapes = facts(b, "f").shapes
    assert shapes["x"] == ("N", 3, "H", 8)
    assert shapes["y"][:2] == ("N", 4)
    assert shapes["y"][3] == 8
    assert shapes["r"] == shapes["y"]
    assert shapes["f"][0] == "N"


def test_a_reshape_whose_target_is_computed_from_shapes() -> None:
    b = Builder(opset=17)
    y = b.conv(b.input("N", 3, 4, 4), (3, 4), (1, 1), out="y")
    count = b.node("Unsqueeze", b.node("Gather", b.node("Shape", y), b.const(np.int64(0))), b.const(i64(0)))
    b.node("Reshape", y, b.node("Concat", count, b.const(i64(64)), axis=0), out="z")
    graph = facts(b, "z")
    node = graph.nodes[-1]
    assert isinstance(node, Carrier)
    assert (node.inputs, node.rule) == (("y",), Reshape())
    assert (graph.shapes["y"], graph.shapes["z"]) == (("N", 4, 4, 4), ("N", 64))


def test_sizes_that_hang_on_the_data_are_not_taken_for_one_another() -> None:
    b = Builder(opset=17)
    x = b.input("N", 4)
    parts = []
    for at in range(2):
        places = b.node("Squeeze", b.node("NonZero", b.input(6, name=f"m{at}")), b.const(i64(0)))
        parts.append(b.node("Gather", x, places, out=f"g{at}"))
    sizes = [facts(b, *parts).shapes[part] for part in parts]
    assert sizes[0][1] == sizes[1][1] == 4
    assert sizes[0][0] != sizes[1][0]


def test_a_stale_shape_in_the_file_is_not_believed() -> None:
    b = Builder(opset=17)
    y = b.node("Relu", b.conv(b.input("N", 3, 8), (3, 4), (3,), out="c"), out="y")
    model = b.model(y)
    model.graph.value_info.append(helper.make_tensor_value_info("c", b.elem, (7, 9, 5)))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", b.elem, (7, 9, 5)))
    shapes = read(ir.serde.deserialize_model(model)).shapes
    assert shapes["c"] == shapes["y"] == ("N", 4, 6)


def test_a_target_that_a_caller_may_override_proves_no_shape() -> None:
    b = Builder(opset=17)
    b.input(2, 12)
    b.input(2, name="target", elem=INT64)
    b.const(i64(4, 6), "target")
    b.node("Reshape", "x", "target", out="y")
    assert 4 not in facts(b, "y").shapes.get("y", ())


def test_a_convolution_says_the_rank_of_its_output_where_nothing_else_does() -> None:
    b = Builder(opset=17)
    b.domains["my.domain"] = 1
    y = b.node("Mystery", b.input(2, 3, 8, 8), domain="my.domain")
    z = b.node("Relu", b.conv(y, (3, 4), (3, 3), out="c"), out="r")
    up = b.node("ConvTranspose", z, b.const(b.values(4, 3, 2, 2)), group=2, out="u")
    graph = facts(b, b.node("GlobalAveragePool", up, out="g"))
    assert graph.shapes["c"][:2] == graph.shapes["r"][:2] == (None, 4) or graph.shapes["c"][1] == 4
    assert len(graph.shapes["c"]) == len(graph.shapes["r"]) == 4
    assert graph.shapes["u"][1] == 6
    assert [type(node) for node in graph.nodes] == [Opaque, Linear, Carrier, Linear, Carrier]


# ---------------------------------------------------------------------------------- aliases


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "is_alias"),
    [
        ("Identity", (), {}, True),
        ("Cast", (), {"to": TensorProto.FLOAT}, True),
        ("Cast", (), {"to": TensorProto.DOUBLE}, False),
        ("Dropout", (), {}, True),
        ("Dropout", (0.5, False), {}, True),
        ("Dropout", (0.5, True), {}, False),
    ],
)
def test_what_hands_its_input_on(op: str, inputs: Any, attributes: Any, is_alias: bool) -> None:
    b = Builder(opset=17)
    y = b.node(op, b.input(*X), *(b.const(np.asarray(given)) for given in inputs), **attributes)
    b.outputs["z"] = attributes.get("to", b.elem)
    nodes = facts(b, b.node("Relu", y, out="z")).nodes
    assert len(nodes) == (1 if is_alias else 2)
    assert (nodes[-1].inputs == ("x",)) == is_alias  # type: ignore[union-attr]
