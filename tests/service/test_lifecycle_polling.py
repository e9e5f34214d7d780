"""Polling: what changes in the repository is served without being asked for."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_faults import break_channel
from service_reloads import Admin, admin, build_versions, is_answer, logits, put, serving
from service_runs import until

from service.repository.scanning import fingerprint

POLL = 0.1


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_versions(tmp_path_factory.mktemp("versions"), 3)


@pytest.fixture
def models(built: Path, tmp_path: Path) -> Path:
    (tmp_path / "models" / "digits").mkdir(parents=True)
    put(built, tmp_path / "models", 1)
    return tmp_path / "models"


@pytest.fixture
def operator(models: Path, tmp_path: Path) -> Iterator[Admin]:
    with serving(models, tmp_path, poll_interval=POLL) as server, admin(server.url) as found:
        yield found


def pass_polls(built: Path, models: Path, operator: Admin, name: str) -> None:
    """Wait until polling has gone round: it has found a model that was not there before."""
    shutil.copytree(built / "1", models / name / "1")
    until(lambda: operator.states(name) == {"1": "READY"})


def test_a_new_version_is_served_and_the_old_one_leaves(built: Path, models: Path, operator: Admin):
    put(built, models, 2)
    until(lambda: operator.serves() == "2")
    assert is_answer(operator.infer(), logits(built / "2"))
    until(lambda: operator.states() == {"1": "UNAVAILABLE", "2": "READY"})
    assert operator.loads("success") == 1


def test_other_bytes_under_the_same_version_are_served(built: Path, models: Path, operator: Admin):
    shutil.rmtree(models / "digits" / "1")
    put(built, models, 3, as_version=1)
    until(lambda: is_answer(operator.infer(), logits(built / "3")))
    assert operator.states() == {"1": "READY"}


def test_a_refused_version_is_proved_once_and_again_when_its_files_change(
    built: Path, models: Path, operator: Admin, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    tensor = break_channel(put(built, models, 1, as_version=2))
    until(lambda: tensor in operator.reason("2"))
    for name in ("first", "second"):
        pass_polls(built, models, operator, name)
    assert operator.serves() == "1"
    assert operator.loads("rollback") == 1
    assert [record.getMessage() for record in caplog.records if "is refused" in record.getMessage()] == [
        f"model digits/2 is refused: {operator.reason('2')}"
    ]
    shutil.copytree(built / "2", models / "digits" / "2", dirs_exist_ok=True)
    until(lambda: operator.serves() == "2")
    assert operator.states()["2"] == "READY"


def test_a_copy_that_takes_long_is_not_served_before_it_is_whole(built: Path, models: Path, operator: Admin):
    source, target = built / "2", models / "digits" / "2"
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for number, path in enumerate(reversed(files)):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        copy.write_bytes(data[: len(data) // 2])
        if number in (3, len(files) - 1):  # the copy hangs for longer than polling waits
            pass_polls(built, models, operator, f"while{number}")
        assert operator.states().get("2") != "READY"
        assert operator.serves() == "1"
        copy.write_bytes(data)
    until(lambda: operator.serves() == "2")
    assert is_answer(operator.infer(), logits(built / "2"))


def test_a_version_that_is_taken_away_gives_way_to_the_one_below(built: Path, models: Path, operator: Admin):
    put(built, models, 2)
    until(lambda: operator.serves() == "2")
    shutil.rmtree(models / "digits" / "2")
    until(lambda: operator.serves() == "1")
    until(lambda: operator.states() == {"1": "READY"})


def test_the_last_version_stays_when_its_folder_or_the_whole_repository_goes(
    built: Path, models: Path, operator: Admin, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    shutil.rmtree(models / "digits")
    pass_polls(built, models, operator, "other")
    assert operator.serves() == "1"
    models.rename(models.with_name("elsewhere"))
    until(lambda: "cannot be listed" in caplog.text)
    assert operator.serves() == "1"
    models.with_name("elsewhere").rename(models)
    pass_polls(built, models, operator, "more")
    assert caplog.text.count("what is served stays") == 1


def test_an_unloaded_model_stays_away_until_it_is_loaded(built: Path, models: Path, operator: Admin):
    assert operator.unload().status_code == 200
    put(built, models, 2)
    pass_polls(built, models, operator, "other")
    assert operator.states() == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
    assert operator.load().status_code == 200
    assert operator.serves() == "2"


def test_a_model_pinned_by_hand_stays_pinned(built: Path, models: Path, operator: Admin):
    assert operator.load(version_policy="specific:1").status_code == 200
    put(built, models, 2)
    pass_polls(built, models, operator, "other")
    assert operator.serves() == "1"


def test_a_fingerprint_tells_changes_that_keep_the_size_and_the_time(built: Path, tmp_path: Path):
    version = shutil.copytree(built / "1", tmp_path / "1")
    before = fingerprint(version)
    assert fingerprint(version) == before
    path = version / "model.onnx"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=times)
    changed = fingerprint(version)
    assert changed != before
    (version / "golden" / "test_data_set_0" / "input_0.pb").unlink()
    assert fingerprint(version) not in (before, changed)
    assert fingerprint(tmp_path / "nowhere") == ""
