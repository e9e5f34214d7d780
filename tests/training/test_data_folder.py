"""Folders of pictures, whole and broken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bnfold.errors import DataError
from bnfold.preprocessing import decode_image
from bnfold.training import train
from bnfold.training.data import Dataset, load_dataset, prepare
from bnfold.training.recipe import Data

COLOURS = {"blue": (20, 30, 220), "red": (200, 10, 20)}


def paint(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write(folder: Path, count: int = 10) -> Path:
    """PNG, JPEG and WebP files of two classes, each file of a colour of its own."""
    for label, colour in COLOURS.items():
        for number in range(count):
            ending = ("png", "jpg", "WEBP")[number % 3]
            paint(folder / label / f"{number:02}.{ending}", (colour[0], colour[1] + number, colour[2]))
    return folder


def load(folder: Path, **keys: Any) -> Dataset:
    return load_dataset(Data("folder", path=str(folder), **{"size": 8} | keys))


def test_the_folders_are_the_classes_and_a_share_of_each_is_held_out(tmp_path: Path) -> None:
    data = load(write(tmp_path))
    assert (data.labels, data.images.shape, data.images.dtype) == (("blue", "red"), (20, 3, 8, 8), np.uint8)
    assert np.bincount(data.classes[data.held_out]).tolist() == [2, 2]
    assert data.images[0, :, 0, 0].tolist() == [20, 30, 220]
    assert (data.images[data.classes == 1, 0] > 150).all()
    assert data.classes.tolist() == [0] * 10 + [1] * 10


def test_a_train_and_a_val_folder_are_the_two_parts(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "val", 3)
    data = load(tmp_path)
    assert np.flatnonzero(data.held_out).tolist() == list(range(20, 26))
    assert np.bincount(data.held_out_part()[1]).tolist() == [3, 3]
    with pytest.raises(DataError, match="says itself which samples are held out; leave out"):
        load(tmp_path, held_out=0.5)


def test_pictures_become_what_a_server_makes_of_them(tmp_path: Path) -> None:
    """Larger pictures of noise, one that its Exif data turns: bit for bit the input of a served picture."""
    random = np.random.default_rng(0)
    write(tmp_path)
    for label in COLOURS:
        picture = Image.fromarray(random.integers(0, 256, (31, 17, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(tmp_path / label / "turned.jpg", exif=exif)
        picture.save(tmp_path / label / "upright.png")
    for mode in ("RGB", "L"):
        data = load(tmp_path, mode=mode)
        files = [file for label in COLOURS for file in sorted((tmp_path / label).iterdir())]
        served = np.stack([decode_image(file.read_bytes(), data.preprocessing) for file in files])
        assert prepare(data.images, data.preprocessing).tobytes() == served.tobytes()


def test_what_systems_leave_behind_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path)
    for name in (".DS_Store", "blue/.hidden.png", "red/Thumbs.db", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    assert len(load(tmp_path).images) == 20


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.png", b"no picture"),
        ("empty.jpg", b""),
        ("half.png", None),
        ("other.webp", b"GIF89a" + bytes(40)),
    ],
)
def test_a_corrupt_picture_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    write(tmp_path)
    if content is None:
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "whole.png")
        content = (tmp_path / "whole.png").read_bytes()[:2000]
        (tmp_path / "whole.png").unlink()
    (tmp_path / "red" / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"red/{name}: the image is ") as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    write(tmp_path)
    Image.new("1", (8192, 8192)).save(tmp_path / "red" / "bomb.png")
    with pytest.raises(DataError, match=r"red/bomb\.png: the image has 8192x8192 pixels"):
        load(tmp_path)


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    write(tmp_path)
    with (tmp_path / "red" / "long.png").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(DataError, match=r"red/long\.png: the file has 1099511627776 bytes"):
        load(tmp_path)


def test_a_class_without_pictures_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / "green").mkdir()
    with pytest.raises(DataError, match=r"/green has no picture in it"):
        load(tmp_path)


def test_one_class_alone_is_no_task(tmp_path: Path) -> None:
    paint(tmp_path / "red" / "a.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"only the folder 'red' in it, expected a folder .* two or more classes"):
        load(tmp_path)


def test_a_class_of_one_picture_cannot_be_split(tmp_path: Path) -> None:
    write(tmp_path)
    paint(tmp_path / "green" / "a.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"1 samples of the class 'green', expected at least 2"):
        load(tmp_path)


def test_a_class_that_only_one_part_has_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "val")
    paint(tmp_path / "val" / "green" / "a.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"/val has the class 'green' and .*/train has not"):
        load(tmp_path)
    write(tmp_path / "other")
    (tmp_path / "val" / "green").rename(tmp_path / "train" / "green")
    with pytest.raises(DataError, match=r"/train has the class 'green' and .*/val has not"):
        load(tmp_path)


def test_a_part_without_the_other_is_said_to_be_one(tmp_path: Path) -> None:
    write(tmp_path / "train")
    with pytest.raises(DataError, match=r"is a folder in that of a class; .*train/<class>/ and val/<class>/, both"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["red/a.gif", "red/notes.txt", "red/without_ending"])
def test_a_file_that_is_not_read_is_named_rather_than_passed_over(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"is no picture that is read; expected files ending in \.png"):
        load(tmp_path)


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path)
    os.mkfifo(tmp_path / "red" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is no picture that is read"):
        load(tmp_path)


def test_a_picture_beside_the_classes_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    paint(tmp_path / "lost.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"lost\.png lies beside the folders of the classes"):
        load(tmp_path)


def test_a_name_that_can_be_no_label_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    paint(tmp_path / "line\nbreak" / "a.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"'line\\nbreak', expected a printable name of a class") as raised:
        load(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_file_where_a_folder_is_expected_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DataError, match="is no folder; expected one with a folder of pictures for every class"):
        load(tmp_path / "file")


def test_more_than_the_memory_that_is_allowed_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "red" / "00.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"needs 3840 bytes for 20 images of 3 x 8 x 8.*data\.max_bytes=3840"):
        load(tmp_path, max_bytes=3839)


def test_a_recipe_trains_on_the_folder_beside_it(recipe: Path, tmp_path: Path) -> None:
    write(tmp_path / "pictures", 40)
    own = tmp_path / "recipe.toml"
    own.write_text(recipe.read_text().replace('name = "digits"', 'name = "folder"\npath = "pictures"\nsize = 8'))
    made = train(own, output=tmp_path / "run", overrides=["train.batch_size=16", "augmentation.shift=0"])
    assert made.labels == ("blue", "red")
    assert made.meta["metrics"]["held_out_accuracy"] > 0.9
