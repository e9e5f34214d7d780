"""A checkpoint of the user's own code: opened for who names that code, and by nobody else's word."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bnfold.cli import main
from bnfold.errors import DataError
from bnfold.training import Checkpoint, load_checkpoint, train
from bnfold.training.ema import Average

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, classes, width=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width * shape[1] * shape[2], classes)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))

class Awkward(nn.Module):  # two names for one tensor, and tensors that no state dict has
    def __init__(self, shape, classes):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.head = nn.Linear(64, classes)
        self.register_buffer("shift", torch.full((1,), 0.25), persistent=False)
        self.factor = torch.full((1,), 2.0)
        self.number = float(torch.ones(1))  # which no tensor without storage has

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x.flatten(1) * self.factor - self.shift)))
        return self.head(torch.relu(self.second(x)))

def lazy(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(classes))
"""
RECIPE = """
name = "own"
[data]
name = "digits"
[network]
kind = "mynets:Net"
width = 6
[optimizer]
kind = "sgd"
learning_rate = 0.1
[train]
epochs = 2
batch_size = 64
"""
# What a hostile checkpoint would have imported: that it was is to be seen.
TRAP = "from pathlib import Path\nPath(__file__).with_name('sprung').touch()\ndef make(*_, **__): pass\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a module, a recipe, and the checkpoint `made` of both; the module is forgotten afterwards."""
    place = tmp_path_factory.mktemp("own")
    (place / "mynets.py").write_text(MODULE)
    (place / "recipe.toml").write_text(RECIPE)
    before = list(sys.path)
    train(place / "recipe.toml", output=place / "made")
    yield place
    sys.path[:] = before
    sys.modules.pop("mynets", None)


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, as the current one."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(place)
    return place


def edited(made: Path, copy: Path, network: dict[str, Any]) -> Path:
    shutil.copytree(made, copy)
    document = json.loads((copy / "checkpoint.json").read_text())
    document["network"] = network
    (copy / "checkpoint.json").write_text(json.dumps(document))
    return copy


def test_who_names_the_code_gets_the_network_with_its_weights(here: Path) -> None:
    made = load_checkpoint(here / "made")
    assert made.factory == "mynets:Net"
    before = torch.get_rng_state()
    network = made.module(factory="mynets:Net")
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    assert type(network).__name__ == "Net"
    saved = load_file(here / "made/weights.safetensors")
    assert saved["conv.weight"].shape == (6, 1, 3, 3)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("given", [None, "trap:other", "mynets:Net", "os:getcwd"])
def test_a_hostile_checkpoint_imports_nothing(here: Path, tmp_path: Path, given: str | None) -> None:
    (tmp_path / "trap.py").write_text(TRAP)
    sys.path.insert(0, str(tmp_path))
    hostile = edited(here / "made", tmp_path / "hostile", {"kind": "factory", "factory": "trap:make", "args": {}})
    with pytest.raises(DataError) as raised:
        load_checkpoint(hostile).module(given)
    expected = "if you trust that code, say so with --network trap:make" if given is None else "and 'GIVEN' was given"
    assert expected.replace("GIVEN", str(given)) in str(raised.value)
    assert "trap" not in sys.modules
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "CHECKPOINT"],
        ["fold-and-export", "CHECKPOINT", "-o", "bundle"],
        ["recalibrate", "CHECKPOINT", "--data", "data.npz", "-o", "new"],
        ["audit", "folded.onnx", "--against", "CHECKPOINT"],
    ],
)
@pytest.mark.parametrize("network", [[], ["--network", "os:getcwd"]])
def test_no_command_runs_the_code_that_a_checkpoint_names(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    network: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text(TRAP)
    hostile = edited(place / "made", tmp_path / "hostile", {"kind": "factory", "factory": "trap:make", "args": {}})
    before = {path.name for path in tmp_path.iterdir()}
    assert main([str(hostile) if word == "CHECKPOINT" else word for word in command] + network) == 2
    said = capsys.readouterr().err
    assert ("--network trap:make" if not network else "'os:getcwd' was given for it") in said
    assert said.count("\n") == 1
    assert "trap" not in sys.modules
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"kind": "factory", "args": {}}, "has no key 'factory'"),
        ({"kind": "factory", "factory": "mynets", "args": {}}, "expected module:factory"),
        ({"kind": "factory", "factory": "my nets:\u001b[31m", "args": {}}, "expected printable text"),
        ({"kind": "factory", "factory": "\u043cynets:Net", "args": {}}, "expected module:factory"),
        ({"kind": "factory", "factory": "mynets:Net;", "args": {}}, "expected module:factory"),
        ({"kind": "factory", "factory": "m" * 400 + ":Net", "args": {}}, "expected module:factory"),
        ({"kind": "factory", "factory": ["mynets:Net"], "args": {}}, "expected printable text"),
        ({"kind": "factory", "factory": "mynets:Net", "args": [4]}, "expected an object"),
        ({"kind": "factory", "factory": "mynets:Net", "args": {"width": {"a": 1}}}, "as 'width'; expected true or"),
        ({"kind": "factory", "factory": "mynets:Net", "args": {"width": 10**30}}, "as 'width'; expected true or"),
        ({"kind": "factory", "factory": "mynets:Net", "args": {"width": [0] * 1025}}, "as 'width'; expected true or"),
        ({"kind": "factory", "factory": "mynets:Net", "args": {"a b": 1}}, "expected a key that Python takes"),
        ({"kind": "factory", "factory": "mynets:Net", "args": {}, "more": 1}, "unknown key 'more'"),
        ({"kind": "mlp", "factory": "mynets:Net", "args": {"widths": [4]}}, "unknown key 'factory'"),
        ({"kind": "mynets:Net", "args": {}}, "expected one of mlp"),
    ],
)  # fmt: skip
def test_a_document_outside_the_schema_is_refused(
    place: Path, tmp_path: Path, network: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as raised:
        load_checkpoint(edited(place / "made", tmp_path / "copy", network))
    assert message in str(raised.value)
    assert "bundle" not in str(raised.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"width": 10**12}, r"tensor '\w+\.\w+' is torch\.float32 \[.*\], expected torch\.float32 \[.*0{12}[],]"),
        ({"width": 5}, r"tensor '\w+\.\w+' is torch\.float32 \[.*\], expected torch\.float32 \[.*; train"),
        ({"depth": 5}, "got an unexpected keyword argument 'depth'"),
    ],
)
def test_arguments_of_another_network_than_the_weights_are_refused(
    here: Path, tmp_path: Path, args: dict[str, Any], message: str
) -> None:
    network = {"kind": "factory", "factory": "mynets:Net", "args": args}
    copy = load_checkpoint(edited(here / "made", tmp_path / "copy", network))
    with pytest.raises(DataError, match=message):
        copy.module(factory="mynets:Net")


def test_a_name_is_refused_for_what_has_none(checkpoint: Checkpoint) -> None:
    with pytest.raises(DataError, match=r"is a 'plain_cnn' of this package, and the code 'mynets:Net' was given"):
        checkpoint.module(factory="mynets:Net")


@pytest.mark.parametrize("source", ["mynets:Net", "model.onnx"])
def test_the_option_is_refused_for_other_sources(here: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    (here / "model.onnx").touch()
    assert main(["inspect", source, "--network", "mynets:Net"]) == 2
    assert f"goes with a checkpoint folder, not with {source}; leave it out" in capsys.readouterr().err


def test_it_becomes_a_proven_bundle_and_is_recalibrated(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def bnfold(*words: object) -> dict[str, Any]:
        assert main([*map(str, words), "--network", "mynets:Net", "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    assert bnfold("inspect", here / "made")["counts"]["folded"] == 1
    built = bnfold("fold-and-export", here / "made", "-o", tmp_path / "bundle")
    assert built["fold"]["counts"]["folded"] == 1
    assert built["parity"]["holds"] is True
    np.savez(tmp_path / "data.npz", input=np.random.default_rng(0).random((64, 1, 8, 8), np.float32))
    assert bnfold("recalibrate", here / "made", "--data", tmp_path / "data.npz", "-o", tmp_path / "new")["norms"] == 1
    old, new = load_checkpoint(here / "made"), load_checkpoint(tmp_path / "new")
    assert new.meta["network"] == old.meta["network"]
    before, after = (each.module("mynets:Net").state_dict() for each in (old, new))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved - {"norm.num_batches_tracked"} == {"norm.running_mean", "norm.running_var"}


@pytest.mark.parametrize("name", ["Awkward", "lazy"])
def test_what_a_state_dict_does_not_tell_of_a_network_is_kept(here: Path, tmp_path: Path, name: str) -> None:
    sets = [f'network={{kind="mynets:{name}"}}', "train.epochs=1", "train.ema=0.9"]
    made = train(here / "recipe.toml", output=tmp_path / name, overrides=sets)
    images, classes = made.held_out()
    with torch.no_grad():
        found = made.module(factory=f"mynets:{name}")(torch.from_numpy(images)).argmax(1)
    accuracy = float((found == torch.from_numpy(classes)).float().mean())
    assert accuracy == pytest.approx(made.meta["metrics"]["held_out_accuracy"], abs=1e-6)


def test_a_tensor_of_two_names_is_averaged_once() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    nn.init.zeros_(network[0].weight)
    average = Average(network, 0.5)
    nn.init.ones_(network[0].weight)
    average.update(network, step=1000)
    assert torch.equal(average.network[0].weight, torch.full((2, 2), 0.5))  # type: ignore[index, union-attr]


def test_the_example_of_the_docs_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    section = page.partition("## Networks of your own\n")[2].partition("\n## ")[0]
    code, recipe, commands = re.findall(r"^```\w*\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mynetworks.py").write_text(code)
    Path("recipe.toml").write_text(recipe)
    for command in commands.splitlines():
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert "3 norms found: 3 folded" in capsys.readouterr().out
    (call,) = re.findall(r"`(load_checkpoint\(.*?\)\.module\(.*?\))`", section)
    made = load_checkpoint("runs/own/1")
    assert eval(call, {"load_checkpoint": load_checkpoint})(*made.example_inputs()).shape == (2, 10)  # noqa: S307
    sys.modules.pop("mynetworks")
