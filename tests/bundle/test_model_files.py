from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from bundle_drafts import make_model, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bnfold.bundle.manifest import TensorSpec
from bnfold.bundle.modelfile import check_model, check_specs, parse_model, tensor_specs
from bnfold.errors import BundleError


@pytest.fixture
def model() -> onnx.ModelProto:
    return make_model(tensors())


def refused(model: onnx.ModelProto, sidecar_bytes: int | None = None) -> str:
    with pytest.raises(BundleError) as caught:
        check_model(model, "m.onnx", sidecar_bytes=sidecar_bytes)
    assert "expected" in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_takes_an_ordinary_model(model: onnx.ModelProto) -> None:
    check_model(parse_model(model.SerializeToString(), "m.onnx"), "m.onnx")
    model.opset_import[0].domain = "ai.onnx"
    check_model(model, "m.onnx")


@pytest.mark.parametrize("version", [0, 2, 14, 2**62])
def test_refuses_an_ir_version_that_the_runtime_does_not_read(version: int, model: onnx.ModelProto) -> None:
    model.ir_version = version
    assert f"has IR version {version}" in refused(model)


@pytest.mark.parametrize("version", [0, -1, 27])
def test_refuses_an_operator_set_that_the_runtime_does_not_read(version: int, model: onnx.ModelProto) -> None:
    model.opset_import[0].version = version
    assert f"imports operator set {version}" in refused(model)


def test_refuses_other_imports(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    assert "imports the operator domain 'com.evil'" in refused(model)
    model.opset_import[1].domain = "ai.onnx"
    assert "imports 2 operator sets" in refused(model)
    del model.opset_import[:]
    assert "imports 0 operator sets" in refused(model)


@pytest.mark.parametrize("names", [("value_float", "value"), ("value", "value_float"), ()])
def test_refuses_a_constant_whose_value_depends_on_who_reads_it(names: tuple[str, ...], model: onnx.ModelProto) -> None:
    """ONNX Runtime takes the first attribute, whatever it is; other readers take the one that they know best."""
    values = {"value_float": 2.0, "value": numpy_helper.from_array(np.float32(5))}
    node = helper.make_node("Constant", [], ["spare"])
    node.attribute.extend(helper.make_attribute(name, values[name]) for name in names)
    model.graph.node.insert(0, node)
    assert f"Constant 'spare' with {len(names)} values" in refused(model)
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value_float", 2.0))
    model.graph.node[0].CopyFrom(node)
    check_model(model, "m.onnx")


def test_refuses_an_operator_of_another_domain(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "com.microsoft"
    assert "has the operator 'com.microsoft::Gemm'" in refused(model)


def nested(model: onnx.ModelProto, depth: int, domain: str = "") -> onnx.ModelProto:
    graph = helper.make_graph([helper.make_node("Evil", [], ["x"], domain=domain)], "g", [], [])
    for _ in range(depth):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["x"], then_branch=graph)], "g", [], [])
    model.graph.node.extend(graph.node)
    return model


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_refuses_an_operator_of_another_domain_in_a_nested_graph(depth: int) -> None:
    check_model(nested(make_model(tensors()), depth), "m.onnx")
    assert "com.evil::Evil" in refused(nested(make_model(tensors()), depth, "com.evil"))


def test_refuses_graphs_nested_without_end(model: onnx.ModelProto) -> None:
    assert "nests graphs deeper" in refused(nested(model, 20))


def test_refuses_bytes_nested_beyond_the_parser() -> None:
    data = b""
    for _ in range(300):  # a graph (7) with a node (1) with an attribute (5) with a graph (6), and so on
        for field in (6, 5, 1):
            data = bytes([field << 3 | 2]) + varint(len(data)) + data
    with pytest.raises(BundleError, match="is no ONNX model"):
        parse_model(bytes([7 << 3 | 2]) + varint(len(data)) + data, "m.onnx")


def varint(number: int) -> bytes:
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def test_refuses_functions_and_training(model: onnx.ModelProto) -> None:
    model.functions.add(name="Gemm", domain="")
    assert "local functions" in refused(model)
    del model.functions[:]
    model.training_info.add()
    assert "training information" in refused(model)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_reads_or_refuses_any_bytes(data: bytes) -> None:
    try:
        check_model(parse_model(data, "m.onnx"), "m.onnx")
    except BundleError:
        return
    assert onnx.ModelProto.FromString(data).HasField("graph")


# Tensors


def initialiser(model: onnx.ModelProto, **fields: object) -> onnx.ModelProto:
    del model.graph.initializer[:]
    model.graph.initializer.append(TensorProto(name="w", **fields))
    return model


FLOAT, DOUBLE, INT4, STRING, COMPLEX, INT64 = 1, 11, 22, 8, 14, 7


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"data_type": FLOAT, "dims": [2], "raw_data": bytes(8)}, True),
        ({"data_type": FLOAT, "dims": [2], "float_data": [1, 2]}, True),
        ({"data_type": FLOAT, "dims": [], "float_data": [1]}, True),
        ({"data_type": FLOAT, "dims": [0]}, True),
        ({"data_type": INT64, "dims": [0], "raw_data": b""}, True),
        ({"data_type": DOUBLE, "dims": [1], "double_data": [1]}, True),
        ({"data_type": COMPLEX, "dims": [1], "float_data": [1, 2]}, True),
        ({"data_type": INT4, "dims": [3], "raw_data": bytes(2)}, True),
        ({"data_type": INT4, "dims": [3], "int32_data": [1, 2]}, True),
        ({"data_type": STRING, "dims": [1], "string_data": [b"a"]}, True),
        ({"data_type": FLOAT, "dims": [2], "raw_data": bytes(7)}, False),
        ({"data_type": FLOAT, "dims": [2], "raw_data": bytes(9)}, False),
        ({"data_type": FLOAT, "dims": [2]}, False),
        ({"data_type": FLOAT, "dims": [1], "raw_data": bytes(4), "float_data": [1]}, False),
        ({"data_type": FLOAT, "dims": [1], "int32_data": [1]}, False),
        ({"data_type": FLOAT, "dims": [1], "float_data": [1], "int32_data": [1]}, False),
        ({"data_type": FLOAT, "dims": [2**40, 2**40], "raw_data": bytes(4)}, False),
        ({"data_type": FLOAT, "dims": [2**62, 4], "raw_data": b""}, False),  # 2**64, which is 0 in 64 bits
        ({"data_type": FLOAT, "dims": [-1, -1], "raw_data": bytes(4)}, False),
        ({"data_type": FLOAT, "dims": [1] * 33, "raw_data": bytes(4)}, False),
        ({"data_type": COMPLEX, "dims": [1], "float_data": [1]}, False),
        ({"data_type": STRING, "dims": [2], "string_data": [b"a"]}, False),
        ({"data_type": STRING, "dims": [1], "raw_data": b"a"}, False),
        ({"data_type": 0, "dims": [0]}, False),
        ({"data_type": 99, "dims": [0]}, False),
        ({"data_type": FLOAT, "dims": [1], "raw_data": bytes(4), "segment": TensorProto.Segment(begin=0)}, False),
    ],
)
@pytest.mark.parametrize("place", ["initializer", "attribute", "attributes", "nested"])
def test_a_tensor_has_as_much_data_as_it_declares(
    fields: dict[str, object], fits: bool, place: str, model: onnx.ModelProto
) -> None:
    tensor = TensorProto(name="w", **fields)
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "attribute":
        model.graph.node[0].attribute.add(name="value").t.CopyFrom(tensor)
    elif place == "attributes":
        model.graph.node[0].attribute.add(name="values").tensors.append(tensor)
    else:
        model.graph.node[0].attribute.add(name="body").g.initializer.append(tensor)
    if fits:
        check_model(model, "m.onnx")
    else:
        assert "tensor 'w'" in refused(model)


@settings(max_examples=100, deadline=None)
@given(
    dtype=st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "uint64", "bool"]),
    shape=st.lists(st.integers(0, 4), max_size=4),
    cut=st.integers(1, 3),
)
def test_takes_what_onnx_writes_and_not_a_byte_less(dtype: str, shape: list[int], cut: int) -> None:
    model = make_model(tensors())
    tensor = numpy_helper.from_array(np.zeros(shape, dtype), "w")
    model.graph.initializer.append(tensor)
    check_model(model, "m.onnx")
    model.graph.initializer[-1].raw_data = tensor.raw_data + bytes(cut)
    refused(model)


def test_refuses_sparse_tensors_of_any_dense_size(model: onnx.ModelProto) -> None:
    sparse = onnx.SparseTensorProto(dims=[2**40])
    model.graph.sparse_initializer.append(sparse)
    assert "has a sparse tensor" in refused(model)
    del model.graph.sparse_initializer[:]
    check_model(model, "m.onnx")
    model.graph.node[0].attribute.add(name="value").sparse_tensor.CopyFrom(sparse)
    assert "has a sparse tensor" in refused(model)
    model.graph.node[0].attribute[-1].ClearField("sparse_tensor")
    model.graph.node[0].attribute[-1].sparse_tensors.append(sparse)
    assert "has a sparse tensor" in refused(model)


def external(model: onnx.ModelProto, *entries: tuple[str, str], **fields: object) -> onnx.ModelProto:
    initialiser(model, data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL, **fields)
    for key, value in entries:
        model.graph.initializer[0].external_data.add(key=key, value=value)
    return model


HERE = ("location", "model.onnx.data")


def test_takes_a_span_of_the_sidecar(model: onnx.ModelProto) -> None:
    check_model(external(model, HERE, ("offset", "8"), ("length", "8")), "m.onnx", sidecar_bytes=16)


@pytest.mark.parametrize(
    "entries",
    [
        [HERE, ("offset", "9"), ("length", "8")],
        [HERE, ("offset", "-8"), ("length", "8")],
        [HERE, ("offset", "0"), ("length", "4")],
        [HERE, ("offset", "0"), ("length", "16")],
        [HERE, ("offset", "0x0"), ("length", "8")],
        [HERE, ("offset", "0"), ("length", "٨")],
        [HERE, ("offset", "9" * 400), ("length", "8")],
        [HERE, ("length", "8")],
        [HERE, ("offset", "0")],
        [HERE, ("offset", "0"), ("length", "8"), ("checksum", "0")],
        [HERE, ("offset", "0"), ("offset", "8"), ("length", "8")],
        [("location", "/etc/passwd"), ("offset", "0"), ("length", "8")],
        [("location", "../model.onnx.data"), ("offset", "0"), ("length", "8")],
        [("location", "./model.onnx.data"), ("offset", "0"), ("length", "8")],
        [("location", "other.data"), ("offset", "0"), ("length", "8")],
        [],
    ],
)
def test_refuses_any_other_external_data(entries: list[tuple[str, str]], model: onnx.ModelProto) -> None:
    refused(external(model, *entries), sidecar_bytes=16)


def test_refuses_a_sidecar_that_is_not_listed(model: onnx.ModelProto) -> None:
    refused(external(model, HERE, ("offset", "0"), ("length", "8")))


def test_refuses_data_in_two_places(model: onnx.ModelProto) -> None:
    span = [HERE, ("offset", "0"), ("length", "8")]
    refused(external(model, *span, raw_data=bytes(8)), sidecar_bytes=16)
    model.graph.initializer[0].ClearField("raw_data")
    check_model(model, "m.onnx", sidecar_bytes=16)
    model.graph.initializer[0].data_location = TensorProto.DEFAULT
    refused(model, sidecar_bytes=16)


def test_refuses_external_data_in_an_attribute(model: onnx.ModelProto) -> None:
    tensor = external(make_model(tensors()), HERE, ("offset", "0"), ("length", "8")).graph.initializer[0]
    model.graph.node[0].attribute.add(name="value").t.CopyFrom(tensor)
    refused(model, sidecar_bytes=16)


# Specs


def test_reads_the_specs_of_a_graph(model: onnx.ModelProto) -> None:
    inputs, outputs = tensor_specs(model, "m.onnx")
    assert inputs == (TensorSpec("input", "float32", (-1, 1, 2, 2)),)
    assert outputs == (TensorSpec("logits", "float32", (-1, 3)),)
    check_specs(model, "m.onnx", inputs, outputs)


def test_an_initialiser_among_the_inputs_is_no_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("fc.bias", TensorProto.FLOAT, [3]))
    assert [spec.name for spec in tensor_specs(model, "m.onnx")[0]] == ["input"]


def no_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def no_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].ClearField("type")


def text(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = STRING


def sequence(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = FLOAT


@pytest.mark.parametrize("change", [no_shape, no_type, text, sequence])
def test_refuses_an_input_of_no_stated_kind(change: Callable[[onnx.ModelProto], None], model: onnx.ModelProto) -> None:
    change(model)
    with pytest.raises(BundleError, match=r"m\.onnx, 'input',"):
        tensor_specs(model, "m.onnx")


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((-1, 1, 2, 2), True), ((8, 1, 2, 2), True), ((-1, -1, 2, 2), False), ((-1, 1, 2, 3), False), ((-1, 1, 2), False)],
)
def test_a_spec_agrees_with_the_graph(shape: tuple[int, ...], fits: bool, model: onnx.ModelProto) -> None:
    inputs, outputs = (TensorSpec("input", "float32", shape),), tensor_specs(model, "m.onnx")[1]
    if fits:
        check_specs(model, "m.onnx", inputs, outputs)
    else:
        with pytest.raises(BundleError, match="has the inputs"):
            check_specs(model, "m.onnx", inputs, outputs)
    with pytest.raises(BundleError, match="has the outputs"):
        check_specs(model, "m.onnx", tensor_specs(model, "m.onnx")[0], inputs)
