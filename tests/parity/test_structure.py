from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from parity_networks import small_cnn

from bnfold.parity.structure import differences

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
