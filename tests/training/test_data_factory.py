"""A data set out of the user's own code is checked as any other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bnfold.errors import DataError
from bnfold.training import train
from bnfold.training.data import load_dataset
from bnfold.training.recipe import Data

MODULE = """
import numpy as np
from bnfold.preprocessing import Preprocessing
from bnfold.training.data import Dataset

def make(**changes):
    random = np.random.default_rng(0)
    classes = np.arange(40) % 2
    given = dict(
        name="stripes", images=(random.random((40, 1, 8, 8)) * 0.1 + classes[:, None, None, None]).astype(np.float32),
        classes=classes, held_out=np.arange(40) >= 30, labels=("dark", "light"),
        preprocessing=Preprocessing("L", 8, 8, 1 / 255, (0.0,), (1.0,)),
    )
    return Dataset(**{**given, **changes})

def broken():
    raise ValueError("the disk is asleep")

class Nested:
    make = staticmethod(make)

def changed():
    return make(CHANGE)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module beside a recipe; it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "stripes.py").write_text(MODULE.replace("CHANGE", ""))
    yield tmp_path
    sys.modules.pop("stripes", None)


@pytest.mark.parametrize("name", ["stripes:make", "stripes:Nested.make"])
def test_the_module_is_found_beside_the_recipe(folder: Path, name: str) -> None:
    data = load_dataset(Data(name), folder)
    assert (data.name, data.labels, data.images.shape) == ("stripes", ("dark", "light"), (40, 1, 8, 8))


def test_a_recipe_trains_on_it(folder: Path, recipe: Path) -> None:
    own = folder / "recipe.toml"
    own.write_text(recipe.read_text().replace('name = "digits"', 'name = "stripes:make"'))
    made = train(own, output=folder / "run", overrides=["train.batch_size=10"])
    assert made.meta["data"] == "stripes"
    assert made.labels == ("dark", "light")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent_module:make", "cannot be made: ModuleNotFoundError: No module named 'absent_module'"),
        ("stripes:absent", "cannot be made: AttributeError: module 'stripes' has no attribute 'absent'"),
        ("stripes:broken", "cannot be made: ValueError: the disk is asleep"),
        ("stripes:Nested", "an object of type Nested, expected a bnfold.training.data.Dataset"),
        ("stripes:", "'stripes:' is not known; expected module:factory"),
        ("../stripes:make", "'../stripes:make' is not known; expected module:factory"),
    ],
)
def test_a_factory_that_gives_no_data_set_is_one_sentence(folder: Path, name: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        load_dataset(Data(name), folder)
    assert message in str(raised.value)


def test_a_key_means_nothing_to_it(folder: Path) -> None:
    with pytest.raises(DataError, match=r"'data\.size', which means nothing to the data set 'stripes:make'"):
        load_dataset(Data("stripes:make", size=8), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("images=[1]", "has an object of type list, expected a ndarray there"),
        ("preprocessing=None", "has an object of type NoneType, expected a Preprocessing there"),
        ("images=np.zeros((40, 1, 8, 8))", "has float64 images of [40, 1, 8, 8], expected uint8 or float32"),
        ("images=np.zeros((40, 8, 8), np.uint8)", "has uint8 images of [40, 8, 8], expected"),
        ("images=np.zeros((40, 1, 8, 9), np.uint8)", "has uint8 images of [40, 1, 8, 9], expected"),
        ("images=np.zeros((0, 1, 8, 8), np.uint8)", "has uint8 images of [0, 1, 8, 8], expected"),
        ("images=np.full((40, 1, 8, 8), np.inf, np.float32)", "has NaN or infinite values in its images"),
        ("classes=np.zeros(40, np.int32)", "has int32 [40] as 'classes', expected int64 [40]"),
        ("classes=np.zeros(39, np.int64)", "has int64 [39] as 'classes', expected int64 [40]"),
        ("classes=np.arange(40)", "has classes from 0 to 39, expected 0 to 1 for 2 labels"),
        ("held_out=np.zeros(40)", "has float64 [40] as 'held_out', expected bool [40]"),
        ("held_out=np.ones(40, bool)", "has no sample to train on of the class 'dark'"),
        ("held_out=np.zeros(40, bool)", "holds no sample out"),
        ("labels=('one',)", "has the labels ['one'], expected two or more printable texts"),
        ("labels=(0, 1)", "has the labels [0, 1], expected two or more printable texts"),
        ("labels=('a', 'a')", "has a label twice"),
        ("labels=None", "has an object of type NoneType as 'labels', expected a tuple of texts"),
        ("name=''", "has the name '', expected a printable text"),
    ],
)  # fmt: skip
def test_a_data_set_that_cannot_be_trained_on_is_one_sentence(folder: Path, change: str, message: str) -> None:
    (folder / "stripes.py").write_text(MODULE.replace("CHANGE", change))
    with pytest.raises(DataError) as raised:
        load_dataset(Data("stripes:changed"), folder)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bytes_are_taken_as_well_as_floats(folder: Path) -> None:
    change = "images=np.full((40, 1, 8, 8), 7, np.uint8)"
    (folder / "stripes.py").write_text(MODULE.replace("CHANGE", change))
    assert load_dataset(Data("stripes:changed"), folder).images.dtype == np.uint8
