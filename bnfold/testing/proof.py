"""What `assert_parity` found, and how it reads in a failing test: verdict, tiers, what is wrong, what to do next."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bnfold.errors import ParityError
from bnfold.folding.table import plain
from bnfold.parity.report import ParityReport, TierResult

_WIDTH = 110
_SHOWN = 6  # findings of a tier; a network with a wrong formula has one for every tensor


@dataclass(frozen=True)
class ParityProof:
    """The outcome of `assert_parity`. report: a result a tier; its `to_dict` is the document of `bnfold verify`.

    model, folded: what was compared, in words.
    """

    model: str
    folded: str
    report: ParityReport

    @property
    def holds(self) -> bool | None:
        """True when every tier that was run holds, False when one fails, None when it cannot be told."""
        return self.report.holds

    @property
    def tiers(self) -> tuple[TierResult, ...]:
        """The tiers that were run, in order."""
        return self.report.tiers

    def tier(self, name: str) -> TierResult:
        """One tier by its short name. Raises KeyError when it was not run."""
        return self.report.tier(name)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return self.report.to_dict()

    def verdict(self) -> str:
        """The outcome in one line."""
        run = ", ".join(tier.tier for tier in self.tiers)
        match self.holds:
            case True:
                return f"{self.folded} is a right fold of {self.model} ({run} hold)"
            case False:
                failing = ", ".join(tier.tier for tier in self.tiers if tier.status == "fails")
                return f"{self.folded} is not a right fold of {self.model} ({failing})"
        open_ = ", ".join(tier.tier for tier in self.tiers if tier.status == "cannot tell")
        return f"cannot tell whether {self.folded} is a right fold of {self.model} ({open_ or 'no tier was run'})"

    def to_text(self) -> str:
        """Verdict first, a line a tier, the findings below it, notes, and what to do next."""
        return plain("\n".join([self.verdict(), "", *self._lines(), *self._next()]), keep="\n")

    def _lines(self) -> Iterator[str]:
        cells = [(tier.tier, tier.title, tier.status) for tier in self.tiers]
        widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
        for tier, row in zip(self.tiers, cells, strict=True):
            head = "".join(f"{cell.ljust(width)}  " for cell, width in zip(row, widths, strict=True))
            yield from textwrap.wrap(tier.headline, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
            more = len(tier.findings) - _SHOWN
            shown = [*tier.findings[:_SHOWN], *([f"{more} more findings in .proof"] if more > 0 else [])]
            for finding in shown:
                yield from textwrap.wrap(finding, _WIDTH, initial_indent="    - ", subsequent_indent="      ")
        for note in self.report.notes:
            yield from textwrap.wrap(note, _WIDTH, initial_indent="note: ", subsequent_indent="      ")

    def _next(self) -> Iterator[str]:
        if self.holds is True:
            return
        failing = {tier.tier for tier in self.tiers if tier.status == "fails"}
        yield ""
        if "T1" in failing:
            text = "mend the fold of the tensors named above; T3 says how far it moves the outputs"
        elif failing:
            text = "the outputs are wrong: look at what is not folded weights (graph, preprocessing, dtype) first"
        else:
            text = (
                "a tier that cannot tell proves nothing; give the network as .onnx, or leave that tier out "
                'with tiers=("T3", "T4"), which then measures and does not prove'
            )
        yield from textwrap.wrap(text, _WIDTH, initial_indent="next: ", subsequent_indent="      ")


class ParityFailure(ParityError, AssertionError):
    """A folded network that is not proven to be its model. proof: all that was found."""

    def __init__(self, proof: ParityProof) -> None:
        super().__init__(proof.to_text())
        self.proof = proof
