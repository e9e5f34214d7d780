"""T6: the suite notices every wrong fold, of every move and every kind of linear; it is told when it does not."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from parity_move_mutants import MUTANTS, mutant
from parity_moves import network

from bnfold.bundle import load_bundle
from bnfold.folding import onnx_graph
from bnfold.folding.edits import AddConstant, Redirect, SetAffine, SetSlope, SetWeights
from bnfold.folding.moves import MOVES
from bnfold.parity.evidence import Evidence
from bnfold.parity.hypotheses import rewrites
from bnfold.parity.mutants import (
    SPECIMENS,
    KillTable,
    Mutant,
    Same,
    Specimen,
    Trial,
    mutants_of,
    pair_of_bundle,
    pair_of_specimen,
    self_test,
    try_out,
)
from bnfold.parity.mutants.faults import ARRAYS
from bnfold.parity.mutants.trials import TIERS, Verdict
from bnfold.parity.weights.certificate import certify, expect

NAMES = [specimen.name for specimen in SPECIMENS]
BY_NAME = dict(zip(NAMES, SPECIMENS, strict=True))


@functools.cache
def made(name: str) -> tuple[Mutant | Same, ...]:
    pair = pair_of_specimen(BY_NAME[name])
    return tuple(mutants_of(pair.reference, pair.folded, pair.expectation))


@pytest.mark.parametrize("specimen", SPECIMENS, ids=NAMES)
def test_no_wrong_fold_of_a_specimen_survives(specimen: Specimen) -> None:
    """The release does not leave while one does."""
    table = try_out([pair_of_specimen(specimen)])
    assert table.holds, table.to_table()
    assert not table.survivors
    assert not table.alarms
    assert len(table.trials) >= 20
    kinds = {trial.kind for trial in table.trials}
    assert {"ONE_ULP", "NOT_FINITE"} <= kinds
    assert table.killed("T1") == (len(table.trials), len(table.trials))
    assert 0 < table.killed("T2")[0] < len(table.trials)  # one ulp is no gross fault
    assert 0 < table.killed("T4")[0] < table.killed("T3")[0]


def test_the_specimens_have_every_move_edit_and_kind_of_linear() -> None:
    assert {specimen.move for specimen in SPECIMENS} == {move.name for move in MOVES}
    edits: set[type] = set()
    linears, roles = set(), set()
    for specimen in SPECIMENS:
        model = specimen.model()
        onnx.checker.check_model(model, full_check=True)
        reference = ir.from_proto(model)
        _, report, _ = onnx_graph.fold(reference, moves="all")
        expectation = expect(reference, report)
        edits |= {type(edit) for edit in expectation.plan.edits}
        linears |= {edit.linear.kind for edit in expectation.plan.edits if isinstance(edit, SetWeights)}
        roles |= {new.role for new in expectation.tensors}
        for norm in expectation.plan.norms:
            gamma = norm.statistics.gamma.tensor.load() if norm.statistics else None  # type: ignore[union-attr]
            assert gamma is None or ((gamma < 0).any() and (gamma > 0).any()), specimen.name
    assert edits >= {SetWeights, Redirect, SetAffine, AddConstant, SetSlope}
    assert linears == {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    assert roles == {"weight", "bias", "scale", "shift", "constant", "slope"}


def test_every_known_way_to_be_wrong_is_tried_on_some_specimen() -> None:
    """The list of ways is closed: a way that no specimen can be wrong in proves nothing."""
    tried: set[str] = set()
    for specimen in SPECIMENS:
        tried |= {one.kind for one in made(specimen.name) if isinstance(one, Mutant)}
    assert tried >= {code for code, _, _ in ARRAYS}
    assert tried >= {
        "EPS_DROPPED", "EPS_OUTSIDE", "EPS_OTHER", "EPS_LEFT", "ROOT_LOST", "BIASED_VARIANCE", "GAMMA_LOST",
        "GAMMA_SIGN", "BETA_LOST", "BETA_SIGN", "MEAN_LOST", "MEAN_SIGN", "MEAN_NOT_SCALED", "STATISTICS_DEFAULT",
        "OTHER_NORM", "NORM_LOST", "NORM_ORDER", "SCALE_LOST", "SCALE_TWICE", "SHIFT_LOST", "SHIFT_SCALED",
        "SHIFT_EXTRA", "WRONG_AXIS", "INTERLEAVED", "FIRST_GROUP", "OTHER_SLICE", "ONE_TAP", "ONE_PLACE",
        "BIAS_LOST", "BIAS_SIGN", "BIAS_NOT_SCALED", "FACTOR_LOST", "NOT_FOLDED", "BRANCH_LOST", "BRANCH_TWICE",
        "BRANCH_SIGN", "KERNEL_OFF", "NO_CONSTANT", "BORDER", "NOT_DIVIDED", "SLOPE_KEPT", "SLOPE_NOT_APPLIED",
        "SLOPE_LEFT", "ADDITION_LOST", "ACTIVATION_LOST", "PADS_MOVED", "OTHER_TENSOR",
    }  # fmt: skip


def test_a_suite_without_its_proving_tiers_is_told_what_survives() -> None:
    """Control: with T1 and T2 switched off everything survives, also what T3 and T4 notice."""
    pair = pair_of_specimen(BY_NAME["dense"])
    blind = dataclasses.replace(pair, off=frozenset({"T1", "T2"}))
    table = try_out([blind], kinds={"BETA_LOST", "GAMMA_LOST"})
    assert not table.holds
    assert table.exit_code == 1
    assert len(table.survivors) == len(table.trials) == 3
    assert table.killed("T3") == (3, 3)
    assert "3 of 3 wrong folds pass T1 and T2" in table.to_table()
    assert "survives: dense, linear_to_norm, 'fc.bias.folded': bias: beta was lost" in table.to_table()


def test_without_the_weight_certificate_single_ulps_survive() -> None:
    pair = pair_of_specimen(BY_NAME["convolution"])
    table = try_out([dataclasses.replace(pair, off=frozenset({"T1"}))], kinds={"ONE_ULP", "OTHER_TENSOR", "NEGATED"})
    assert {trial.kind for trial in table.survivors} == {"ONE_ULP"}
    assert {trial.kind for trial in table.trials} == {"ONE_ULP", "NEGATED"}


def test_a_right_fold_that_is_called_wrong_is_an_alarm() -> None:
    pair = pair_of_specimen(BY_NAME["dense"])
    (wrong,) = [
        found
        for found in mutants_of(pair.reference, pair.folded, pair.expectation)
        if found.name == "bias: beta was lost"
    ]
    assert isinstance(wrong, Mutant)
    table = try_out([dataclasses.replace(pair, folded=wrong.model)], kinds=set())
    assert not table.holds
    assert any(alarm.startswith("T1 calls the right fold of dense wrong") for alarm in table.alarms)


def test_what_rounds_to_the_right_numbers_is_no_mutant() -> None:
    pair = pair_of_specimen(BY_NAME["one dimension, two norms"])
    found = list(mutants_of(pair.reference, pair.folded, pair.expectation))
    same = [one for one in found if isinstance(one, Same)]
    assert {one.kind for one in same} >= {"KERNEL_TRANSPOSED", "NORM_ORDER"}  # no second axis; scales commute
    right = {
        name: value.const_value.numpy() for name, value in pair.folded.graph.initializers.items() if value.const_value
    }
    for one in found:
        if isinstance(one, Mutant) and not one.is_graph:
            wrong = one.model.graph.initializers[one.tensor].const_value
            assert wrong is not None
            assert wrong.numpy().tobytes() != right[one.tensor].tobytes(), one.name


def test_mutants_are_deterministic_and_leave_the_models_as_they_were() -> None:
    pair = pair_of_specimen(BY_NAME["parallel branches"])
    before = [ir.to_proto(model).SerializeToString(deterministic=True) for model in (pair.reference, pair.folded)]
    first, second = (
        [(one.kind, one.name) for one in mutants_of(pair.reference, pair.folded, pair.expectation)] for _ in range(2)
    )
    assert first == second
    after = [ir.to_proto(model).SerializeToString(deterministic=True) for model in (pair.reference, pair.folded)]
    assert before == after


def test_moves_are_told_from_the_edits_of_a_pair() -> None:
    told = {}
    for specimen in SPECIMENS:
        numbers = [one for one in made(specimen.name) if isinstance(one, Mutant) and not one.is_graph]
        told[specimen.name] = {one.move for one in numbers}
    assert told["convolution"] == {"linear_to_norm"}
    assert told["concatenation"] == {"linear_to_norm"}
    assert told["norm before convolution"] == {"norm_to_linear"}
    assert told["parallel branches"] == {"merge_branches"}
    assert told["channel through padding"] == {"ones_channel"}
    assert told["map behind padding"] >= {"constant_map"}
    assert told["shift left over"] >= {"leftover_shift"}
    assert told["slope of each channel"] >= {"per_channel_slope"}


def test_a_bundle_is_put_to_the_test_by_its_own_mutants(pristine: Path) -> None:
    said: list[str] = []
    evidence = Evidence(load_bundle(pristine))
    table = self_test(evidence, progress=said.append)
    assert table.holds, table.to_table()
    assert len(table.trials) >= 40
    assert {trial.move for trial in table.trials} == {"linear_to_norm"}
    assert said
    assert set(table.trials[0].verdicts) == set(TIERS)
    pair = pair_of_bundle(evidence)
    assert all(not verdict.caught for verdict in pair.control().values())


def _table() -> KillTable:
    found = {"T1": Verdict(True, "3 ulp, 1 wrong", 3.0), "T2": Verdict(False, "0.1", 0.1)}
    caught = Trial("net", "bias: beta was lost", "BETA_LOST", "linear_to_norm", "b", found)
    passed = Trial("net", "weight: x", "STALE", "merge_branches", "w", {"T1": Verdict(False, "0.4 ulp, 0 wrong", 0.4)})
    return KillTable((caught, passed), ("net, 'w': same",), seconds=1.0)


def test_the_table_says_it_in_text_in_markdown_and_in_json() -> None:
    table = _table()
    text = table.to_table()
    assert "beta lost   1 of 1  0 of 1" in text
    assert "1 way gives numbers that are identical after rounding; not counted" in text
    assert "survives: net, merge_branches, 'w': weight: x" in text
    assert max(map(len, text.splitlines())) <= 118
    assert "| beta lost | 1 | 1 of 1 | 3 | 0 of 1 | 0.1 | - | - |" in table.to_markdown()
    document = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert document["holds"] is False
    assert document["tiers"]["T1"] == {"caught": 1, "of": 2}
    assert document["survivors"] == ["net, merge_branches, 'w': weight: x"]
    assert KillTable(()).holds is False


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_wrong_folds_made_by_hand_are_killed_and_their_cause_is_told(name: str) -> None:
    """Written without the expressions that the mutants above are made by rewriting."""
    make, _, _ = MUTANTS[name]
    model = network(make)
    reference = ir.from_proto(model)
    folded, report, _ = onnx_graph.fold(reference, moves="all")
    found = certify(expect(reference, report), ir.from_proto(mutant(name, model, ir.to_proto(folded))))
    assert not found.holds
    for tensor in found.tensors:
        if not tensor.nearest and "summed" not in name:
            assert tensor.cause is not None, (name, tensor.sentence())


def test_rewrites_of_a_float16_network_are_rounded_to_it() -> None:
    reference = ir.from_proto(BY_NAME["dense"].model("float16"))
    folded, report, _ = onnx_graph.fold(reference, moves="all")
    expectation = expect(reference, report)
    found = [one for one in mutants_of(reference, folded, expectation) if isinstance(one, Mutant)]
    assert len(found) > 20
    for one in found:
        assert not certify(expectation, one.model, explain=False).holds, one.name
    assert next(iter(rewrites(expectation.tensors[0]))).expr.shape == expectation.tensors[0].expr.shape
    assert np.float16 == next(iter(folded.graph.initializers.values())).const_value.numpy().dtype  # type: ignore[union-attr]
