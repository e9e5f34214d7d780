"""What every data set has: keys that mean something, a split, a preprocessing, and room in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from bnfold.errors import DataError
from bnfold.training import train
from bnfold.training.data import load_dataset, prepare, scaling
from bnfold.training.data.normalisation import normalise
from bnfold.training.data.split import hold_out
from bnfold.training.recipe import Data


def small(**keys: Any) -> Data:
    return Data("synthetic", **{"size": 8, "mode": "L", "count": 400, "classes": 4} | keys)


def test_a_name_that_is_not_known_is_answered_with_those_that_are() -> None:
    with pytest.raises(DataError, match=r"'imagenet' is not known; expected one of digits, "):
        load_dataset(Data("imagenet"))


@pytest.mark.parametrize(("key", "value"), [("size", 16), ("held_out", 0.5), ("seed", 3), ("max_bytes", 5)])
def test_a_key_that_means_nothing_to_the_data_set_is_refused(key: str, value: Any) -> None:
    with pytest.raises(DataError, match=rf"'data\.{key}', which means nothing to the data set 'digits'"):
        load_dataset(Data("digits", **{key: value}))


def test_made_up_images_depend_on_the_seed_alone() -> None:
    first, again, other = load_dataset(small()), load_dataset(small()), load_dataset(small(seed=1))
    assert first.images.tobytes() == again.images.tobytes()
    assert first.held_out.tobytes() == again.held_out.tobytes()
    assert first.images.tobytes() != other.images.tobytes()
    assert (first.images.dtype, first.images.shape, first.labels) == (np.uint8, (400, 1, 8, 8), ("0", "1", "2", "3"))
    assert np.bincount(first.classes).tolist() == [100] * 4


def test_made_up_images_and_their_split_are_the_same_with_every_numpy() -> None:
    data = load_dataset(small())
    found = hashlib.sha256(data.images.tobytes() + data.held_out.tobytes()).hexdigest()
    assert found == "9248031b5e7114c930af6b1601307720b47bfbd9afdf7d4d50af4ea6e279409b"


def test_digits_are_those_of_scikit_learn_divided_by_their_16_levels() -> None:
    data, bunch = load_dataset(Data("digits")), load_digits()
    assert data.images.tobytes() == (bunch.images / 16).astype(np.float32).tobytes()
    assert (data.classes == bunch.target).all()


def test_made_up_images_are_separable() -> None:
    """The nearest mean of the training part names the class of every held-out sample."""
    data = load_dataset(small())
    (images, classes), (unseen, truth) = data.training_part(), data.held_out_part()
    means = np.stack([images[classes == index].mean(0) for index in range(4)])
    distances = ((unseen[:, None] - means[None]) ** 2).sum((2, 3, 4))
    assert (distances.argmin(1) == truth).all()


def test_colour_and_size_of_made_up_images_are_as_asked() -> None:
    data = load_dataset(small(mode="RGB", size=5))
    assert data.images.shape == (400, 3, 5, 5)
    assert (data.preprocessing.mode, data.preprocessing.height, data.preprocessing.width) == ("RGB", 5, 5)


def test_images_beyond_the_memory_that_is_allowed_are_refused_with_what_they_need() -> None:
    with pytest.raises(DataError, match=r"needs 25600 bytes for 400 images of 1 x 8 x 8.*data\.max_bytes=25600"):
        load_dataset(small(max_bytes=25_599))
    assert len(load_dataset(small(max_bytes=25_600)).images) == 400


def test_the_same_share_of_every_class_is_held_out() -> None:
    classes = np.repeat(np.arange(3), [50, 10, 2])
    held_out = hold_out(classes, 0.2, 0, ("a", "b", "c"), "it")
    assert np.bincount(classes[held_out]).tolist() == [10, 2, 1]
    assert (hold_out(classes, 0.2, 0, ("a", "b", "c"), "it") == held_out).all()
    assert (hold_out(classes, 0.2, 1, ("a", "b", "c"), "it") != held_out).any()


def test_a_class_keeps_a_sample_on_each_side_whatever_the_share() -> None:
    classes = np.array([0, 0, 1, 1])
    for share in (0.001, 0.9):
        assert np.bincount(classes[hold_out(classes, share, 0, ("a", "b"), "it")]).tolist() == [1, 1]


@pytest.mark.parametrize(("classes", "found"), [([0, 0, 1], "1 samples"), ([0, 0, 0], "0 samples")])
def test_a_class_that_cannot_be_split_is_named(classes: list[int], found: str) -> None:
    with pytest.raises(DataError, match=rf"{found} of the class 'b', expected at least 2"):
        hold_out(np.array(classes), 0.2, 0, ("a", "b"), "it")


def test_mean_and_deviation_are_those_of_the_training_part_alone() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 200, (3000, 3, 4, 4), np.uint8)
    held_out = np.arange(3000) % 3 == 0
    images[held_out] = 255
    found = normalise(images, held_out)
    part = images[~held_out].astype(np.float64) / 255
    assert found.mean == tuple(round(float(value), 4) for value in part.mean((0, 2, 3)))
    assert found.std == tuple(round(float(value), 4) for value in part.std((0, 2, 3)))
    seen = prepare(images[~held_out], found)
    assert np.abs(seen.mean((0, 2, 3))).max() < 1e-3
    assert np.abs(seen.std((0, 2, 3)) - 1).max() < 1e-3


def test_a_channel_that_never_changes_is_not_divided_by_zero() -> None:
    found = normalise(np.full((4, 1, 2, 2), 51, np.uint8), np.zeros(4, bool))
    assert (found.mean, found.std) == ((0.2,), (1.0,))


def test_bytes_are_prepared_alike_in_one_step_and_in_two() -> None:
    """More images than are prepared at a time; `scaling` is what a device does instead."""
    images = np.random.default_rng(0).integers(0, 256, (1500, 3, 2, 2), np.uint8)
    wanted = normalise(images, np.zeros(1500, bool))
    factor, shift = scaling(wanted)
    prepared = prepare(images, wanted)
    assert prepared.dtype == np.float32
    assert np.abs(prepared - (images * factor + shift)).max() < 1e-6
    single = np.concatenate([prepare(images[row : row + 1], wanted) for row in range(1500)])
    assert prepared.tobytes() == single.tobytes()


def test_a_recipe_trains_on_made_up_images(recipe: Path, tmp_path: Path) -> None:
    changes = ["data.name=synthetic", "data.size=8", "data.count=600", "network.kind=mlp", "network.widths=[32]"]
    made = train(recipe, output=tmp_path / "run", overrides=changes)
    assert made.meta["data"] == "synthetic"
    assert made.meta["metrics"]["held_out_accuracy"] > 0.9
    images, classes = made.held_out()
    assert images.shape == (120, 3, 8, 8)
    assert np.bincount(classes).tolist() == [12] * 10
