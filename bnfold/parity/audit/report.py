"""The verdict of an audit, as a table for people and as JSON for machines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bnfold.parity.audit.comparing import Comparison
from bnfold.parity.audit.verdicts import TensorAudit
from bnfold.parity.report import Status, TierResult, plain

SCHEMA_VERSION = 1
WEIGHTS = "weight certificate"
_WIDTH = 118
_SHOWN = 12  # findings of a tier that the table prints


@dataclass(frozen=True)
class AuditReport:
    """What an audit found. folded, original: what was compared; tiers: T1, T3 and, where there are classes, T4.

    tensors: every tensor of the folded network that belongs to a linear or that a fold made. environment: where it ran.
    """

    folded: str
    original: str
    tiers: tuple[TierResult, ...]
    tensors: tuple[TensorAudit, ...]
    norms: Mapping[str, tuple[str, ...]]
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def holds(self) -> bool | None:
        """True when every tier holds, False when one fails, None when none fails but one cannot tell."""
        statuses = {tier.status for tier in self.tiers}
        if "fails" in statuses:
            return False
        return None if "cannot tell" in statuses or not statuses else True

    @property
    def exit_code(self) -> int:
        """0: it is a fold of the original; 1: it is not; 2: cannot tell."""
        return {True: 0, False: 1, None: 2}[self.holds]

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings of the tiers that do not hold, in order."""
        return tuple(finding for tier in self.tiers if tier.status != "holds" for finding in tier.findings)

    @property
    def wrong(self) -> tuple[TensorAudit, ...]:
        """The tensors that rounding does not explain."""
        return tuple(tensor for tensor in self.tensors if tensor.verdict == "wrong")

    def tier(self, name: str) -> TierResult:
        """One tier by its short name. Raises KeyError when it was not run."""
        for tier in self.tiers:
            if tier.tier == name:
                return tier
        raise KeyError(name)

    def worst_ulp(self, role: str) -> float:
        """The largest distance of a tensor of a role from its exact value, in ulp; 0 where there is none."""
        return max((tensor.worst_ulp for tensor in self.tensors if tensor.role == role), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; a number that is not finite becomes null."""
        document: dict[str, Any] = plain(
            {
                "schema_version": self.schema_version, "folded": self.folded, "original": self.original,
                "holds": self.holds, "verdict": self.verdict(), "norms": dict(self.norms),
                "tensors": [tensor.to_dict() for tensor in self.tensors],
                "tiers": [tier.to_dict() for tier in self.tiers],
                "environment": self.environment, "notes": list(self.notes),
            }
        )  # fmt: skip
        return document

    def to_table(self) -> str:
        """The report as text: a line a tier, its findings below it, the verdict last."""
        cells = [(tier.tier, tier.title, tier.status) for tier in self.tiers]
        widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
        lines = [f"audit of {self.folded} against {self.original}", ""]
        for tier, row in zip(self.tiers, cells, strict=True):
            head = "".join(f"{cell.ljust(width)}  " for cell, width in zip(row, widths, strict=True))
            lines += textwrap.wrap(tier.headline, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
            more = len(tier.findings) - _SHOWN
            shown = [*tier.findings[:_SHOWN], *([f"{more} more findings (--json has them all)"] if more > 0 else [])]
            for finding in shown:
                lines += textwrap.wrap(finding, _WIDTH, initial_indent="    - ", subsequent_indent="      ")
        lines += ["", *self.notes] if self.notes else []
        return "\n".join([*lines, "", self.verdict()])

    def verdict(self) -> str:
        """The outcome in one line."""
        match self.holds:
            case True if not self.norms["taken"] and all(tensor.verdict == "unchanged" for tensor in self.tensors):
                return "nothing is folded: FOLDED computes what ORIGINAL does, with the same numbers"
            case True:
                return f"FOLDED is ORIGINAL, folded: {self._how()}"
            case False:
                failing = ", ".join(tier.tier for tier in self.tiers if tier.status == "fails")
                return f"FOLDED is not a right fold of ORIGINAL ({failing})"
        failing = ", ".join(tier.tier for tier in self.tiers if tier.status != "holds")
        return f"cannot tell whether FOLDED is a right fold of ORIGINAL ({failing or 'no tier was run'})"

    def _how(self) -> str:
        if any(tensor.verdict == "consistent with rounding" for tensor in self.tensors):
            return "consistent with rounding"
        return "every value the nearest there is"


def weights_tier(found: Comparison, *, differs: bool) -> TierResult:
    """T1 as a tier. differs: T3 or T4 have seen that the two networks give different answers."""
    counts = {verdict: sum(t.verdict == verdict for t in found.tensors) for verdict in _VERDICTS}
    worst = {role: _worst(found, role) for role in dict.fromkeys(t.role for t in found.changed if not t.barred)}
    where = f"{found.matched} of {found.linears} linears matched"
    parts = [f"{count} {verdict}" for verdict, count in counts.items() if count and verdict != "unchanged"]
    changed = f"{len(found.changed)} tensor{'s' * (len(found.changed) != 1)} changed"
    headline = f"{where}; {changed}" + (f": {', '.join(parts)}" if parts else "")
    if worst:
        spelt = ", ".join(
            f"{ulp:.4g} on {_PLURALS[role]}" if math.isfinite(ulp) else f"{_PLURALS[role]} not finite"
            for role, ulp in worst.items()
        )
        headline += f"; worst ulp {spelt}"
    suspects = tuple(_suspects(found))
    status: Status
    findings: tuple[str, ...]
    if found.is_whole:
        status, findings = ("fails", suspects) if suspects else ("holds", ())
    else:
        gaps = tuple(f"not matched, measured by T3 only: {gap}" for gap in found.gaps)
        status = "fails" if differs and suspects else "cannot tell"
        findings = (*(suspects if differs else ()), *found.reasons, *gaps)
    summary = {
        **{verdict.replace(" ", "_"): count for verdict, count in counts.items()},
        **{f"worst_ulp_{role}": ulp for role, ulp in worst.items()},
        "linears": found.linears, "linears_matched": found.matched, "gaps": len(found.gaps), "moves": found.by,
    }  # fmt: skip
    return TierResult("T1", WEIGHTS, status, headline, summary, findings)


def _suspects(found: Comparison) -> Iterator[str]:
    """Wrong tensors; those of linears that were set side by side by their order only where most of these fit."""
    guessed = [tensor for tensor in found.tensors if tensor.guessed]
    fit = 2 * sum(tensor.verdict != "wrong" for tensor in guessed) > len(guessed)
    yield from (tensor.sentence() for tensor in found.wrong if fit or not tensor.guessed)
    if not found.is_whole and 2 * found.matched < found.linears and not fit:
        yield f"only {found.matched} of {found.linears} linears of FOLDED match ORIGINAL; are they the same network?"


_PLURALS = {
    "weight": "weights", "bias": "biases", "scale": "scales", "shift": "shifts", "constant": "constants",
    "slope": "slopes",
}  # fmt: skip
_VERDICTS = ("nearest", "consistent with rounding", "wrong", "unchanged")


def _worst(found: Comparison, role: str) -> float:
    return max((tensor.worst_ulp for tensor in found.changed if tensor.role == role and not tensor.barred), default=0.0)
