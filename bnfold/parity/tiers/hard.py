"""T3h: the oracle triangle where it is hardest, on made-up inputs and on the worst one that a search finds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from bnfold.errors import ParityError
from bnfold.parity.evidence import Evidence
from bnfold.parity.hard_inputs import hard_inputs
from bnfold.parity.hard_rule import HardCorner, check_hard
from bnfold.parity.report import Status, TierResult
from bnfold.parity.request import Request
from bnfold.parity.rerounding import copies_of, rerounded
from bnfold.parity.search.seeking import worst_input
from bnfold.parity.search.worst import Run, WorstInput, in_batches
from bnfold.parity.truth import Truth, open_truth
from bnfold.runtime import open_session, run
from bnfold.samples import Samples

_SECONDS = 15.0  # for either half, whatever the budget
_MOST_ROWS = 4  # of a kind
_COSTS = 3.0  # a row's float64 run is this part of what the row costs with the re-rounded models


def check(evidence: Evidence, request: Request) -> TierResult:
    """T3h: every kind of hard input, then a search from the golden vectors."""
    corners, notes = _kinds(evidence, request)
    worst: WorstInput | None = None
    request.say("T3h: searching for the worst input")
    try:
        worst = worst_input(evidence, seconds=min(_SECONDS, max(1.0, request.left)))
    except ParityError as problem:
        notes.append(f"no search for the worst input: {problem}")
    judged = [found for found in corners if found.status != "left out"]
    states = {found.status for found in judged} | ({worst.status} if worst is not None else set())
    status: Status = "fails" if "fails" in states else "holds" if "holds" in states else "cannot tell"
    said = [found.sentence() for found in judged if found.status in ("fails", "cannot tell")]
    said += worst.sentences() if worst is not None else ()
    headline = f"{len({found.kind for found in judged})} kinds of hard inputs, {sum(f.rows for f in judged)} rows"
    summary: dict[str, Any] = {
        "kinds": len({found.kind for found in judged}), "rows": sum(found.rows for found in judged),
        "left_out": sum(found.left_out for found in corners),
        "worst_of_limit": max((_share(found) for found in judged), default=float("nan")),
    }  # fmt: skip
    if worst is not None:
        headline += f"; worst input found by {worst.kind} search: difference {worst.difference:.2g}, "
        headline += f"{worst.ratio:.3g} times that on data" + (
            "" if worst.top1_same is not False else ", another top-1"
        )
        summary |= {
            "search": worst.kind, "search_steps": worst.steps, "search_difference": worst.difference,
            "search_on_data": worst.on_data, "search_top1_same": worst.top1_same, "search_margin": worst.margin,
        }  # fmt: skip
        notes += [worst.note] if worst.note else []
    details = tuple(_row(found) for found in (*corners, *(worst.corners if worst is not None else ())))
    return TierResult("T3h", "hard inputs", status, headline, summary, (*said, *notes), details)


def _kinds(evidence: Evidence, request: Request) -> tuple[list[HardCorner], list[str]]:
    """Every kind in turn, with as many rows as the time allows."""
    specs, like = evidence.bundle.manifest.inputs, _like(evidence)
    lowest = None if evidence.decided is None else evidence.unfolded_answers[0][evidence.decided]
    truth = open_truth(evidence.reference_proto)
    spent = _timed(truth, like, _batch(evidence))
    allowed = min(_SECONDS, request.left) / max(spent * _COSTS, 1e-9)
    kinds = hard_inputs(specs, like, lowest=lowest, rows=int(min(_MOST_ROWS, max(1, allowed / 16))))
    unfolded, folded = _runner(evidence, evidence.reference_session), _runner(evidence, evidence.folded_session)
    again = [
        _runner(evidence, open_session(_again(evidence, seed), optimise=True, threads=evidence.threads))
        for seed in range(copies_of(evidence.folded_proto))
    ]
    corners: list[HardCorner] = []
    begun, left_out = time.monotonic(), []
    for kind in kinds:
        if corners and time.monotonic() - begun > 2 * _SECONDS:
            left_out.append(kind.kind)
            continue
        request.say(f"T3h: {kind.kind}")
        true = in_batches(truth, kind.inputs, _batch(evidence))
        sides = unfolded(kind.inputs), folded(kind.inputs)
        corners += check_hard(kind.kind, true, *sides, [one(kind.inputs) for one in again])
    return corners, [f"not run for want of time: {', '.join(left_out)}"] if left_out else []


def _like(evidence: Evidence) -> Samples:
    return Samples(dict(evidence.goldens[0].inputs), None)


def _timed(truth: Truth, like: Samples, batch: int | None) -> float:
    """Seconds of one row in float64."""
    few = {name: array[: 1 if batch is None else None] for name, array in like.inputs.items()}
    spent: list[float] = []
    while len(spent) < 2 and sum(spent) < 1:  # the first run also loads what it needs
        begun = time.monotonic()
        truth(few)
        spent.append(time.monotonic() - begun)
    return min(spent) / (batch or 1)


def _batch(evidence: Evidence) -> int | None:
    fixed = [spec.shape[0] for spec in evidence.bundle.manifest.inputs if spec.shape and spec.shape[0] > 0]
    return fixed[0] if fixed else None


def _runner(evidence: Evidence, session: Any) -> Run:
    return lambda inputs: in_batches(lambda part: run(session, part), inputs, _batch(evidence))


def _again(evidence: Evidence, seed: int) -> bytes:
    data: bytes = rerounded(evidence.folded_proto, seed).SerializeToString()
    return data


def _share(found: HardCorner) -> float:
    """How much of what it may be the folded error is."""
    limit = found.rms_limit
    return float(found.corner.folded_rms / limit) if limit > 0 else 0.0


def _row(found: HardCorner) -> Mapping[str, Any]:
    return {
        "kind": found.kind, **dataclasses.asdict(found.corner), "rows": found.rows, "left_out": found.left_out,
        "scatter_rms": found.scatter[0], "scatter_error": found.scatter[1], "rms_limit": found.rms_limit,
        "error_limit": found.error_limit, "status": found.status,
    }  # fmt: skip
