"""Every kind of network that a recipe can name, from training on real digits to a server that answers for it.

What the server says is compared with the unfolded network in float64.
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from service_runs import Running, running

from bnfold.cli import main
from bnfold.training import load_checkpoint
from bnfold.training.networks import KINDS
from service.settings import Settings

SAMPLES = 12
NETWORKS = {
    "mlp": ["kind = 'mlp'", "widths = [12, 8]"],
    "plain_cnn": ["kind = 'plain_cnn'", "widths = [4, 4, 6]"],
    "resnet": ["kind = 'resnet'", "widths = [4, 6]"],
    "resnet-v2": ["kind = 'resnet'", "widths = [4, 6]", "version = 2"],
    "vgg_bn": ["kind = 'vgg_bn'", "widths = [4, 6]"],
    "mobilenet": ["kind = 'mobilenet'", "widths = [4, 6]", "blocks = 2", "expansion = 2"],
    "densenet": ["kind = 'densenet'", "layers = [2, 2]", "growth = 4"],
    "repvgg": ["kind = 'repvgg'", "widths = [4, 6]", "blocks = 2"],
    "airbench": ["kind = 'airbench'", "widths = [4, 6]"],
}
RECIPE = """
name = "{name}"
data.name = "digits"
optimizer = {{ kind = "sgd", learning_rate = 0.05 }}
train = {{ epochs = 1, batch_size = 64 }}
[network]
{network}
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by the command, folded and exported by the command, into checkpoints/ and models/."""
    folder = tmp_path_factory.mktemp("from-recipe")
    for name, network in NETWORKS.items():
        recipe, checkpoint = folder / f"{name}.toml", folder / "checkpoints" / name
        recipe.write_text(RECIPE.format(name=name, network="\n".join(network)))
        assert main(["train", str(recipe), "--device", "cpu", "-o", str(checkpoint)]) == 0
        assert main(["fold-and-export", str(checkpoint), "-o", str(folder / "models" / name)]) == 0
    return folder / "checkpoints"


@pytest.fixture(scope="module")
def server(checkpoints: Path):
    with running(Settings(repository=checkpoints.parent / "models", port=0, device="cpu")) as server:
        yield server


def test_no_kind_of_network_is_left_out():
    kinds = {line.split("'")[1] for lines in NETWORKS.values() for line in lines if line.startswith("kind")}
    assert kinds == set(KINDS)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_a_recipe_is_served_as_it_was_trained(name: str, checkpoints: Path, server: Running):
    checkpoint = load_checkpoint(checkpoints / name)
    images = checkpoint.held_out()[0][:SAMPLES]
    with torch.inference_mode():
        truth = checkpoint.module().double()(torch.from_numpy(images).double()).numpy()
    sent = {"name": "input", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    found = httpx.post(f"{server.url}/v2/models/{name}/infer", json={"inputs": [sent]})
    assert found.status_code == 200, found.text
    answer = np.array(found.json()["outputs"][0]["data"]).reshape(truth.shape)
    # A negative control as well: samples differ by far more than what the served network may be off by.
    assert np.abs(answer - truth).max() < 1e-4 * np.abs(truth).max() < np.abs(truth[1:] - truth[:-1]).max()
    assert (answer.argmax(1) == truth.argmax(1)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_norm_of_it_is_folded_or_has_a_reason(name: str, checkpoints: Path):
    norms = json.loads((checkpoints.parent / "models" / name / "1" / "fold.json").read_text())["norms"]
    assert norms
    assert all(norm["outcome"] == "folded" or norm["reason"] for norm in norms)
    assert any(norm["outcome"] == "folded" for norm in norms)
