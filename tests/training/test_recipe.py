"""A recipe says exactly what it may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnfold.errors import DataError
from bnfold.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
GOOD = """
name = "small"
[data]
name = "digits"
[network]
kind = "mlp"
widths = [8]
[optimizer]
kind = "sgd"
learning_rate = 0.1
[train]
epochs = 2
batch_size = 64
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*/recipe.toml")), ids=lambda path: path.parent.name)
def test_every_recipe_of_the_repository_is_read_and_named_like_its_folder(path: Path) -> None:
    assert load_recipe(path).name == path.parent.name


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert (recipe.seed, recipe.train.schedule, recipe.augmentation.shift) == (0, "one_cycle", 0)


def test_overrides_reach_into_tables_and_are_values_as_in_toml(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path, ["train.epochs=7", "network.widths=[4, 5]", "optimizer.kind=adamw", "seed=3"])
    assert (recipe.train.epochs, recipe.network.args["widths"], recipe.optimizer.kind, recipe.seed) == (
        7,
        (4, 5),
        "adamw",
        3,
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "key=value"),
        ("train.epochs=0", "train.epochs"),
        ("train.epochs=true", "train.epochs"),
        ("train.epochs=2.5", "train.epochs"),
        ("train.batch_size=0", "train.batch_size"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate"),
        ("network.kind=transformer", "one of mlp, plain_cnn, resnet"),
        ("network.widths=[]", "network.widths"),
        ("network.widths=[8, -1]", "network.widths"),
        ("network.depth=3", "unknown key 'network.depth'"),
        ("epochs=3", "; train.epochs may be meant"),
        ("kind=sgd", "; network.kind or optimizer.kind may be meant"),
        ("train.epoch=3", "; train.epochs may be meant"),
        ("optimiser.kind=sgd", "unknown key 'optimiser'"),
        ("name.x=1", "not a table"),
        ("name=../up", "no dot first"),
        ("data=digits", "a table"),
        ("network.blocks=2", "unknown key 'network.blocks'"),
        (f"network.widths={[8] * 65}", "1 to 64 integers"),
        ("train.epochs=2\nseed=3", "several values"),
        ("train.epochs=[1", "no TOML"),
        ("seed=" + "[" * 5000, "nested too deeply"),
        ("seed=" + "1" * 5000, "no TOML"),
        ("seed=0x" + "f" * 5000, "an integer of 20000 bits"),
        ("optimizer.learning_rate=1" + "0" * 400, "optimizer.learning_rate"),
        ("optimizer.learning_rate=inf", "optimizer.learning_rate"),
        ("train.schedule=2026-01-01", "train.schedule"),
    ],
)
def test_each_fault_is_one_sentence_with_the_key(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        load_recipe(write(tmp_path, GOOD), [override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nothing_is_guessed_where_nothing_is_near(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"known here are [a-z, ]*augmentation$"):
        load_recipe(write(tmp_path, GOOD), ["zzz=1"])


def test_blocks_are_read_for_a_residual_network(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["network.kind=resnet", "network.blocks=3"])
    assert recipe.network.args["blocks"] == 3


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no 'optimizer\.kind'"):
        load_recipe(write(tmp_path, GOOD.replace('kind = "sgd"', "")))


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no TOML"):
        load_recipe(write(tmp_path, "= ="))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.toml"):
        load_recipe(tmp_path / "absent.toml")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        load_recipe(tmp_path / "b.toml")
