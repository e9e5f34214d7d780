"""One site, written in many ways: every tier that looks at sites must know all of them."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from parity_mutants import replace
from parity_networks import fold, inputs_for, spellings

from bnfold.parity.local.checking import check_sites
from bnfold.parity.oracle import run_float64
from bnfold.parity.triangle import compare
from bnfold.parity.weights.certificate import certify, expect
from bnfold.runtime import open_session, run

SPELLINGS = spellings()


@pytest.mark.parametrize("name", sorted(SPELLINGS))
def test_a_right_fold_holds(name: str) -> None:
    model = SPELLINGS[name]
    reference, folded, report = fold(model)
    assert report.counts["folded"] >= 1, report.to_table()
    expectation = expect(reference, report)
    certificate = certify(expectation, folded)
    assert certificate.holds, certificate.findings()
    assert 0.2 < certificate.worst_ulp <= 0.5
    x = inputs_for(model)
    (site,) = check_sites(reference, folded, expectation.sites, [x])
    assert site.holds, site.sentence()
    assert 0 < site.worst_ratio < 1
    unfolded = run(open_session(model.SerializeToString(), optimise=False), x)
    answers = run(open_session(ir.to_proto(folded).SerializeToString(), optimise=True), x)
    (corner,) = compare([run_float64(model, x)], [unfolded], [answers])
    assert corner.holds, corner.sentence()


@pytest.mark.parametrize("name", sorted(SPELLINGS))
@pytest.mark.parametrize("role", ["weight", "bias"])
def test_a_wrong_one_does_not(name: str, role: str) -> None:
    model = SPELLINGS[name]
    reference, folded, report = fold(model)
    expectation = expect(reference, report)
    (site,) = expectation.sites
    mutant = onnx.ModelProto()
    mutant.CopyFrom(ir.to_proto(folded))
    replace(mutant, getattr(site, role), lambda values: values * values.dtype.type(1.001))
    shipped = ir.from_proto(mutant)
    (wrong,) = [tensor for tensor in certify(expectation, shipped).tensors if not tensor.nearest]
    assert wrong.tensor == getattr(site, role)
    (found,) = check_sites(reference, shipped, expectation.sites, [inputs_for(model)])
    assert not found.holds
