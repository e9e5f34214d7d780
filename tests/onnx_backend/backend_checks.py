"""What is asked of the fold of every model of the onnx package's backend data, and what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from backend_models import Case
from onnx import numpy_helper

import bnfold
from bnfold.api import FoldResult
from bnfold.errors import BnfoldError
from bnfold.parity.oracle import run_float64, widen
from bnfold.parity.triangle import compare
from bnfold.parity.weights.certificate import Certificate, certify, expect
from bnfold.runtime import open_session, run

Array = np.ndarray[Any, np.dtype[Any]]

FEW = 64  # elements of an output; below it, one network or the other is nearer to the truth by luck
TOLERANCE = 1e-10  # of the largest output: a fold of the model in float64 against the model, both run in float64
ROUNDED = 1e-4  # of the largest output: the same for a network of fifty layers folded in float32, where it is too large


@dataclass
class Found:
    """What the models of a family came to. problems: one sentence each; there should be none."""

    models: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    tensors: int = 0
    worst_ulp: float = 0.0
    worst_gap: float = 0.0
    run: int = 0
    worst_ratio: float = 0.0
    controls: int = 0
    caught: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def norms(self) -> int:
        return sum(self.outcomes.values())


def examine(case: Case, moves: str, found: Found, *, is_large: bool = False) -> None:
    """Fold a case and ask everything of the fold. is_large: not a second time in float64."""
    found.models += 1
    label = f"{case.name}, moves {moves}"
    before = case.model.SerializeToString(deterministic=True)
    result = bnfold.fold(case.model, moves=moves)
    if case.model.SerializeToString(deterministic=True) != before:
        found.problems.append(f"{label}: the source was changed")
    onnx.checker.check_model(result.model, full_check=_is_sound(case.model))
    found.outcomes.update(row.outcome for row in result.report.norms)
    found.reasons.update(row.reason for row in result.report.norms if row.reason)
    expectation = expect(ir.from_proto(case.model), result.report)
    certificate = certify(expectation, ir.from_proto(result.model))
    found.tensors += len(certificate.tensors)
    found.worst_ulp = max(found.worst_ulp, certificate.worst_ulp)
    found.problems += [f"{label}: T1: {finding}" for finding in certificate.findings()]
    _control(result, lambda wrong: certify(expectation, wrong), found)
    if case.batches:
        _numbers(case, moves, result, label, found, is_large)


def _is_sound(model: onnx.ModelProto) -> bool:
    """A few models of the data declare outputs that the checker infers otherwise."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:
        return False
    return True


def _control(result: FoldResult, judge: Any, found: Found) -> None:
    """Negative control: one channel of one folded tensor a thousandth off must be seen, there and nowhere else."""
    if not result.fold_map:
        return
    tensor = result.fold_map[0]["tensor"]
    wrong = onnx.ModelProto()
    wrong.CopyFrom(result.model)
    (stored,) = [one for one in wrong.graph.initializer if one.name == tensor]
    array = numpy_helper.to_array(stored).copy()
    array[array.shape[0] // 2] = array[array.shape[0] // 2] * np.float32(1.001) + np.float32(1e-3)
    stored.CopyFrom(numpy_helper.from_array(array, tensor))
    verdict: Certificate = judge(ir.from_proto(wrong))
    bad = [one.tensor for one in verdict.tensors if not one.nearest]
    found.controls += 1
    found.caught += bad == [tensor] and not verdict.structure


def _numbers(case: Case, moves: str, result: FoldResult, label: str, found: Found, is_large: bool) -> None:
    truth = [run_float64(case.model, batch) for batch in case.batches]
    exact = result.model if is_large else bnfold.fold(widen(case.model), moves=moves).model
    again = [run_float64(exact, batch) for batch in case.batches]
    gap = _gap(again, truth)
    found.worst_gap = max(found.worst_gap, gap)
    if not gap <= (ROUNDED if is_large else TOLERANCE):
        found.problems.append(f"{label}: the folded graph is {gap:.3g} of the largest output away in float64")
    try:
        session = open_session(case.model.SerializeToString(), optimise=False)
        unfolded = [run(session, batch) for batch in case.batches]
    except BnfoldError:
        return
    session = open_session(result.model.SerializeToString(), optimise=False)
    folded = [run(session, batch) for batch in case.batches]
    found.run += 1
    for corner in compare(truth, unfolded, folded):
        if corner.elements < FEW:
            continue
        if not corner.holds:
            found.problems.append(f"{label}: T3: {corner.sentence()}")
        if result.fold_map:
            found.worst_ratio = max(found.worst_ratio, corner.ratio)


def _gap(found: Sequence[Mapping[str, Array]], truth: Sequence[Mapping[str, Array]]) -> float:
    """The largest difference over the largest output; infinite where shapes or infinities differ."""
    worst = 0.0
    for one, other in zip(found, truth, strict=True):
        for name, wanted in other.items():
            got = one[name]
            if got.shape != wanted.shape or not np.array_equal(np.isfinite(got), np.isfinite(wanted)):
                return float("inf")
            finite = np.isfinite(wanted)
            size = float(np.abs(wanted[finite]).max(initial=0.0)) + 1e-3
            worst = max(worst, float(np.abs(got[finite] - wanted[finite]).max(initial=0.0)) / size)
    return worst


def examine_all(cases: Iterable[Case], moves: Sequence[str] = ("default", "all"), *, is_large: bool = False) -> Found:
    found = Found()
    for case in cases:
        for choice in moves:
            examine(case, choice, found, is_large=is_large)
    return found
