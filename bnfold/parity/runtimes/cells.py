"""The runtime matrix: one record a cell, one a session for batch invariance, and the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from bnfold.parity.report import plain
from bnfold.parity.triangle import Corner, worst_corner

Door: TypeAlias = Literal["session", "v2 binary", "v2 JSON", "/predict"]

CPU_YARDSTICK = "the reference on the CPU, optimisations off"
SOFTMAX_YARDSTICK = "half of the logits' error of the reference on the CPU, optimisations off"
SAME_YARDSTICK = "the reference in the same place, optimisations off"


@dataclass(frozen=True)
class Cell:
    """The folded model in one place, with one batch size.

    place: in words. door: how it was asked. provider: what the session runs on, not what it was asked for. optimised,
    threads, tf32: of the session, None where a server decides. rows: how many were run, in batches of `batch`. corners:
    against the float64 truth, an entry an output; yardstick: whose error the limits are made of. reference_rms,
    reference_error: of the reference run in this very place, of the worst output. agreeing: rows with the same top-1 as
    the yardstick, None where outputs are no decisions. difference: the largest difference from the local run of the
    folded model, asked of servers alone; 0.0 only for the same bits.

    problem: why it fails; doubt: why nothing can be told; absent: why there is nothing to judge; note: what else a
    person must know.
    """

    place: str
    batch: int | None = None
    door: Door = "session"
    provider: str = ""
    optimised: bool | None = None
    threads: int | None = None
    tf32: bool | None = None
    rows: int = 0
    corners: tuple[Corner, ...] = ()
    yardstick: str = CPU_YARDSTICK
    reference_rms: float = math.nan
    reference_error: float = math.nan
    agreeing: int | None = None
    difference: float | None = None
    problem: str = ""
    doubt: str = ""
    absent: str = ""
    note: str = ""

    @property
    def configuration(self) -> str:
        """Its name in a table."""
        optimisations = {None: "", True: ", optimisations all", False: ", optimisations off"}[self.optimised]
        door = "" if self.door == "session" else f", {self.door}"
        batch = "" if self.batch is None else f", batch {self.batch}"
        return f"{self.place}{door}{optimisations}{batch}"

    @property
    def holds(self) -> bool | None:
        """True or False; None where nothing can be told, or nothing is there."""
        if self.problem:
            return False
        return None if self.doubt or self.absent else True

    @property
    def worst(self) -> Corner | None:
        """The output with the largest ratio of errors."""
        return worst_corner(self.corners) if self.corners else None

    def sentence(self) -> str:
        """What is to be said of it; empty where it holds and nothing is odd."""
        said = self.problem or self.doubt or (f"not present: {self.absent}" if self.absent else self.note)
        return f"{self.configuration}: {said}" if said else ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; a number that is not finite becomes null."""
        status = {True: "holds", False: "fails", None: "not present" if self.absent else "cannot tell"}[self.holds]
        document: dict[str, Any] = {
            "configuration": self.configuration, "status": status, "place": self.place, "door": self.door,
            "provider": self.provider, "optimised": self.optimised, "threads": self.threads, "tf32": self.tf32,
            "batch": self.batch, "rows": self.rows, "yardstick": self.yardstick, **self._measurements(),
        }  # fmt: skip
        if self.sentence():
            document["sentence"] = self.sentence()
        return dict(plain(document))

    def _measurements(self) -> dict[str, Any]:
        worst = self.worst
        if worst is None:
            return {}
        return {
            "output": worst.output, "folded_rms": worst.folded_rms, "folded_error": worst.folded_error,
            "unfolded_rms": worst.unfolded_rms, "unfolded_error": worst.unfolded_error, "ratio": worst.ratio,
            "scale": worst.scale, "truth_rms": worst.truth_rms, "factor": worst.factor, "unit": worst.unit,
            "smallest": worst.smallest, "rms_limit": worst.rms_limit, "error_limit": worst.error_limit,
            "reference_rms_here": self.reference_rms, "reference_error_here": self.reference_error,
            "agreeing": self.agreeing, "difference_from_local_run": self.difference,
        }  # fmt: skip


@dataclass(frozen=True)
class Invariance:
    """How much a row of the folded model depends on its batch: over batch sizes, and positions in them.

    difference: the largest of an element; ulp: the same in units of the last place of the row's largest output. limit:
    the error that T3 allows; a difference beyond it fails, a smaller one is only told.
    """

    place: str
    sizes: tuple[int, ...]
    rows: int
    difference: float
    ulp: float
    limit: float
    optimised: bool | None = None

    @property
    def identical(self) -> bool:
        """Whether every row came out bit for bit the same."""
        return self.difference == 0

    @property
    def holds(self) -> bool | None:
        """Whether the difference is within the limit; None where there is no limit."""
        if self.identical:
            return True
        return None if math.isnan(self.limit) else self.difference <= self.limit

    @property
    def configuration(self) -> str:
        """Its name in a table."""
        optimisations = {None: "", True: ", optimisations all", False: ", optimisations off"}[self.optimised]
        return f"{self.place}{optimisations}, batch invariance"

    def sentence(self) -> str:
        """What is to be said of it; empty where all bits are the same."""
        if self.identical:
            return ""
        sizes = ", ".join(map(str, self.sizes))
        said = (
            f"{self.configuration}: a row differs by up to {self.difference:.3g} ({self.ulp:.3g} ulp) with the batch "
            f"that it is in (sizes {sizes})"
        )
        return f"{said}; expected at most {self.limit:.3g}" if self.holds is False else said

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        document: dict[str, Any] = {
            "configuration": self.configuration,
            "status": {True: "holds", False: "fails", None: "cannot tell"}[self.holds],
            "place": self.place, "optimised": self.optimised, "sizes": self.sizes, "rows": self.rows,
            "identical": self.identical, "difference": self.difference, "difference_ulp": self.ulp,
            "limit": self.limit,
        }  # fmt: skip
        if self.sentence():
            document["sentence"] = self.sentence()
        return dict(plain(document))


@dataclass(frozen=True)
class RuntimeMatrix:
    """T5: every cell, batch invariance, and what holds for all of them (notes)."""

    cells: tuple[Cell, ...]
    invariances: tuple[Invariance, ...] = ()
    notes: tuple[str, ...] = ()
    server: Mapping[str, Any] | None = field(default=None)

    @property
    def measured(self) -> tuple[Cell, ...]:
        """The cells that are present."""
        return tuple(cell for cell in self.cells if not cell.absent)

    @property
    def holds(self) -> bool | None:
        """True when every cell that is present holds, and rows do not depend on their batch; None: cannot tell."""
        found = [*(cell.holds for cell in self.measured), *(one.holds for one in self.invariances)]
        if False in found:
            return False
        return None if None in found or not self.measured else True

    def sentences(self) -> tuple[str, ...]:
        """What a person must know: what fails first, then what cannot be told, then the rest."""
        said = [(cell.holds, bool(cell.absent), cell.sentence()) for cell in self.cells]
        said += [(one.holds, False, one.sentence()) for one in self.invariances]
        order = {False: 0, None: 1, True: 2}
        said.sort(key=lambda entry: 3 if entry[1] else order[entry[0]])
        return (*(sentence for _, _, sentence in said if sentence), *self.notes)

    def headline(self) -> str:
        """The outcome in a few words."""
        present = self.measured
        good = sum(cell.holds is True for cell in present)
        head = f"{good} of {len(present)} cells hold"
        places = list(dict.fromkeys(cell.place for cell in present))
        if places:
            head += f" ({', '.join(places)})"
        sizes = sorted({cell.batch for cell in present if cell.batch is not None})
        if sizes:
            head += f"; batches of {', '.join(map(str, sizes))}"
        if self.invariances:
            same = all(one.identical for one in self.invariances)
            worst = max((one.ulp for one in self.invariances), default=0.0)
            head += "; rows bit-identical in each" if same else f"; rows within {worst:.3g} ulp over batches"
        absent = list(dict.fromkeys(cell.place for cell in self.cells if cell.absent and cell.batch is None))
        return head + (f"; not present: {', '.join(absent)}" if absent else "")

    def summary(self) -> dict[str, Any]:
        """Numbers by name."""
        ratios = [cell.worst.ratio for cell in self.measured if cell.worst is not None]
        return {
            "cells": len(self.measured),
            "failing_cells": sum(cell.holds is False for cell in self.measured),
            "absent": sum(bool(cell.absent) for cell in self.cells),
            "worst_ratio": max(ratios, default=math.nan),
            "batch_difference": max((one.difference for one in self.invariances), default=math.nan),
            "batch_difference_ulp": max((one.ulp for one in self.invariances), default=math.nan),
        }

    def rows(self) -> tuple[dict[str, Any], ...]:
        """A JSON-ready row for each cell and each session's batch invariance."""
        return (*(cell.to_dict() for cell in self.cells), *(one.to_dict() for one in self.invariances))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "holds": self.holds, "headline": self.headline(), "summary": plain(self.summary()),
            "rows": list(self.rows()), "notes": list(self.notes), "server": plain(self.server or {}) or None,
        }  # fmt: skip
