"""T6, mutants: the suite itself is put to the test. Wrong folds of every known kind; each tier says what it notices.

drafting.py   small networks, drafted node by node
specimens.py  one for every move and kind of linear
faults.py     numbers, channels, layouts and nodes changed
making.py     wrong folds of a right one
trials.py     what each tier says of one
table.py      the kill table
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator

from bnfold.parity.evidence import Evidence
from bnfold.parity.mutants.making import Mutant, Same, mutants_of
from bnfold.parity.mutants.specimens import SPECIMENS, Specimen
from bnfold.parity.mutants.table import KillTable, Trial
from bnfold.parity.mutants.trials import Pair, pair_of_bundle, pair_of_specimen

__all__ = [
    "SPECIMENS", "KillTable", "Mutant", "Pair", "Same", "Specimen", "Trial", "mutants_of", "pair_of_bundle",
    "pair_of_specimen", "self_test", "try_out",
]  # fmt: skip


def self_test(evidence: Evidence | None, *, progress: Callable[[str], None] | None = None) -> KillTable:
    """Put the suite to the test on the mutants of a bundle, or of the specimens where there is none.

    Raises ParityError when the right fold itself cannot be judged.
    """
    if evidence is not None:
        return try_out([pair_of_bundle(evidence)], progress=progress)
    return try_out((pair_of_specimen(specimen) for specimen in SPECIMENS), progress=progress)


def try_out(
    pairs: Iterable[Pair], *, progress: Callable[[str], None] | None = None, kinds: Collection[str] | None = None
) -> KillTable:
    """Every tier on every mutant of some right folds. kinds: of these kinds only."""
    begun = time.monotonic()
    trials: list[Trial] = []
    identical: list[str] = []
    alarms: list[str] = []
    for pair in pairs:
        if progress is not None:
            progress(f"mutants of {pair.name}: {len(trials):,} tried so far")
        alarms += _alarms(pair)
        for found in _mutants(pair):
            if kinds is not None and found.kind not in kinds:
                continue
            if isinstance(found, Same):
                identical.append(f"{pair.name}, '{found.tensor}': {found.name}")
                continue
            trials.append(Trial.of(pair.name, found, pair.trial(found)))
            if progress is not None and len(trials) % 100 == 0:
                progress(f"mutants of {pair.name}: {len(trials):,} tried so far")
    return KillTable(tuple(trials), tuple(identical), tuple(alarms), time.monotonic() - begun)


def _mutants(pair: Pair) -> Iterator[Mutant | Same]:
    return mutants_of(pair.reference, pair.folded, pair.expectation, move=pair.move, sites=pair.sites)


def _alarms(pair: Pair) -> Iterator[str]:
    for tier, verdict in pair.control().items():
        if verdict.caught:
            yield f"{tier} calls the right fold of {pair.name} wrong: {verdict.said}"
