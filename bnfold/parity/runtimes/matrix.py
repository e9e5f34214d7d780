"""All cells: this machine's, and a server's."""

from __future__ import annotations

from collections.abc import Callable

from bnfold.bundle.manifest import REFERENCE
from bnfold.parity.evidence import Evidence
from bnfold.parity.runtimes.cells import Cell, Invariance, RuntimeMatrix
from bnfold.parity.runtimes.judgement import Answers
from bnfold.parity.runtimes.places import fill_place, list_places, open_model
from bnfold.parity.runtimes.server import ServerResult, check_server
from bnfold.parity.runtimes.trials import MAX_ROWS, Trials, make_trials
from bnfold.samples import Samples

_TF32 = (
    "CUDA with TF32 on: factors of products are rounded to 11 bits, so the folded model is held against the reference "
    "in the same place, with TF32 too"
)


def _silent(_: str) -> None:
    """Nobody listens."""


def check_runtimes(
    evidence: Evidence,
    *,
    url: str | None = None,
    samples: Samples | None = None,
    progress: Callable[[str], None] | None = None,
    rows: int = MAX_ROWS,
) -> RuntimeMatrix:
    """Run the folded model in every place, and judge each cell as T3 and T4 do.

    url: of a server that runs this bundle. samples: rows to run instead of those of the golden vectors; their truth is
    computed in float64. rows: at most so many.

    Raises BnfoldError when the reference itself cannot be run on the CPU; whatever else goes wrong
    is a cell's finding.
    """
    say = progress or _silent
    bundle, places = evidence.bundle, list_places()
    say("the reference on the CPU, optimisations off")
    trials = make_trials(evidence, open_model(bundle, REFERENCE, places[0], optimise=False), samples, rows)
    cells: list[Cell] = []
    invariances: list[Invariance] = []
    local: dict[int, Answers] = {}  # of the folded model with the options that the server opens it with
    for place in places:
        if place.tf32 and any(cell.absent and cell.batch is None for cell in cells):
            continue  # CUDA has said once that it is not here
        for found in fill_place(bundle, place, trials, evidence.decided, say):
            if isinstance(found, Invariance):
                invariances.append(found)
                continue
            cell, answers = found
            cells.append(cell)
            if place == places[0] and cell.optimised and cell.batch is not None and answers:
                local[cell.batch] = answers
    served = check_server(bundle, url, trials, local, evidence.decided, say) if url is not None else ServerResult()
    return RuntimeMatrix(
        cells=(*cells, *served.cells),
        invariances=(*invariances, *served.invariances),
        notes=(*_notes(trials, cells), *served.notes),
        server=served.identity or None,
    )


def _notes(trials: Trials, cells: list[Cell]) -> tuple[str, ...]:
    found = []
    if trials.fixed:
        found.append(f"the network takes batches of {trials.sizes[0]} alone; no other batch size could be tried")
    if not trials.independent:
        found.append(
            "the rows of a batch depend on one another in the reference itself: no batch invariance to ask for"
        )
    if any(cell.tf32 and not cell.absent for cell in cells):
        found.append(_TF32)
    return tuple(found)
