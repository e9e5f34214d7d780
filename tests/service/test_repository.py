from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from service_faults import break_channel, copy_version
from service_runs import running

from bnfold.bundle import load_bundle
from bnfold.errors import BnfoldError
from bnfold.runtime import open_session
from service.engine import resolve_device
from service.engine.runtimes import CpuRuntime
from service.errors import ModelFault, UnknownModel
from service.repository import load_repository, proving
from service.settings import Settings
from service.telemetry.metrics import Metrics


def on(folder: Path) -> Settings:
    return Settings(repository=folder, device="cpu", port=0, threads=1)


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """A repository of one's own with digits/1 and pair/1."""
    for name in ("digits", "pair"):
        shutil.copytree(repository / name, tmp_path / "models" / name)
    return tmp_path / "models"


def test_serves_the_newest_proven_version_of_each_model(models: Path):
    copy_version(models / "digits" / "1", models / "digits" / "10")
    copy_version(models / "digits" / "1", models / "digits" / "9")
    found = load_repository(on(models), Metrics())
    assert [engine.label for engine in found.engines] == ["digits/10", "pair/1"]
    assert found.is_ready
    assert found.entries["digits"].older == ("1", "9")


def test_a_broken_channel_with_a_mended_hash_is_refused_and_the_older_version_serves(
    models: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    tensor = break_channel(copy_version(models / "digits" / "1", models / "digits" / "2"))
    with running(on(models)) as server, httpx.Client(base_url=server.url) as client:
        ready = client.get("/v2/health/ready")
        assert ready.status_code == 200
        digits = ready.json()["models"][0]
        assert (digits["state"], digits["version"]) == ("fallback", "1")
        proof = client.get("/v2/models/digits/parity").json()
        assert proof["served"]["version"] == "1"
        (refused,) = proof["refused"]
        assert refused["version"] == "2"
        assert tensor in " ".join(refused["reasons"])
        assert refused["gate"]["passed"] is False
        metrics = client.get("/metrics").text
        assert 'bnfold_model_fallback{model="digits"} 1.0' in metrics
        assert 'bnfold_model_fallback{model="pair"} 0.0' in metrics
        assert any(
            line.startswith("bnfold_model_refused{") and 'version="2"' in line and tensor in line
            for line in metrics.splitlines()
        )
        body = {"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0] * 64}]}
        answer = client.post("/v2/models/digits/infer", json=body)
        assert answer.headers["bnfold-model-version"] == "1"
        refused_answer = client.post("/v2/models/digits/versions/2/infer", json=body)
        assert refused_answer.status_code == 503
        assert tensor in refused_answer.json()["error"]
        assert client.get("/v2/models/digits/versions/2/ready").status_code == 503
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("FALLBACK" in text and "digits" in text for text in warnings)
    assert any("digits/2 is refused" in text and tensor in text for text in warnings)


def test_a_model_without_a_proven_version_is_not_ready_and_says_why_while_others_serve(models: Path):
    tensor = break_channel(models / "digits" / "1")
    with running(on(models)) as server, httpx.Client(base_url=server.url) as client:
        ready = client.get("/v2/health/ready")
        assert ready.status_code == 503
        assert "error" in ready.json()
        for answer in (
            client.get("/v2/models/digits"),
            client.get("/v2/models/digits/ready"),
            client.post("/v2/models/digits/infer", content=b"{}"),
            client.post("/models/digits/predict", json={"instances": [[0] * 64]}),
        ):
            assert answer.status_code == 503
            assert tensor in answer.json()["error"]
            assert answer.headers["retry-after"]
        assert client.get("/v2/models/digits/parity").json()["state"] == "refused"
        assert client.get("/v2/models/pair/ready").status_code == 200
        assert 'bnfold_model_ready{model="digits"} 0.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("hash", "sha256"),
        ("missing", "model.onnx"),
        ("stray", "extra.txt"),
        ("manifest", "JSON"),
        ("empty", "manifest"),
    ],
)
def test_a_damaged_version_is_refused_with_its_reason(models: Path, fault: str, named: str):
    version = copy_version(models / "digits" / "1", models / "digits" / "2")
    if fault == "hash":
        break_channel(version, mend_hash=False)
    elif fault == "missing":
        (version / "model.onnx").unlink()
    elif fault == "stray":
        (version / "extra.txt").write_text("hello")
    elif fault == "manifest":
        (version / "manifest.json").write_text("{")
    else:
        shutil.rmtree(version)
        version.mkdir()
    entry = load_repository(on(models), Metrics()).entries["digits"]
    assert entry.state == "fallback"
    assert named in entry.refused[0].reasons[0]
    assert str(models) not in entry.refused[0].reasons[0]


def test_a_gate_that_breaks_down_refuses_the_version_and_not_the_server(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    copy_version(models / "digits" / "1", models / "digits" / "2")
    real = proving.check_gate

    def broken(bundle, **options):
        if bundle.path.name == "2":
            raise ZeroDivisionError("a bug in the gate")
        return real(bundle, **options)

    monkeypatch.setattr(proving, "check_gate", broken)
    entry = load_repository(on(models), Metrics()).entries["digits"]
    assert entry.engine is not None
    assert entry.engine.version == "1"
    assert "ZeroDivisionError" in entry.refused[0].reasons[0]
    assert "a bug in the gate" in caplog.text


def test_nothing_proven_is_one_sentence_with_the_reason(models: Path):
    shutil.rmtree(models / "pair")
    tensor = break_channel(models / "digits" / "1")
    with pytest.raises(BnfoldError, match=tensor) as refusal:
        load_repository(on(models), Metrics())
    assert "digits/1 was refused" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_folders_without_versions_are_left_out_silently(models: Path, caplog: pytest.LogCaptureFixture):
    (models / "recipe-only").mkdir()
    (models / "recipe-only" / "recipe.toml").write_text("[network]\n")
    (models / ".cache").mkdir()
    (models / "README.md").write_text("hello")
    (models / "digits" / ".writing-1f").mkdir()
    (models / "digits" / "07").mkdir()
    found = load_repository(on(models), Metrics())
    assert list(found.entries) == ["digits", "pair"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("content", ["nothing", "recipe", "missing", "file"])
def test_a_repository_with_nothing_to_serve_is_one_sentence(tmp_path: Path, content: str):
    folder = tmp_path / "models"
    if content == "file":
        folder.write_text("hello")
    elif content != "missing":
        folder.mkdir()
    if content == "recipe":
        (folder / "digits").mkdir()
        (folder / "digits" / "recipe.toml").write_text("")
    with pytest.raises(BnfoldError, match="models") as refusal:
        load_repository(on(folder), Metrics())
    assert "\n" not in str(refusal.value)


def test_a_version_under_another_name_is_served_under_its_folders(models: Path, caplog: pytest.LogCaptureFixture):
    copy_version(models / "digits" / "1", models / "renamed" / "3")
    found = load_repository(on(models), Metrics())
    assert found.find("renamed").label == "renamed/3"
    assert "the manifest of renamed/3 says digits/1" in caplog.text


def test_finds_models_by_name_and_version(models: Path):
    found = load_repository(on(models), Metrics())
    assert found.find("digits") is found.find("digits", "1")
    for name, version in (("digits", "2"), ("digits", "01"), ("digit", None), ("digits/1", None), ("..", None)):
        with pytest.raises(UnknownModel):
            found.find(name, version)


def test_the_session_runs_the_bytes_that_the_digest_names(repository: Path):
    (engine,) = [each for each in load_repository(on(repository), Metrics()).engines if each.name == "digits"]
    data = (repository / "digits" / "1" / "model.onnx").read_bytes()
    assert engine.digest == hashlib.sha256(data).hexdigest()
    assert engine.provider == "CPUExecutionProvider"
    assert dict(engine.headers)[b"bnfold-model-digest"] == f"sha256:{engine.digest}".encode()


class _Recorder:
    """A session that notes the run options it was called with."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.options: list[Any] = []

    def run(self, names: Any, inputs: Any, options: Any) -> Any:
        self.options.append(options)
        return self._session.run(names, inputs, options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def test_the_memory_of_a_large_batch_is_given_back(repository: Path):
    bundle = load_bundle(repository / "digits" / "1")
    recorder = _Recorder(open_session(bundle.session_source(), optimise=True))
    runtime = CpuRuntime(recorder, ["logits"], large_rows=8)
    for rows in (8, 9):
        assert runtime.run({"input": np.zeros((rows, 1, 8, 8), np.float32)}, rows)["logits"].shape == (rows, 10)
    small, large = recorder.options
    assert small is None
    assert large.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"


def test_a_failure_of_the_runtime_is_a_fault_whose_words_stay_in_the_log(
    repository: Path, caplog: pytest.LogCaptureFixture
):
    engine = load_repository(on(repository), Metrics()).find("digits")
    with pytest.raises(ModelFault) as fault:
        engine.run({"input": np.zeros((1, 1, 7, 8), np.float32)})
    assert str(fault.value) == "model digits/1 failed on this input; the server's log says why"
    assert "INVALID_ARGUMENT" in caplog.text


def test_a_model_that_mixes_rows_is_never_batched(repository: Path):
    found = load_repository(on(repository), Metrics())
    assert {engine.name: engine.batchable for engine in found.engines} == {
        "digits": True,
        "free": True,
        "mixing": False,
        "pair": True,
    }


def test_cuda_without_cuda_is_one_sentence_and_no_fallback(repository: Path):
    if resolve_device("auto") == "cuda":
        pytest.skip("this machine has CUDA")
    with pytest.raises(BnfoldError, match="cuda") as refusal:
        load_repository(Settings(repository=repository, device="cuda"), Metrics())
    assert "\n" not in str(refusal.value)


def test_goldens_come_out_of_the_engine_as_the_bundle_says(repository: Path):
    (engine,) = [each for each in load_repository(on(repository), Metrics()).engines if each.name == "digits"]
    for golden in load_bundle(repository / "digits" / "1").goldens():
        found = engine.run(golden.inputs)["logits"]
        scale = np.abs(golden.truth["logits"]).max()
        assert np.isfinite(found).all()
        assert np.abs(found - golden.truth["logits"]).max() <= 1e-5 * scale
