"""T1: the weight certificate of a bundle."""

from __future__ import annotations

import json

from bnfold.parity.evidence import Evidence
from bnfold.parity.report import Status, TierResult
from bnfold.parity.request import Request


def check(evidence: Evidence, _: Request) -> TierResult:
    """T1: the weight certificate."""
    found = evidence.certificate
    findings = list(found.findings())
    findings += [*_fold_map(evidence), *_counts(evidence)]
    status: Status = "fails" if findings else "holds"
    elements = sum(tensor.distances.elements for tensor in found.tensors)
    wrong = [tensor for tensor in found.tensors if not tensor.nearest]
    headline = f"{len(found.tensors)} folded tensors, {elements:,} values, "
    headline += f"{len(wrong)} tensor{'s' * (len(wrong) > 1)} wrong; " if wrong else "each the nearest; "
    headline += f"worst {found.worst_ulp:.4f} ulp" if found.worst_ulp < 10 else f"worst {found.worst_ulp:,.4g} ulp"
    headline += "; the graph is not the fold of the reference" if found.structure else ""
    summary = {
        "tensors": len(found.tensors), "elements": elements, "wrong_tensors": len(wrong),
        "worst_ulp": found.worst_ulp, "structure_differences": len(found.structure),
    }  # fmt: skip
    return TierResult(
        "T1", "weight certificate", status, headline, summary, tuple(findings), tuple(found.to_dict()["tensors"])
    )


def _fold_map(evidence: Evidence) -> list[str]:
    expected = evidence.expectation.fold_map
    stored = [dict(entry) for entry in evidence.bundle.manifest.fold_map]
    if json.dumps(stored, sort_keys=True) == json.dumps(list(expected), sort_keys=True):
        return []
    return ["the fold map of manifest.json is not that of a fold of reference.onnx; expected one entry a folded tensor"]


def _counts(evidence: Evidence) -> list[str]:
    stored, expected = evidence.bundle.fold_report().get("counts"), dict(evidence.report.counts)
    if stored == expected:
        return []
    return [f"the counts of fold.json are {stored!r:.120}; expected those of its rows, {expected}"]
