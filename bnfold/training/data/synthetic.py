"""Images that are made up: a random pattern a class, under noise, for measuring speed where no data set is."""

from __future__ import annotations

import numpy as np

from bnfold.training.data.dataset import Dataset, room
from bnfold.training.data.normalisation import normalise
from bnfold.training.data.split import hold_out
from bnfold.training.recipe.parts import Data


def load(wanted: Data) -> Dataset:
    """`count` images, as many of each class: four quarters of an even colour that tell the class, and as much noise."""
    channels = 1 if wanted.mode == "L" else 3
    shape = (wanted.count, channels, wanted.size, wanted.size)
    room(shape, wanted.max_bytes, "the data set 'synthetic'", "lower data.count or data.size")
    random = np.random.RandomState(wanted.seed)  # its stream is frozen (NEP 19): the same images with every numpy
    quarters = random.randint(0, 128, (wanted.classes, channels, 2, 2), np.uint8)
    which = np.arange(wanted.size) * 2 // wanted.size
    patterns = quarters[:, :, which[:, None], which]
    classes = np.arange(wanted.count, dtype=np.int64) % wanted.classes
    images = random.randint(0, 128, shape, np.uint8)
    images += patterns[classes]
    labels = tuple(str(number) for number in range(wanted.classes))
    held_out = hold_out(classes, wanted.held_out, wanted.seed, labels, "the data set 'synthetic'")
    return Dataset("synthetic", images, classes, held_out, labels, normalise(images, held_out))
