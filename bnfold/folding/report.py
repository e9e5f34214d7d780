"""What became of each norm: rows, counts, a table, JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from bnfold.errors import FoldError

Outcome: TypeAlias = Literal["folded", "reduced", "kept", "refused"]
OUTCOMES: tuple[Outcome, ...] = ("folded", "reduced", "kept", "refused")

_WIDTH = 110


@dataclass(frozen=True)
class NormOutcome:
    """One norm of the source.

    outcome: `folded` (gone, nothing left of it), `reduced` (a smaller remainder stays), `kept` (correct, but nothing
    may absorb it), `refused` (not a fixed, finite affine map). reason: a stable upper-case code, empty when folded.
    target: the linear that absorbed it, empty otherwise. detail: one sentence for a person.
    """

    name: str
    kind: str
    outcome: Outcome
    reason: str
    target: str
    detail: str
    needs: str = ""


@dataclass(frozen=True)
class Declined:
    """A move that is exact, and was not made because of what it costs."""

    move: str
    norm: str
    detail: str


@dataclass(frozen=True)
class FoldReport:
    """One row for every norm that was found, in graph order."""

    norms: tuple[NormOutcome, ...]
    moves: str | tuple[str, ...] = "default"
    keep: tuple[str, ...] = ()
    declined: tuple[Declined, ...] = ()

    @property
    def counts(self) -> Mapping[str, int]:
        """Norms by outcome; every outcome has a count, also 0."""
        return {outcome: sum(row.outcome == outcome for row in self.norms) for outcome in OUTCOMES}

    @property
    def refused(self) -> tuple[NormOutcome, ...]:
        """The rows of norms that are not a fixed, finite affine map."""
        return tuple(row for row in self.norms if row.outcome == "refused")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values; `from_dict` reads it back."""
        return {"counts": dict(self.counts), "norms": [asdict(row) for row in self.norms]}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> FoldReport:
        """Read what `to_dict` wrote. Raises FoldError on anything else."""
        try:
            rows = tuple(NormOutcome(**row) for row in document["norms"])
        except (KeyError, TypeError) as problem:
            raise FoldError(f"the fold report has a row that is not of its schema ({problem}); fold again") from None
        return FoldReport(rows)

    def to_table(self) -> str:
        """The report as text, one line a norm and, below it, why it is not folded."""
        if not self.norms:
            return "no norm found"
        heads = ("norm", "kind", "outcome", "into / reason")
        rows = [(row.name, row.kind, row.outcome, row.target or row.reason) for row in self.norms]
        widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
        lines = [_line(heads, widths), _line(tuple("-" * width for width in widths), widths)]
        for row, cells in zip(self.norms, rows, strict=True):
            lines.append(_line(cells, widths))
            if row.outcome != "folded":
                lines += textwrap.wrap(row.detail, _WIDTH, initial_indent="    ", subsequent_indent="    ")
        return "\n".join([*lines, "", self.summary()])

    def summary(self) -> str:
        """The counts in one line."""
        counted = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items() if count)
        total = len(self.norms)
        return f"{total} norm{'s' if total != 1 else ''} found: {counted}" if total else "no norm found"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
