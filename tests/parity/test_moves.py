"""Every kind of edit: its fold holds in every tier, and each way to get it wrong is caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_move_mutants import MUTANTS, mutant
from parity_moves import MAKES, Make, network
from parity_mutants import replace
from parity_networks import inputs_for

from bnfold.build import build_bundle
from bnfold.folding import onnx_graph
from bnfold.folding.edits import AddConstant, Redirect, SetAffine, SetSlope, SetWeights
from bnfold.folding.report import FoldReport
from bnfold.parity import verify
from bnfold.parity.oracle import run_float64
from bnfold.parity.triangle import Corner, compare
from bnfold.parity.weights.certificate import Certificate, certify, expect
from bnfold.runtime import open_session, run

NAMES = [make.__name__ for make in MAKES]


def folded_by(model: onnx.ModelProto) -> tuple[onnx.ModelProto, FoldReport]:
    folded, report, _ = onnx_graph.fold(ir.from_proto(model), moves="all")
    return ir.to_proto(folded), report


def judged(model: onnx.ModelProto, folded: onnx.ModelProto, report: FoldReport) -> Certificate:
    return certify(expect(ir.from_proto(model), report), ir.from_proto(folded))


def cornered(model: onnx.ModelProto, folded: onnx.ModelProto, seed: int = 0) -> Corner:
    x = inputs_for(model, seed, batch=5)
    unfolded = run(open_session(model.SerializeToString(), optimise=False), x)
    answers = run(open_session(folded.SerializeToString(), optimise=True), x)
    (corner,) = compare([run_float64(model, x)], [unfolded], [answers])
    return corner


@settings(max_examples=40)
@given(st.sampled_from(MAKES), st.sampled_from(["float32", "float64", "float16"]), st.integers(0, 999))
def test_a_right_fold_holds(make: Make, dtype: str, seed: int) -> None:
    model = network(make, dtype, seed)
    folded, report = folded_by(model)
    assert report.counts["folded"] + report.counts["reduced"] >= 1, report.to_table()
    found = judged(model, folded, report)
    assert found.holds, found.findings()
    assert 0 < found.worst_ulp <= 0.5
    if dtype == "float32":
        corner = cornered(model, folded, seed)
        assert corner.holds, corner.sentence()


def test_the_networks_have_every_kind_of_edit_and_tensor() -> None:
    edits: set[type] = set()
    roles = set()
    for make in MAKES:
        folded, report = folded_by(network(make))
        expectation = expect(ir.from_proto(network(make)), report)
        edits |= {type(edit) for edit in expectation.plan.edits}
        roles |= {new.role for new in expectation.tensors}
        assert {new.tensor for new in expectation.tensors} <= {item.name for item in folded.graph.initializer}
    assert edits >= {SetWeights, Redirect, SetAffine, AddConstant, SetSlope}
    assert roles == {"weight", "bias", "scale", "shift", "constant", "slope"}


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_catches_each_way_to_get_it_wrong(name: str) -> None:
    make, _, is_gross = MUTANTS[name]
    model = network(make)
    folded, report = folded_by(model)
    assert judged(model, folded, report).holds
    wrong = mutant(name, model, folded)
    found = judged(model, wrong, report)
    assert not found.holds
    if "ulp" in name:
        assert sum(tensor.distances.not_nearest for tensor in found.tensors) == 1
        assert 0.5 < found.worst_ulp <= 1.5
    assert cornered(model, folded).holds
    assert cornered(model, wrong).holds is not is_gross


@pytest.mark.parametrize("make", MAKES, ids=NAMES)
def test_catches_a_fault_in_each_new_tensor_and_names_it(make: Make) -> None:
    model = network(make)
    folded, report = folded_by(model)
    for new in expect(ir.from_proto(model), report).tensors:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(folded)
        replace(wrong, new.tensor, lambda old: old * old.dtype.type(1.001))
        (bad,) = [tensor for tensor in judged(model, wrong, report).tensors if not tensor.nearest]
        assert (bad.tensor, bad.role) == (new.tensor, new.role)


@pytest.mark.parametrize("make", MAKES, ids=NAMES)
def test_a_report_of_other_moves_is_caught(make: Make) -> None:
    """What is folded by all moves is another graph, or has other rows, than by none."""
    model = network(make)
    folded, report = folded_by(model)
    claim = FoldReport(report.norms, moves=())
    assert judged(model, folded, report).holds
    assert not judged(model, folded, claim).holds


@pytest.mark.parametrize("make", MAKES, ids=NAMES)
def test_a_bundle_of_each_kind_is_proven(make: Make, tmp_path: Any) -> None:
    model = network(make)
    onnx.save(model, tmp_path / "net.onnx")
    data = inputs_for(model, batch=40)["input"], None
    folder = tmp_path / "models" / "net"
    bundle = build_bundle(tmp_path / "net.onnx", folder, output_kind="raw", moves="all", data=data)
    found = verify(bundle)
    assert found.holds is True, found.to_table()
    assert found.tier("T1").summary["tensors"] >= 2
    local = found.tier("T2")
    assert local.summary["unbounded_edits"] == 0
    assert local.summary["regions"] >= 1
    assert 0 < local.summary["worst_ratio"] < 1


def test_channels_of_a_transposed_weight_are_named() -> None:
    """Weights (I, O/g, *K): the output channel is not the first index."""
    from parity_networks import Layer, single

    model = single(Layer(kind="conv_transpose", inputs=4, outputs=6, groups=2))
    folded, report = folded_by(model)
    (new,) = [new for new in expect(ir.from_proto(model), report).tensors if new.role == "weight"]

    def change(old: Any) -> Any:
        changed = old.copy()
        changed[3, 1] *= np.float32(2)
        return changed

    replace(folded, new.tensor, change)
    (bad,) = [tensor for tensor in judged(model, folded, report).tensors if not tensor.nearest]
    assert bad.worst_channel == 4
