"""T5, the runtime matrix: the folded model holds where it runs.

    matrix.py     runs everything               cells.py   the records: Cell, Invariance, RuntimeMatrix
    trials.py     rows, batches, their truth    places.py  ONNX Runtime on this machine
    judgement.py  a cell against the truth      server.py  a running server, through each of its doors
    doors.py      the doors of a server

docs/runtimes.md says what is judged, and how.
"""

from __future__ import annotations

from bnfold.parity.runtimes.cells import Cell, Invariance, RuntimeMatrix
from bnfold.parity.runtimes.matrix import check_runtimes

__all__ = ["Cell", "Invariance", "RuntimeMatrix", "check_runtimes"]
