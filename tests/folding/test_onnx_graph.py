"""Graphs as they come: names, readers, outputs, subgraphs, functions, and what only looks like a linear or a norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_networks import FLOAT, FOLDED, Builder, built, check, close, evaluate, feeds, fold_of, ops, outcomes

import bnfold
from bnfold.errors import FoldError
from bnfold.folding import onnx_file, onnx_graph
from bnfold.runtime import open_session, run

BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64


def conv_bn(b: Builder, out: str = "", channels: tuple[int, int] = (3, 4)) -> str:
    return b.bn(b.conv(b.input(2, channels[0], 5), channels, (2,)), channels[1], out=out)


def same_in_runtime(model: onnx.ModelProto, **given: Any) -> list[tuple[str, str]]:
    """Fold a float32 model that is built but once, and compare the two in ONNX Runtime."""
    result = fold_of(model, **given)
    inputs = feeds(model)
    sessions = [open_session(m.SerializeToString(), optimise=False) for m in (model, result.model)]
    before, after = (list(run(session, inputs).values()) for session in sessions)
    assert close(after, before, 2e-5)
    return outcomes(result)


# ---------------------------------------------------------------------------------- what hands data on


@pytest.mark.parametrize("count", [1, 2, 40])
def test_identities_between_linear_and_norm(count):
    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        for _ in range(count):
            y = b.node("Identity", y)
        y = b.bn(y, 4)
        for _ in range(count):
            y = b.node("Identity", y)
        return b.bn(y, 4)

    result = check(build)
    assert outcomes(result) == FOLDED * 2


@pytest.mark.parametrize(
    ("opset", "extra", "mask"),
    [(7, [], ""), (10, [], "mask"), (12, ["ratio"], ""), (13, ["ratio"], "mask"), (22, [], "")],
)
def test_dropout_in_eval_mode_hands_its_input_on(opset, extra, mask):
    def build(b: Builder) -> str:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        inputs = [y, *(b.const(np.asarray(0.5)) for _ in extra)]
        attributes = {"ratio": 0.5} if opset < 12 else {}
        b.nodes.append(helper.make_node("Dropout", inputs, ["d", *([mask] if mask else [])], **attributes))
        return b.bn("d", 4)

    assert outcomes(check(build, opset=opset)) == FOLDED


@pytest.mark.parametrize("case", ["training", "maybe training", "mask is read"])
def test_dropout_that_may_drop_is_kept(case):
    b = Builder()
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    inputs = [y]
    if case != "mask is read":
        mode = b.const(np.asarray(True)) if case == "training" else b.input(name="mode", elem=BOOL)
        inputs += [b.const(np.asarray(0.5)), mode]
    b.nodes.append(helper.make_node("Dropout", inputs, ["d", "mask"]))
    b.outputs["mask"] = BOOL
    result = fold_of(b.model(b.bn("d", 4), *(["mask"] if case == "mask is read" else [])))
    assert outcomes(result) == [("kept", "NO_LINEAR_BEFORE")]


# ---------------------------------------------------------------------------------- readers and outputs


@pytest.mark.parametrize(
    "case", ["node", "graph output", "output by another name", "other norm", "node behind Identity"]
)
def test_a_norm_whose_linear_has_another_reader_is_kept(case):
    def build(b: Builder) -> tuple[str, ...]:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        z = b.bn(y, 4)
        match case:
            case "node":
                return z, b.node("Relu", y)
            case "graph output":
                return z, y
            case "output by another name":
                return b.node("Identity", b.node("Identity", y)), z
            case "other norm":
                return z, b.bn(y, 4)
            case _:
                return b.node("Relu", b.node("Identity", y)), z

    assert set(outcomes(check(build))) == {("kept", "OTHER_READER")}


@pytest.mark.parametrize("linear", ["conv", "matmul"])
@pytest.mark.parametrize("tail", ["", "Identity", "two names", "also read", "second norm"])
def test_graph_outputs_keep_their_names(linear, tail):
    def build(b: Builder) -> tuple[str, ...]:
        if linear == "conv":
            y = b.conv(b.input(2, 3, 5), (3, 4), (2,), out="linear")
        else:
            y = b.node("MatMul", b.input("N", 3), b.const(b.values(3, 4)), out="linear")
        y = b.bn(y, 4, out="probability")
        match tail:
            case "Identity":
                return (b.node("Identity", y, out="score"),)
            case "two names":
                return b.node("Identity", y, out="score"), y
            case "also read":
                return b.node("Tanh", y, out="score"), y
            case "second norm":
                return (b.bn(y, 4, out="score"),)
        return (y,)

    result = check(build)
    assert {outcome for outcome, _ in outcomes(result)} == {"folded"}
    assert "BatchNormalization" not in ops(result.model)


def test_an_output_that_is_a_constant_or_an_input_is_left_as_it_is():
    def build(b: Builder) -> tuple[str, ...]:
        y = conv_bn(b)
        b.shapes |= {y: (2, 4, 4), b.initializers[0].name: (4, 3, 2)}
        return y, b.node("Identity", "x"), b.const(b.values(3), "k"), b.initializers[0].name

    assert outcomes(check(build)) == [("kept", "COSTS_MORE")]


def test_the_statistics_of_a_folded_norm_stay_where_somebody_else_reads_them():
    def build(b: Builder) -> tuple[str, ...]:
        y = conv_bn(b)
        return y, b.initializers[-1].name, b.node("Exp", b.initializers[-2].name)

    assert outcomes(check(build)) == FOLDED


# ---------------------------------------------------------------------------------- names


def test_nodes_without_names_and_with_the_same_name():
    def build(b: Builder) -> str:
        y = b.input(2, 3, 5)
        for name in ("", "", "bn", "bn", "bn#2"):
            channels = (3, 3)
            weight = b.const(b.values(*channels, 1))
            y = b.node("Conv", y, weight, name=name)
            parts = [b.const(part) for part in b.statistics(3)]
            y = b.node("Tanh", b.node("BatchNormalization", y, *parts, name=name, epsilon=0.01), name="")
        return y

    result = check(build, runtime=False)  # ONNX Runtime takes no two nodes of one name; ONNX does
    assert outcomes(result) == FOLDED * 5
    names = [row.name for row in result.report.norms]
    assert len(set(names)) == 5


@pytest.mark.parametrize("place", ["initializer", "input", "value", "inside a subgraph", "counted up"])
def test_fresh_names_never_collide(place):
    """The weight 'w', the bias 'b' and their folded names are all taken."""

    def build(b: Builder) -> tuple[str, ...]:
        x = b.input(2, 3, 4)
        w, c = b.const(b.values(4, 3, 1), "w"), b.const(b.values(4), "b")
        y = b.node("Conv", x, w, c, out="y")
        z = b.bn(y, 4, out="z")
        taken = ["w.folded", "b.folded", "z.unfolded"]
        if place == "counted up":
            taken += ["w.folded.2", "b.folded.2", "w.folded.3"]
        match place:
            case "input":
                others = [b.node("Tanh", b.input(2, 3, name=name)) for name in taken]
            case "value":
                others = [b.node("Tanh", x, out=name) for name in taken]
            case "inside a subgraph":
                inner = [helper.make_node("Tanh", ["x"], [name]) for name in taken]
                outs = [helper.make_tensor_value_info(name, b.elem, (2, 3, 4)) for name in taken]
                branch = helper.make_graph(inner, "branch", [], outs)
                flag = b.const(np.asarray(True))
                b.nodes.append(
                    helper.make_node("If", [flag], ["o1", "o2", "o3"], then_branch=branch, else_branch=branch)
                )
                others = ["o1", "o2", "o3"]
            case _:
                others = [b.node("Tanh", b.const(b.values(3), name)) for name in taken]
        return (z, *others)

    result = check(build)
    assert outcomes(result) == FOLDED
    graph = result.model.graph
    names = [t.name for t in graph.initializer] + [v.name for v in graph.input]
    names += [name for node in graph.node for name in node.output]
    assert len(set(names)) == len(names)


def test_the_biased_name_of_a_matrix_product_never_collides():
    def build(b: Builder) -> tuple[str, ...]:
        y = b.node("MatMul", b.input(2, 3), b.const(b.values(3, 4), "m.weight"), out="y")
        others = [b.node("Tanh", b.const(b.values(3), name)) for name in ("y.biased", "m.bias.folded", "m.bias")]
        return (b.bn(y, 4), *others)

    assert outcomes(check(build)) == FOLDED


def test_folding_a_folded_model_finds_nothing_and_changes_nothing():
    model = fold_of(built(conv_bn, FLOAT)).model
    again = fold_of(model)
    assert outcomes(again) == []
    assert again.fold_map == ()
    assert again.model.graph == model.graph


def test_keep_names_a_norm_as_the_report_does():
    def build(b: Builder) -> str:
        return b.bn(b.conv(conv_bn(b), (4, 4), (1,)), 4)

    first, second = (row.name for row in check(build).report.norms)
    model = built(build, FLOAT)
    assert same_in_runtime(model, keep=[first]) == [("kept", "KEEP_ASKED"), ("folded", "")]
    assert same_in_runtime(model, keep=(second,)) == [("folded", ""), ("kept", "KEEP_ASKED")]
    assert same_in_runtime(model, keep="*") == [("kept", "KEEP_ASKED")] * 2
    with pytest.raises(FoldError, match="no norm is called 'nobody'"):
        bnfold.fold(model, keep=["nobody"])


def test_what_is_not_folded_stays_as_it_was():
    def build(b: Builder) -> str:
        return b.node("Elu", b.conv(conv_bn(b), (4, 4), (1,)), alpha=0.5)

    model = built(build, FLOAT)
    model.doc_string, model.producer_name, model.graph.doc_string = "a model", "somebody", "a graph"
    model.metadata_props.add(key="author", value="them")
    model.graph.node[0].doc_string = "the stem"
    folded = fold_of(model).model
    assert (folded.doc_string, folded.producer_name, folded.graph.doc_string) == ("a model", "somebody", "a graph")
    assert [(entry.key, entry.value) for entry in folded.metadata_props] == [("author", "them")]
    assert folded.graph.node[0].doc_string == "the stem"
    assert folded.graph.node[-1] == model.graph.node[-1]
    assert folded.graph.name == model.graph.name


# ---------------------------------------------------------------------------------- initialisers as inputs


def listed(b: Builder, *names: str) -> None:
    for tensor in b.initializers:
        if tensor.name in names or not names:
            b.inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def test_initialisers_listed_as_inputs_are_constants_up_to_ir_version_3():
    def build(b: Builder) -> str:
        return conv_bn(b)

    model = built(build, FLOAT, opset=8, ir_version=3)
    assert len(model.graph.input) == 7
    result = check(build, opset=8, ir_version=3)
    assert outcomes(result) == FOLDED
    assert [value.name for value in result.model.graph.input] == ["x"]


def test_a_model_of_ir_version_3_with_nothing_to_fold_keeps_its_version_and_its_inputs():
    model = built(lambda b: b.conv(b.input(2, 3, 5), (3, 4), (2,)), FLOAT, opset=8, ir_version=3)
    result = fold_of(model)
    assert result.model.ir_version == 3
    assert list(result.model.graph.input) == list(model.graph.input)


@pytest.mark.parametrize("ir_version", [4, 10])
@pytest.mark.parametrize("which", range(6))
def test_a_parameter_that_a_caller_may_override_is_left_alone(which, ir_version):
    """weight, bias, gamma, beta, mean, variance; from IR version 4 on."""
    b = Builder(opset=9, ir_version=ir_version)
    y = conv_bn(b)
    listed(b, b.initializers[which].name)
    model = b.model(y)
    assert same_in_runtime(model) == [("kept", "OVERRIDABLE_WEIGHT")]
    override = feeds(model) | {
        b.initializers[which].name: np.full(
            model.graph.input[-1].type.tensor_type.shape.dim[0].dim_value, 2.0, np.float32
        )
    }
    if which:
        before, after = evaluate(model, override), evaluate(fold_of(model).model, override)
        assert close(after, before, 1e-6)


def test_a_parameter_that_a_caller_may_override_behind_an_identity_is_left_alone():
    b = Builder()
    w = b.const(b.values(4, 3, 2))
    y = b.bn(b.node("Conv", b.input(2, 3, 5), b.node("Identity", w)), 4)
    listed(b, w)
    assert [outcome for outcome, _ in same_in_runtime(b.model(y))] == ["kept"]


# ---------------------------------------------------------------------------------- subgraphs and functions


def branch(b: Builder, nodes: list[onnx.NodeProto], out: str, shape: Any, inputs: Any = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, f"branch_{out}", list(inputs), [helper.make_tensor_value_info(out, b.elem, shape)])


def choose(b: Builder, then: onnx.GraphProto, other: onnx.GraphProto) -> str:
    flag = b.input(1, name="flag", elem=BOOL)
    return b.node("If", flag, then_branch=then, else_branch=other)


def run_both(model: onnx.ModelProto) -> list[tuple[str, str]]:
    result = fold_of(model)
    sessions = [open_session(m.SerializeToString(), optimise=False) for m in (model, result.model)]
    for flag in (True, False):
        inputs = feeds(model) | {"flag": np.asarray([flag])}
        before, after = (list(run(session, inputs).values()) for session in sessions)
        assert close(after, before, 2e-5)
    return outcomes(result)


def test_a_branch_that_reads_the_output_of_the_linear_keeps_the_norm():
    b = Builder()
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    z = b.bn(y, 4)
    then = branch(b, [helper.make_node("Tanh", [y], ["t"])], "t", (2, 4, 4))
    other = branch(b, [helper.make_node("Neg", [y], ["e"])], "e", (2, 4, 4))
    assert run_both(b.model(z, choose(b, then, other))) == [("kept", "OTHER_READER")]


def test_a_branch_that_reads_it_under_another_name_and_two_levels_down_keeps_the_norm_too():
    b = Builder()
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    alias = b.node("Identity", y)
    z = b.bn(y, 4)
    inner = branch(b, [helper.make_node("Tanh", [alias], ["i"])], "i", (2, 4, 4))
    inner_if = helper.make_node("If", ["flag"], ["t"], then_branch=inner, else_branch=inner)
    then = branch(b, [inner_if], "t", (2, 4, 4))
    other = branch(b, [helper.make_node("Neg", ["x2"], ["e"])], "e", (2, 4, 4))
    b.input(2, 4, 4, name="x2")
    assert run_both(b.model(z, choose(b, then, other))) == [("kept", "OTHER_READER")]


def test_a_weight_that_a_branch_reads_too_has_two_users():
    b = Builder()
    z = b.bn(b.conv(b.input(2, 3, 5), (3, 4), (2,)), 4)
    then = branch(b, [helper.make_node("Tanh", [b.initializers[0].name], ["t"])], "t", (4, 3, 2))
    other = branch(b, [helper.make_node("Neg", [b.initializers[0].name], ["e"])], "e", (4, 3, 2))
    assert run_both(b.model(z, choose(b, then, other))) == [("kept", "COSTS_MORE")]


def test_statistics_that_a_branch_reads_too_stay():
    b = Builder()
    z = b.bn(b.conv(b.input(2, 3, 5), (3, 4), (2,)), 4)
    then = branch(b, [helper.make_node("Tanh", [b.initializers[-1].name], ["t"])], "t", (4,))
    other = branch(b, [helper.make_node("Neg", [b.initializers[-2].name], ["e"])], "e", (4,))
    assert run_both(b.model(z, choose(b, then, other))) == FOLDED


@pytest.mark.parametrize("is_output", [False, True])
@pytest.mark.parametrize("linear", ["conv", "matmul"])
def test_a_branch_that_reads_the_output_of_the_norm_reads_the_folded_one(is_output, linear):
    b = Builder()
    if linear == "conv":
        y, shape = b.conv(b.input(2, 3, 5), (3, 4), (2,)), (2, 4, 4)
    else:
        y, shape = b.node("MatMul", b.input(2, 3), b.const(b.values(3, 4))), (2, 4)
    z = b.bn(y, 4)
    then = branch(b, [helper.make_node("Tanh", [z], ["t"])], "t", shape)
    other = branch(b, [helper.make_node("Neg", [z], ["e"])], "e", shape)
    assert run_both(b.model(choose(b, then, other), *([z] if is_output else []))) == FOLDED


def test_norms_inside_subgraphs_have_a_row_and_are_left_alone():
    b = Builder()
    x = b.input(2, 3, 4)
    names = [b.const(part) for part in b.statistics(3)]
    w = b.const(b.values(3, 3, 1))

    def body(out: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Conv", [x, w], [f"{out}_c"]),
            helper.make_node("BatchNormalization", [f"{out}_c", *names], [out], name=f"{out}_bn"),
        ]

    deep = branch(b, body("i"), "i", (2, 3, 4))
    nested = helper.make_node("If", ["flag"], ["t"], then_branch=deep, else_branch=branch(b, body("j"), "j", (2, 3, 4)))
    y = choose(b, branch(b, [nested], "t", (2, 3, 4)), branch(b, body("e"), "e", (2, 3, 4)))
    model = b.model(b.bn(b.conv(y, (3, 4), (1,)), 4))
    assert run_both(model) == [("kept", "INSIDE_SUBGRAPH")] * 3 + FOLDED
    assert len({row.name for row in fold_of(model).report.norms}) == 4


def test_a_loop_body_reads_the_folded_norm_of_the_outer_graph():
    b = Builder()
    z = b.bn(b.conv(b.input(2, 3, 5), (3, 4), (2,)), 4)
    body = helper.make_graph(
        [
            helper.make_node("Add", ["acc", z], ["next"]),
            helper.make_node("Identity", ["go"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, ()),
            helper.make_tensor_value_info("go", BOOL, ()),
            helper.make_tensor_value_info("acc", b.elem, (2, 4, 4)),
        ],
        [helper.make_tensor_value_info("still", BOOL, ()), helper.make_tensor_value_info("next", b.elem, (2, 4, 4))],
    )
    start = b.const(np.zeros((2, 4, 4)))
    y = b.node("Loop", b.const(np.asarray(3)), b.const(np.asarray(True)), start, body=body)
    b.shapes[y] = (2, 4, 4)
    assert same_in_runtime(b.model(y)) == FOLDED


def function(name: str, nodes: list[onnx.NodeProto], inputs: list[str], out: str, *, domain: str = "local") -> Any:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function(domain, name, inputs, [out], nodes, imports)


STATISTICS = ["gamma", "beta", "mean", "variance"]


@pytest.mark.parametrize("nested", [False, True])
def test_norms_inside_functions_have_a_row_and_are_left_alone(nested):
    b = Builder()
    b.domains["local"] = 1
    inner = helper.make_node("BatchNormalization", ["v", *STATISTICS], ["w"], name="inner")
    b.functions.append(function("Normed", [inner], ["v", *STATISTICS], "w"))
    called = "Normed"
    if nested:
        call = helper.make_node("Normed", ["v", *STATISTICS], ["w"], domain="local")
        b.functions.append(function("Outer", [call], ["v", *STATISTICS], "w"))
        called = "Outer"
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    z = b.node(called, y, *(b.const(part) for part in b.statistics(4)), domain="local")
    b.shapes["out"] = (2, 4, 4)
    model = b.model(b.bn(b.conv(z, (4, 4), (1,)), 4, out="out"))
    assert same_in_runtime(model) == [("kept", "INSIDE_FUNCTION"), ("folded", "")]


def test_a_function_called_inside_a_branch_has_rows_too():
    b = Builder()
    b.domains["local"] = 1
    inner = helper.make_node("BatchNormalization", ["v", *STATISTICS], ["w"], name="inner")
    b.functions.append(function("Normed", [inner], ["v", *STATISTICS], "w"))
    x = b.input(2, 3, 4)
    names = [b.const(part) for part in b.statistics(3)]
    call = helper.make_node("Normed", [x, *names], ["t"], domain="local")
    other = branch(b, [helper.make_node("Neg", [x], ["e"])], "e", (2, 3, 4))
    model = b.model(choose(b, branch(b, [call], "t", (2, 3, 4)), other))
    assert run_both(model) == [("kept", "INSIDE_SUBGRAPH")]


@pytest.mark.parametrize("op", ["Conv", "BatchNormalization", "Identity", "Sqrt"])
def test_a_function_that_takes_the_name_of_a_standard_operator_is_opaque(op):
    """The standard leaves it to the runtime which of the two a node then means."""
    b = Builder()
    x = b.input(2, 3, 5)
    w = b.const(b.values(4, 3, 1, positive=True))
    deviation = b.const(b.values(4, 1, positive=True))
    y = b.node("Identity", b.node("Conv", x, w))
    if op == "Sqrt":
        y = b.node("Mul", y, b.node("Sqrt", deviation))
    y = b.bn(y, 4)
    model = b.model(y)
    arity = {"Conv": 2, "BatchNormalization": 5}.get(op, 1)
    names = [f"i{at}" for at in range(arity)]
    imposter = [helper.make_node("Tanh", ["i0"], ["o"])]
    model.functions.append(helper.make_function("", op, names, ["o"], imposter, [helper.make_opsetid("", 17)]))
    _, report, fold_map = onnx_graph.fold(ir.from_proto(model))
    assert fold_map == ()
    assert all(row.outcome == "kept" for row in report.norms)


# ---------------------------------------------------------------------------------- what only looks like one


@pytest.mark.parametrize("op", ["Conv", "BatchNormalization", "Identity", "Add", "Dropout", "Constant"])
def test_an_operator_of_another_domain_is_opaque_whatever_its_name(op):
    b = Builder()
    b.domains["my.domain"] = 1
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    names = [b.const(part) for part in b.statistics(4)]
    match op:
        case "Conv":
            z = b.node("Conv", "x", b.initializers[0].name, domain="my.domain")
        case "BatchNormalization":
            z = b.node("BatchNormalization", y, *names, domain="my.domain")
        case "Constant":
            z = b.node("Conv", "x", b.node("Constant", value=b.tensor(b.values(4, 3, 2)), domain="my.domain"))
        case _:
            z = b.node(op, y, *([names[0]] if op == "Add" else []), domain="my.domain")
    b.shapes["z"] = (2, 4, 4)
    result = fold_of(b.model(b.node("BatchNormalization", z, *names, out="z")))
    assert [outcome for outcome, _ in outcomes(result)] == ["kept"]
    assert result.fold_map == ()


def test_operators_that_name_the_standard_domain_are_the_standard_ones():
    model = built(conv_bn, FLOAT)
    for node in model.graph.node:
        node.domain = "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    _, report, _ = onnx_graph.fold(ir.from_proto(model))
    assert [row.outcome for row in report.norms] == ["folded"]


def test_quantised_layers_are_left_alone():
    b = Builder()
    x = b.input(2, 3, 5)
    scale, zero = b.const(np.asarray(0.05)), b.const(np.asarray(0, np.int8))
    weight = b.const(np.arange(-12, 12).reshape(4, 3, 2).astype(np.int8))
    q = b.node("QuantizeLinear", x, scale, zero)
    y = b.node("QLinearConv", q, scale, zero, weight, scale, zero, scale, zero)
    z = b.bn(b.node("DequantizeLinear", y, scale, zero), 4)
    w = b.node("DequantizeLinear", b.const(np.arange(-8, 8).reshape(4, 4, 1).astype(np.int8)), scale, zero)
    model = b.model(b.bn(b.node("Conv", z, w), 4))
    assert same_in_runtime(model) == [("kept", "COMPUTED_WEIGHT")] * 2


def test_a_custom_node_without_outputs_or_names_is_a_reader_like_any_other():
    b = Builder()
    b.domains["my.domain"] = 1
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    z = b.bn(y, 4, out="z")
    for name in ("", "z"):  # a name that is the id of the norm, too
        b.nodes.append(helper.make_node("Log", [y], [], name=name, domain="my.domain"))
        b.nodes.append(helper.make_node("Log", [y], [""], name=name, domain="my.domain"))
    for count in (4, 3, 2, 1):
        del b.nodes[2 + count :]
        result = fold_of(b.model(z))
        assert outcomes(result) == [("kept", "OTHER_READER")]
    b.nodes[2:] = [helper.make_node("Log", [y], [], name="z", domain="my.domain")]
    assert outcomes(fold_of(b.model(z))) == [("kept", "OTHER_READER")]


def test_an_operator_that_nobody_knows_is_opaque():
    b = Builder()
    b.domains["my.domain"] = 1
    y = b.node("Mystery", b.conv(b.input(2, 3, 5), (3, 4), (2,)), domain="my.domain", mode="any")
    b.shapes["z"] = (2, 4, 4)
    ((outcome, _),) = outcomes(fold_of(b.model(b.bn(y, 4, out="z"))))
    assert outcome == "kept"


def test_a_sparse_weight_is_told():
    b = Builder()
    values = helper.make_tensor("w", FLOAT, [2], [1.0, 2.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("w_at", INT64, [2], [0, 5]), [4, 3])
    y = b.node("MatMul", b.input(2, 4), "w")
    z = b.bn(y, 3, out="z")
    b.shapes["z"] = (2, 3)
    model = b.model(z, check=False)
    model.graph.sparse_initializer.append(sparse)
    onnx.checker.check_model(model)
    with pytest.raises(FoldError, match="sparse initialiser 'w'"):
        bnfold.fold(model)


# ---------------------------------------------------------------------------------- shapes that are not true


@pytest.mark.parametrize("lie", [(2, 4), (8, 4), ("a", "b")])
@pytest.mark.parametrize("place", ["value", "graph output", "branch", "weight"])
def test_a_shape_that_the_file_states_of_an_inner_value_proves_nothing(place, lie):
    """The data have rank 3, whatever the file says; ONNX Runtime warns and runs it."""
    b = Builder()
    x = b.input(2, 4, 3)
    v = "v"
    if place == "branch":
        shape = (2, 3) if lie[0] == 2 else (None, None)
        parts = [branch(b, [helper.make_node(op, [x], [op])], op, shape) for op in ("Tanh", "Neg")]
        b.nodes.append(
            helper.make_node(
                "If", [b.input(1, name="flag", elem=BOOL)], [v], then_branch=parts[0], else_branch=parts[1]
            )
        )
    else:
        b.node("Tanh", x, out=v)
    w = b.const(b.values(3, 4))
    z = b.bn(b.node("MatMul", v, w), 4, out="z")
    b.shapes |= {"z": (2, 4, 4), "v": lie}
    if place in ("value", "weight"):
        b.infos.append(helper.make_tensor_value_info(v if place == "value" else w, b.elem, lie))
    model = b.model(z, *([v] if place == "graph output" else []), check=False)
    result = bnfold.fold(model)
    assert [outcome for outcome, _ in outcomes(result)] == ["kept"]
    inputs = feeds(model) | ({"flag": np.asarray([True])} if place == "branch" else {})
    sessions = [open_session(m.SerializeToString(), optimise=False) for m in (model, result.model)]
    before, after = (list(run(session, inputs).values()) for session in sessions)
    assert close(after, before, 1e-6)


def test_the_shape_that_a_file_states_stays_in_it():
    def build(b: Builder) -> str:
        y = conv_bn(b)
        b.infos.append(helper.make_tensor_value_info("t", b.elem, (2, 4, 4)))
        return b.conv(b.node("Tanh", y, out="t"), (4, 4), (1,))

    model = built(build, FLOAT)
    assert [info for info in fold_of(model).model.graph.value_info if info.name == "t"] == [model.graph.value_info[0]]


# ---------------------------------------------------------------------------------- ONNX IR in memory


def in_memory(build: Any = conv_bn, **given: Any) -> ir.Model:
    return onnx_file.from_proto(built(build, FLOAT, **given))


def test_a_model_in_memory_is_folded_into_another_one():
    model = in_memory()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = bnfold.fold(model)
    assert isinstance(result.model, ir.Model)
    assert outcomes(result) == FOLDED
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_folded_model_in_memory_shares_no_storage_with_its_source():
    def build(b: Builder) -> str:
        y = conv_bn(b)
        constant = b.node("Constant", value=b.tensor(b.values(4, 4, 1)))
        return b.conv(b.node("Conv", y, constant), (4, 2), (1,))

    source = in_memory(build)
    for value in source.graph.initializers.values():  # arrays that can be written to
        value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    folded = bnfold.fold(source).model

    def arrays(model: ir.Model) -> list[Any]:
        stored = [value.const_value.numpy() for value in model.graph.initializers.values()]
        return stored + [a.as_tensor().numpy() for n in model.graph for a in n.attributes.values() if a.name == "value"]

    assert len(arrays(folded)) == 5
    assert not any(np.shares_memory(a, b) for a in arrays(source) for b in arrays(folded))


def shuffled(model: ir.Model, order: list[int]) -> ir.Model:
    nodes = list(model.graph)
    model.graph.remove(nodes)
    model.graph.extend([nodes[at] for at in order])
    return model


def test_nodes_in_no_order_are_told():
    """A reader that comes before the Identity that hands it the linear's output would go unseen."""

    def build(b: Builder) -> tuple[str, str]:
        y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
        alias = b.node("Identity", y)
        return b.bn(y, 4), b.node("Relu", alias)

    model = shuffled(in_memory(build), [3, 2, 1, 0])
    with pytest.raises(FoldError, match="not in topological order"):
        bnfold.fold(model)
    assert [node.op_type for node in model.graph] == ["Relu", "BatchNormalization", "Identity", "Conv"]
    model.graph.sort()
    assert outcomes(bnfold.fold(model)) == [("kept", "OTHER_READER")]


def test_two_values_of_one_name_are_told_and_not_mixed_up():
    model = in_memory(lambda b: (conv_bn(b), b.node("Tanh", b.node("Exp", "x"))))
    nodes = list(model.graph)
    nodes[2].outputs[0].name = nodes[0].outputs[0].name
    with pytest.raises(FoldError, match=r"two values .* name"):
        bnfold.fold(model)


def test_a_model_with_a_cycle_is_told():
    model = in_memory(lambda b: b.node("Tanh", conv_bn(b)))
    conv, _, last = list(model.graph)
    conv.replace_input_with(0, last.outputs[0])
    with pytest.raises(FoldError, match="not in topological order"):
        bnfold.fold(model)


def test_a_node_with_too_few_inputs_is_opaque():
    """Nothing that onnx.checker lets pass, but a model in memory is not checked by it."""
    for op, wanted in (("Conv", 1), ("BatchNormalization", 2), ("Gemm", 1), ("MatMul", 1), ("Add", 1), ("Reshape", 1)):
        model = in_memory()
        graph = model.graph
        node = next(iter(graph))
        node.op_type = op
        node.resize_inputs(wanted)
        _, report, fold_map = onnx_graph.fold(model)
        assert fold_map == ()
        assert report.norms


# ---------------------------------------------------------------------------------- depth and size


@pytest.mark.parametrize("where", ["weight", "data", "statistics"])
def test_a_long_chain_of_identities(where):
    def chain(b: Builder, y: str) -> str:
        for _ in range(3000):
            y = b.node("Identity", y)
        return y

    b = Builder()
    w = b.const(b.values(4, 3, 2))
    y = b.node("Conv", b.input(2, 3, 5), chain(b, w) if where == "weight" else w)
    names = [b.const(part) for part in b.statistics(4)]
    names[3] = chain(b, names[3]) if where == "statistics" else names[3]
    model = b.model(b.node("BatchNormalization", chain(b, y) if where == "data" else y, *names))
    assert outcomes(fold_of(model)) == FOLDED


@pytest.mark.parametrize("op", ["Neg", "Sqrt", "Add"])
def test_a_long_computation_of_a_constant_is_left_alone(op):
    b = Builder()
    c = b.const(b.values(4, positive=True))
    one = b.const(np.asarray(0.5))
    for _ in range(3000):
        c = b.node(op, c, *([one] if op == "Add" else []))
    names = [b.const(part) for part in b.statistics(4)]
    model = b.model(
        b.node("BatchNormalization", b.conv(b.input(2, 3, 5), (3, 4), (2,)), names[0], names[1], names[2], c)
    )
    assert [outcome for outcome, _ in outcomes(fold_of(model))] == ["refused"]


def test_a_constant_that_is_doubled_sixty_times_takes_no_exponential_time():
    b = Builder()
    c = b.const(b.values(4, 1, positive=True))
    for _ in range(60):
        c = b.node("Add", c, c)
    y = b.node("Mul", b.conv(b.input(2, 3, 5), (3, 4), (2,)), c)
    assert all(outcome == "kept" for outcome, _ in outcomes(fold_of(b.model(b.bn(y, 4)))))


def test_a_long_chain_of_steps_is_composed_as_far_as_is_sane():
    b = Builder()
    y = b.conv(b.input(2, 3, 5), (3, 4), (2,))
    for at in range(300):
        sign = np.where(np.arange(4) % 2, 1.0, -1.0)
        y = b.node("Mul" if at % 2 else "Add", y, b.const((sign if at % 2 else sign * at / 64.0)[:, None]))
    model = b.model(y)
    result = fold_of(model)
    inputs = feeds(model)
    assert {outcome for outcome, _ in outcomes(result)} == {"folded"}
    assert close(evaluate(result.model, inputs), evaluate(model, inputs), 1e-4)


def test_a_network_of_two_thousand_nodes():
    """Five hundred blocks; what a wrong order of growth would cost is minutes."""
    b = Builder()
    y = b.input(1, 2, 1)
    for _ in range(500):
        y = b.node("Tanh", b.bn(b.node("Identity", b.conv(y, (2, 2), (1,))), 2))
    assert outcomes(fold_of(b.model(y))) == FOLDED * 500
