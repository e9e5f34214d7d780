"""What MLflow says of a run, read with its own client, for the tests that log one."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from bnfold.training.scalars import TAGS
from bnfold.training.tracking import check_tracking

SHORT = ["train.epochs=4", "train.snapshot=2", "network.widths=[4]"]


class Stop(Exception):
    """What ends a run in the middle."""


def ends_with(problem: BaseException) -> Callable[[str], None]:
    def progress(line: str) -> None:
        if line.startswith("epoch 3/"):
            raise problem

    return progress


def only_run(store: str, experiment: str = "quick") -> Run:
    check_tracking(store, None)  # sets what MLflow wants to hear of a folder
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


def check_history(store: str, run: Run, table: Path) -> None:
    """The metrics are the columns of the table, each epoch once."""
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert run.data.metrics.keys() == TAGS.keys()
    for tag, name in TAGS.items():
        found = sorted((each.step, each.value) for each in MlflowClient(store).get_metric_history(run.info.run_id, tag))
        assert [step for step, _ in found] == list(range(1, len(rows) + 1)), tag
        if name != "seconds":  # of an epoch that was trained twice the first time counts
            assert [value for _, value in found] == pytest.approx([float(row[name]) for row in rows], rel=1e-5)
