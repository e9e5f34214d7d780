from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from parity_networks import small_cnn

from bnfold.parity.weights.structure import differences
from bnfold.runtime import open_session, run

FLOAT = onnx.TensorProto.FLOAT


def conditional(value: float = 2.0, flag: str = "flag", body: str = "Constant") -> ir.Model:
    """y = x + (value if flag else 1), with the values in the branches of an If."""

    def branch(name: str, number: float, op: str) -> onnx.GraphProto:
        tensor = numpy_helper.from_array(np.array([number], np.float32))
        nodes = [helper.make_node("Constant", [], [f"{name}_c"], value=tensor)]
        nodes.append(helper.make_node("Neg" if op == "Neg" else "Identity", [f"{name}_c"], [name]))
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, FLOAT, [1])])

    chosen = helper.make_node(
        "If", ["flag"], ["chosen"], then_branch=branch("then", value, body), else_branch=branch("else", 1, "")
    )
    graph = helper.make_graph(
        [chosen, helper.make_node("Add", ["x", "chosen"], ["y"])],
        "conditional",
        [
            helper.make_tensor_value_info("x", FLOAT, [1]),
            helper.make_tensor_value_info(flag, onnx.TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", FLOAT, [1])],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def test_a_graph_is_itself() -> None:
    model = ir.from_proto(small_cnn())
    assert differences(model, model.clone()) == ()
    assert differences(conditional(), conditional()) == ()


def test_names_of_nodes_and_documentation_do_not_count() -> None:
    model = small_cnn()
    other = small_cnn()
    for node in other.graph.node:
        node.name = f"renamed_{node.name}"
        node.doc_string = "another exporter"
    other.producer_name = "somebody"
    assert differences(ir.from_proto(model), ir.from_proto(other)) == ()


def test_sees_into_subgraphs() -> None:
    (found,) = differences(conditional(2.0), conditional(3.0))
    assert "then_branch" in found
    assert "other numbers" in found
    (found,) = differences(conditional(), conditional(body="Neg"))
    assert "Neg" in found


def test_sees_another_graph_input() -> None:
    assert "graph inputs" in differences(conditional(), conditional(flag="other"))[0]


def test_a_recomputed_tensor_is_compared_by_shape_alone() -> None:
    model, other = small_cnn(0), small_cnn(0)
    tensor = next(t for t in other.graph.initializer if t.name == "head.linear.bias")
    changed = numpy_helper.to_array(tensor) + np.float32(1)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    pair = ir.from_proto(model), ir.from_proto(other)
    assert len(differences(*pair)) == 1
    assert differences(*pair, recomputed=("head.linear.bias",)) == ()


def test_a_zero_of_the_other_sign_is_another_tensor() -> None:
    model, other = small_cnn(0), small_cnn(0)
    for proto, zero in ((model, 0.0), (other, -0.0)):
        tensor = next(t for t in proto.graph.initializer if t.name == "head.linear.bias")
        tensor.CopyFrom(numpy_helper.from_array(np.full(10, zero, np.float32), tensor.name))
    assert len(differences(ir.from_proto(model), ir.from_proto(other))) == 1


def test_many_differences_are_counted_not_listed() -> None:
    model, other = small_cnn(0), small_cnn(1)
    found = differences(ir.from_proto(model), ir.from_proto(other))
    assert len(found) == 21
    assert "more differences" in found[-1]


def _attribute_gone(model: ir.Model) -> str:
    next(iter(model.graph)).attributes.pop("strides")
    return "no attribute 'strides'"


def _attribute_new(model: ir.Model) -> str:
    next(iter(model.graph)).attributes.add(ir.AttrInt64("extra", 1))
    return "unexpected attribute 'extra'"


def _attribute_of_another_type(model: ir.Model) -> str:
    node = next(iter(model.graph))
    node.attributes.add(ir.AttrFloat32("group", 1.0))
    return "of type FLOAT"


def _attribute_float(model: ir.Model) -> str:
    node = next(node for node in model.graph if node.op_type == "Gemm")
    node.attributes.add(ir.AttrFloat32("alpha", 0.5000001))
    return "'alpha' is 0.5000001"


def _another_domain(model: ir.Model) -> str:
    next(iter(model.graph)).domain = "com.example"
    return "domain 'com.example'"


def _a_function(model: ir.Model) -> str:
    x = ir.Value(name="x")
    body = ir.Graph([x], [x], nodes=[], name="body")
    function = ir.Function("com.example", "F", graph=body, attributes=[])
    model.functions[function.identifier()] = function
    return "local functions"


def _node_missing(model: ir.Model) -> str:
    last = list(model.graph)[-1]
    model.graph.outputs[0] = last.inputs[0]  # type: ignore[assignment]
    model.graph.remove(last)
    return "Gemm"


def _data_missing(model: ir.Model) -> str:
    model.graph.initializers["head.linear.bias"].const_value = None
    return "'head.linear.bias' has no data"


def _tensor_new(model: ir.Model) -> str:
    tensor = ir.tensor(np.zeros(2, np.float32), name="spare")
    model.graph.register_initializer(ir.Value(name="spare", const_value=tensor))
    return "tensor 'spare' is not in the fold"


@pytest.mark.parametrize(
    "change",
    [_attribute_gone, _attribute_new, _attribute_of_another_type, _attribute_float, _another_domain, _a_function,
     _node_missing, _data_missing, _tensor_new],
)  # fmt: skip
def test_names_every_kind_of_difference(change: Callable[[ir.Model], str]) -> None:
    model, other = ir.from_proto(small_cnn()), ir.from_proto(small_cnn())
    named = change(other)
    found = differences(model, other)
    assert any(named in sentence for sentence in found), found


def compressed(rows: int | str | None, elem: int = FLOAT) -> onnx.ModelProto:
    """The positive elements of x times their number, whose count the graph may state for an inner value: "y"."""
    graph = helper.make_graph(
        [
            helper.make_node("Greater", ["x", "zero"], ["positive"]),
            helper.make_node("Compress", ["x", "positive"], ["y"], axis=0),
            helper.make_node("Shape", ["y"], ["shape"]),
            helper.make_node("Cast", ["shape"], ["count"], to=FLOAT),
            helper.make_node("Mul", ["x", "count"], ["out"]),
        ],
        "compressed",
        [helper.make_tensor_value_info("x", FLOAT, ["N"])],
        [helper.make_tensor_value_info("out", FLOAT, ["N"])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )
    if rows is not None:
        graph.value_info.append(helper.make_tensor_value_info("y", elem, [rows]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_sees_a_stated_inner_shape_which_the_runtime_believes() -> None:
    x = np.array([1, -1, 2], np.float32)
    for rows, found in ((None, [2, -2, 4]), (7, [7, -7, 14])):  # the control: it computes something else
        session = open_session(compressed(rows).SerializeToString(), optimise=True)
        np.testing.assert_array_equal(run(session, {"x": x})["out"], found)
    plain = ir.from_proto(compressed(None))
    (sentence,) = differences(plain, ir.from_proto(compressed(7)))
    assert "Compress" in sentence
    assert "[7]" in sentence
    assert differences(ir.from_proto(compressed("K")), ir.from_proto(compressed("N")))
    assert differences(ir.from_proto(compressed("K")), ir.from_proto(compressed("K"))) == ()
    assert differences(ir.from_proto(compressed("K")), plain) == ()  # says less, which misleads nobody


def test_compares_tensors_of_text() -> None:
    def with_text(*words: str) -> ir.Model:
        model = small_cnn(0)
        data = [word.encode() for word in words]
        model.graph.initializer.append(helper.make_tensor("words", onnx.TensorProto.STRING, [len(data)], data))
        return ir.from_proto(model)

    assert differences(with_text("a", "b"), with_text("a", "b")) == ()
    assert "'words'" in differences(with_text("a", "b"), with_text("ab", ""))[0]


def test_sees_into_lists_of_graphs() -> None:
    def nested(*values: float) -> ir.Model:
        model = ir.from_proto(small_cnn())
        graphs = []
        for value in values:
            constant = ir.node("Constant", [], attributes={"value_float": value}, outputs=[ir.Value(name="c")])
            graphs.append(ir.Graph([], list(constant.outputs), nodes=[constant], name="inner"))
        next(iter(model.graph)).attributes.add(ir.AttrGraphs("branches", graphs))
        return model

    assert differences(nested(1.0, 2.0), nested(1.0, 2.0)) == ()
    assert "value_float" in differences(nested(1.0, 2.0), nested(1.0, 3.0))[0]
    assert "has 1 graphs; expected 2" in differences(nested(1.0, 2.0), nested(1.0))[0]


def test_sees_into_functions() -> None:
    def with_function(op: str) -> ir.Model:
        model = ir.from_proto(small_cnn())
        x = ir.Value(name="x")
        node = ir.node(op, [x], outputs=[ir.Value(name="y")])
        body = ir.Graph([x], list(node.outputs), nodes=[node], name="body")
        function = ir.Function("com.example", "F", graph=body, attributes=[])
        model.functions[function.identifier()] = function
        return model

    assert differences(with_function("Neg"), with_function("Neg")) == ()
    assert "function 'F'" in differences(with_function("Neg"), with_function("Abs"))[0]


def test_sees_that_a_function_takes_its_inputs_in_another_order() -> None:
    def with_function(inputs: str) -> ir.Model:
        model = ir.from_proto(small_cnn())
        values = {name: ir.Value(name=name) for name in "ab"}
        node = ir.node("Sub", list(values.values()), outputs=[ir.Value(name="y")])
        body = ir.Graph([values[name] for name in inputs], list(node.outputs), nodes=[node], name="body")
        function = ir.Function("com.example", "F", graph=body, attributes=[])
        model.functions[function.identifier()] = function
        return model

    assert differences(with_function("ab"), with_function("ab")) == ()
    assert "function 'F' has other inputs" in differences(with_function("ab"), with_function("ba"))[0]
