"""MNIST's IDX files, whole and broken."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bnfold.errors import DataError
from bnfold.training.data import Dataset, load_dataset
from bnfold.training.recipe import Data

TRAIN = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """30 images to train on and 10 held out."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 6, 5), np.uint8)
    classes = np.arange(40, dtype=np.uint8) % 10
    for name, part in (("train", slice(30)), ("t10k", slice(30, 40))):
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images[part]))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(classes[part]))
    return images, classes


@contextmanager
def at_most(most: int) -> Iterator[None]:
    """What happens here allocates at most so many bytes at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def load(folder: Path, **keys: int) -> Dataset:
    return load_dataset(Data("mnist", path=folder.name, **keys), folder.parent)


def test_the_files_are_read_and_the_test_files_are_held_out(tmp_path: Path) -> None:
    images, classes = write(tmp_path)
    data = load(tmp_path)
    assert (data.images[:, 0] == images).all()
    assert (data.classes == classes).all()
    assert (data.images.dtype, data.images.shape, data.classes.dtype) == (np.uint8, (40, 1, 6, 5), np.int64)
    assert np.flatnonzero(data.held_out).tolist() == list(range(30, 40))
    assert data.preprocessing.mean == (round(float(images[:30].mean() / 255), 4),)
    assert (data.preprocessing.mode, data.preprocessing.height, data.preprocessing.width) == ("L", 6, 5)


def test_files_under_gzip_and_with_a_dot_are_the_same(tmp_path: Path) -> None:
    images, _ = write(tmp_path)
    for path in list(tmp_path.iterdir()):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (tmp_path / f"{TRAIN}.gz").rename(tmp_path / "train-images.idx3-ubyte.gz")
    assert (load(tmp_path).images[:, 0] == images).all()


def test_a_recipe_without_a_path_is_one_sentence() -> None:
    with pytest.raises(DataError, match=r"no 'data\.path', which the data set 'mnist' needs"):
        load_dataset(Data("mnist"))


@pytest.mark.parametrize("path", ["absent", "nul\0l"])
def test_a_path_that_is_not_there_is_one_sentence(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=r"is not there; expected the data set 'mnist'"):
        load_dataset(Data("mnist", path=path), tmp_path)


def test_a_path_that_the_system_refuses_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: .*too long"):
        load_dataset(Data("mnist", path="n" * 5000), tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / TRAIN).unlink()
    with pytest.raises(DataError, match=rf"has no file {TRAIN}, nor {TRAIN}\.gz"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (TRAIN, b"", r"begins with the bytes \(none\), expected 00 00 08 03"),
        (TRAIN, b"\0\0\x08\x03\0\0\0", "begins with the bytes 00 00 08 03, expected 00 00 08 03 and 3 sizes"),
        (TRAIN, b"\0\0\x0d\x03" + bytes(40), "begins with the bytes 00 00 0d 03"),
        (TRAIN, idx(np.zeros((30, 6, 5), np.uint8))[:-1], "declares 900 bytes of values and has 899"),
        (TRAIN, idx(np.zeros((30, 6, 5), np.uint8)) + b"x", "declares 900 bytes of values and has more"),
        (TRAIN, idx(np.zeros((30, 0, 5), np.uint8)), "expected sides from 1 to 4096"),
        (TRAIN, idx(np.zeros((30, 1, 5000), np.uint8)), "expected sides from 1 to 4096"),
        (TRAIN, idx(np.zeros((30, 6, 6), np.uint8)), r"of \(6, 6\) to train on and of \(6, 5\) held out"),
        (TRAIN, idx(np.zeros((29, 6, 5), np.uint8)), "29 images and 30 labels in its files 'train-...'"),
        (TRAIN_LABELS, idx(np.full(30, 10, np.uint8)), "the label 10 in its files 'train-...', expected labels from 0"),
        (TRAIN, struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 4000, 4000), "needs 34359738368000000 bytes"),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


def test_files_without_samples_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / TRAIN).write_bytes(idx(np.zeros((0, 6, 5), np.uint8)))
    (tmp_path / TRAIN_LABELS).write_bytes(idx(np.zeros(0, np.uint8)))
    with pytest.raises(DataError, match="has no samples in its files 'train-"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip at all",
        gzip.compress(idx(np.zeros((30, 6, 5), np.uint8)))[:-10],
        gzip.compress(idx(np.zeros((30, 6, 5), np.uint8)))[:-8] + bytes(8),
        gzip.compress(idx(np.zeros((30, 6, 5), np.uint8)))[:10] + b"\xff" * 20,
    ],
    ids=["other", "truncated", "checksum", "stream"],
)
def test_a_broken_gzip_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    write(tmp_path)
    (tmp_path / TRAIN).unlink()
    (tmp_path / f"{TRAIN}.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"is no whole gzip file \("):
        load(tmp_path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """300 MiB behind a header that declares 900 bytes, and behind one that declares all of them."""
    write(tmp_path)
    (tmp_path / TRAIN).unlink()
    zeros = bytes(2**20)
    for shape, message in [((30, 6, 5), "and has more"), ((300, 1024, 1024), "needs 314572800 bytes for 300 images")]:
        with gzip.open(tmp_path / f"{TRAIN}.gz", "wb", compresslevel=1) as stream:
            stream.write(struct.pack(">BBBB3I", 0, 0, 8, 3, *shape))
            for _ in range(300):
                stream.write(zeros)
        with at_most(16 * 2**20), pytest.raises(DataError, match=message):
            load(tmp_path, max_bytes=2**20)


def test_a_header_that_lies_costs_no_memory(tmp_path: Path) -> None:
    """3 GiB declared, 40 bytes there."""
    write(tmp_path)
    (tmp_path / TRAIN).write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 3 * 1024, 1024, 1024) + bytes(40))
    with at_most(16 * 2**20), pytest.raises(DataError, match="declares 3221225472 bytes of values and has 40"):
        load(tmp_path)
