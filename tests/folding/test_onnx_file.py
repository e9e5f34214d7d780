"""Files that claim to be ONNX models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx_networks import FLOAT, FOLDED, Builder, built, close, evaluate, feeds, outcomes

import bnfold
from bnfold.errors import FoldError
from bnfold.folding import onnx_bytes
from bnfold.folding.onnx_file import load_model, to_proto
from bnfold.runtime import open_session, run


def network(b: Builder) -> str:
    y = b.bn(b.conv(b.input("N", 3, 6), (3, 8), (3,)), 8)
    return b.bn(b.conv(b.node("Relu", y), (8, 4), (2,)), 4)


def sentence(problem: pytest.ExceptionInfo[FoldError], *words: str) -> None:
    text = str(problem.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text) < 600
    for word in words:
        assert word in text


def save(folder: Path, *, data: str = "") -> tuple[Path, onnx.ModelProto]:
    """A model file; with data, its tensors in that file beside it."""
    model = built(network, FLOAT)
    path = folder / "model.onnx"
    if data:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, path, save_as_external_data=True, location=data, size_threshold=0)
    else:
        onnx.save(model, path)
    return path, model


def test_a_file_is_folded_and_left_as_it_is(tmp_path):
    path, model = save(tmp_path)
    before = path.read_bytes()
    for source in (path, str(path)):
        result = bnfold.fold(source)
        assert isinstance(result.model, onnx.ModelProto)
        assert outcomes(result) == FOLDED * 2
        inputs = feeds(model)
        assert close(evaluate(result.model, inputs), evaluate(model, inputs), 1e-5)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


# ---------------------------------------------------------------------------------- no model at all


@pytest.mark.parametrize(
    "content",
    [
        b"this is a text file, not a model\n",
        b"",
        b"{}",
        b"\x00" * 64,
        b"\x89PNG\r\n\x1a\n" + bytes(range(200)),
        b"<!DOCTYPE html><html><body>404: Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        b"\x0a" * 5000,
        b"\x3a\x80\x80\x80\x80\x10" + b"x" * 30,
    ],
    ids=["text", "empty", "json", "zeros", "png", "html", "a git-lfs pointer", "nested fields", "a length too large"],
)
def test_a_file_that_is_no_model_is_told_in_one_sentence(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(FoldError) as problem:
        bnfold.fold(path)
    sentence(problem, "model.onnx", "no ONNX model")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_told_in_one_sentence(tmp_path, share):
    path, _ = save(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FoldError) as problem:
        bnfold.fold(path)
    sentence(problem, "model.onnx")


def test_a_path_that_is_not_there_or_a_folder_is_told(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path, "", "\0"):
        with pytest.raises(FoldError) as problem:
            bnfold.fold(path)
        sentence(problem, "not there or not a file")


@pytest.mark.parametrize("source", [None, 3, bytearray(b"bytes"), [1], object()])
def test_an_object_that_is_no_source_is_told(source):
    with pytest.raises(FoldError, match="cannot fold an object of type"):
        bnfold.fold(source)


def test_any_byte_of_a_file_may_be_wrong(tmp_path):
    """Two hundred files with a few bytes changed: a fold or one sentence, nothing else."""
    path, _ = save(tmp_path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    told: list[str] = []
    for _ in range(200):
        mangled = bytearray(content)
        for at in rng.integers(0, len(content), 6):
            mangled[at] = int(rng.integers(0, 256))
        path.write_bytes(bytes(mangled))
        try:
            bnfold.fold(path)
        except FoldError as problem:
            told.append(str(problem))
    assert 40 < len(told) < 200
    assert not any("\n" in text for text in told)


# ---------------------------------------------------------------------------------- unsound models


def changed(change: Any) -> onnx.ModelProto:
    model = built(network, FLOAT)
    change(model)
    return model


def unsorted(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


def cut_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-1]


def negative_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -1


def gigantic_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 40


def double_name(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def nobody_writes(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nobody"


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "Mystery"


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 6
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(helper.make_attribute("is_test", 1))


def no_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 0


def strange_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def sparse_weight(model: onnx.ModelProto) -> None:
    values = helper.make_tensor("s", FLOAT, [1], [1.0])
    index = helper.make_tensor("s_at", onnx.TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, index, [4]))


UNSOUND = [
    unsorted, cut_tensor, negative_size, gigantic_size, double_name, nobody_writes, unknown_operator, no_opset,
    old_opset, no_type, strange_type, sparse_weight,
]  # fmt: skip


@pytest.mark.parametrize("where", ["file", "memory"])
@pytest.mark.parametrize("change", UNSOUND)
def test_an_unsound_model_is_told_in_one_sentence(change, where, tmp_path):
    model = changed(change)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FoldError) as problem:
        bnfold.fold(model if where == "memory" else path)
    sentence(problem)


def test_an_old_opset_is_named_with_its_remedy():
    with pytest.raises(FoldError, match=r"opset 6, expected 7 or later; convert it with onnx\.version_converter"):
        bnfold.fold(changed(old_opset))


# ---------------------------------------------------------------------------------- external data


def test_data_in_a_file_beside_the_model_is_read(tmp_path):
    path, model = save(tmp_path, data="weights.bin")
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    assert set(before) == {"model.onnx", "weights.bin"}
    result = bnfold.fold(path)
    assert outcomes(result) == FOLDED * 2
    assert not any(tensor.external_data for tensor in result.model.graph.initializer)
    inputs = feeds(model)
    assert close(evaluate(result.model, inputs), evaluate(model, inputs), 1e-5)
    found = run(open_session(result.model.SerializeToString(), optimise=False), inputs)
    assert close(list(found.values()), evaluate(model, inputs), 1e-5)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_data_in_a_folder_below_the_model_is_read(tmp_path, monkeypatch):
    path, _ = save(tmp_path, data="weights.bin")
    (tmp_path / "parts").mkdir()
    (tmp_path / "weights.bin").rename(tmp_path / "parts" / "weights.bin")
    relocate(path, "parts/weights.bin")
    monkeypatch.chdir("/")
    assert outcomes(bnfold.fold(path)) == FOLDED * 2


def relocate(path: Path, location: str, **entries: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
            if entry.key in entries:
                entry.value = entries[entry.key]
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("how", ["..", "absolute", "through a folder", "link", "link to a folder", "nothing"])
def test_data_outside_the_folder_of_the_model_are_refused(tmp_path, how):
    folder = tmp_path / "model"
    folder.mkdir()
    path, _ = save(folder, data="weights.bin")
    secret = tmp_path / "secret.bin"
    (folder / "weights.bin").rename(secret)
    location = {"..": "../secret.bin", "absolute": str(secret), "through a folder": "a/../../secret.bin"}.get(how, "")
    (folder / "a").mkdir()
    if how == "link":
        location = "weights.bin"
        os.symlink(secret, folder / location)
    if how == "link to a folder":
        location = "b/secret.bin"
        os.symlink(tmp_path, folder / "b")
    relocate(path, location)
    with pytest.raises(FoldError) as problem:
        bnfold.fold(path)
    sentence(problem, "model.onnx")


def test_missing_data_are_told(tmp_path):
    path, _ = save(tmp_path, data="weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(FoldError) as problem:
        bnfold.fold(path)
    sentence(problem, "weights.bin", "missing")


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "999999"},
        {"offset": "-4"},
        {"offset": "many"},
        {"length": "4"},
        {"length": "9999999"},
        {"length": "-1"},
    ],
)
def test_external_data_that_are_not_as_long_as_the_tensor_are_told(tmp_path, entries):
    path, _ = save(tmp_path, data="weights.bin")
    relocate(path, "weights.bin", **entries)
    with pytest.raises(FoldError) as problem:
        bnfold.fold(path)
    sentence(problem, "model.onnx")


def test_external_data_that_were_cut_are_told(tmp_path):
    path, _ = save(tmp_path, data="weights.bin")
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(FoldError) as problem:
        bnfold.fold(path)
    sentence(problem, "model.onnx", "weights.bin")


def test_external_data_of_a_model_in_memory_are_not_looked_for(tmp_path, monkeypatch):
    """There is no telling in which folder; the current one is anybody's."""
    path, _ = save(tmp_path, data="weights.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FoldError) as problem:
        bnfold.fold(onnx.load(path, load_external_data=False))
    sentence(problem, "in a file")
    assert outcomes(bnfold.fold(onnx.load(path))) == FOLDED * 2


@pytest.mark.parametrize("place", ["attribute", "subgraph", "function", "sparse"])
def test_external_data_are_looked_for_everywhere(tmp_path, place):
    """A tensor that is no initialiser of the main graph can point out of the folder just as well."""
    outside = tmp_path / "secret.bin"
    outside.write_bytes(np.zeros(4, np.float32).tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "leak")
    onnx.external_data_helper.set_external_data(tensor, "../secret.bin", 0, 16)
    tensor.ClearField("raw_data")
    model = built(network, FLOAT)
    constant = helper.make_node("Constant", [], ["leaked"], value=tensor)
    info = [helper.make_tensor_value_info("leaked", FLOAT, (4,))]
    match place:
        case "attribute":
            model.graph.node.append(constant)
        case "subgraph":
            inner = helper.make_graph([constant], "inner", [], info)
            flag = numpy_helper.from_array(np.asarray(True), "flag")
            model.graph.initializer.append(flag)
            model.graph.node.append(helper.make_node("If", ["flag"], ["o"], then_branch=inner, else_branch=inner))
        case "function":
            imports = [helper.make_opsetid("", 17)]
            model.functions.append(helper.make_function("local", "F", [], ["leaked"], [constant], imports))
            model.opset_import.append(helper.make_opsetid("local", 1))
        case _:
            index = helper.make_tensor("at", onnx.TensorProto.INT64, [4], [0, 1, 2, 3])
            model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, index, [9]))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(FoldError) as problem:
        bnfold.fold(path)
    sentence(problem)


# ---------------------------------------------------------------------------------- large tensors


def wide(b: Builder) -> str:
    """Weights beyond the size from which they stay in the file."""
    y = b.bn(b.conv(b.input("N", 64, 5), (64, 128), (3,)), 128)
    large = b.node("Constant", out="large", value=b.tensor(b.values(128, 200)))
    y = b.node("MatMul", b.node("Transpose", y, perm=[0, 2, 1]), large)
    return b.bn(b.node("Transpose", y, perm=[0, 2, 1]), 200)


@pytest.fixture
def large(tmp_path) -> tuple[Path, onnx.ModelProto]:
    model = built(wide, FLOAT)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path, model


def test_large_tensors_stay_in_the_file_until_they_are_used(large):
    path, model = large
    loaded = load_model(path)
    lazy = {name for name, value in loaded.graph.initializers.items() if isinstance(value.const_value, ir.LazyTensor)}
    assert lazy == {"c_1"}
    (constant,) = [node for node in loaded.graph if node.op_type == "Constant"]
    assert isinstance(constant.attributes["value"].as_tensor(), ir.LazyTensor)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, value in loaded.graph.initializers.items():
        assert value.const_value is not None
        assert np.array_equal(value.const_value.numpy(), stored[name])
        assert not value.const_value.numpy().flags.writeable
    again = to_proto(loaded)
    inputs = feeds(model)
    assert close(evaluate(again, inputs), evaluate(model, inputs), 0.0)
    assert to_proto(loaded).SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)


@pytest.mark.parametrize("make", [network, wide])
def test_bytes_are_folded_to_bytes(make):
    model = built(make, FLOAT)
    model.metadata_props.add(key="a", value="b")
    data = model.SerializeToString()
    result = bnfold.fold(data)
    assert isinstance(result.model, bytes)
    found, expected = onnx.load_from_string(result.model), bnfold.fold(model).model
    assert found.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    onnx.checker.check_model(result.model)


@pytest.mark.parametrize("data", [b"", b"bytes", b"\x3a\x80\x80\x80\x80\x10" + b"x" * 30])
def test_bytes_that_are_no_model_are_told(data):
    with pytest.raises(FoldError) as problem:
        bnfold.fold(data)
    sentence(problem, "no ONNX model")


def test_bytes_with_data_in_a_file_are_told(tmp_path, monkeypatch):
    path, _ = save(tmp_path, data="weights.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FoldError) as problem:
        bnfold.fold(path.read_bytes())
    sentence(problem, "in a file", "no folder")


def test_bytes_of_more_than_a_file_can_hold_are_told(monkeypatch):
    monkeypatch.setattr(onnx_bytes, "LARGEST", 1000)
    with pytest.raises(FoldError) as problem:
        bnfold.fold(built(wide, FLOAT).SerializeToString())
    sentence(problem, "external data")


def test_a_fold_does_not_hang_on_the_file(large):
    path, model = large
    result = bnfold.fold(path)
    path.write_bytes(bytes(path.stat().st_size))
    path.unlink()
    inputs = feeds(model)
    assert close(evaluate(result.model, inputs), evaluate(model, inputs), 1e-5)
    assert outcomes(result)[0] == ("folded", "")


def test_a_model_that_is_consumed_lets_its_large_tensors_go(large):
    loaded = load_model(large[0])
    to_proto(loaded, consume=True)
    assert loaded.graph.initializers["c_1"].const_value is None
    assert loaded.graph.initializers["c_2"].const_value is not None


def test_large_data_as_long_as_they_must_not_be_are_told(large):
    path, model = large
    tensor = model.graph.initializer[0]
    whole = tensor.raw_data
    for change in (whole[:-4], whole + b"0000", b""):
        tensor.raw_data = change
        path.write_bytes(model.SerializeToString())
        for source in (path, model):
            with pytest.raises(FoldError) as problem:
                bnfold.fold(source)
            sentence(problem)
    tensor.raw_data = whole
    tensor.dims[0] = -tensor.dims[0]
    with pytest.raises(FoldError) as problem:
        bnfold.fold(model)
    sentence(problem)


def test_large_data_beside_other_data_are_told(large):
    path, model = large
    model.graph.initializer[0].float_data.append(1.0)
    path.write_bytes(model.SerializeToString())
    for source in (path, model):
        with pytest.raises(FoldError) as problem:
            bnfold.fold(source)
        sentence(problem)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.9999])
def test_a_large_truncated_file_is_told(large, share):
    path, _ = large
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FoldError) as problem:
        bnfold.fold(path)
    sentence(problem, "model.onnx")


def test_any_byte_of_the_graph_of_a_large_file_may_be_wrong(large):
    path, model = large
    content = path.read_bytes()
    spans = [content.index(tensor.raw_data) for tensor in model.graph.initializer if len(tensor.raw_data) > 1 << 16]
    places = [at for at in range(len(content)) if not any(start <= at < start + (1 << 16) for start in spans)]
    rng = np.random.default_rng(0)
    told: list[str] = []
    for _ in range(60):
        mangled = bytearray(content)
        for at in rng.choice(places[:3000] + places[-3000:], 4):
            mangled[at] = int(rng.integers(0, 256))
        path.write_bytes(bytes(mangled))
        try:
            bnfold.fold(path)
        except FoldError as problem:
            told.append(str(problem))
    assert len(told) > 5
    assert not any("\n" in text for text in told)


def test_a_tensor_split_over_two_messages_is_left_to_the_parser(large):
    """Protocol buffers merge a message that comes twice; nobody writes such a file, but the parser takes it."""
    path, model = large
    tail = onnx.ModelProto()
    tail.graph.doc_string = "more"
    path.write_bytes(model.SerializeToString() + tail.SerializeToString())
    inputs = feeds(model)
    assert close(evaluate(bnfold.fold(path).model, inputs), evaluate(model, inputs), 1e-5)


def test_large_tensors_in_subgraphs_and_functions_are_read(tmp_path):
    big = numpy_helper.from_array(np.arange(1 << 15, dtype=np.float32), "big")
    inner = helper.make_graph([helper.make_node("Identity", ["big"], ["r"])], "inner", [], [
        helper.make_tensor_value_info("r", FLOAT, (1 << 15,))], [big])  # fmt: skip
    constant = helper.make_node("Constant", [], ["k"], value=big)
    function = helper.make_function("local", "F", [], ["k"], [constant], [helper.make_opsetid("", 17)])
    model = built(network, FLOAT)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "flag"))
    model.graph.node.append(helper.make_node("If", ["flag"], ["o"], then_branch=inner, else_branch=inner))
    model.graph.node.append(helper.make_node("F", [], ["f"], domain="local"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, (1 << 15,)) for name in ("o", "f"))
    inputs = feeds(model)
    truth = evaluate(model, inputs)
    for data in ("", "weights.bin"):
        path = tmp_path / f"model{data}.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        if data:
            onnx.external_data_helper.convert_model_to_external_data(
                copy, location=data, size_threshold=0, convert_attribute=True
            )
        onnx.save(copy, path)
        assert close(evaluate(bnfold.fold(path).model, inputs), truth, 1e-5)


def test_data_under_several_hard_links_are_refused(tmp_path):
    path, _ = save(tmp_path, data="weights.bin")
    (tmp_path / "other.bin").hardlink_to(tmp_path / "weights.bin")
    with pytest.raises(FoldError) as problem:
        bnfold.fold(path)
    sentence(problem, "weights.bin", "hard links")
