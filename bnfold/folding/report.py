"""What became of each norm: rows, counts, numbers, a table, JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from bnfold.errors import FoldError
from bnfold.folding.table import Paint, draw, paragraph

Outcome: TypeAlias = Literal["folded", "reduced", "kept", "refused"]
OUTCOMES: tuple[Outcome, ...] = ("folded", "reduced", "kept", "refused")


@dataclass(frozen=True)
class NormNumbers:
    """What a fold does to the numbers of one norm; `bnfold.folding.numbers` has the formulas.

    max_scale: the largest |a| of `y = a * x + b`. eps_share: the largest share of eps in variance + eps, from 0 to 1.
    amplification: how many times larger the terms of the shift are than the shift, at worst. None: not known.
    """

    max_scale: float | None = None
    eps_share: float | None = None
    amplification: float | None = None


@dataclass(frozen=True)
class ErrorBound:
    """How far rounding a folded linear once moves its outputs, per output channel, for inputs with |x| <= `x`.

    norms: the names of those that went in. channels: (O,), rounded up to three digits; `largest` is the largest.
    """

    linear: str
    dtype: str
    norms: tuple[str, ...]
    x: float
    largest: float
    channels: tuple[float, ...]


@dataclass(frozen=True)
class NormOutcome:
    """One norm of the source.

    outcome: `folded` (gone, nothing left of it), `reduced` (a smaller remainder stays), `kept` (correct, but nothing
    may absorb it), `refused` (not a fixed, finite affine map). reason: a stable upper-case code, empty when folded.
    target: the linears that absorbed it, empty otherwise. detail: one sentence for a person. needs: what it would
    take to fold the rest of it, empty when folded. where: between which nodes it stands.
    """

    name: str
    kind: str
    outcome: Outcome
    reason: str
    target: str
    detail: str
    needs: str = ""
    where: str = ""
    numbers: NormNumbers | None = None


@dataclass(frozen=True)
class Declined:
    """A move that is exact, and was not made because of what it costs. norm: the name of the norm it would move."""

    move: str
    norm: str
    detail: str


@dataclass(frozen=True)
class FoldReport:
    """One row for every norm that was found, in graph order.

    moves, keep: as they were asked for. bounds: of the linears that took norms in, where they were computed.
    """

    norms: tuple[NormOutcome, ...]
    moves: str | tuple[str, ...] = "default"
    keep: tuple[str, ...] = ()
    declined: tuple[Declined, ...] = ()
    bounds: tuple[ErrorBound, ...] = ()

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
        return {
            "counts": dict(self.counts),
            "moves": self.moves if isinstance(self.moves, str) else list(self.moves),
            "keep": list(self.keep),
            "norms": [asdict(row) for row in self.norms],
            "declined": [asdict(row) for row in self.declined],
            "bounds": [
                {**asdict(row), "norms": list(row.norms), "channels": list(row.channels)} for row in self.bounds
            ],
        }

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> FoldReport:
        """Read what `to_dict` wrote, also that of earlier releases, with fewer keys. Raises FoldError otherwise."""
        try:
            moves = document.get("moves", "default")
            return FoldReport(
                norms=tuple(_outcome(row) for row in document["norms"]),
                moves=moves if isinstance(moves, str) else tuple(moves),
                keep=tuple(document.get("keep", ())),
                declined=tuple(Declined(**row) for row in document.get("declined", ())),
                bounds=tuple(_bound(row) for row in document.get("bounds", ())),
            )
        except (AttributeError, KeyError, TypeError) as problem:
            raise FoldError(f"the fold report has a row that is not of its schema ({problem}); fold again") from None

    def to_table(self, *, width: int | None = None, paint: Paint | None = None) -> str:
        """The report as text, for a terminal of `width` columns; `paint` colours a text by a word for its meaning."""
        if not self.norms:
            return "no norm found"
        heads = ("norm", "where", "outcome", "why, and what it would take")
        rows = [((row.name, _place(row), row.outcome, _why(row)), row.outcome) for row in self.norms]
        parts = [draw(heads, rows, width=width, paint=paint)]
        notes = [paragraph(f"declined: {note}", width=width) for note in self.declined_notes()]
        return "\n\n".join([*parts, *(["\n".join(notes)] if notes else []), paragraph(self.summary(), width=width)])

    def to_numbers(self, *, width: int | None = None) -> str:
        """What the fold does to the numbers, as text: of each norm, and of each linear that has a bound."""
        known = [(row, row.numbers) for row in self.norms if row.numbers is not None]
        heads = ("norm", "max|a|", "share of eps", "amplification")
        rows = [
            ((row.name, *(map(_digits, (n.max_scale, n.eps_share, n.amplification)))), row.outcome) for row, n in known
        ]
        parts = [draw(heads, rows, width=width)] if rows else []
        if self.bounds:
            heads = ("linear", "dtype", "rounding", "took in")
            lines = [((b.linear, b.dtype, _digits(b.largest), ", ".join(b.norms)), "") for b in self.bounds]
            parts.append(draw(heads, lines, width=width))
            parts.append(f"rounding: how far it moves an output at most, for inputs with |x| <= {self.bounds[0].x:g}")
        return "\n\n".join(parts) or "no numbers are known"

    def declined_notes(self) -> tuple[str, ...]:
        """What the cost guard declined, one sentence a move."""
        moves: dict[tuple[str, str], list[str]] = {}
        for row in self.declined:
            moves.setdefault((row.move, row.detail), []).append(row.norm)
        return tuple(f"{move} for {_listed(norms)}: {detail}" for (move, detail), norms in moves.items())

    def summary(self) -> str:
        """The counts in one line."""
        counted = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items() if count)
        total = len(self.norms)
        return f"{total} norm{'s' if total != 1 else ''} found: {counted}" if total else "no norm found"


def _place(row: NormOutcome) -> str:
    return f"into {row.target}" if row.target else row.where


def _why(row: NormOutcome) -> str:
    if row.outcome == "folded":
        return ""
    needs = f"\nwould take: {row.needs}" if row.needs else ""
    return f"{row.detail} [{row.reason}]{needs}"


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def _outcome(row: Mapping[str, Any]) -> NormOutcome:
    numbers = row.get("numbers")
    return NormOutcome(**{**row, "numbers": None if numbers is None else NormNumbers(**numbers)})


def _bound(row: Mapping[str, Any]) -> ErrorBound:
    return ErrorBound(**{**row, "norms": tuple(row["norms"]), "channels": tuple(row["channels"])})
