"""The runtime alone, in a process of its own that measures each time it is asked by a line on stdin.

    python raw_runtime.py MODEL RATE

CPU microseconds a row of session.run with one thread, as a JSON object a line: one call after another for each batch
size, and calls of one row at Poisson times of a rate, between which the process sleeps and the caches cool.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from open_loop import schedule

from bnfold.runtime import open_session
from serving.networks import sample

BATCHES = (1, 2, 4, 8, 16, 64)
BUSY_S = 0.12  # CPU seconds for each batch size
PACED_S = 1.0


def main() -> None:
    """Measure until stdin ends."""
    path, rate = Path(sys.argv[1]), float(sys.argv[2])
    session = open_session(path, optimise=True)
    names, feed = [session.get_outputs()[0].name], session.get_inputs()[0].name
    for number, _ in enumerate(sys.stdin):
        busy = {rows: _busy(session, names, {feed: np.repeat(sample(), rows, 0)}, rows) for rows in BATCHES}
        paced = _paced(session, names, {feed: sample()}, schedule("poisson", rate, PACED_S, number))
        print(json.dumps({"busy": busy, "paced": paced}), flush=True)


def _busy(session: Any, names: list[str], inputs: dict[str, Any], rows: int) -> float:
    for _ in range(32 // rows + 2):
        session.run(names, inputs)
    calls, block, begun = 0, max(1, 32 // rows), time.process_time()
    while (used := time.process_time() - begun) < BUSY_S:
        for _ in range(block):
            session.run(names, inputs)
        calls += block
    return 1e6 * used / calls / rows


def _paced(session: Any, names: list[str], inputs: dict[str, Any], due: list[float]) -> float:
    begun, cpu = time.perf_counter(), time.process_time()
    for at in due:
        time.sleep(max(0.0, begun + at - time.perf_counter()))
        session.run(names, inputs)
    return 1e6 * (time.process_time() - cpu) / len(due)


if __name__ == "__main__":
    main()
