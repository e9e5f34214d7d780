"""T4: the same answers."""

from __future__ import annotations

from bnfold.errors import ParityError
from bnfold.parity.decisions import decide
from bnfold.parity.evidence import Evidence
from bnfold.parity.oracle import run_float64
from bnfold.parity.report import Status, TierResult
from bnfold.parity.request import Request

NO_DECISION = "T4 was not run: the first output is not one row of logits or probabilities a sample"


def check(evidence: Evidence, request: Request) -> TierResult:
    """T4: the same answers, on samples that were given, else on the goldens with labels, else on all goldens."""
    if evidence.decided is None:
        raise ParityError(NO_DECISION)
    samples = request.samples
    if samples is None:
        labelled = [at for at, golden in enumerate(evidence.goldens) if golden.labels is not None]
        found = evidence.decisions(labelled or range(len(evidence.goldens)))
        where = "held-out samples" if labelled else "golden vectors"
    else:
        name = evidence.decided
        found = decide(
            evidence.run_rows(evidence.reference_session, samples.inputs, name),
            evidence.run_rows(evidence.folded_session, samples.inputs, name),
            samples.labels,
            noise=evidence.noise,
            truth=lambda rows: run_float64(
                evidence.reference_proto, {key: array[rows] for key, array in samples.inputs.items()}
            )[name],
            output_kind=evidence.bundle.manifest.output_kind,
        )
        where = "samples given"
    same = found.rows - len(found.disagreements)
    headline = f"same top-1 on {same} of {found.rows} {where} ({100 * found.agreement:.6g}%)"
    if found.folded_accuracy is not None and found.unfolded_accuracy is not None:
        accuracies = found.folded_accuracy, found.unfolded_accuracy
        headline += "; {:.2%} right folded, {:.2%} unfolded".format(*accuracies)
    status: Status = "holds" if found.holds else "fails"
    return TierResult("T4", "decisions", status, headline, found.to_dict(), found.sentences())
