"""The verdict: one row a tier, the whole as a table for people and as JSON for machines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

Status: TypeAlias = Literal["holds", "fails", "cannot tell"]

SCHEMA_VERSION = 1
_WIDTH = 118
PROOF = ("T0", "T1", "T2", "T3", "T3b")
"""The tiers that every proof has; T4 only where outputs are decisions, the others where somebody asks."""


@dataclass(frozen=True)
class TierResult:
    """One tier of the suite.

    headline: the outcome in a few words with its numbers. summary: numbers by name. findings: what a person must know,
    a sentence each. details: rows (a tensor, a site, an output each) for those who look closer.
    """

    tier: str
    title: str
    status: Status
    headline: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    details: tuple[Mapping[str, Any], ...] = ()
    assumptions: tuple[str, ...] = ()
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; a number that is not finite becomes null."""
        document: dict[str, Any] = plain(
            {
                "tier": self.tier, "title": self.title, "status": self.status, "headline": self.headline,
                "summary": self.summary, "findings": self.findings, "details": self.details,
                "assumptions": self.assumptions,
                **({} if self.seconds is None else {"seconds": round(self.seconds, 3)}),
            }
        )  # fmt: skip
        return document


@dataclass(frozen=True)
class ParityReport:
    """What the suite found on one bundle. version: None while it is not published. environment: where it ran."""

    name: str
    version: int | None
    tiers: tuple[TierResult, ...]
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
    def not_run(self) -> tuple[str, ...]:
        """The tiers that make a proof and were left out."""
        run = {tier.tier for tier in self.tiers}
        return tuple(name for name in PROOF if name not in run)

    @property
    def exit_code(self) -> int:
        """0: parity holds; 1: it does not; 2: cannot tell."""
        return {True: 0, False: 1, None: 2}[self.holds]

    @property
    def findings(self) -> tuple[str, ...]:
        """The findings of the tiers that do not hold, in order."""
        return tuple(finding for tier in self.tiers if tier.status != "holds" for finding in tier.findings)

    def tier(self, name: str) -> TierResult:
        """One tier by its short name. Raises KeyError when it was not run."""
        for tier in self.tiers:
            if tier.tier == name:
                return tier
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """The document of parity.json; without a version where there is none yet."""
        document: dict[str, Any] = {"schema_version": self.schema_version, "name": self.name}
        if self.version is not None:
            document["version"] = self.version
        return {
            **document,
            "holds": self.holds,
            "tiers": [tier.to_dict() for tier in self.tiers],
            "environment": plain(self.environment),
            "notes": list(self.notes),
        }

    def to_table(self) -> str:
        """The report as text: a line a tier, its findings below it, the verdict last."""
        label = self.name if self.version is None else f"{self.name}/{self.version}"
        cells = [(tier.tier, tier.title, tier.status) for tier in self.tiers]
        widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
        lines = [f"parity of {label}", ""]
        for tier, row in zip(self.tiers, cells, strict=True):
            head = "".join(f"{cell.ljust(width)}  " for cell, width in zip(row, widths, strict=True))
            lines += textwrap.wrap(tier.headline, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
            for finding in tier.findings:
                lines += textwrap.wrap(finding, _WIDTH, initial_indent="    - ", subsequent_indent="      ")
        for tier in self.tiers:
            if tier.assumptions:
                text = f"{tier.tier} assumes: {'; '.join(tier.assumptions)}"
                lines += ["", *textwrap.wrap(text, _WIDTH)]
        for note in self.notes:
            lines += ["", *textwrap.wrap(note, _WIDTH)]
        return "\n".join([*lines, "", self.verdict()])

    def verdict(self) -> str:
        """The outcome in one line."""
        failing = [tier.tier for tier in self.tiers if tier.status != "holds"]
        match self.holds:
            case True if self.not_run:
                run, left = ", ".join(tier.tier for tier in self.tiers), ", ".join(self.not_run)
                holds = "holds" if len(self.tiers) == 1 else "hold"
                return f"{run} {holds}; {left} not run, so parity is not proven by this run"
            case True:
                return "parity holds: the folded model computes what the unfolded one does"
            case False:
                return f"parity does not hold ({', '.join(failing)})"
        return f"cannot tell whether parity holds ({', '.join(failing) or 'no tier was run'})"


def plain(value: Any) -> Any:
    """Numbers, text, lists and objects as strict JSON has them; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
