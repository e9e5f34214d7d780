"""A checkpoint gets the statistics of other data, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bnfold.cli import main
from bnfold.errors import DataError
from bnfold.training import Checkpoint, load_checkpoint
from bnfold.training.curves import read_history
from bnfold.training.folders import read_text
from bnfold.training.recalibration import recalibrate_checkpoint
from bnfold.training.statistics import norms_of
from bnfold.training.trends import is_trends


def dimmed(checkpoint: Checkpoint) -> np.ndarray:
    """The held-out digits as another camera sees them: darker by half, on a background of grey."""
    return checkpoint.held_out()[0] * np.float32(0.5) + np.float32(0.3)


@pytest.fixture
def data(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    np.savez(tmp_path / "dimmed.npz", x=dimmed(checkpoint))
    return tmp_path / "dimmed.npz"


def accuracy(checkpoint: Checkpoint, x: np.ndarray) -> float:
    with torch.no_grad():
        found = checkpoint.module()(torch.from_numpy(x)).argmax(1).numpy()
    return float((found == checkpoint.held_out()[1]).mean())


@pytest.mark.parametrize("exact", [False, True])
def test_a_new_domain_is_read_again_without_labels(
    checkpoint: Checkpoint, data: Path, tmp_path: Path, exact: bool
) -> None:
    done = recalibrate_checkpoint(checkpoint.path, data, tmp_path / "new", exact=exact, batch_size=100)
    x = dimmed(checkpoint)
    assert accuracy(done.checkpoint, x) > accuracy(checkpoint, x) + 0.2
    assert (done.norms, done.samples) == (2, 359)
    assert done.before.accuracy == pytest.approx(checkpoint.meta["metrics"]["held_out_accuracy"], abs=1e-12)
    assert done.after.accuracy == pytest.approx(accuracy(done.checkpoint, checkpoint.held_out()[0]), abs=1e-12)


def test_only_the_statistics_change(checkpoint: Checkpoint, data: Path, tmp_path: Path) -> None:
    made = recalibrate_checkpoint(checkpoint.path, data, tmp_path / "new").checkpoint
    old, new = checkpoint.module().state_dict(), made.module().state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"{name}.{part}" for name in norms_of(made.module()) for part in ("running_mean", "running_var")}
    assert {item.name for item in made.path.iterdir()} == {item.name for item in checkpoint.path.iterdir()}
    for name in ("held_out.safetensors", "history.csv", "norms.csv", "curves.png"):
        assert (made.path / name).read_bytes() == (checkpoint.path / name).read_bytes()
    metrics = made.meta["metrics"]
    assert metrics["recalibrated_on"] == "dimmed.npz"
    assert metrics["recalibrated_samples"] == 359
    assert "train_accuracy" not in metrics
    assert made.meta | {"metrics": None} == dict(checkpoint.meta) | {"metrics": None}


def test_the_readiness_of_the_new_checkpoint_is_measured_again(
    checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    made = recalibrate_checkpoint(checkpoint.path, data, tmp_path / "new").checkpoint
    rows = json.loads((made.path / "readiness.json").read_text())["norms"]
    assert {row["verdict"] for row in rows} == {"drifts"}  # its held-out samples are of the old domain


def test_the_page_of_the_new_checkpoint_has_no_trends_as_they_end_with_other_statistics(
    checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    made = recalibrate_checkpoint(checkpoint.path, data, tmp_path / "new").checkpoint
    for each, has in ((checkpoint, True), (made, False)):
        assert (json.loads((each.path / "readiness.json").read_text())["trends"] is not None) == has
        assert ('id="trends"' in (each.path / "readiness.html").read_text()) == has


def test_what_a_checkpoint_only_links_to_is_not_copied(checkpoint: Checkpoint, data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.path, copy)
    (tmp_path / "secret").write_text("a key")
    (copy / "norms.csv").unlink()
    (copy / "norms.csv").symlink_to(tmp_path / "secret")
    made = recalibrate_checkpoint(copy, data, tmp_path / "new").checkpoint
    assert not (made.path / "norms.csv").exists()
    assert (made.path / "history.csv").exists()


def test_a_checkpoint_of_links_keeps_what_tells_of_its_training(
    checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    """As stores of large files have it: every file is a link to a place where all of them lie by their hashes."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in checkpoint.path.iterdir():
        (copy / path.name).symlink_to(path)
    made = recalibrate_checkpoint(copy, data, tmp_path / "new").checkpoint
    for name in ("history.csv", "norms.csv", "held_out.safetensors"):
        assert (made.path / name).read_bytes() == (checkpoint.path / name).read_bytes(), name
        assert not (made.path / name).is_symlink()
    with Image.open(made.path / "curves.png") as drawn, Image.open(checkpoint.path / "curves.png") as before:
        assert drawn.size == before.size


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("history.csv", "epoch,norm\n1,2\n"),
        ("history.csv", "a key"),
        ("history.csv", ""),
        ("norms.csv", ""),
        ("norms.csv", b"\xff\x00"),
        ("curves.png", b"\x89PNG of somebody"),
    ],
)
def test_a_link_to_something_else_is_not_followed(
    checkpoint: Checkpoint, data: Path, tmp_path: Path, name: str, content: str | bytes
) -> None:
    copy, secret = tmp_path / "copy", tmp_path / "secret"
    shutil.copytree(checkpoint.path, copy)
    secret.write_bytes(content.encode() if isinstance(content, str) else content)
    (copy / name).unlink()
    (copy / name).symlink_to(secret)
    made = recalibrate_checkpoint(copy, data, tmp_path / "new").checkpoint
    assert not (made.path / name).exists() or (made.path / name).read_bytes() != secret.read_bytes()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that says it is empty and cannot be read")
@pytest.mark.parametrize("name", ["history.csv", "norms.csv"])
def test_a_link_to_what_cannot_be_read_leaves_it_out(
    checkpoint: Checkpoint, data: Path, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.path, copy)
    (copy / name).unlink()
    (copy / name).symlink_to("/proc/self/mem")
    made = recalibrate_checkpoint(copy, data, tmp_path / "new").checkpoint
    assert not (made.path / name).exists()


def test_no_more_of_a_file_is_read_than_a_checkpoint_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.training.folders._MOST_BYTES", 4)
    for content, text in ((b"1234", "1234"), (b"12345", ""), (b"\xff", "")):
        (tmp_path / "file").write_bytes(content)
        assert read_text(tmp_path / "file") == text


def test_a_row_that_is_none_of_a_training_makes_no_history(checkpoint: Checkpoint, tmp_path: Path) -> None:
    lines = (checkpoint.path / "history.csv").read_text().splitlines()
    assert len(read_history(checkpoint.path / "history.csv")) == len(lines) - 1 == 4
    norms = (checkpoint.path / "norms.csv").read_text()
    names = {line.split(",")[1] for line in norms.splitlines()[1:]}
    assert is_trends(norms, names)
    assert not is_trends(norms, names - {min(names)})
    assert not is_trends(norms.replace("smallest_variance", "password"), names)
    assert not is_trends(norms + "5,a key\n", names)
    share = lines[-1].split(",")[5]
    for wrong in (
        [*lines[:-1], lines[-1].replace(share, "1e308")],
        lines[2:],
        [*lines, lines[1]],
        [*lines, "a key"],
        [*lines, lines[-1].replace("4,", "5,nan,", 1)],
    ):
        (tmp_path / "history.csv").write_text("\n".join(wrong) + "\n")
        assert read_history(tmp_path / "history.csv") == []


def test_a_folder_of_pictures_will_do(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for at, image in enumerate(dimmed(checkpoint)[:40]):
        Image.fromarray((image[0] * 255).round().astype(np.uint8)).save(tmp_path / "pictures" / f"{at}.png")
    done = recalibrate_checkpoint(checkpoint.path, tmp_path / "pictures", tmp_path / "new")
    assert done.samples == 40
    assert load_checkpoint(tmp_path / "new").meta["metrics"]["recalibrated_on"] == "pictures"


def test_labels_of_another_domain_are_not_looked_at(checkpoint: Checkpoint, tmp_path: Path) -> None:
    images = dimmed(checkpoint)[:8]
    for at, image in enumerate(images):
        folder = tmp_path / "pictures" / f"camera {at % 2}"  # no class of the network
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).round().astype(np.uint8)).save(folder / f"{at}.png")
    assert recalibrate_checkpoint(checkpoint.path, tmp_path / "pictures", tmp_path / "one").samples == 8
    np.savez(tmp_path / "d.npz", x=images, labels=np.full(3, "night"))
    assert recalibrate_checkpoint(checkpoint.path, tmp_path / "d.npz", tmp_path / "two").samples == 8


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((5, 1, 9, 9), np.float32), "expected"),
        (np.full((5, 1, 8, 8), np.nan, np.float32), "NaN"),
        (np.full((5, 1, 8, 8), 1e30, np.float32), "not a finite"),
        (np.zeros((1, 1, 8, 8), np.float32), "has 1 sample"),
    ],
)
def test_data_that_do_not_fit_leave_nothing_behind(
    checkpoint: Checkpoint, tmp_path: Path, x: np.ndarray, message: str
) -> None:
    np.savez(tmp_path / "bad.npz", x=x)
    with pytest.raises(DataError, match=message):
        recalibrate_checkpoint(checkpoint.path, tmp_path / "bad.npz", tmp_path / "new")
    assert [item.name for item in tmp_path.iterdir()] == ["bad.npz"]


def test_an_output_that_exists_is_refused_before_any_work(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists"):
        recalibrate_checkpoint(checkpoint.path, tmp_path / "not there.npz", tmp_path)


def test_a_batch_of_one_is_refused(checkpoint: Checkpoint, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the batch size is 1; expected 2 or more"):
        recalibrate_checkpoint(checkpoint.path, data, tmp_path / "new", batch_size=1)


def test_the_command_says_what_it_did_to_the_held_out_accuracy(
    checkpoint: Checkpoint, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["recalibrate", str(checkpoint.path), "--data", str(data), "-o", str(tmp_path / "new"), "--json"]
    assert main([*words, "--exact", "--batch-size", "64"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert Path(document["checkpoint"]) == tmp_path / "new"
    assert document["before"]["held_out_accuracy"] > document["after"]["held_out_accuracy"]
    assert load_checkpoint(tmp_path / "new").meta["metrics"]["recalibrated_exactly"] is True
    assert main(words) == 2
    assert "exists" in json.loads(capsys.readouterr().out)["error"]
