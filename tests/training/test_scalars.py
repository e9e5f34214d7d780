"""The history for TensorBoard, as TensorBoard itself reads it."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnfold.errors import DataError
from bnfold.training import train
from bnfold.training.scalars import TAGS

SHORT = ["train.epochs=4", "train.snapshot=2", "network.widths=[4]"]


class Stop(Exception):
    """What ends a run in the middle."""


def stop(line: str) -> None:
    if line.startswith("epoch 3/"):
        raise Stop


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def check(folder: Path, history: Path) -> None:
    """The curves are the columns of the table."""
    rows = list(csv.DictReader(history.read_text().splitlines()))
    found = curves(folder)
    assert found.keys() == TAGS.keys()
    for tag, name in TAGS.items():
        assert [step for step, _ in found[tag]] == [1, 2, 3, 4]
        assert [value for _, value in found[tag]] == pytest.approx([float(row[name]) for row in rows], rel=1e-5)


def test_the_event_file_has_the_history(recipe: Path, tmp_path: Path) -> None:
    made = train(recipe, output=tmp_path / "run", overrides=SHORT, tensorboard=tmp_path / "board")
    check(tmp_path / "board", made.path / "history.csv")


def test_a_resumed_run_goes_on_in_its_curves(recipe: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    with pytest.raises(Stop):
        train(recipe, output=tmp_path / "run", overrides=SHORT, tensorboard=board, progress=stop)
    assert [step for step, _ in curves(board)["seconds"]] == [1, 2, 3]
    # The snapshot is of epoch 2: the third is trained again, and counts once.
    made = train(recipe, resume=tmp_path / "run", overrides=SHORT, tensorboard=board)
    check(board, made.path / "history.csv")


def test_a_folder_that_cannot_be_written_is_one_sentence(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file cannot be written for TensorBoard: .*; name another"):
        train(recipe, output=tmp_path / "run", overrides=SHORT, tensorboard=tmp_path / "file")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_without_the_package_the_extra_is_named(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DataError, match=r"pip install 'bnfold\[tensorboard\]'"):
        train(recipe, output=tmp_path / "run", overrides=SHORT, tensorboard=tmp_path / "board")
    assert not list(tmp_path.iterdir())
