"""T5: the folded model in every runtime of this machine, and behind a server."""

from __future__ import annotations

import math
import time

from bnfold.parity.evidence import Evidence
from bnfold.parity.report import Status, TierResult
from bnfold.parity.request import Request
from bnfold.parity.runtimes import check_runtimes
from bnfold.parity.runtimes.trials import MAX_ROWS
from bnfold.runtime import run

# Each row goes through both models in some 16 cells, and thrice more to see whether its batch matters to it.
_RUNS = 40
_SECONDS = 30.0  # of runs, whatever the budget
_FEWEST = 8  # rows: one more than the prime batch


def check(evidence: Evidence, request: Request) -> TierResult:
    """T5: cell by cell, as T3 and T4 judge; batch invariance; a server where one is named."""
    found = check_runtimes(
        evidence, url=request.url, samples=request.samples, progress=request.say, rows=_rows(evidence, request)
    )
    status: Status = {True: "holds", False: "fails", None: "cannot tell"}[found.holds]  # type: ignore[assignment]
    return TierResult(
        "T5", "runtime matrix", status, found.headline(), found.summary(), found.sentences(), found.rows()
    )


def _rows(evidence: Evidence, request: Request) -> int:
    """As many rows as the time allows; a large network gets fewer."""
    golden = evidence.goldens[0].inputs
    few = {name: array[: 1 if _is_free(evidence) else None] for name, array in golden.items()}
    spent = math.inf
    for _ in range(2):  # the first run also finds its memory
        session, begun = evidence.reference_session, time.monotonic()
        run(session, few)
        spent = max(min(spent, time.monotonic() - begun), 1e-6)
    return int(min(MAX_ROWS, max(_FEWEST, min(_SECONDS, request.left) / (_RUNS * spent))))


def _is_free(evidence: Evidence) -> bool:
    return all(spec.shape[:1] == (-1,) for spec in evidence.bundle.manifest.inputs)
