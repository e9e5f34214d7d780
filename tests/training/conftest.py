"""One quick training, shared by the tests that only look at its result."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnfold.training import Checkpoint, train

QUICK = """
name = "quick"
[data]
name = "digits"
[network]
kind = "plain_cnn"
widths = [6, 8]
[optimizer]
kind = "sgd"
learning_rate = 0.1
weight_decay = 0.0005
[train]
epochs = 4
batch_size = 64
[augmentation]
shift = 1
"""


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(QUICK)
    return path


@pytest.fixture(scope="session")
def checkpoint(recipe: Path) -> Checkpoint:
    return train(recipe, output=recipe.parent / "first")
