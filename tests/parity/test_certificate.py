from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from onnx import helper
from parity_mutants import FAULTS, FORMULAS, refold, replace, spoil
from parity_networks import Builder, Layer, fold, layers, single, small_cnn

from bnfold.folding import algebra, onnx_graph
from bnfold.folding.edits import SetWeights
from bnfold.folding.report import FoldReport
from bnfold.parity.local.sites import map_of
from bnfold.parity.weights.certificate import Certificate, certify, expect


def pair(model: onnx.ModelProto) -> tuple[onnx.ModelProto, FoldReport]:
    _, folded, report = fold(model)
    return ir.to_proto(folded), report


def judged(reference: onnx.ModelProto, folded: onnx.ModelProto, report: Any = None) -> Certificate:
    return certify(expect(ir.from_proto(reference), report), ir.from_proto(folded))


@settings(max_examples=60)
@given(layers(("float32", "float64", "float16")))
def test_every_fold_of_a_random_layer_is_the_nearest(layer: Layer) -> None:
    model = single(layer)
    folded, report = pair(model)
    found = judged(model, folded, report)
    assert found.holds, found.findings()
    assert found.worst_ulp <= 0.5
    count = 2 * (report.counts["folded"] > 0)
    assert len(found.tensors) == count


@pytest.mark.parametrize("kind", ["gemm", "matmul"])
def test_bfloat16_is_judged_in_its_own_precision(kind: str) -> None:
    model = single(Layer(kind=kind, dtype="bfloat16", norm="hand"))
    folded, report = pair(model)
    found = judged(model, folded, report)
    assert found.holds
    assert len(found.tensors) == 2
    assert 0.2 < found.worst_ulp <= 0.5


def test_a_network_of_every_kind_of_site_holds() -> None:
    model = small_cnn()
    folded, report = pair(model)
    found = judged(model, folded, report)
    assert found.holds
    assert [tensor.linear for tensor in found.tensors[::2]] == [
        "block0.linear", "block1.linear", "block2.linear", "dense.linear",
    ]  # fmt: skip
    assert sum(tensor.distances.elements for tensor in found.tensors) == 7840


def test_never_calls_the_arithmetic_of_the_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_cnn()
    folded, _ = pair(model)

    def forbidden(*_: Any) -> None:
        raise AssertionError("the certificate called the fold")

    # Planning asks whether a folded weight would overflow; what it is, rounded, it may not ask.
    for owner, name in ((algebra, "rounded"), (SetWeights, "weight_values"), (SetWeights, "bias_values")):
        monkeypatch.setattr(owner, name, forbidden)
    assert judged(model, folded).holds


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_catches_wrong_formulas(name: str) -> None:
    model = small_cnn()
    folded, report = pair(model)
    found = judged(model, refold(model, folded, FORMULAS[name]), report)
    assert not found.holds
    assert not found.structure
    wrong = [tensor for tensor in found.tensors if not tensor.nearest]
    assert {tensor.role for tensor in wrong} >= {"bias"}
    assert found.worst_ulp > 1


def test_the_mutants_are_wrong_only_by_their_formula() -> None:
    """Control: the same rewriting with the right formula in float64 is off by its rounding alone."""
    model = small_cnn()
    folded, report = pair(model)

    def right(s: Any) -> Any:
        scale = s["gamma"] / np.sqrt(s["variance"] + s["eps"])
        return scale, s["beta"] - scale * s["mean"]

    assert judged(model, refold(model, folded, right), report).worst_ulp < 0.5001


@pytest.mark.parametrize("site", [0, 1, 2])
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_catches_single_faults_and_names_the_tensor(fault: str, site: int) -> None:
    model = small_cnn()
    folded, report = pair(model)
    place = expect(ir.from_proto(model)).sites[site]
    found = judged(model, spoil(folded, place, fault), report)
    assert not found.holds
    (wrong,) = [tensor for tensor in found.tensors if not tensor.nearest]
    assert wrong.tensor == (place.weight if FAULTS[fault][0] == "weight" else place.bias)
    assert wrong.tensor in found.findings()[0]
    if "one ulp" in fault:
        assert 0.5 < wrong.distances.worst_ulp <= 1.5
        assert wrong.distances.not_nearest == 1
    if "1.0001" in fault:
        assert wrong.worst_channel == 1


def test_catches_the_channel_order_of_grouped_transposed_convolutions() -> None:
    """Scaling (I, O/g, ...) as if its second axis were all output channels: right for one group, wrong for two."""
    model = single(Layer(kind="conv_transpose", inputs=4, outputs=4, groups=2))
    folded, report = pair(model)
    (site,) = expect(ir.from_proto(model)).sites
    weight = site.linear.weight.load().astype(np.float64)
    scale = algebra.evaluate(map_of(site.absorbed)[0]).hi
    replace(folded, site.weight, lambda old: (weight * scale[:2].reshape(1, 2, 1, 1)).astype(old.dtype))
    found = judged(model, folded, report)
    assert [tensor.role for tensor in found.tensors if not tensor.nearest] == ["weight"]
    assert found.tensors[0].worst_channel >= 2


def _drop_relu(model: onnx.ModelProto) -> str:
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    before, after = relu.input[0], relu.output[0]
    model.graph.node.remove(relu)
    for node in model.graph.node:
        node.input[:] = [before if name == after else name for name in node.input]
    return "Relu"


def _change_padding(model: onnx.ModelProto) -> str:
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    pads = next(attribute for attribute in conv.attribute if attribute.name == "pads")
    pads.ints[:] = [0, 0, 2, 2]
    return "'pads'"


def _other_input(model: onnx.ModelProto) -> str:
    nodes = [node for node in model.graph.node if node.op_type == "Relu"]
    nodes[1].input[0] = nodes[0].output[0]
    return nodes[1].name


def _extra_node(model: onnx.ModelProto) -> str:
    model.graph.node.append(helper.make_node("Identity", [model.graph.output[0].name], ["spare"]))
    return "spare"


def _other_classifier(model: onnx.ModelProto) -> str:
    replace(model, "head.linear.weight", lambda w: w + np.float32(1e-7))
    return "head.linear.weight"


def _missing_tensor(model: onnx.ModelProto) -> str:
    for tensor in list(model.graph.initializer):
        if tensor.name == "block0.linear.bias.folded":
            model.graph.initializer.remove(tensor)
    return "block0.linear.bias.folded"


def _misshapen_tensor(model: onnx.ModelProto) -> str:
    replace(model, "block0.linear.bias.folded", lambda b: b[:-1])
    return "block0.linear.bias.folded"


def _half_tensor(model: onnx.ModelProto) -> str:
    replace(model, "block0.linear.weight.folded", lambda w: w.astype(np.float16))
    return "block0.linear.weight.folded"


def _other_opset(model: onnx.ModelProto) -> str:
    model.opset_import[0].version = 17
    return "operator sets"


def _other_output(model: onnx.ModelProto) -> str:
    model.graph.output[0].name = "dense_out"
    return "graph outputs"


@pytest.mark.parametrize(
    "change",
    [_drop_relu, _change_padding, _other_input, _extra_node, _other_classifier, _missing_tensor, _misshapen_tensor,
     _half_tensor, _other_opset, _other_output],
)  # fmt: skip
def test_catches_another_graph_and_names_the_place(change: Callable[[onnx.ModelProto], str]) -> None:
    model = small_cnn()
    folded, report = pair(model)
    named = change(folded)
    found = judged(model, folded, report)
    assert not found.holds
    assert found.structure
    assert any(named in sentence for sentence in found.structure), found.structure


def test_catches_a_norm_that_the_report_calls_folded_but_that_is_there() -> None:
    model = small_cnn()
    _, report = pair(model)
    found = judged(model, model, report)
    assert not found.holds
    assert "BatchNormalization" in " ".join(found.structure)


def test_catches_a_report_that_hides_a_fold() -> None:
    model = small_cnn()
    folded, report = pair(model)
    first = dataclasses.replace(report.norms[0], outcome="kept")
    found = judged(model, folded, FoldReport((first, *report.norms[1:])))
    assert not found.holds


def test_catches_a_report_of_other_norms() -> None:
    model = small_cnn()
    folded, report = pair(model)
    renamed = dataclasses.replace(report.norms[0], name="elsewhere")
    found = judged(model, folded, FoldReport((renamed, *report.norms[1:])))
    assert any("'elsewhere', which the reference does not have" in sentence for sentence in found.structure)
    assert any("no row for the norm 'block0.bn0'" in sentence for sentence in found.structure)


def test_catches_a_claim_that_cannot_be_true() -> None:
    """The linear's output is also the graph's: the norm behind it cannot be folded, whatever the report says."""
    build = Builder(np.random.default_rng(0))
    weight = build.constant("w", build.normal(3, 4))
    y = build.node("MatMul", ["input", weight])
    z = build.batch_norm(y, "bn", 4)
    model = build.model((None, 3), z, 2)
    model.graph.output.append(helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, ["n", 4]))
    _, report = pair(model)
    assert report.norms[0].reason == "OTHER_READER"
    claim = dataclasses.replace(report.norms[0], outcome="folded", reason="")
    found = judged(model, model, FoldReport((claim,)))
    assert any("cannot be" in sentence for sentence in found.structure)
    assert judged(model, model, report).holds


@pytest.mark.parametrize("pattern", ["block0.bn0", "*", "block*"])
def test_norms_that_were_kept_must_still_be_there(pattern: str) -> None:
    model = small_cnn()
    reference = ir.from_proto(model)
    folded, report, _ = onnx_graph.fold(reference, keep=(pattern,))
    assert certify(expect(reference, report), folded).holds
    assert not certify(expect(reference), folded).holds


def test_leaves_both_models_as_they_were() -> None:
    model = small_cnn()
    folded, report = pair(model)
    before = model.SerializeToString(deterministic=True), folded.SerializeToString(deterministic=True)
    judged(model, folded, report)
    assert (model.SerializeToString(deterministic=True), folded.SerializeToString(deterministic=True)) == before
