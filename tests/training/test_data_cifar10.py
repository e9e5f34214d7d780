"""The binary release of CIFAR-10, whole and broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bnfold.errors import DataError
from bnfold.training.data import Dataset, load_dataset
from bnfold.training.recipe import Data

NAMES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def write(folder: Path) -> np.ndarray:
    """20 records a file."""
    records = np.random.default_rng(0).integers(0, 256, (len(NAMES) * 20, 3073), np.uint8)
    records[:, 0] = np.arange(len(records)) % 10
    for index, name in enumerate(NAMES):
        (folder / name).write_bytes(records[index * 20 : index * 20 + 20].tobytes())
    return records


def load(folder: Path, **keys: int) -> Dataset:
    return load_dataset(Data("cifar10", path=str(folder), **keys))


def test_records_are_a_class_and_three_planes_and_the_test_batch_is_held_out(tmp_path: Path) -> None:
    records = write(tmp_path)
    data = load(tmp_path)
    assert (data.images == records[:, 1:].reshape(-1, 3, 32, 32)).all()
    assert (data.classes == records[:, 0]).all()
    assert (data.images.dtype, data.classes.dtype) == (np.uint8, np.int64)
    assert np.flatnonzero(data.held_out).tolist() == list(range(100, 120))
    expected = records[:100, 1:].reshape(-1, 3, 1024).mean((0, 2)) / 255
    assert data.preprocessing.mean == tuple(round(float(mean), 4) for mean in expected)
    assert data.labels[:2] == ("airplane", "automobile")


def test_the_names_of_the_classes_come_from_the_release(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert load(tmp_path).labels == tuple("abcdefghij")


@pytest.mark.parametrize("text", [b"", b"a\nb\n", b"a\n" * 10, b"x" * 10**6, b"a\x00\nb\nc\nd\ne\nf\ng\nh\ni\nj"])
def test_names_that_cannot_be_are_refused(tmp_path: Path, text: bytes) -> None:
    write(tmp_path)
    (tmp_path / "batches.meta.txt").write_bytes(text)
    with pytest.raises(DataError, match=r"batches\.meta\.txt has \d+ lines, expected 10 different names"):
        load(tmp_path)


@pytest.mark.parametrize("size", [0, 3072, 3073 * 20 - 1, 3073 * 20 + 1])
def test_a_file_of_no_whole_records_is_refused(tmp_path: Path, size: int) -> None:
    write(tmp_path)
    (tmp_path / NAMES[2]).write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"{NAMES[2]} has {size} bytes, expected a multiple of 3073"):
        load(tmp_path)


def test_a_class_that_there_is_not_is_named_with_its_record(tmp_path: Path) -> None:
    records = write(tmp_path)
    records[7, 0] = 10
    (tmp_path / NAMES[0]).write_bytes(records[:20].tobytes())
    with pytest.raises(DataError, match=rf"{NAMES[0]} has the class 10 in record 7, expected 0 to 9"):
        load(tmp_path)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / NAMES[4]).unlink()
    with pytest.raises(DataError, match=rf"has no file {NAMES[4]}; expected the release of CIFAR-10 in binary"):
        load(tmp_path)


def test_the_pickled_release_is_told_from_the_binary_one_and_not_opened(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DataError, match=r"has data_batch_1, of the release for Python, which is pickled"):
        load(tmp_path)


def test_more_records_than_the_memory_that_is_allowed_are_refused_before_they_are_read(tmp_path: Path) -> None:
    write(tmp_path)
    with (tmp_path / NAMES[0]).open("wb") as stream:
        stream.truncate(3073 * 10**7)  # sparse: 31 GB that no disk holds
    with pytest.raises(DataError, match=r"needs 30720307200 bytes for 10000100 images of 3 x 32 x 32"):
        load(tmp_path)
