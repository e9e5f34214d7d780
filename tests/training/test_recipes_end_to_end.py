"""Every recipe of the repository, from data in the format that it names to a proven bundle; all of it is small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bnfold.cli import main
from bnfold.training.recipe import load_recipe

MODELS = Path(__file__).parents[2] / "models"
RECIPES = sorted(path.parent.name for path in MODELS.glob("*/recipe.toml"))
SMALL = {
    "mlp": ["network.widths=[8, 6]"],
    "plain_cnn": ["network.widths=[4, 4, 6]"],
    "resnet": ["network.widths=[4, 6]", "network.blocks=1"],
    "airbench": ["network.widths=[4, 6, 6]"],
    "repvgg": ["network.widths=[4, 6]", "network.blocks=2"],
    "mobilenet": ["network.widths=[4, 6]", "network.blocks=2", "network.expansion=2"],
}
CLASSES = np.arange(40, dtype=np.uint8) % 10


def pictures(*shape: int) -> np.ndarray:
    """Of each class the same noise, with a little other noise on it."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 200, (10, *shape), np.uint8)
    return patterns[CLASSES] + random.integers(0, 56, (len(CLASSES), *shape), np.uint8)


def write_idx(folder: Path) -> None:
    """30 digits to train on and 10 held out."""
    images = pictures(28, 28)
    for name, part in (("train", slice(30)), ("t10k", slice(30, 40))):
        for kind, values in (("images-idx3", images[part]), ("labels-idx1", CLASSES[part])):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(head + values.tobytes())


def write_cifar(folder: Path) -> None:
    """Four pictures in each of the first five files, and 20 held out."""
    records = np.concatenate([CLASSES[:, None], pictures(3072)], axis=1)
    for index in range(5):
        (folder / f"data_batch_{index + 1}.bin").write_bytes(records[4 * index : 4 * index + 4].tobytes())
    (folder / "test_batch.bin").write_bytes(records[20:].tobytes())


def write_folder(folder: Path) -> None:
    """Four PNG files of each of ten classes, wider than high."""
    for number, (label, image) in enumerate(zip(CLASSES, pictures(30, 40, 3), strict=True)):
        (folder / f"class {label}").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"class {label}" / f"{number}.png")


WRITERS: dict[str, Callable[[Path], None]] = {"mnist": write_idx, "cifar10": write_cifar, "folder": write_folder}


def overrides(name: str, folder: Path) -> list[str]:
    """What makes a recipe small: its data written into the folder, narrow layers, one epoch, small steps.

    Everything else stays as the recipe has it.
    """
    recipe = load_recipe(MODELS / name / "recipe.toml")
    words = ["train.epochs=1", "train.batch_size=16", "optimizer.learning_rate=0.01", *SMALL[recipe.network.kind]]
    if recipe.data.name != "digits":
        WRITERS[recipe.data.name](folder)
        words.append(f"data.path={json.dumps(str(folder))}")
    if recipe.data.name == "folder":
        words += ["data.size=32", "augmentation.shift=4"]
    return [f"--set={word}" for word in words]


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """What a command says in JSON; it must have succeeded."""
    capsys.readouterr()
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_becomes_a_bundle_whose_parity_holds(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, checkpoint = tmp_path / "data", tmp_path / "checkpoint"
    data.mkdir()
    recipe = MODELS / name / "recipe.toml"
    trained = answer(capsys, "train", recipe, *overrides(name, data), "--device", "cpu", "-o", checkpoint)
    assert trained["metrics"]["epochs"] == 1

    made = answer(capsys, "fold-and-export", checkpoint, "-o", tmp_path / "models" / name)
    assert made["parity"]["holds"] is True
    assert sum(made["fold"]["counts"].values()) == len(made["fold"]["norms"]) > 0
    assert made["fold"]["counts"]["folded"] > 0
    for norm in made["fold"]["norms"]:
        assert norm["outcome"] == "folded" or (norm["outcome"] == "kept" and norm["reason"]), norm

    assert answer(capsys, "verify", made["bundle"])["holds"] is True
    manifest = json.loads((Path(made["bundle"]) / "manifest.json").read_text())
    assert manifest["name"] == name


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("digits-")])
def test_a_recipe_whose_data_is_not_there_says_so_in_a_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The path is the recipe's own, seen from a folder in which nothing lies."""
    recipe = tmp_path / "models" / name / "recipe.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text((MODELS / name / "recipe.toml").read_text())
    assert main(["train", str(recipe), "-o", str(tmp_path / "checkpoint")]) == 2
    sentence = capsys.readouterr().err
    assert str(load_recipe(recipe).data.path) in sentence
    assert "is not there" in sentence
    assert not (tmp_path / "checkpoint").exists()
