"""A run at MLflow, as MLflow's own client reads it; the store is a folder. test_tracking_server.py has a server."""

from __future__ import annotations

import json
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from logged_runs import SHORT, Stop, check_history, ends_with, only_run
from mlflow import MlflowClient
from mlflow.entities import Run as Logged

from bnfold.errors import DataError
from bnfold.training import load_recipe, train
from bnfold.training.place import Place
from bnfold.training.tracking import Tracker, check_tracking


@pytest.fixture
def store(tmp_path: Path) -> str:
    return (tmp_path / "store").as_uri()


def files(run: Logged) -> dict[str, bytes]:
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_run_has_the_recipe_the_history_and_the_files(recipe: Path, tmp_path: Path, store: str) -> None:
    made = train(recipe, output=tmp_path / "run", overrides=SHORT, mlflow=store)
    run = only_run(store)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "quick/run"
    check_history(store, run, made.path / "history.csv")
    assert {key: run.data.params[key] for key in ("network.kind", "network.args.widths", "train.epochs")} == {
        "network.kind": "plain_cnn",
        "network.args.widths": "[4]",
        "train.epochs": "4",
    }
    wanted = load_recipe(recipe, SHORT)
    assert len(run.data.params) == len(list(_leaves(made.meta["recipe"])))
    assert float(run.data.params["optimizer.learning_rate"]) == wanted.optimizer.learning_rate
    assert (run.data.tags["device"], run.data.tags["processes"]) == ("cpu", "1")
    assert files(run) == {f"checkpoint/{path.name}": path.read_bytes() for path in made.path.iterdir()}
    assert not (tmp_path / "run.partial").exists()


def _leaves(table: dict[str, Any]) -> list[Any]:
    return [leaf for each in table.values() for leaf in (_leaves(each) if isinstance(each, dict) else [each])]


def test_a_resumed_run_goes_on_in_the_same_run(recipe: Path, tmp_path: Path, store: str) -> None:
    with pytest.raises(Stop):
        train(recipe, output=tmp_path / "run", overrides=SHORT, mlflow=store, progress=ends_with(Stop()))
    assert only_run(store).info.status == "FAILED"
    # The snapshot is of epoch 2: the third is trained again, and logged once.
    made = train(recipe, resume=tmp_path / "run", overrides=SHORT, mlflow=store)
    run = only_run(store)
    assert run.info.status == "FINISHED"
    check_history(store, run, made.path / "history.csv")


def test_what_a_killed_process_had_not_sent_is_sent_when_it_is_resumed(
    recipe: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(Tracker, "end", lambda *_: None)
        killed.setattr("bnfold.training.tracking._PAUSE", 1e9)
        with pytest.raises(Stop):
            train(recipe, output=tmp_path / "run", overrides=SHORT, mlflow=store, progress=ends_with(Stop()))
    assert only_run(store).info.status == "RUNNING"
    sent = MlflowClient(store).get_metric_history(only_run(store).info.run_id, "seconds")
    assert [each.step for each in sent] == [1], "not before the pause is over"
    made = train(recipe, resume=tmp_path / "run", overrides=SHORT, mlflow=store)
    check_history(store, only_run(store), made.path / "history.csv")


def test_a_run_killed_right_after_its_checkpoint_is_ended_by_resuming_it(
    recipe: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(Tracker, "publish", lambda *_: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            train(recipe, output=tmp_path / "run", overrides=SHORT, mlflow=store)
    assert (tmp_path / "run").is_dir()
    made = train(recipe, resume=tmp_path / "run", overrides=SHORT, mlflow=store)
    run = only_run(store)
    assert run.info.status == "FINISHED"
    assert len(files(run)) == len(list(made.path.iterdir()))
    assert not (tmp_path / "run.partial").exists()


def test_an_interrupt_kills_the_run_and_says_the_whole_command(recipe: Path, tmp_path: Path, store: str) -> None:
    with pytest.raises(KeyboardInterrupt, match=f"--mlflow={store} --mlflow-experiment=mine --resume"):
        train(
            recipe, output=tmp_path / "run", overrides=SHORT, mlflow=store, mlflow_experiment="mine",
            progress=ends_with(KeyboardInterrupt()),
        )  # fmt: skip
    assert only_run(store, "mine").info.status == "KILLED"


def test_a_training_that_diverges_has_failed(recipe: Path, tmp_path: Path, store: str) -> None:
    hot = [*SHORT, "optimizer.learning_rate=1e6", "optimizer.weight_decay=1e6"]
    with pytest.raises(DataError, match="expected a finite one"):
        train(recipe, output=tmp_path / "run", overrides=hot, mlflow=store)
    assert only_run(store).info.status == "FAILED"


def test_a_server_that_is_away_is_one_sentence_before_the_training(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and never listened on: nobody else can take it
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(DataError, match=rf"^MLflow cannot be used at {uri}: .*refused.*; .* without --mlflow$"):
            train(
                recipe, output=tmp_path / "run", overrides=SHORT, mlflow=uri, progress=lambda _: pytest.fail("trained")
            )
    assert not list(tmp_path.iterdir())


def test_a_server_that_fails_midway_ends_nothing_and_gets_all_when_it_answers_again(
    recipe: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, calls = MlflowClient.log_batch, []

    def sometimes(*given: Any, **named: Any) -> None:
        calls.append(named)
        if "params" not in named and len(calls) < 4:  # away for the first rows, back at the end
            raise ConnectionResetError("the server went away")
        real(*given, **named)

    monkeypatch.setattr(MlflowClient, "log_batch", sometimes)
    monkeypatch.setattr("bnfold.training.tracking._PAUSE_AFTER_FAILURE", 0.0)
    with caplog.at_level(logging.WARNING, "bnfold"):
        made = train(recipe, output=tmp_path / "run", overrides=SHORT, mlflow=store)
    assert [record.message for record in caplog.records] == [
        f"MLflow at {store} did not take the history: ConnectionResetError: the server went away; the training "
        "goes on, and tries again"
    ]
    check_history(store, only_run(store), made.path / "history.csv")


def test_what_never_arrived_is_said_at_the_end(
    recipe: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise RuntimeError("no space")

    monkeypatch.setattr(MlflowClient, "log_artifacts", gone)
    said: list[str] = []
    made = train(recipe, output=tmp_path / "run", overrides=SHORT, mlflow=store, warn=said.append)
    run = only_run(store)
    assert said[1:] == [f"the MLflow run {run.info.run_id} at {store} lacks the checkpoint's files"]
    assert run.info.status == "FINISHED"
    check_history(store, run, made.path / "history.csv")


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("no json", r"mlflow.json does not say which MLflow run this is; remove it"),
        (json.dumps({"run_id": "../../etc"}), r"names the MLflow run '../../etc', which is none; remove it"),
        (
            json.dumps({"run_id": "0" * 32}),
            r"^the MLflow run 0{32} cannot be gone on with at file:.*remove .*mlflow.json",
        ),
    ],
)
def test_a_note_of_no_run_is_one_sentence(recipe: Path, tmp_path: Path, store: str, note: str, message: str) -> None:
    with pytest.raises(Stop):
        train(recipe, output=tmp_path / "run", overrides=SHORT, mlflow=store, progress=ends_with(Stop()))
    (Place(tmp_path / "run").partial / "mlflow.json").write_text(note)
    with pytest.raises(DataError, match=message):
        train(recipe, resume=tmp_path / "run", overrides=SHORT, mlflow=store)


def test_a_deleted_experiment_is_one_sentence(recipe: Path, tmp_path: Path, store: str) -> None:
    check_tracking(store, None)
    client = MlflowClient(store)
    client.delete_experiment(client.create_experiment("quick"))
    with pytest.raises(DataError, match=r"the MLflow experiment 'quick' is deleted .*--mlflow-experiment"):
        train(recipe, output=tmp_path / "run", overrides=SHORT, mlflow=store)
    assert not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize(
    "uri", ["mlruns", "file:mlruns", "file://host/mlruns", "sqlite:///a.db", "http://", "ftp://host", "http://[", ""]
)
def test_other_places_are_refused(uri: str) -> None:
    with pytest.raises(DataError, match="expected http://HOST:PORT"):
        check_tracking(uri, None)


@pytest.mark.parametrize("uri", ["http://me:secret@host", "https://host/?token=secret", "http://host#secret"])
def test_a_password_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(DataError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        check_tracking(uri, None)
    assert "secret" not in str(refused.value)


def test_an_experiment_without_a_server_or_a_name_is_refused(store: str) -> None:
    with pytest.raises(DataError, match="add --mlflow URI"):
        check_tracking(None, "mine")
    with pytest.raises(DataError, match="empty name"):
        check_tracking(store, " ")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(DataError, match=r"pip install 'bnfold\[mlflow\]'"):
        check_tracking(store, None)
