"""The desired state on disk: whole or not at all, one for all workers, and read again by a server that starts again."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service_faults import break_channel
from service_reloads import ADMIN, KEY, REQUEST, admin, build_versions, put, serving
from service_runs import ROOT, Process, process, until

from bnfold.errors import BnfoldError
from service.errors import Unsaved
from service.repository.state import FILE, DesiredState, Wish

_WRITER = """
import sys
from pathlib import Path
from service.repository.state import DesiredState
state = DesiredState(Path(sys.argv[1]))
for number in range(25):
    state.change(f"model-{sys.argv[2]}", "load" if number % 2 else "unload")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_versions(tmp_path_factory.mktemp("versions"), 2)


@pytest.fixture
def models(built: Path, tmp_path: Path) -> Path:
    (tmp_path / "models" / "digits").mkdir(parents=True)
    put(built, tmp_path / "models", 1)
    return tmp_path / "models"


def test_each_change_has_an_epoch_of_its_own_and_another_reader_sees_it(tmp_path: Path):
    one, other = DesiredState(tmp_path / "state"), DesiredState(tmp_path / "state")
    assert other.look().wishes == {}
    stamp = other.stamp()
    assert one.change("digits", "unload") == Wish("unload", 1)
    assert other.stamp() != stamp
    assert other.change("digits", "load", "specific:1") == Wish("load", 2, "specific:1")
    assert one.change("pair", "load") == Wish("load", 3)
    assert one.read() == {"digits": Wish("load", 2, "specific:1"), "pair": Wish("load", 3)}


def test_numbers_go_on_when_somebody_removes_the_file(tmp_path: Path):
    one, other = DesiredState(tmp_path), DesiredState(tmp_path)
    one.change("digits", "unload")
    other.look()
    (tmp_path / FILE).unlink()
    assert other.change("digits", "load").epoch == 2


def test_without_a_folder_it_is_kept_in_memory():
    state = DesiredState(None)
    assert state.change("digits", "unload").epoch == 1
    assert state.change("digits", "load").epoch == 2
    assert (state.read(), state.stamp()) == ({"digits": Wish("load", 2)}, None)


def test_processes_that_write_at_once_lose_no_change(tmp_path: Path):
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), str(number)], cwd=ROOT) for number in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    found = DesiredState(tmp_path).read()
    assert sorted(found) == ["model-0", "model-1", "model-2"]
    assert max(wish.epoch for wish in found.values()) == 75
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "desired.lock"]


def test_a_worker_that_was_halted_while_it_wrote_does_not_halt_the_others(tmp_path: Path):
    with (tmp_path / "desired.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Unsaved, match="nothing was changed"):
            DesiredState(tmp_path, patience=0.1).change("digits", "load")
    assert DesiredState(tmp_path).change("digits", "load").epoch == 1


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"schema": 2, "models": {}}', b'{"schema": 1}', b'{"schema": 1, "models": []}',
        b'{"schema": 1, "models": {"../x": {"action": "load", "epoch": 1, "policy": ""}}}',
        b'{"schema": 1, "models": {"x": {"action": "run", "epoch": 1, "policy": ""}}}',
        b'{"schema": 1, "models": {"x": {"action": "load", "epoch": true, "policy": ""}}}',
        b'{"schema": 1, "models": {"x": {"action": "load", "epoch": 1, "policy": "newest"}}}',
        b'{"schema": 1, "models": {"x": {"action": "load", "epoch": 1}}}',
        b'{"schema": 1, "models": {"x": ' + b"[" * 100_000,
        b" " * (17 * 2**20),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_sentence_and_is_not_written_over(tmp_path: Path, content: bytes):
    (tmp_path / FILE).write_bytes(content)
    state = DesiredState(tmp_path)
    with pytest.raises(BnfoldError, match=r"desired\.json") as refusal:
        state.read()
    assert "\n" not in str(refusal.value)
    with pytest.raises(Unsaved, match="nothing was changed"):
        state.change("digits", "load")
    assert (tmp_path / FILE).read_bytes() == content


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_could_have_written_is_refused(tmp_path: Path, mode: int):
    DesiredState(tmp_path).change("digits", "unload")
    (tmp_path / FILE).chmod(mode)
    with pytest.raises(BnfoldError, match="can be written by others than its owner; expected mode 600"):
        DesiredState(tmp_path).look()
    with pytest.raises(Unsaved):
        DesiredState(tmp_path).change("digits", "load")
    (tmp_path / FILE).chmod(0o644)
    assert DesiredState(tmp_path).read() == {"digits": Wish("unload", 1)}


@pytest.mark.parametrize(
    ("folder", "file", "read"), [(0o2770, 0o660, True), (0o2770, 0o662, False), (0o1770, 0o660, False)]
)
def test_a_volume_that_kubernetes_mounts_for_a_group_can_be_used_again(
    tmp_path: Path, folder: int, file: int, read: bool
):
    """With an fsGroup each mount adds 0660 to the mode of every file, and 02770 to that of every folder."""
    state = tmp_path / "state"
    DesiredState(state).change("digits", "unload")
    state.chmod(folder)
    (state / FILE).chmod(file)
    if read:
        assert DesiredState(state).look().wishes == {"digits": Wish("unload", 1)}
        assert DesiredState(state).change("digits", "load").epoch == 2
    else:
        with pytest.raises(BnfoldError, match="can be written by others"):
            DesiredState(state).look()


def test_what_is_no_file_is_refused_and_waited_for_by_nobody(tmp_path: Path):
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(BnfoldError, match="is no regular file"):
        DesiredState(tmp_path).look()
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    with pytest.raises(BnfoldError, match="cannot be read"):
        DesiredState(tmp_path).look()


def test_files_of_the_state_are_for_their_owner_alone(tmp_path: Path):
    before = os.umask(0)
    try:
        DesiredState(tmp_path / "state").change("digits", "unload")
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "state").iterdir()} == {0o600}


def test_links_that_somebody_laid_in_a_shared_folder_lead_nowhere(tmp_path: Path):
    victim, folder = tmp_path / "victim", tmp_path / "state"
    folder.mkdir()
    victim.write_text("as it was")
    (folder / f".{FILE}.{os.getpid()}").symlink_to(victim)
    DesiredState(folder).change("digits", "unload")
    assert DesiredState(folder).read() == {"digits": Wish("unload", 1)}
    assert victim.read_text() == "as it was"
    (folder / "desired.lock").unlink()
    (folder / "desired.lock").symlink_to(tmp_path / "made")
    with pytest.raises(Unsaved):
        DesiredState(folder).change("digits", "load")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("mode", "warned"), [(0o700, False), (0o755, False), (0o770, True), (0o777, True)])
def test_a_folder_that_others_can_write_to_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
):
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    DesiredState(tmp_path / "state")
    assert ("can be written by others than its owner" in caplog.text) is warned


def test_a_server_with_a_damaged_state_does_not_start(models: Path, tmp_path: Path):
    state = tmp_path / "state"
    state.mkdir()
    (state / FILE).write_text("{")
    command = [sys.executable, "-m", "bnfold", "serve", str(models), "--port", "0", "--state-dir", str(state)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "desired.json" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_on_a_full_disk_a_load_is_503_and_changes_nothing(built: Path, models: Path, tmp_path: Path):
    state = tmp_path / "state"
    with serving(models, tmp_path, state_dir=state) as server, admin(server.url) as operator:
        assert operator.load().status_code == 200
        before = (state / FILE).read_bytes()
        put(built, models, 2)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # the system lets this process write to no file
        try:
            found = [operator.load(), operator.unload()]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        for answer in found:
            assert answer.status_code == 503
            assert "cannot be written" in answer.json()["error"]
            assert "nothing was changed" in answer.json()["error"]
            assert str(state) not in answer.text
        assert (state / FILE).read_bytes() == before
        assert sorted(path.name for path in state.iterdir()) == [FILE, "desired.lock"]
        assert operator.serves() == "1"
        assert operator.load().status_code == 200
        assert operator.serves() == "2"


def test_a_server_that_starts_again_has_what_was_asked_of_it(built: Path, models: Path, tmp_path: Path):
    put(built, models, 2)
    shutil.copytree(built / "1", models / "other" / "1")
    for number in range(2):
        with serving(models, tmp_path, state_dir=tmp_path / "state") as server, admin(server.url) as operator:
            if number == 0:
                assert operator.load(version_policy="specific:1").status_code == 200
                assert operator.unload("other").status_code == 200
            assert operator.serves() == "1"
            assert operator.states("other") == {"1": "UNAVAILABLE"}
            assert operator.client.get("/v2/health/ready").status_code == 200
    with serving(models, tmp_path) as server, admin(server.url) as operator:
        assert operator.serves() == "2"
        assert operator.states("other") == {"1": "READY"}


# --------------------------------------------------------------------------------------------- several workers


@pytest.fixture
def two(models: Path, tmp_path: Path) -> Iterator[Process]:
    key = tmp_path / "admin.key"
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    settings = {"BNFOLD_WORKERS": "2", "BNFOLD_ADMIN_KEY_FILE": str(key), "BNFOLD_STATE_DIR": str(tmp_path / "state")}
    with process(models, tmp_path, **settings) as server:
        yield server
        if server.child.poll() is None:
            server.child.send_signal(signal.SIGTERM)
            assert server.wait() == 0, server.text()
        assert "Traceback" not in server.text()


def loaded(server: Process) -> list[list[str]]:
    """The versions of digits in each worker, as readiness tells."""
    workers = httpx.get(f"{server.url}/v2/health/ready", timeout=60).json()["workers"]
    return [
        [version for model in worker.get("models", []) if model["name"] == "digits" for version in model["versions"]]
        for worker in workers
    ]


def test_what_is_asked_of_one_worker_reaches_all_and_each_does_it_once(built: Path, models: Path, two: Process):
    assert loaded(two) == [["1"], ["1"]]
    put(built, models, 2)
    with admin(two.url) as operator:
        assert operator.load().status_code == 200
        until(lambda: loaded(two) == [["2"], ["2"]])
        assert operator.loads("success") == 2
        assert operator.load(version_policy="specific:1").status_code == 200  # a rollback
        until(lambda: loaded(two) == [["1"], ["1"]])
        assert operator.loads("success") == 4
        assert operator.unload().status_code == 200
        until(lambda: loaded(two) == [[], []])
        assert operator.load().status_code == 200
        until(lambda: loaded(two) == [["2"], ["2"]])
        assert operator.loads("success") == 6
    for _ in range(20):  # a connection each, so that both are asked
        found = httpx.post(f"{two.url}/v2/models/digits/infer", json=REQUEST, headers=ADMIN)
        assert (found.status_code, found.headers["bnfold-model-version"]) == (200, "2")


def test_a_worker_that_was_killed_comes_up_with_what_the_others_have(built: Path, models: Path, two: Process):
    put(built, models, 2)
    with admin(two.url) as operator:
        assert operator.load(version_policy="specific:1").status_code == 200
    until(lambda: loaded(two) == [["1"], ["1"]])
    pid = int(two.text().split("worker 1 (process ")[1].split(")")[0])
    os.kill(pid, signal.SIGKILL)
    until(lambda: two.text().count("worker 1 (process") >= 3)  # ready, ended, ready again
    until(lambda: loaded(two) == [["1"], ["1"]])


def test_a_load_that_fails_reaches_no_other_worker(built: Path, models: Path, tmp_path: Path, two: Process):
    break_channel(put(built, models, 1, as_version=2))
    with admin(two.url) as operator:
        for _ in range(4):
            assert operator.load(version_policy="specific:2").status_code == 400
    assert not (tmp_path / "state" / FILE).exists()
    assert loaded(two) == [["1"], ["1"]]
