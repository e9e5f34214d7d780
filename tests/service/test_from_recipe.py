"""Every recipe of the repository and every kind of network, from data in the format that the recipe names to a server.

All of it is small. What the server says is compared with the unfolded network in float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from service_runs import running

from bnfold.cli import main
from bnfold.training import load_checkpoint
from bnfold.training.networks import KINDS
from bnfold.training.recipe import load_recipe
from service.settings import Settings

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
# Networks that no recipe of the repository has, on the digits.
OTHERS = {
    "vgg_bn": "kind = 'vgg_bn'\nwidths = [4, 6]",
    "densenet": "kind = 'densenet'\nlayers = [2, 2]\ngrowth = 4",
    "resnet-v2": "kind = 'resnet'\nwidths = [4, 6]\nversion = 2",
}
OTHER_RECIPE = """
data.name = "digits"
optimizer = {{ kind = "sgd", learning_rate = 0.05 }}
train = {{ epochs = 1, batch_size = 64 }}
name = "{name}"
[network]
{network}
"""
CLASSES = np.arange(40, dtype=np.uint8) % 10
SAMPLES = 8


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


@pytest.fixture(params=[*RECIPES, *OTHERS])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, list[str]]:
    """A name, its recipe, and what makes it small."""
    name = str(request.param)
    if name in OTHERS:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(OTHER_RECIPE.format(name=name, network=OTHERS[name]))
        return name, recipe, []
    (tmp_path / "data").mkdir()
    return name, MODELS / name / "recipe.toml", overrides(name, tmp_path / "data")


def test_a_recipe_becomes_a_proven_bundle_that_is_served_as_it_was_trained(
    job: tuple[str, Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name, recipe, small), checkpoint = job, tmp_path / "checkpoint"
    trained = answer(capsys, "train", recipe, *small, "--device", "cpu", "-o", checkpoint)
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

    images, truth = truth_of(checkpoint)
    with running(Settings(repository=tmp_path / "models", port=0, device="cpu")) as server:
        sent = {"name": "input", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
        found = httpx.post(f"{server.url}/v2/models/{name}/infer", json={"inputs": [sent]})
    assert found.status_code == 200, found.text
    logits = np.array(found.json()["outputs"][0]["data"]).reshape(truth.shape)
    # A negative control as well: samples differ by far more than what the served network may be off by.
    assert np.abs(logits - truth).max() < 1e-4 * np.abs(truth).max() < np.abs(truth[1:] - truth[:-1]).max()
    assert (logits.argmax(1) == truth.argmax(1)).all()


def truth_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Held-out images, and what the unfolded network makes of them in float64."""
    checkpoint = load_checkpoint(folder)
    images = checkpoint.held_out()[0][:SAMPLES]
    with torch.inference_mode():
        return images, checkpoint.module().double()(torch.from_numpy(images).double()).numpy()


def test_no_kind_of_network_is_left_out() -> None:
    in_recipes = {load_recipe(MODELS / name / "recipe.toml").network.kind for name in RECIPES}
    assert in_recipes | OTHERS.keys() >= KINDS.keys()


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
