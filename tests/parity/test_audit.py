"""Audits of ONNX files: real folds by other tools, right and wrong ones, and folds that were tampered with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, assume, given, settings
from onnx import helper, numpy_helper
from parity_moves import MAKES, network
from parity_networks import Builder, layers, single, small_cnn, spellings

import bnfold
from bnfold.errors import BnfoldError, FoldError, ParityError
from bnfold.folding.moves import FREE, MOVES
from bnfold.parity.audit.comparing import Comparison, compare_graphs

AUDITED = Path(__file__).parent / "audited"
MADE = json.loads((AUDITED / "made.json").read_text(encoding="utf-8"))
NETWORKS = ("classifier", "residual", "dense", "padded", "left_over")
TOOLS = ("onnxslim", "onnxsim", "onnxoptimizer", "onnxscript", "onnxruntime")


def compare(original: onnx.ModelProto, folded: onnx.ModelProto) -> Comparison:
    return compare_graphs(ir.from_proto(original), ir.from_proto(folded))


def changed(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """The model with one tensor changed."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(array.copy())), name))
            return copy
    raise AssertionError(f"no tensor {name}")


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with other names for everything but its inputs and outputs."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    known = {value.name: value.name for value in (*copy.graph.input, *copy.graph.output)}

    def name(old: str) -> str:
        return known.setdefault(old, f"t{len(known)}") if old else ""

    for tensor in copy.graph.initializer:
        tensor.name = name(tensor.name)
    for at, node in enumerate(copy.graph.node):
        node.name = f"x{at}"
        node.input[:] = [name(value) for value in node.input]
        node.output[:] = [name(value) for value in node.output]
    del copy.graph.value_info[:]
    return copy


# Real folds


def test_files_of_other_tools_are_those_that_were_made():
    for name, digest in MADE["files"].items():
        assert hashlib.sha256((AUDITED / name).read_bytes()).hexdigest() == digest, name
    assert all(MADE["tools"].values())


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", NETWORKS)
def test_right_folds_of_other_tools_are_consistent_with_rounding(name: str, tool: str):
    report = bnfold.audit(AUDITED / f"{name}.{tool}.onnx", AUDITED / f"{name}.onnx")
    assert report.exit_code == 0, report.to_table()
    assert report.findings == ()
    assert {tensor.verdict for tensor in report.tensors} <= {"unchanged", "nearest", "consistent with rounding"}
    assert not report.norms["lost"]
    assert report.worst_ulp("weight") < 3
    assert all(tensor.share < 0.5 for tensor in report.tensors)
    summary = report.tier("T1").summary
    assert summary["linears"] == summary["linears_matched"] > 0


def test_every_tool_folded_something():
    for tool in TOOLS:
        taken = [
            norm
            for name in NETWORKS
            for norm in bnfold.audit(AUDITED / f"{name}.{tool}.onnx", AUDITED / f"{name}.onnx").norms["taken"]
        ]
        assert len(taken) >= 4, tool


@pytest.mark.parametrize(
    ("name", "tool", "tensor", "cause"),
    [
        ("training_mode", "onnxscript", "conv.weight", "training mode"),
        ("another_axis", "onnxruntime", "MatMulBnFusion_GemmB_dense.weight", "as though it ran over the channels"),
        ("scaled_width", "onnxslim", "mul_1_weight", "runs over axis 3"),
    ],
)
def test_wrong_folds_of_other_tools_are_named_with_tensor_and_cause(name: str, tool: str, tensor: str, cause: str):
    report = bnfold.audit(AUDITED / f"{name}.{tool}.onnx", AUDITED / f"{name}.onnx")
    assert report.exit_code == 1
    assert report.tier("T3").status == "fails"
    (wrong,) = (found for found in report.wrong if found.tensor == tensor)
    assert cause in wrong.cause
    assert any(tensor in finding and cause in finding for finding in report.findings)


ONE_AT_A_TIME = [tuple(FREE | {move.name}) for move in MOVES if move.cost]


@pytest.mark.parametrize("moves", ["default", "all", *ONE_AT_A_TIME])
@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_own_folds_are_the_nearest_whatever_move_they_come_from(make: Callable, moves: str):
    model = network(make)
    found = compare(model, bnfold.fold(model, moves=moves).model)
    assert found.is_whole, found.gaps
    assert {tensor.verdict for tensor in found.tensors} <= {"unchanged", "nearest"}


@pytest.mark.parametrize("name", spellings())
def test_own_folds_of_every_spelling_are_the_nearest(name: str):
    model = spellings()[name]
    found = compare(model, bnfold.fold(model).model)
    assert found.is_whole, found.gaps
    assert {tensor.verdict for tensor in found.changed} == {"nearest"}


@pytest.mark.parametrize("keep", ["block0.bn0", "block1.*", "dense.bn0"])
def test_fold_that_leaves_norms_out_is_certified_and_says_which(keep: str):
    model = small_cnn()
    report = bnfold.audit(bnfold.fold(model, keep=(keep,)).model, model)
    assert report.exit_code == 0
    assert len(report.norms["kept"]) == 1


def test_names_do_not_matter():
    for name in NETWORKS:
        folded = renamed(onnx.load(AUDITED / f"{name}.onnxruntime.onnx"))
        report = bnfold.audit(folded, AUDITED / f"{name}.onnx")
        assert report.exit_code == 0, report.to_table()


# Wrong ones


def folded_classifier() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    return onnx.load(AUDITED / "classifier.onnx"), onnx.load(AUDITED / "classifier.onnxscript.onnx")


def float_tensors(name: str) -> list[str]:
    tensors = onnx.load(AUDITED / name).graph.initializer
    return [tensor.name for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT]


@pytest.mark.parametrize("tensor", float_tensors("classifier.onnxscript.onnx"))
def test_each_tensor_with_one_channel_off_by_a_thousandth_is_named(tensor: str):
    original, folded = folded_classifier()

    def change(array: np.ndarray) -> np.ndarray:
        array[1] *= 1.001
        return array

    found = compare(original, changed(folded, tensor, change))
    (wrong,) = found.wrong
    assert found.is_whole
    assert wrong.tensor == tensor
    assert 1 in wrong.channels or "up.weight" in tensor  # (I, O, *K): the rows are inputs
    assert tensor in wrong.sentence()


def test_kept_norm_with_another_bit_is_no_kept_norm():
    original, folded = onnx.load(AUDITED / "left_over.onnx"), onnx.load(AUDITED / "left_over.onnxscript.onnx")
    assert compare(original, folded).is_whole

    def change(array: np.ndarray) -> np.ndarray:
        array[0] = np.nextafter(array[0], np.float32(np.inf))
        return array

    found = compare(original, changed(folded, "bn0.weight", change))
    assert not (found.is_whole and not found.wrong)


def test_unchanged_tensor_with_another_bit_is_wrong():
    model = small_cnn()

    def change(array: np.ndarray) -> np.ndarray:
        array[0, 0] = np.nextafter(array[0, 0], np.float32(np.inf))
        return array

    found = compare(model, changed(bnfold.fold(model).model, "head.linear.weight", change))
    (wrong,) = found.wrong
    assert (wrong.tensor, wrong.wrong, wrong.cause) == (
        "head.linear.weight", 1, "it was changed, though no fold touches it",
    )  # fmt: skip


def formulas() -> dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]]:
    """Weight and bias of a convolution with a norm behind it, got wrong in float64."""

    def fold(eps: float = 1e-5, square: bool = False, mean: float = 1.0):
        def made(w, c, gamma, beta, running_mean, variance):
            root = np.sqrt(variance + eps) if not square else np.sqrt(variance) + 1e-5
            a = gamma / root
            return w * a[:, None, None, None], (c - mean * running_mean) * a + beta

        return made

    return {"eps dropped": fold(eps=0.0), "eps outside": fold(square=True), "mean lost": fold(mean=0.0)}


@pytest.mark.parametrize("name", formulas())
def test_wrong_formulas_are_named_with_their_cause(name: str):
    """Variances near eps, so that it matters."""
    build = Builder(np.random.default_rng(5))
    x = build.node(
        "Conv", ["input", build.constant("w", build.normal(6, 3, 3, 3)), build.constant("c", build.normal(6))]
    )
    original = build.model((None, 3, 8, 8), build.batch_norm(x, "bn", 6, variance=1e-3), 4)
    tensors = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in original.graph.initializer}
    folded = bnfold.fold(original).model
    new = formulas()[name](*(tensors[key] for key in ("w", "c", "bn.gamma", "bn.beta", "bn.mean", "bn.variance")))
    for tensor, values in zip(("w.folded", "c.folded"), new, strict=True):
        folded = changed(folded, tensor, lambda _, values=values: values.astype(np.float32))
    found = compare(original, folded)
    assert found.is_whole
    assert found.wrong
    words = {"eps dropped": "eps", "eps outside": "root", "mean lost": "mean"}[name]
    assert any(words in tensor.cause for tensor in found.wrong), [tensor.sentence() for tensor in found.wrong]


def test_mean_of_another_moment_is_named_where_only_the_bias_shows_it():
    """The means moved, each by its own amount, and the variances did not."""
    original, folded = folded_classifier()
    tensor = next(node for node in folded.graph.node if node.op_type == "Conv").input[2]
    moved = changed(folded, tensor, lambda array: array + np.linspace(0.01, 0.02, array.size, dtype=np.float32) ** 2)
    (wrong,) = compare(original, moved).wrong
    assert (wrong.tensor, wrong.role) == (tensor, "bias")
    assert "its weight is right: a mean or a beta of another moment" in wrong.sentence()


def test_lost_bias_is_named_where_there_is_no_tensor():
    original, folded = folded_classifier()
    reader = next(node for node in folded.graph.node if node.op_type == "Gemm")
    del reader.input[2]
    found = compare(original, folded)
    (wrong,) = found.wrong
    assert wrong.role == "bias"
    assert "no bias" in wrong.tensor


def edits_of_structure() -> dict[str, Callable[[onnx.ModelProto], None]]:
    def relu_to_elu(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Elu"

    def no_relu(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Relu")
        node.op_type = "Identity"

    def other_padding(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Conv")
        pads = next(attribute for attribute in node.attribute if attribute.name == "pads")
        pads.ints[:] = [2, 0, 1, 1]

    def other_groups(model: onnx.ModelProto) -> None:
        """A stride where there was none, and output sizes that a global pool hides."""
        node = next(node for node in model.graph.node if node.op_type == "Conv")
        kept = [attribute for attribute in node.attribute if attribute.name != "strides"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("strides", [2, 2])])

    def max_for_mean(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "GlobalAveragePool").op_type = "GlobalMaxPool"

    def one_more_step(model: onnx.ModelProto) -> None:
        at = next(at for at, node in enumerate(model.graph.node) if node.op_type == "Relu")
        node = model.graph.node[at]
        model.graph.initializer.append(numpy_helper.from_array(np.full((1, 1, 1, 1), 1.01, np.float32), "factor"))
        model.graph.node.insert(at, helper.make_node("Mul", [node.input[0], "factor"], ["scaled"]))
        model.graph.node[at + 1].input[0] = "scaled"

    return {
        edit.__name__: edit for edit in (relu_to_elu, no_relu, other_padding, other_groups, max_for_mean, one_more_step)
    }


@pytest.mark.parametrize("edit", edits_of_structure().values(), ids=edits_of_structure())
def test_other_graph_is_never_certified(edit: Callable[[onnx.ModelProto], None]):
    original, folded = folded_classifier()
    edit(folded)
    report = bnfold.audit(folded, original)
    assert report.exit_code == 1
    assert report.tier("T1").status != "holds"


def test_graph_that_is_right_but_spelt_in_an_unknown_way_is_not_called_wrong():
    """relu(x) = max(x, 0): true, and not known here."""
    original, folded = folded_classifier()
    folded.graph.initializer.append(numpy_helper.from_array(np.float32(0), "nothing"))
    for node in folded.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Max"
            node.input.append("nothing")
    report = bnfold.audit(folded, original)
    assert report.exit_code == 2
    assert "not matched, measured by T3 only" in report.findings[0]
    assert [tier.status for tier in report.tiers] == ["cannot tell", "holds", "holds"]


def sliced(b: Builder, *, at_once: bool, indices: int = 2) -> onnx.ModelProto:
    """Every second row and the first columns, in one slice or in three."""

    def cut(x: str, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> str:
        parts = [b.constant(f"s{len(b.tensors)}", np.array(part)) for part in (starts, ends, axes, steps)]
        return b.node("Slice", [x, *parts])

    x = b.node("Conv", ["input", b.constant("w", np.arange(36.0).reshape(4, 1, 3, 3))])
    if at_once:
        x = cut(x, [0, 0], [8, indices], [2, 3], [2, 1])
    else:
        x = cut(cut(cut(x, [0], [8], [1], [1]), [0], [8], [2], [2]), [0], [2], [3], [1])
    return b.model((None, 1, 8, 8), b.node("Relu", [x]), 4)


def test_slices_in_a_row_are_one_slice_if_they_take_the_same():
    rng = np.random.default_rng(0)
    original = sliced(Builder(rng), at_once=False)
    assert compare(original, sliced(Builder(rng), at_once=True)).is_whole
    assert not compare(original, sliced(Builder(rng), at_once=True, indices=3)).is_whole


def test_branches_of_a_sum_may_change_places():
    original, folded = onnx.load(AUDITED / "residual.onnx"), onnx.load(AUDITED / "residual.onnxslim.onnx")
    for node in folded.graph.node:
        if node.op_type == "Add":
            node.input[:] = reversed(node.input)
    assert compare(original, folded).is_whole
    assert not compare(original, folded).wrong


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(layers(dtypes=("float32", "float32", "float64", "float16")))
def test_single_layers_folded_here_are_never_called_wrong(layer):
    assume(layer.dtype != "float16" or layer.variance <= 1)  # statistics beyond the range of float16 are none
    model = single(layer)
    try:
        folded = bnfold.fold(model).model
    except BnfoldError:
        return
    found = compare(model, folded)
    assert found.is_whole, found.gaps
    assert not found.wrong


def one_number(*, folded: bool) -> onnx.ModelProto:
    """relu(norm(w x)) of one number, where the unfolded network happens to round its way back to the truth."""
    w, gamma, beta, mean, variance = (
        np.array([value], np.float32)
        for value in (-1.755923, 0.32601451873779297, 0.2809383273124695, 5.016806602478027, 9.594828605651855)
    )
    build = Builder(np.random.default_rng(0))
    if folded:
        scale = gamma / np.sqrt(variance + np.float32(1e-5))
        inputs = [build.constant("w", (w * scale)[None]), build.constant("c", beta - mean * scale)]
        return build.model((None, 1), build.node("Relu", [build.node("Gemm", ["input", *inputs], transB=1)]), 2)
    y = build.node("Gemm", ["input", build.constant("w", w[None])], transB=1)
    statistics = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
    y = build.node("BatchNormalization", [y, *(build.constant(key, value) for key, value in statistics.items())])
    return build.model((None, 1), build.node("Relu", [y]), 2)


def test_right_fold_is_no_alarm_where_the_unfolded_network_is_lucky():
    report = bnfold.audit(one_number(folded=True), one_number(folded=False))
    assert report.exit_code == 0, report.to_table()
    assert report.tier("T3").summary["ratio"] > 4


# What it says of other input


def test_network_that_is_not_folded_says_so():
    model = small_cnn()
    report = bnfold.audit(model, model)
    assert report.exit_code == 0
    assert report.verdict().startswith("nothing is folded")


def test_swapped_networks_give_one_sentence():
    with pytest.raises(ParityError, match="are the two swapped"):
        bnfold.audit(AUDITED / "residual.onnx", AUDITED / "residual.onnxslim.onnx")


def test_other_inputs_or_outputs_give_one_sentence():
    with pytest.raises(ParityError, match="they are not one network"):
        bnfold.audit(AUDITED / "dense.onnx", AUDITED / "classifier.onnx")
    several = onnx.load(AUDITED / "dense.onnx")
    several.graph.output.append(helper.make_tensor_value_info(several.graph.node[0].output[0], 1, [None, None]))
    with pytest.raises(ParityError, match="2 outputs"):
        bnfold.audit(several, AUDITED / "dense.onnx")


def test_another_architecture_is_not_certified():
    build = Builder(np.random.default_rng(3))
    x = build.node("Conv", ["input", build.constant("w", build.normal(8, 3, 1, 1))])
    other = build.model((None, 3, 8, 8), build.node("Sigmoid", [x]), 4)
    report = bnfold.audit(other, AUDITED / "residual.onnx")
    assert report.exit_code == 1
    assert "are they the same network?" in " ".join(report.findings)
    assert report.tier("T3").status == "fails"


@pytest.mark.parametrize("place", ["folded", "against"])
@pytest.mark.parametrize("kind", ["truncated", "text", "missing", "outside"])
def test_hostile_files_give_one_sentence(place: str, kind: str, tmp_path: Path):
    path = tmp_path / "model.onnx"
    data = (AUDITED / "residual.onnx").read_bytes()
    match kind:
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "text":
            path.write_text("no model at all")
        case "outside":
            model = onnx.load_from_string(data)
            tensor = model.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="../secret")
            path.write_bytes(model.SerializeToString())
    arguments = {"folded": AUDITED / "residual.onnxslim.onnx", "against": AUDITED / "residual.onnx"} | {place: path}
    with pytest.raises(BnfoldError) as problem:
        bnfold.audit(**arguments)
    assert len(str(problem.value).splitlines()) == 1


def test_object_of_another_kind_gives_one_sentence():
    with pytest.raises(FoldError, match="int"):
        bnfold.audit(3, AUDITED / "dense.onnx")


def test_samples_are_used_and_labels_judged():
    model = small_cnn()
    rng = np.random.default_rng(0)
    data = rng.normal(size=(40, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, 40)
    report = bnfold.audit(bnfold.fold(model).model, model, data=data)
    assert report.exit_code == 0
    assert "samples" in report.tier("T3").headline
    assert report.tier("T4").summary["rows"] >= 40


def test_report_is_strict_json_with_every_tensor():
    original, folded = folded_classifier()
    document = bnfold.audit(folded, original).to_dict()
    text = json.dumps(document, allow_nan=False)
    assert json.loads(text)["schema_version"] == 1
    assert {row["role"] for row in document["tensors"]} == {"weight", "bias"}
    assert all(row["roundings"] > 0 for row in document["tensors"] if row["verdict"] == "consistent with rounding")
