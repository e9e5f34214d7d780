"""One batch in the runtime, in a worker's thread: joined, run, and each caller's rows split off again."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence

import numpy as np

from service.errors import Fault, ModelFault
from service.queueing.backlog import Outputs, Ticket

_logger = logging.getLogger(__name__)

Run = tuple[int, float, float, float, int]  # rows; seconds of joining, computing, splitting; requests


def run_together(batch: Sequence[Ticket], runs: list[Run]) -> list[Outputs | Exception]:
    """One answer a ticket. When a batch fails, each of its requests is run alone: one must not spoil the others."""
    model = batch[0].model
    try:
        return _call(batch, runs)
    except Exception as problem:
        if len(batch) > 1:
            return [answer for ticket in batch for answer in run_together([ticket], runs)]
        if isinstance(problem, Fault):
            return [problem]
        _logger.exception("model %s failed in an unforeseen way", model.label)
        return [ModelFault(f"model {model.label} failed on this input; the server's log says why")]


def _call(batch: Sequence[Ticket], runs: list[Run]) -> list[Outputs | Exception]:
    model, inputs = batch[0].model, batch[0].inputs
    started = joined = run = time.perf_counter()
    rows = [ticket.rows for ticket in batch]
    try:
        if len(batch) > 1:
            inputs = {name: np.concatenate([ticket.inputs[name] for ticket in batch]) for name in inputs}
            joined = run = time.perf_counter()
        try:
            outputs = model.run(inputs)
        finally:
            run = time.perf_counter()
        return [outputs] if len(batch) == 1 else list(_split(outputs, rows))
    finally:
        runs.append((sum(rows), joined - started, run - joined, time.perf_counter() - run, len(batch)))


def _split(outputs: Outputs, rows: Sequence[int]) -> list[Outputs]:
    bounds = [0, *itertools.accumulate(rows)]
    if any(array.shape[:1] != (bounds[-1],) for array in outputs.values()):
        raise ModelFault("the outputs of a batch do not have its rows")
    return [{name: array[start:end] for name, array in outputs.items()} for start, end in itertools.pairwise(bounds)]
