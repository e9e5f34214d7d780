"""CIFAR-10 (Krizhevsky 2009), the release for C programs: a record is a class and the three planes of 32x32 bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bnfold.errors import DataError
from bnfold.training.data.dataset import Array, Dataset, room
from bnfold.training.data.normalisation import normalise
from bnfold.training.recipe.parts import Data

_TRAINING = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = "test_batch.bin"
_LABELS_FILE = "batches.meta.txt"
_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
_LONGEST_LABELS = 4096


def load(wanted: Data, path: Path) -> Dataset:
    """The six files of a folder; the test batch is held out."""
    counts = [_records(path, name) for name in (*_TRAINING, _TEST)]
    room((sum(counts), *_SHAPE), wanted.max_bytes, str(path), "take a smaller set")
    records = np.empty((sum(counts), _RECORD), np.uint8)
    start = 0
    for name, count in zip((*_TRAINING, _TEST), counts, strict=True):
        _fill(records[start : start + count], path / name)
        start += count
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, *_SHAPE)
    held_out = np.arange(len(records)) >= len(records) - counts[-1]
    return Dataset(
        "cifar10", images, records[:, 0].astype(np.int64), held_out, _labels(path), normalise(images, held_out)
    )


def _records(folder: Path, name: str) -> int:
    path = folder / name
    if not path.is_file():
        pickled = (folder / name.removesuffix(".bin")).is_file()
        found = f"has {path.stem}, of the release for Python, which is pickled, and no" if pickled else "has no file"
        raise DataError(f"{folder} {found} {name}; expected the release of CIFAR-10 in binary; fetch that one")
    size = path.stat().st_size
    if size == 0 or size % _RECORD:
        raise DataError(f"{path} has {size} bytes, expected a multiple of {_RECORD}, one record; fetch it again")
    return size // _RECORD


def _fill(records: Array, path: Path) -> None:
    with path.open("rb") as stream:
        if stream.readinto(records.reshape(-1).data) != records.size:
            raise DataError(f"{path} ended while it was read; fetch it again")
    wrong = np.flatnonzero(records[:, 0] >= len(_LABELS))
    if len(wrong):
        raise DataError(
            f"{path} has the class {records[wrong[0], 0]} in record {wrong[0]}, expected 0 to {len(_LABELS) - 1}; "
            "fetch it again"
        )


def _labels(folder: Path) -> tuple[str, ...]:
    """The names in batches.meta.txt, or those of the release where that file is missing."""
    path = folder / _LABELS_FILE
    if not path.is_file():
        return _LABELS
    with path.open("rb") as stream:
        text = stream.read(_LONGEST_LABELS).decode("utf-8", "replace")
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(found) != len(_LABELS) or len(set(found)) != len(found) or not all(name.isprintable() for name in found):
        raise DataError(f"{path} has {len(found)} lines, expected {len(_LABELS)} different names; remove the file")
    return found
