from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_drafts import make_draft, make_model, mend, prove, tensors

import bnfold.bundle.sidecar
import bnfold.rename
from bnfold.bundle import Bundle, BundleDraft, Golden, Preprocessing, list_versions, load_bundle, write_bundle
from bnfold.errors import BundleError, ParityError
from bnfold.runtime import open_session, run


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_writes_the_layout_of_the_schema(draft: BundleDraft, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "models" / "tiny", draft, prove=prove)
    assert bundle.path == tmp_path / "models" / "tiny" / "1"
    assert sorted(everything(bundle.path)) == [
        "fold.json",
        "golden/test_data_set_0/input_0.pb",
        "golden/test_data_set_0/output_0.pb",
        "golden/test_data_set_1/input_0.pb",
        "golden/test_data_set_1/output_0.pb",
        "golden/truth.safetensors",
        "manifest.json",
        "model.onnx",
        "parity.json",
        "reference.onnx",
        "statistics.safetensors",
    ]
    assert [path.name for path in bundle.path.parent.iterdir()] == ["1"]


def test_gives_back_what_was_written(draft: BundleDraft, tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "tiny", draft, prove=prove)
    read = load_bundle(str(written.path))
    assert read.manifest == written.manifest
    for name in ("source", "inputs", "outputs", "labels", "preprocessing", "fold_map", "source_tensors"):
        assert getattr(read.manifest, name) == getattr(draft, name)
    assert (read.manifest.name, read.manifest.version) == ("tiny", 1)
    assert read.parity() == {"holds": True}
    assert read.fold_report() == draft.fold_report
    assert read.read("model.onnx") == draft.model.SerializeToString()
    norm = read.statistics()["bn"]
    assert norm["eps"] == 1e-3
    assert norm["eps"].dtype == np.float64
    assert np.array_equal(norm["variance"], tensors()["bn.running_var"])
    for at, (found, given) in enumerate(zip(read.goldens(), draft.goldens, strict=True)):
        assert found.name == f"test_data_set_{at}"
        assert np.array_equal(found.inputs["input"], given.inputs["input"])
        assert np.array_equal(found.truth["logits"], given.truth["logits"])
        assert np.array_equal(found.labels, given.labels)


def test_the_runtime_opens_the_checked_bytes(pristine: Path) -> None:
    bundle = load_bundle(pristine)
    golden = bundle.goldens()[0]
    for file in ("model.onnx", "reference.onnx"):
        found = run(open_session(bundle.session_source(file), optimise=False), golden.inputs)["logits"]
        assert np.abs(found - golden.truth["logits"]).max() < 1e-5


def test_the_same_draft_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "a" / "1", make_draft(), prove=prove)
    draft = make_draft()
    turned = {name: dict(reversed(norm.items())) for name, norm in draft.statistics.items()}
    second = write_bundle(tmp_path / "b" / "1", dataclasses.replace(draft, statistics=turned), prove=prove)
    one, two = everything(first.path), everything(second.path)
    del one["manifest.json"], two["manifest.json"]
    assert one == two


def test_writes_arrays_that_do_not_lie_in_order(tmp_path: Path) -> None:
    draft = make_draft()
    golden = draft.goldens[0]
    turned = Golden(
        "any",
        {"input": np.asfortranarray(golden.inputs["input"])},
        {"logits": np.repeat(golden.outputs["logits"], 2, axis=1)[:, ::2]},
        {"logits": np.asfortranarray(golden.truth["logits"]).astype(">f8")},
        golden.labels,
    )
    assert not turned.outputs["logits"].flags["C_CONTIGUOUS"]
    found = write_bundle(tmp_path / "tiny", dataclasses.replace(draft, goldens=[turned]), prove=prove).goldens()[0]
    for side in ("inputs", "outputs", "truth"):
        (array,), (wanted,) = getattr(found, side).values(), getattr(golden, side).values()
        assert np.array_equal(array, wanted)


def test_a_network_without_norms_has_empty_statistics(tmp_path: Path) -> None:
    assert write_bundle(tmp_path / "tiny", make_draft(statistics={}), prove=prove).statistics() == {}


# Versions


def test_counts_versions_up_from_the_highest(draft: BundleDraft, tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    for name in ("3", "09", "0", ".writing-ffff", "latest", "1e3"):
        (model / name).mkdir(parents=True)
    (model / "12").symlink_to(model / "3")
    assert list_versions(model) == (3,)
    assert write_bundle(model, draft, prove=prove).path == model / "4"
    assert list_versions(model) == (3, 4)
    assert list_versions(tmp_path / "none") == ()


def test_passes_over_a_number_that_something_else_has(draft: BundleDraft, tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    model.mkdir()
    (model / "1").write_text("a file")
    (model / "2").symlink_to("nowhere")
    bundle = write_bundle(model, draft, prove=prove)
    assert (bundle.path, bundle.manifest.version) == (model / "3", 3)
    assert (model / "1").read_text() == "a file"


@pytest.mark.parametrize("kind", ["version", "empty folder", "file", "dangling link"])
def test_never_replaces_what_has_the_number(kind: str, draft: BundleDraft, tmp_path: Path) -> None:
    target = tmp_path / "tiny" / "7"
    target.parent.mkdir()
    if kind == "version":
        write_bundle(target, draft, prove=prove)
    elif kind == "empty folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to("nowhere")
    before = target.lstat()
    with pytest.raises(BundleError, match=r"7 exists already; expected a free version.*choose another"):
        write_bundle(target, draft, prove=lambda _: pytest.fail("proven in vain"))
    assert target.lstat() == before
    assert [path.name for path in target.parent.iterdir()] == ["7"]


def test_never_replaces_an_empty_folder_made_during_the_proof(draft: BundleDraft, tmp_path: Path) -> None:
    target = tmp_path / "tiny" / "7"

    def prove_slowly(_: Bundle) -> dict[str, Any]:
        target.mkdir()
        return {}

    with pytest.raises(BundleError, match="exists already"):
        write_bundle(target, draft, prove=prove_slowly)
    assert list(target.iterdir()) == []
    assert [path.name for path in target.parent.iterdir()] == ["7"]


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("kind", ["nothing", "empty folder", "full folder", "file", "link"])
def test_renames_to_a_free_name_alone(
    kind: str, portable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if portable:
        monkeypatch.setattr(bnfold.rename, "_renameat2", lambda *_: False)
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "inside").mkdir(parents=True)
    if kind == "nothing":
        bnfold.rename.rename_new(source, target)
        assert (target / "inside").is_dir()
        return
    if kind.endswith("folder"):
        target.mkdir()
    if kind == "full folder":
        (target / "file").touch()
    elif kind == "file":
        target.touch()
    elif kind == "link":
        target.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        bnfold.rename.rename_new(source, target)
    assert (source / "inside").is_dir()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (".hidden", "'.hidden' as the name"),
        ("my model", "'my model' as the name"),
        ("modèle", "as the name"),
        ("x" * 129, "as the name"),
        ("07", "ends with 07, which is no version"),
        ("0", "ends with 0, which is no version"),
        ("12345678901", "ends with 12345678901, which is no version"),
        (".hidden/3", "'.hidden' as the name"),
    ],
)
def test_refuses_names_that_are_none(name: str, found: str, draft: BundleDraft, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=found):
        write_bundle(tmp_path / name, draft, prove=prove)
    assert list(tmp_path.iterdir()) == []


def test_dots_in_the_destination_name_the_folder_they_lead_to(draft: BundleDraft, tmp_path: Path) -> None:
    assert write_bundle(tmp_path / "a" / ".." / "tiny", draft, prove=prove).path == tmp_path / "tiny" / "1"


# Nothing is left of what failed


def test_the_proof_sees_the_whole_bundle_but_itself(draft: BundleDraft, tmp_path: Path) -> None:
    seen: list[str] = []

    def look(bundle: Bundle) -> dict[str, Any]:
        seen.extend(everything(bundle.path))
        assert bundle.path.parent == tmp_path / "tiny"
        assert len(bundle.goldens()) == 2
        assert list(bundle.statistics()) == ["bn"]
        return {"holds": None}

    write_bundle(tmp_path / "tiny", draft, prove=look)
    assert "model.onnx" in seen
    assert "parity.json" not in seen
    assert "manifest.json" not in seen


@pytest.mark.parametrize("fault", [ParityError("no"), KeyboardInterrupt(), OSError(errno.EIO, "not the bundle's")])
def test_a_failed_proof_leaves_nothing(fault: BaseException, draft: BundleDraft, tmp_path: Path) -> None:
    def fail(_: Bundle) -> dict[str, Any]:
        raise fault

    with pytest.raises(type(fault)) as caught:
        write_bundle(tmp_path / "models" / "tiny", draft, prove=fail)
    assert caught.value is fault
    assert list(tmp_path.iterdir()) == []


def test_a_failed_proof_leaves_the_older_versions(draft: BundleDraft, tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "tiny", draft, prove=prove)
    with pytest.raises(ParityError):
        write_bundle(tmp_path / "tiny", draft, prove=lambda _: (_ for _ in ()).throw(ParityError("no")))
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["1"]
    load_bundle(first.path)


def test_refuses_a_proof_that_changes_the_bundle(draft: BundleDraft, tmp_path: Path) -> None:
    def meddle(bundle: Bundle) -> dict[str, Any]:
        bundle.model_path.write_bytes(bundle.reference_path.read_bytes())
        return {}

    with pytest.raises(BundleError, match=r"model\.onnx has sha256"):
        write_bundle(tmp_path / "models" / "tiny", draft, prove=meddle)
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_proof_that_is_no_document(draft: BundleDraft, tmp_path: Path) -> None:
    for proof in ({"ratio": float("nan")}, {"when": object()}, ["holds"]):
        with pytest.raises(BundleError, match=r"parity\.json"):
            write_bundle(tmp_path / "tiny", draft, prove=lambda _, proof=proof: proof)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_gives_a_sentence_and_leaves_nothing(
    number: int, draft: BundleDraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fsync(_: int) -> None:
        calls.append(1)
        if len(calls) > 3:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(BundleError, match=r"cannot be written under .*tiny .*nothing was kept; free some space"):
        write_bundle(tmp_path / "models" / "tiny", draft, prove=prove)
    assert len(calls) == 4
    assert list(tmp_path.iterdir()) == []


_LIMITED = """
import resource, sys
from bundle_drafts import make_draft, prove
from bnfold.bundle import write_bundle
from bnfold.errors import BundleError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_bundle(sys.argv[1], make_draft(), prove=prove)
except BundleError as problem:
    print(problem)
    sys.exit(2)
"""


@pytest.mark.parametrize(("limit", "code"), [(200, 2), (1_000_000, 0)])
def test_a_write_that_the_system_cuts_short_leaves_nothing(limit: int, code: int, tmp_path: Path) -> None:
    done = python(_LIMITED, str(tmp_path / "tiny"), str(limit))
    output, _ = done.communicate()
    assert done.returncode == code
    if code:
        assert "nothing was kept; free some space" in output
        assert list(tmp_path.iterdir()) == []
    else:
        load_bundle(tmp_path / "tiny" / "1")


def test_a_parent_that_is_a_file_gives_a_sentence(draft: BundleDraft, tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    with pytest.raises(BundleError, match=r"tiny cannot be listed \(Not a directory\)"):
        write_bundle(tmp_path / "models" / "tiny", draft, prove=prove)


# Crashes and concurrent writers


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


_HANGS = """
import sys, time
from bundle_drafts import make_draft
from bnfold.bundle import write_bundle
def prove(bundle):
    print("proving", flush=True)
    time.sleep(600)
write_bundle(sys.argv[1], make_draft(), prove=prove)
"""


def test_a_writer_killed_in_the_proof_leaves_the_old_version(draft: BundleDraft, tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    write_bundle(model, draft, prove=prove)
    before = everything(model / "1")
    writer = python(_HANGS, str(model))
    assert writer.stdout is not None
    assert writer.stdout.readline() == "proving\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert len(list(model.iterdir())) == 2  # the unfinished folder is there, or the test has killed too late
    assert list_versions(model) == (1,)
    assert everything(model / "1") == before
    assert write_bundle(model, draft, prove=prove).path == model / "2"


_WRITES_ON = """
import sys
from bundle_drafts import make_draft, prove
from bnfold.bundle import write_bundle
for _ in range(10_000):
    write_bundle(sys.argv[1], make_draft(), prove=prove)
    print("written", flush=True)
"""


def test_whatever_a_killed_writer_published_is_whole(tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    for written in range(1, 6):
        writer = python(_WRITES_ON, str(model))
        assert writer.stdout is not None
        for _ in range(written):
            assert writer.stdout.readline() == "written\n"
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    versions = list_versions(model)
    assert len(versions) >= 15
    assert versions == tuple(range(1, len(versions) + 1))
    for version in versions:
        assert load_bundle(model / str(version)).manifest.version == version


def test_concurrent_writers_get_versions_of_their_own(tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def write(_: int) -> Bundle:
        def wait(_: Bundle) -> dict[str, Any]:
            together.wait(60)
            return {}

        return write_bundle(tmp_path / "tiny", make_draft(), prove=wait)

    with ThreadPoolExecutor(4) as pool:
        bundles = list(pool.map(write, range(4)))
    assert sorted(bundle.manifest.version for bundle in bundles) == [1, 2, 3, 4]
    for bundle in bundles:
        assert load_bundle(bundle.path).manifest == bundle.manifest
    assert len(list((tmp_path / "tiny").iterdir())) == 4


def test_of_concurrent_writers_of_one_version_one_wins(tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def write(number: int) -> Bundle | BundleError:
        def wait(_: Bundle) -> dict[str, Any]:
            together.wait(60)
            return {"writer": number}

        try:
            return write_bundle(tmp_path / "tiny" / "5", make_draft(), prove=wait)
        except BundleError as problem:
            return problem

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(write, range(3)))
    (winner,) = [at for at, result in enumerate(results) if isinstance(result, Bundle)]
    assert all("exists already" in str(result) for at, result in enumerate(results) if at != winner)
    assert load_bundle(tmp_path / "tiny" / "5").parity() == {"writer": winner}
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["5"]


# Drafts outside the schema


def bad_golden(**changes: Any) -> list[Golden]:
    golden = make_draft().goldens[0]
    return [dataclasses.replace(golden, **changes)]


_LOGITS = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"labels": ("zero", "one")}, "2 labels for the output 'logits'"),
        ({"labels": ()}, "as 'labels'"),
        ({"labels": ("a", "b", "bell\a")}, "as 'labels'"),
        ({"preprocessing": Preprocessing("RGB", 2, 2, 1.0, (0.0,) * 3, (1.0,) * 3)}, r"shape \[-1, 3, 2, 2\]"),
        ({"source": {"kind": "onnx", "file": "/home/me/tiny.onnx"}}, "without absolute paths"),
        ({"source": {"kind": "onnx", "file": "C:\\tiny.onnx"}}, "without absolute paths"),
        ({"source": {"kind": "onnx", "file": "../tiny.onnx"}}, "without absolute paths"),
        ({"source": {"file": "tiny.onnx"}}, "the key 'kind'"),
        ({"output_kind": "scores"}, "'scores' as 'output_kind'"),
        ({"source_tensors": {"fc.weight": "abc"}}, "64 lower-case hex"),
        ({"fold_map": ({"ratio": float("inf")},)}, "cannot be written as JSON"),
        ({"fold_report": {"a": float("nan")}}, r"fold\.json cannot be written as JSON"),
        ({"goldens": []}, "no test data set"),
        ({"goldens": bad_golden(outputs={})}, "has the tensors"),
        ({"goldens": bad_golden(truth={})}, "truth, has the tensors"),
        ({"goldens": bad_golden(outputs={"logits": _LOGITS.astype(np.float64)})}, "float64"),
        ({"goldens": bad_golden(truth={"logits": _LOGITS})}, "float32"),
        ({"goldens": bad_golden(truth={"logits": _LOGITS[:2].astype(np.float64)})}, "expected float64"),
        ({"goldens": bad_golden(inputs={"input": np.zeros((4, 1, 2, 3), np.float32)})}, "tensor 'input'"),
        ({"goldens": bad_golden(labels=np.zeros(3, np.int64))}, "tensor 'labels'"),
        ({"goldens": bad_golden(labels=np.zeros(4, np.int32))}, "tensor 'labels'"),
        ({"statistics": {"bn": {"mean": np.zeros(3)}}}, "norm 'bn'"),
        ({"statistics": {"bn": {"mean": np.zeros(3), "variance": np.zeros(3), "eps": np.zeros(3)}}}, "scalar"),
        ({"statistics": {"bn": {"scale": np.zeros(3, np.int32), "shift": np.zeros(3)}}}, "int32"),
        ({"statistics": {"bn": {"scale": np.array([object()]), "shift": np.zeros(1)}}}, "object"),
    ],
)
def test_refuses_a_draft_outside_the_schema(changes: dict[str, Any], found: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=found):
        write_bundle(tmp_path / "tiny", make_draft(**changes), prove=lambda _: pytest.fail("proven in vain"))
    assert list(tmp_path.iterdir()) == []


def test_raw_outputs_may_have_labels_of_any_number(tmp_path: Path) -> None:
    draft = make_draft(output_kind="raw", labels=("cat", "dog"))
    assert write_bundle(tmp_path / "tiny", draft, prove=prove).manifest.labels == ("cat", "dog")


# Models above 2 GB


@pytest.fixture
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bnfold.bundle.sidecar, "INLINE_BYTES", 10)
    monkeypatch.setattr(bnfold.bundle.sidecar, "_SMALL", 8)


@pytest.mark.usefixtures("small_messages")
def test_a_large_model_keeps_its_tensors_in_one_hashed_sidecar(tmp_path: Path) -> None:
    draft = make_draft()
    before = draft.model.SerializeToString()
    bundle = write_bundle(tmp_path / "tiny", draft, prove=prove)
    assert draft.model.SerializeToString() == before
    assert "model.onnx.data" in bundle.manifest.files
    assert tensors()["fc.bias"].tobytes() not in bundle.read("reference.onnx")
    golden = load_bundle(bundle.path).goldens()[0]
    for file in ("model.onnx", "reference.onnx"):
        found = run(open_session(bundle.session_source(file), optimise=False), golden.inputs)["logits"]
        assert np.abs(found - golden.truth["logits"]).max() < 1e-5


@pytest.mark.usefixtures("small_messages")
def test_a_tensor_of_both_models_is_stored_once(tmp_path: Path) -> None:
    reference = make_model(tensors())
    draft = make_draft(model=reference, reference=reference)
    bundle = write_bundle(tmp_path / "tiny", draft, prove=prove)
    data = (bundle.path / "model.onnx.data").read_bytes()
    assert data.count(tensors()["fc.weight"].tobytes()) == 1
    assert bundle.read("model.onnx") == bundle.read("reference.onnx")


@pytest.mark.usefixtures("small_messages")
def test_a_sidecar_that_changed_is_refused(draft: BundleDraft, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny", draft, prove=prove)
    path = bundle.path / "model.onnx.data"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx\.data has sha256"):
        load_bundle(bundle.path)


def test_a_sidecar_that_no_tensor_is_in_is_refused(folder: Path) -> None:
    (folder / "model.onnx.data").write_bytes(b"anything")
    mend(folder)
    with pytest.raises(BundleError, match=r"has a model\.onnx\.data that no tensor is in"):
        load_bundle(folder)


@pytest.mark.usefixtures("small_messages")
def test_a_sidecar_that_is_cut_with_its_hash_mended_is_refused(draft: BundleDraft, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "tiny", draft, prove=prove).path
    data = (path / "model.onnx.data").read_bytes()
    mend(path)
    load_bundle(path)
    (path / "model.onnx.data").write_bytes(data[:-1])
    mend(path)
    with pytest.raises(BundleError, match=r"bytes inside the file"):
        load_bundle(path)


def test_a_sync_that_fails_after_the_rename_does_not_claim_that_nothing_was_kept(
    draft: BundleDraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "tiny" / "1"
    fsync = os.fsync

    def fail_at_last(descriptor: int) -> None:
        if target.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_at_last)
    with pytest.raises(BundleError, match="1 is written, but the disk did not confirm its name"):
        write_bundle(target, draft, prove=prove)
    load_bundle(target)
