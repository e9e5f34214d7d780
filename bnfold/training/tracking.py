"""A run at an MLflow tracking server: its recipe, its history epoch by epoch, and the files of its checkpoint."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import platform
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import bnfold
from bnfold.documents import Fields, parse_object
from bnfold.errors import BundleError, DataError, said
from bnfold.training.place import Place
from bnfold.training.run import Epoch, Run
from bnfold.training.scalars import TAGS
from bnfold.training.snapshot import flat, recipe_document

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_NOTE = "mlflow.json"  # beside the snapshot: which run at the server this one is
_FILES = "checkpoint"  # the folder of the files there
_RUN_ID = re.compile(r"[0-9a-zA-Z_-]{1,128}")
_AT_ONCE = 100  # parameters a request, by MLflow's limit; rows of 6 metrics, of which 1,000 may be
_LONGEST_VALUE = 500  # of a parameter, in all versions of the server
_PAUSE = 1.0  # seconds from one request to the next, so that short epochs do not wait for the network
_PAUSE_AFTER_FAILURE = 60.0
# MLflow's own settings, where the user has set none. By itself MLflow sends usage statistics to its makers, tries for
# minutes to reach a server that is away, prints, and wants to be told that a folder (`file:`) is meant, as it would
# rather have a server.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}


@dataclass(frozen=True)
class Tracking:
    """Where a run is logged. experiment: its name there; None: the name of the recipe. warn: told what fails midway."""

    uri: str
    experiment: str | None
    warn: Callable[[str], None]


def check_tracking(
    uri: str | None, experiment: str | None, warn: Callable[[str], None] | None = None
) -> Tracking | None:
    """What --mlflow and --mlflow-experiment ask for. warn: the log by default.

    Raises DataError where that cannot be, before any work is done.
    """
    if uri is None:
        if experiment is not None:
            raise DataError("an MLflow experiment was named, but no tracking server; add --mlflow URI")
        return None
    if any(sign in uri for sign in "@?#"):  # and the sentence does not repeat it
        raise DataError(
            "the MLflow URI has a user name, a password or a query in it, which would stand in logs and lists of "
            "processes; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, instead"
        )
    if not _is_known(uri):
        raise DataError(f"the MLflow URI is '{uri:.200}'; expected http://HOST:PORT, https://HOST or file:///FOLDER")
    if experiment is not None and not experiment.strip():
        raise DataError("the MLflow experiment has an empty name; name one or leave --mlflow-experiment out")
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if importlib.util.find_spec("mlflow") is None:  # of several processes one alone has to load it
        raise DataError(
            "--mlflow needs the package mlflow-skinny, which is not installed; pip install 'bnfold[mlflow]'"
        )
    return Tracking(uri, experiment, warn or log.warning)


def _is_known(uri: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(uri)
    except ValueError:
        return False
    if parts.scheme == "file":
        return parts.netloc == "" and parts.path.startswith("/")
    return parts.scheme in ("http", "https") and bool(parts.netloc)


@dataclass
class Tracker:
    """One run at the server. Once the training is under way, what fails there is a warning and ends nothing.

    logged: epochs that the server has. waiting: rows that it is still to get.
    """

    client: MlflowClient
    tracking: Tracking
    run_id: str
    logged: set[int]
    waiting: list[Epoch] = field(default_factory=list)
    _missing: set[str] = field(default_factory=set)
    _not_before: float = 0.0
    _warned: bool = False

    def log(self, row: Epoch) -> None:
        """Send a row of the history, or keep it for the next time where the last one was a moment ago."""
        if row.epoch not in self.logged:
            self.waiting.append(row)
        if self.waiting and time.monotonic() >= self._not_before:
            self._attempt("the history", self._send)

    def publish(self, checkpoint: Path) -> None:
        """Send the files of a checkpoint."""
        self._attempt("the history", self._send)
        self._attempt("the checkpoint's files", lambda: self.client.log_artifacts(self.run_id, str(checkpoint), _FILES))

    def end(self, status: str) -> None:
        """Send what is left, and say what became of the run: FINISHED, FAILED or KILLED."""
        self._attempt("the history", self._send)
        self._attempt("its end", lambda: self.client.set_terminated(self.run_id, status))
        if self._missing:
            missing = " and ".join(sorted(self._missing))
            self.tracking.warn(f"the MLflow run {self.run_id} at {self.tracking.uri} lacks {missing}")

    def _send(self) -> None:
        from mlflow.entities import Metric

        while self.waiting:
            rows, now = self.waiting[:_AT_ONCE], int(time.time() * 1000)
            metrics = [
                Metric(tag, float(getattr(row, name)), now, row.epoch) for row in rows for tag, name in TAGS.items()
            ]
            self.client.log_batch(self.run_id, metrics)
            self.logged.update(row.epoch for row in rows)
            del self.waiting[: len(rows)]

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        pause = _PAUSE
        try:
            action()
            self._missing.discard(what)
        except Exception as problem:  # MLflow's plug-ins for stores of artifacts raise errors of their own
            self._missing.add(what)
            pause = _PAUSE_AFTER_FAILURE
            if not self._warned:
                self._warned = True
                self.tracking.warn(
                    f"MLflow at {self.tracking.uri} did not take {what}: {_reason(problem)}; the training goes on, and "
                    "tries again"
                )
        self._not_before = time.monotonic() + pause


@contextlib.contextmanager
def tracked(tracking: Tracking | None, run: Run, place: Place) -> Iterator[Tracker | None]:
    """The run at the server, new or gone on with, and its end there; None for None.

    Raises DataError when the server cannot be used, before the run begins.
    """
    if tracking is None:
        yield None
        return
    tracker = _opened(tracking, place.partial / _NOTE, lambda client: _created(client, tracking, run, place))
    status = "FAILED"
    try:
        tracker.waiting += [row for row in run.history if row.epoch not in tracker.logged]
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.end(status)


def conclude(tracking: Tracking | None, place: Place, checkpoint: Path) -> None:
    """End the run of a training that was stopped when its checkpoint was there but the server did not know yet."""
    note = place.partial / _NOTE
    if tracking is not None and note.exists():
        tracker = _opened(tracking, note, lambda _: _remembered(note))
        tracker.publish(checkpoint)
        tracker.end("FINISHED")


def _opened(tracking: Tracking, note: Path, created: Callable[[MlflowClient], str]) -> Tracker:
    known = _remembered(note) if note.exists() else None
    try:
        from mlflow import MlflowClient

        client = MlflowClient(tracking.uri)
        run_id = known or created(client)
        if known is None:
            note.write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")
        else:
            client.update_run(known, status="RUNNING")
        done = {metric.step for metric in client.get_metric_history(run_id, next(iter(TAGS)))}
    except DataError:
        raise
    except Exception as problem:  # what is said of a server that is away depends on the kind of store
        where = f"the MLflow run {known} cannot be gone on with" if known else "MLflow cannot be used"
        remedy = f", or remove {note} to begin another run there" if known else ", or train without --mlflow"
        raise DataError(
            f"{where} at {tracking.uri}: {_reason(problem)}; give the URI of a server that answers{remedy}"
        ) from None
    return Tracker(client, tracking, run_id, done)


def _created(client: MlflowClient, tracking: Tracking, run: Run, place: Place) -> str:
    """The id of a new run, with the recipe as its parameters."""
    from mlflow.entities import Param

    name = tracking.experiment or run.recipe.name
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage != "active":
        raise DataError(
            f"the MLflow experiment '{name}' is deleted at {tracking.uri}; restore it there, or name another with "
            "--mlflow-experiment"
        )
    number = client.create_experiment(name) if experiment is None else experiment.experiment_id
    title = f"{run.recipe.name}/{place.folder.name}"
    run_id: str = client.create_run(number, tags=_tags(run, place), run_name=title).info.run_id
    params = [Param(key, _text(value)) for key, value in flat(recipe_document(run.recipe)).items()]
    for start in range(0, len(params), _AT_ONCE):
        client.log_batch(run_id, params=params[start : start + _AT_ONCE])
    return run_id


def _tags(run: Run, place: Place) -> dict[str, str]:
    return {
        "mlflow.source.name": "bnfold train",
        "mlflow.source.type": "LOCAL",
        "checkpoint": str(place.folder.absolute()),
        "device": run.device.type,
        "processes": str(run.group.size),
        "version.bnfold": bnfold.__version__,
        "version.python": platform.python_version(),
        "version.torch": str(torch.__version__),
    }


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:_LONGEST_VALUE]


def _remembered(note: Path) -> str:
    try:
        run_id = Fields.of(parse_object(note.read_bytes(), str(note)), str(note), ("run_id",)).text("run_id")
    except (OSError, BundleError):
        raise DataError(f"{note} does not say which MLflow run this is; remove it to begin another there") from None
    if not _RUN_ID.fullmatch(run_id):
        raise DataError(f"{note} names the MLflow run '{run_id:.80}', which is none; remove it to begin another")
    return run_id


def _reason(problem: Exception) -> str:
    """Of an error of the network what the system says, without the layers around it."""
    root: BaseException = problem
    while (inner := root.__cause__ or root.__context__) is not None:
        root = inner
    return said(root if isinstance(root, OSError) else problem)
