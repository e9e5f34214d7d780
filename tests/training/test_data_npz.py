"""Arrays in an .npz file, whole and broken."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold.errors import DataError
from bnfold.training import train
from bnfold.training.data import Dataset, load_dataset, prepare
from bnfold.training.recipe import Data

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 5), np.uint8)
CLASSES = np.arange(20) % 4


def write(folder: Path, **arrays: Any) -> Path:
    given = {"images": IMAGES, "classes": CLASSES} | arrays
    np.savez(folder / "data.npz", **{name: array for name, array in given.items() if array is not None})
    return folder / "data.npz"


def load(path: Path, **keys: Any) -> Dataset:
    return load_dataset(Data("npz", path=str(path), **keys))


def test_bytes_stay_bytes_and_a_share_of_every_class_is_held_out(tmp_path: Path) -> None:
    data = load(write(tmp_path), held_out=0.4)
    assert (data.images == IMAGES).all()
    assert (data.images.dtype, data.classes.dtype, data.labels) == (np.uint8, np.int64, ("0", "1", "2", "3"))
    assert np.bincount(data.classes[data.held_out]).tolist() == [2] * 4
    mean = IMAGES[~data.held_out].mean((0, 2, 3)) / 255
    assert data.preprocessing.mean == tuple(round(float(value), 4) for value in mean)
    assert (data.preprocessing.height, data.preprocessing.width) == (4, 5)


def test_names_a_split_and_grey_images_are_taken_as_they_are_given(tmp_path: Path) -> None:
    held_out = np.arange(20) >= 15
    names = np.array(["a", "b", "c", "d"])
    data = load(write(tmp_path, images=IMAGES[:, 0], classes=None, labels=CLASSES, names=names, held_out=held_out))
    assert (data.held_out == held_out).all()
    with pytest.raises(DataError, match="says itself which samples are held out; leave out"):
        load(tmp_path / "data.npz", seed=1)
    assert data.labels == ("a", "b", "c", "d")
    assert (data.images.shape, data.preprocessing.mode) == ((20, 1, 4, 5), "L")


def test_floats_are_the_levels_of_a_picture_divided_by_255(tmp_path: Path) -> None:
    data = load(write(tmp_path, images=IMAGES / 255))
    assert data.images.dtype == np.float32
    assert (data.preprocessing.mean, data.preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)
    assert prepare(IMAGES, data.preprocessing).tobytes() == prepare(data.images, data.preprocessing).tobytes()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": None}, r"has the arrays \['classes'\], expected 'images' and either 'classes' or 'labels'"),
        ({"labels": CLASSES}, "expected 'images' and either 'classes' or 'labels'"),
        ({"x": CLASSES}, "has the unknown array 'x', expected only images, classes"),
        ({"images": IMAGES[:, :2]}, r"images of shape \[20, 2, 4, 5\], expected \(N, H, W\)"),
        ({"images": IMAGES[:, 0, 0]}, r"images of shape \[20, 5\]"),
        ({"images": IMAGES[:0], "classes": CLASSES[:0]}, r"images of shape \[0, 3, 4, 5\]"),
        ({"images": np.zeros((2, 1, 5000), np.uint8), "classes": CLASSES[:2]}, "sides of 1 to 4096"),
        ({"images": IMAGES.astype(np.int16)}, "images of int16, expected uint8, or floats from 0 to 1"),
        ({"images": IMAGES / 2.0}, "images of float64, expected uint8, or floats from 0 to 1"),
        ({"images": np.where(IMAGES > 250, np.nan, 0.5)}, "images of float64, expected uint8, or floats"),
        ({"classes": CLASSES[:19]}, r"int64 \[19\] as 'classes', expected one integer for each of 20 images"),
        ({"classes": CLASSES / 2}, r"float64 \[20\] as 'classes', expected one integer"),
        ({"classes": CLASSES - 1}, "has -1 in 'classes', expected numbers from 0 to 65535"),
        ({"classes": CLASSES + 2**62}, "in 'classes', expected numbers from 0 to 65535"),
        ({"classes": CLASSES * 0}, r"has the labels \['0'\], expected two or more"),
        ({"classes": CLASSES * 2}, "0 samples of the class '1', expected at least 2"),
        ({"names": np.array(["a", "b"])}, r"classes from 0 to 3, expected 0 to 1 for 2 labels"),
        ({"names": np.array(["a", "b", "c", "c"])}, "has a label twice"),
        ({"names": np.array(["a", "b", "c", "\n"])}, "expected two or more printable texts"),
        ({"names": np.arange(4)}, r"has int64 \[4\] as 'names', expected one text for each class"),
        ({"held_out": np.ones(20, bool)}, "expected one bool for each of 20 images, not all of them true"),
        ({"held_out": np.zeros(20, bool)}, "holds no sample out"),
        ({"held_out": np.zeros(19, bool)}, r"bool \[19\] as 'held_out', expected one bool for each of 20"),
        ({"held_out": np.zeros(20, int)}, r"int64 \[20\] as 'held_out', expected one bool"),
        ({"held_out": CLASSES == 2}, "has no sample to train on of the class '2'"),
    ],
)
def test_arrays_that_do_not_fit_are_one_sentence(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        load(write(tmp_path, **arrays))
    assert "\n" not in str(raised.value)
    assert "data.npz" in str(raised.value)


def test_pickled_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "data.npz", images=np.array([Trap()], object), classes=CLASSES)
    with pytest.raises(DataError, match=r"is no \.npz file that can be read \(Object arrays cannot be loaded"):
        load(tmp_path / "data.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(60)])
def test_what_is_no_archive_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"is no \.npz file that can be read"):
        load(tmp_path / "data.npz")


def test_every_truncation_is_one_sentence(tmp_path: Path) -> None:
    whole = write(tmp_path).read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "data.npz").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"is no \.npz file that can be read"):
            load(tmp_path / "data.npz")


def test_a_flipped_byte_in_the_values_is_found(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path).read_bytes())
    data[data.index(IMAGES.tobytes()) + 100] ^= 1
    (tmp_path / "data.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"that can be read \(Bad CRC-32"):
        load(tmp_path / "data.npz")


def test_an_archive_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("images.npy", bytes(2**26))
    with pytest.raises(DataError, match=r"unpacks to 67108864 bytes, expected at most 1000000"):
        load(tmp_path / "data.npz", max_bytes=10**6)


def test_a_header_that_declares_more_than_there_is_is_one_sentence(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 3, 2**12, 2**12)}
    )
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("images.npy", buffer.getvalue() + bytes(100))
    with pytest.raises(DataError, match=r"is no \.npz file that can be read"):
        load(tmp_path / "data.npz")


def test_a_folder_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no \.npz file that can be read"):
        load(tmp_path)


def test_a_recipe_trains_on_arrays(recipe: Path, tmp_path: Path) -> None:
    made = train(recipe, output=tmp_path / "run", overrides=["data.name=npz", f"data.path={write(tmp_path)}"])
    images, classes = made.held_out()
    assert (images.dtype, images.shape) == (np.float32, (4, 3, 4, 5))
    assert sorted(classes.tolist()) == [0, 1, 2, 3]
