"""T0: the files and the norms, before any proof starts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import numpy as np

from bnfold.folding import algebra
from bnfold.folding.facts import Linear, Norm
from bnfold.folding.statistics import statistics_of
from bnfold.parity.evidence import Evidence
from bnfold.parity.report import Status, TierResult
from bnfold.parity.request import Request

_DEAD = 1e-12  # |gamma| below which a channel says the same whatever comes in
_LARGEST_HALF = 65504.0  # of binary16, IEEE 754-2019


def check(evidence: Evidence, request: Request) -> TierResult:
    """T0: every file has its hash, and nothing in the norms to be ashamed of before the proof starts."""
    plan, problems = evidence.plan, request.problems
    rows = {row.name: row.outcome for row in evidence.report.norms}
    refused = plan.report.refused
    faults = [
        f"norm '{row.name}': {row.detail}, but fold.json does not call it refused"
        for row in refused
        if rows.get(row.name) != "refused"
    ]
    warnings = [warning for norm in plan.norms if norm.refusal is None for warning in _warnings(norm)]
    warnings += [*_shared(evidence), *_beyond_half(evidence)]
    status: Status = "fails" if problems or faults else "holds"
    checked = len(evidence.bundle.manifest.files)
    headline = f"{checked} files as hashed" if not problems else f"{len(problems)} of {checked} files changed"
    headline += f"; {len(plan.norms)} norms, " + (f"{len(refused)} refused" if refused else "each of them sound")
    summary = {"files": checked, "changed": len(problems), "norms": len(plan.norms), "refused": len(refused)}
    return TierResult("T0", "files and preflight", status, headline, summary, (*problems, *faults, *warnings))


def _warnings(norm: Norm) -> Iterator[str]:
    statistics = statistics_of(norm)
    if statistics is None:
        return
    parts = (statistics.gamma, statistics.mean, statistics.variance)
    gamma, mean, variance = (algebra.evaluate(part).hi for part in parts)
    dead = int(np.sum(np.abs(gamma) < _DEAD))
    if dead:
        yield f"norm '{norm.name}' has {dead} dead channel(s): gamma is zero, or as good as"
    if np.all(mean == 0) and np.all(variance == 1):
        yield f"norm '{norm.name}' has mean 0 and variance 1 in every channel: was it ever trained?"


def _shared(evidence: Evidence) -> Iterator[str]:
    """Weights that several linears read."""
    users: dict[Hashable, list[Linear]] = {}
    for node in evidence.graph.nodes:
        if isinstance(node, Linear):
            users.setdefault(node.weight.key, []).append(node)
    for linears in users.values():
        if len(linears) > 1:
            names = ", ".join(f"'{linear.name}'" for linear in linears[:4]) + (", ..." if len(linears) > 4 else "")
            yield f"weight '{linears[0].weight.name}' is shared by {len(linears)} linears ({names}); each fold is apart"


def _beyond_half(evidence: Evidence) -> Iterator[str]:
    """Folded tensors that a cast to float16 would turn into infinity."""
    for new in evidence.expectation.tensors:
        value = evidence.folded.graph.initializers.get(new.tensor)
        if value is None or value.const_value is None:
            continue
        stored = np.asarray(value.const_value.numpy())
        largest = float(np.abs(stored).max(initial=0)) if stored.dtype in (np.float32, np.float64) else 0.0
        if largest > _LARGEST_HALF:
            yield f"tensor '{new.tensor}' reaches {largest:.3g}; in float16, whose largest is 65504, it would overflow"
