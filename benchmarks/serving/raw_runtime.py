"""The runtime alone, in a process of its own: python raw_runtime.py MODEL SECONDS RATE; a JSON object on stdout.

CPU microseconds a row of session.run with one thread: one call after another for each batch size, and calls of one row
at Poisson times of a rate, between which the process sleeps and the caches cool.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from open_loop import schedule

from bnfold.runtime import open_session
from serving.networks import sample

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_WARM_UP = 50


def main() -> None:
    """Measure."""
    path, seconds, rate = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    session = open_session(path, optimise=True)
    names = [session.get_outputs()[0].name]
    costs = {}
    for rows in BATCHES:
        inputs = {session.get_inputs()[0].name: np.repeat(sample(), rows, 0)}
        for _ in range(_WARM_UP // rows + 2):
            session.run(names, inputs)
        calls, begun = 0, time.process_time()
        while (used := time.process_time() - begun) < seconds / len(BATCHES):
            for _ in range(max(1, 32 // rows)):
                session.run(names, inputs)
            calls += max(1, 32 // rows)
        costs[rows] = 1e6 * used / calls / rows
    inputs = {session.get_inputs()[0].name: sample()}
    due = schedule("poisson", rate, seconds)
    begun, cpu = time.perf_counter(), time.process_time()
    for at in due:
        time.sleep(max(0.0, begun + at - time.perf_counter()))
        session.run(names, inputs)
    paced = 1e6 * (time.process_time() - cpu) / len(due)
    print(json.dumps({"busy": costs, "paced": paced}))


if __name__ == "__main__":
    main()
