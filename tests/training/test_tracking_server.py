"""A run at a real MLflow tracking server over HTTP, which goes away and comes back.

The server is the whole package, some 350 MB more than its client: `pip install -c constraints.txt mlflow==3.17.2`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from chosen_ports import choose_port
from logged_runs import SHORT, Stop, check_history, ends_with, only_run
from mlflow import MlflowClient

from bnfold.training import train

pytestmark = pytest.mark.long


class Server:
    """mlflow server with SQLite and its artifacts in a folder."""

    def __init__(self, folder: Path) -> None:
        self.port = choose_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "artifacts"),
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(self._command, env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}, **quiet)
        until = time.monotonic() + 180  # the first start makes the tables
        while not self._answers():
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.2)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        importlib.metadata.version("mlflow")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the tracking server is not installed: pip install -c constraints.txt mlflow==3.17.2")
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


def test_a_resumed_run_is_whole_at_the_server(recipe: Path, tmp_path: Path, server: Server) -> None:
    with pytest.raises(Stop):
        train(recipe, output=tmp_path / "run", overrides=SHORT, mlflow=server.uri, progress=ends_with(Stop()))
    assert only_run(server.uri).info.status == "FAILED"
    made = train(recipe, resume=tmp_path / "run", overrides=SHORT, mlflow=server.uri)
    run = only_run(server.uri)
    assert run.info.status == "FINISHED"
    check_history(server.uri, run, made.path / "history.csv")
    assert run.data.params["data.path"] == ""
    assert run.data.params["network.args.widths"] == "[4]"
    (tmp_path / "there").mkdir()
    there = Path(MlflowClient(server.uri).download_artifacts(run.info.run_id, "checkpoint", str(tmp_path / "there")))
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path in made.path.iterdir()
    }


def test_a_server_that_goes_away_and_comes_back_has_the_whole_run(
    recipe: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bnfold.training.tracking._PAUSE", 0.0)
    monkeypatch.setattr("bnfold.training.tracking._PAUSE_AFTER_FAILURE", 0.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def progress(line: str) -> None:
        if line.startswith("epoch 1/"):
            server.stop()
        if line.startswith("epoch 3/"):
            server.start()

    with caplog.at_level(logging.WARNING, "bnfold"):
        made = train(
            recipe, output=tmp_path / "run", overrides=SHORT, mlflow=server.uri, mlflow_experiment="away",
            progress=progress,
        )  # fmt: skip
    (said,) = (record.message for record in caplog.records if record.name.startswith("bnfold"))
    assert "did not take the history: ConnectionRefusedError" in said
    run = only_run(server.uri, "away")
    assert run.info.status == "FINISHED"
    check_history(server.uri, run, made.path / "history.csv")
