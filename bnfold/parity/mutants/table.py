"""The kill table: which tier notices which wrong fold, and what none of them can see."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bnfold.parity.mutants.making import Mutant
from bnfold.parity.mutants.trials import TIERS, Verdict
from bnfold.parity.report import plain

_WIDTH = 118

PROVING = ("T1", "T2")  # the tiers one of which must notice whatever changes a shipped tensor

BLIND = {
    "T1": "T1 sees every number and node, but reads the reference as the fold does: a reader of ONNX that mistakes an "
    "attribute is wrong on both sides",
    "T2": "T2 sees what changes a result by more than rounding may: not one ulp in one weight, nor what is wrong in a "
    "channel that these inputs do not reach",
    "T3": "T3 sees what moves the outputs more than twice as far from the truth as the unfolded network is: not one "
    "ulp, nor what an activation hides on these inputs",
    "T4": "T4 sees changed answers alone: most wrong folds keep them, on most inputs",
}


@dataclass(frozen=True)
class Trial:
    """One mutant of one network, and what each tier that was run says of it."""

    network: str
    name: str
    kind: str
    move: str
    tensor: str
    verdicts: dict[str, Verdict]

    @staticmethod
    def of(network: str, mutant: Mutant, verdicts: dict[str, Verdict]) -> Trial:
        """A mutant's trial."""
        return Trial(network, mutant.name, mutant.kind, mutant.move, mutant.tensor, verdicts)

    @property
    def killed_by(self) -> tuple[str, ...]:
        """The tiers that caught it."""
        return tuple(tier for tier in TIERS if tier in self.verdicts and self.verdicts[tier].caught)

    @property
    def survives(self) -> bool:
        """True when neither T1 nor T2 notices it; that its outputs differ does not count."""
        return not any(tier in self.killed_by for tier in PROVING)

    @property
    def label(self) -> str:
        """The mutant as a sentence names it."""
        return f"{self.network}, {self.move}, '{self.tensor}': {self.name}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        tiers = {tier: {"caught": found.caught, "said": found.said} for tier, found in self.verdicts.items()}
        return {
            "network": self.network, "mutant": self.name, "kind": self.kind, "move": self.move, "tensor": self.tensor,
            "killed_by": list(self.killed_by), "tiers": tiers,
        }  # fmt: skip


@dataclass(frozen=True)
class KillTable:
    """The outcome of the self-test.

    trials: every mutant. identical: ways whose numbers round to the right ones, not counted. alarms: tiers that caught
    a right fold, a sentence each; with one of these the table proves nothing. seconds: what it took.
    """

    trials: tuple[Trial, ...]
    identical: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    seconds: float = 0.0

    @cached_property
    def survivors(self) -> tuple[Trial, ...]:
        """Mutants whose tensors or nodes differ and which neither T1 nor T2 notices: defects of the suite."""
        return tuple(trial for trial in self.trials if trial.survives)

    @property
    def holds(self) -> bool:
        """True when no mutant survives and no right fold is called wrong."""
        return bool(self.trials) and not self.survivors and not self.alarms

    @property
    def exit_code(self) -> int:
        """0: every mutant is killed; 1: one survives, or a right fold is called wrong."""
        return 0 if self.holds else 1

    def killed(self, tier: str, trials: Sequence[Trial] | None = None) -> tuple[int, int]:
        """(mutants caught by a tier, mutants it was run on), of all or of some."""
        seen = [trial.verdicts[tier] for trial in self.trials if tier in trial.verdicts] if trials is None else [
            trial.verdicts[tier] for trial in trials if tier in trial.verdicts
        ]  # fmt: skip
        return sum(verdict.caught for verdict in seen), len(seen)

    def verdict(self) -> str:
        """The outcome in one line."""
        if not self.trials:
            return "the suite was not tested: there is nothing to get wrong"
        if self.holds:
            return (
                f"every one of {len(self.trials):,} wrong folds is noticed by T1 or T2; no right fold is called wrong"
            )
        said = f"{len(self.survivors)} of {len(self.trials):,} wrong folds pass T1 and T2" if self.survivors else ""
        more = f"{len(self.alarms)} right folds are called wrong" if self.alarms else ""
        return "; ".join(part for part in (said, more) if part)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: counts by tier, kind and move; every trial; the survivors by name."""
        counts = {tier: dict(zip(("caught", "of"), self.killed(tier), strict=True)) for tier in TIERS}
        document: dict[str, Any] = plain(
            {
                "holds": self.holds, "mutants": len(self.trials), "tiers": counts,
                "survivors": [trial.label for trial in self.survivors], "alarms": self.alarms,
                "identical_after_rounding": self.identical, "cannot_see": BLIND, "seconds": self.seconds,
                "trials": [trial.to_dict() for trial in self.trials],
            }
        )  # fmt: skip
        return document

    def to_table(self) -> str:
        """As text: a line a way to be wrong, a line a move, what each tier cannot see, the verdict last."""
        lines = ["the suite on wrong folds: caught, of how many", ""]
        for head, key in (("wrong fold", _kind), ("move", _move)):
            lines += [*_aligned([(head, *TIERS), *self.rows(key)]), ""]
        lines += [*_aligned([("all", *(f"{caught} of {count}" for caught, count in map(self.killed, TIERS)))]), ""]
        for tier, names in self.missed().items():
            lines += textwrap.wrap(f"{tier} missed: {', '.join(names)}", _WIDTH) if names else []
        lines += ["", *(line for text in BLIND.values() for line in textwrap.wrap(text, _WIDTH)), ""]
        if self.identical:
            count = len(self.identical)
            ways = "1 way gives" if count == 1 else f"{count} ways give"
            lines += [f"{ways} numbers that are identical after rounding; not counted", ""]
        lines += [f"survives: {trial.label}" for trial in self.survivors]
        lines += [f"false alarm: {alarm}" for alarm in self.alarms]
        return "\n".join([*lines, self.verdict()])

    def rows(self, key: Callable[[Trial], str]) -> list[tuple[str, ...]]:
        """Counts by tier for each kind of trial, in order of appearance."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.trials:
            groups.setdefault(key(trial), []).append(trial)
        return [(name, *(_of(*self.killed(tier, some)) for tier in TIERS)) for name, some in sorted(groups.items())]

    def missed(self) -> dict[str, list[str]]:
        """The kinds of which a tier let some pass, by tier."""
        found: dict[str, list[str]] = {}
        for tier in TIERS:
            passed = {t.kind for t in self.trials if tier in t.verdicts and not t.verdicts[tier].caught}
            found[tier] = sorted(_words(kind) for kind in passed)
        return found

    def to_markdown(self) -> str:
        """The tables of the documentation: ways to be wrong, with the faintest of each; moves."""
        lines = ["| wrong fold | networks | T1 | faintest, ulp | T2 | faintest, of its bound | T3 | T4 |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        groups: dict[str, list[Trial]] = {}
        for trial in self.trials:
            groups.setdefault(_kind(trial), []).append(trial)
        for name, some in sorted(groups.items()):
            counts = [_of(*self.killed(tier, some)) for tier in TIERS]
            cells = [counts[0], _faintest(some, "T1"), counts[1], _faintest(some, "T2"), counts[2], counts[3]]
            lines.append(f"| {name} | {len({trial.network for trial in some})} | " + " | ".join(cells) + " |")
        totals = [_of(*self.killed(tier)) for tier in TIERS]
        lines.append(f"| **all** | | {totals[0]} | | {totals[1]} | | {totals[2]} | {totals[3]} |")
        lines += ["", "| move | T1 | T2 | T3 | T4 |", "|---|---|---|---|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows(_move)]
        return "\n".join(lines)


def _kind(trial: Trial) -> str:
    return _words(trial.kind)


def _move(trial: Trial) -> str:
    return trial.move


def _words(kind: str) -> str:
    return kind.lower().replace("_", " ")


def _of(caught: int, count: int) -> str:
    return f"{caught} of {count}" if count else "-"


def _faintest(trials: Sequence[Trial], tier: str) -> str:
    """The smallest figure of a tier among trials, which it is hardest to see."""
    figures = [trial.verdicts[tier].figure for trial in trials if tier in trial.verdicts]
    finite = [figure for figure in figures if math.isfinite(figure)]
    return f"{min(finite):,.3g}" if finite else "-"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
