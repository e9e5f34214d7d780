"""T3b: reference.onnx is the source, and the stored truth its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from bnfold.bundle import hash_tensor
from bnfold.folding.statistics import tensors_of
from bnfold.parity.evidence import Evidence
from bnfold.parity.report import Status, TierResult
from bnfold.parity.request import Request
from bnfold.parity.triangle import TRUTH_ROUNDING, corner
from bnfold.parity.truth import open_truth


def check(evidence: Evidence, _: Request) -> TierResult:
    """T3b: reference.onnx is the source, and the stored truth is what it computes in float64."""
    findings = [*_tensors(evidence), *_statistics(evidence)]
    worst = 0.0
    run_again = open_truth(evidence.reference_proto)
    truth = [run_again(golden.inputs) for golden in evidence.goldens]
    for found in evidence.corners:
        stored = [golden.truth[found.output] for golden in evidence.goldens]
        apart = corner(found.output, [again[found.output] for again in truth], stored, stored)
        # A truth must be much nearer to the real one than the errors that are measured by it.
        limit = max(found.unfolded_error / 10, TRUTH_ROUNDING * apart.scale)
        if apart.problem or apart.doubt or not apart.folded_error <= limit:
            what = apart.problem or f"differs by {apart.folded_error:.3g} from a float64 run of reference.onnx"
            findings.append(f"the stored truth of output '{found.output}' {what}; expected at most {limit:.3g}")
        worst = max(worst, apart.folded_error)
    status: Status = "fails" if findings else "holds"
    count = len(evidence.bundle.manifest.source_tensors)
    differences = "1 difference" if len(findings) == 1 else f"{len(findings)} differences"
    headline = f"{differences} from the source" if findings else f"{count} source tensors as recorded"
    headline += f"; stored truth {worst:.2g} from a float64 run"
    summary = {"source_tensors": count, "truth_difference": worst}
    return TierResult("T3b", "reference", status, headline, summary, tuple(findings))


def _tensors(evidence: Evidence) -> Iterator[str]:
    recorded = evidence.bundle.manifest.source_tensors
    found = {
        tensor.name: hash_tensor(onnx.numpy_helper.to_array(tensor))
        for tensor in evidence.reference_proto.graph.initializer
    }
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            yield f"source tensor '{name}' is recorded in manifest.json, but reference.onnx does not have it"
        elif name not in recorded:
            yield f"tensor '{name}' of reference.onnx is not among the source tensors of manifest.json"
        elif recorded[name] != found[name]:
            yield f"tensor '{name}' of reference.onnx is not the source's: its hash differs from manifest.json"


def _statistics(evidence: Evidence) -> Iterator[str]:
    stored = evidence.bundle.statistics()
    norms = {norm.name: norm for norm in evidence.plan.norms}
    for name, quantities in stored.items():
        if name not in norms:
            yield f"statistics.safetensors has a norm '{name}', which reference.onnx does not"
            continue
        wanted = {quantity: np.asarray(array) for quantity, array in tensors_of(norms[name]).items()}
        for quantity in sorted(wanted.keys() | quantities.keys()):
            if quantity not in quantities:
                yield f"statistics.safetensors has no '{name}.{quantity}', which reference.onnx has"
            elif quantity not in wanted or hash_tensor(wanted[quantity]) != hash_tensor(quantities[quantity]):
                yield f"statistics.safetensors: '{name}.{quantity}' is not that of reference.onnx"
    for row in evidence.report.norms:
        if row.outcome == "folded" and row.name not in stored:
            yield f"statistics.safetensors has no statistics of the folded norm '{row.name}'"
