"""A network out of the user's own code is tried before it is trained, and then trained as any other."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bnfold.errors import DataError
from bnfold.training import Checkpoint, load_recipe, train
from bnfold.training.networks.factory import make_trainable
from bnfold.training.run import begin
from bnfold.training.study import run_study

MODULE = """
import numpy as np
import sys
import torch
from torch import nn

ONCE = nn.Linear(64, 3)
NUMBERS = np.random.default_rng()

class Net(nn.Module):
    def __init__(self, shape, classes, width=4, scale=1.0, names=(), plain=False):
        super().__init__()
        self.layer, self.norm = nn.Linear(shape[0] * shape[1] * shape[2], width), nn.BatchNorm1d(width)
        self.head, self.scale = nn.Linear(width, classes), scale

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.layer(x.flatten(1))))) * self.scale

def make(shape, classes, **changes):
    return Net(shape, classes, **changes)

class Holder:
    make = staticmethod(make)

def no_module(shape, classes): return "a network"
def raises(shape, classes): raise ValueError("no such\\nlayer")
def leaves(shape, classes): sys.exit(3)
def takes_one(shape): return Net(shape, 3)
def needs_depth(shape, classes, *, depth): return Net(shape, classes)
def too_few(shape, classes): return Net(shape, classes - 1)
def nan(shape, classes): return Net(shape, classes, scale=float("nan"))
def shared(shape, classes): return nn.Sequential(nn.Flatten(), ONCE)
def untrainable(shape, classes): return Net(shape, classes).requires_grad_(False)
def integers(shape, classes): return with_forward(lambda self, x: torch.zeros(len(x), 3).long())(shape, classes)

def with_forward(forward):
    class Other(Net):
        pass
    Other.forward = forward
    return Other

def numpys(shape, classes):
    made = Net(shape, classes)
    made.head.bias.data.copy_(torch.from_numpy(NUMBERS.random(classes)))
    return made

def pair(shape, classes): return with_forward(lambda self, x: (Net.forward(self, x), 0))(shape, classes)
def pair_in_training(shape, classes):
    logits = Net.forward
    return with_forward(lambda self, x: [logits(self, x)] if self.training else logits(self, x))(shape, classes)
def detached(shape, classes): return with_forward(lambda self, x: Net.forward(self, x).detach())(shape, classes)
def broken(shape, classes): return with_forward(lambda self, x: self.absent(x))(shape, classes)
def grows(shape, classes):
    ONCE.count = getattr(ONCE, "count", 3) + 1
    return Net(shape, classes, ONCE.count)

def leaves_late(shape, classes): return with_forward(lambda self, x: sys.exit(0))(shape, classes)
def squeezed(shape, classes): return with_forward(lambda self, x: Net.forward(self, x).squeeze())(shape, classes)

def counting(shape, classes):
    def forward(self, x):
        if self.training:
            self.register_buffer("seen", torch.ones(3))
        return Net.forward(self, x)
    return with_forward(forward)(shape, classes)

class Sparse(Net):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.table = nn.Embedding(2, 64, sparse=True)
    def forward(self, x):
        return super().forward(x.flatten(1) + self.table((x.flatten(1)[:, 0] > 9).long()))

class Named(Net):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.add_module("\\ud800", nn.BatchNorm1d(4))

class LateGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, x): return x.clone()
    @staticmethod
    def backward(context, gradient):
        if len(gradient) > 3:
            raise ValueError("late trouble")
        return gradient

def late_gradient(shape, classes):
    return with_forward(lambda self, x: LateGradient.apply(Net.forward(self, x)))(shape, classes)

def late_size(shape, classes):
    return with_forward(lambda self, x: Net.forward(self, x)[: 3 if self.training else None])(shape, classes)

def sized(shape, classes): return with_forward(lambda self, x: Net.forward(self, x)[:2])(shape, classes)

def of_both(shape, classes):
    deep = nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 4, (1, 3, 3)), nn.Flatten(1, 2))
    return nn.Sequential(deep, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, classes))

class Expanded(Net):
    def __init__(self, shape, classes):
        super().__init__(shape, classes)
        self.register_buffer("zeros", torch.zeros(1).expand(5))

class Late(Net):  # it breaks in its fourth batch, or on the held-out samples
    def __init__(self, shape, classes, in_eval):
        super().__init__(shape, classes)
        self.calls, self.in_eval = 0, in_eval

    def forward(self, x):
        self.calls += len(x) > 3 and self.training
        if self.calls > 3 and self.training != self.in_eval:
            raise ValueError("late trouble")
        return super().forward(x)

class Uncopied(Net):
    def __deepcopy__(self, memo):
        raise TypeError("a lock")
class Extra(Net):
    def get_extra_state(self):
        return {"a": 1}
    def set_extra_state(self, state):
        pass
"""

RECIPE = """
name = "own"
[data]
name = "digits"
[network]
kind = "NAME:make"
width = 8
[optimizer]
kind = "sgd"
learning_rate = 0.1
[train]
epochs = 3
batch_size = 64
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a recipe and a module beside it, which is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "ownnetworks.py").write_text(MODULE)
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("NAME", "ownnetworks"))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def made(folder: Path, attribute: str, **arguments: Any) -> nn.Module:
    return make_trainable(f"ownnetworks:{attribute}", (1, 8, 8), 3, arguments, (folder,))


def test_a_recipe_trains_the_network_beside_it(folder: Path) -> None:
    first, second = (train(folder / "recipe.toml", output=folder / name) for name in ("one", "two"))
    assert first.meta["network"] == {"kind": "factory", "factory": "ownnetworks:make", "args": {"width": 8}}
    assert first.meta["metrics"]["held_out_accuracy"] > 0.8
    one, two = (load_file(each.path / "weights.safetensors") for each in (first, second))
    assert one["layer.weight"].shape == (8, 64)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_its_initial_weights_hang_on_the_seed_alone(folder: Path) -> None:
    torch.manual_seed(5)
    first = made(folder, "Holder.make")
    torch.manual_seed(5)
    assert torch.equal(made(folder, "make").layer.weight, first.layer.weight)  # type: ignore[arg-type, union-attr]
    torch.manual_seed(6)
    assert not torch.equal(made(folder, "make").layer.weight, first.layer.weight)  # type: ignore[arg-type, union-attr]


def test_it_is_given_in_training_mode_and_untouched_by_the_trial(folder: Path) -> None:
    network = made(folder, "make")
    assert network.training
    assert int(network.norm.num_batches_tracked) == 0  # type: ignore[arg-type, union-attr]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_arguments_arrive_as_the_recipe_has_them(folder: Path) -> None:
    sets = ["network.scale=0.5", 'network.names=["a", "b"]', "network.plain=true"]
    recipe = load_recipe(folder / "recipe.toml", sets)
    assert recipe.network.args == {"width": 8, "scale": 0.5, "names": ["a", "b"], "plain": True}
    assert made(folder, "make", **recipe.network.args).scale == 0.5


@pytest.mark.parametrize(
    ("attribute", "arguments", "message"),
    [
        ("absent", {}, "cannot be made: AttributeError: module 'ownnetworks' has no attribute 'absent'"),
        ("no_module", {}, "is an object of type str, expected a torch.nn.Module"),
        ("raises", {}, "cannot be made: ValueError: no such"),
        ("leaves", {}, "cannot be made: SystemExit: 3"),
        ("takes_one", {}, "cannot be made: too many positional arguments; it takes (shape)"),
        ("needs_depth", {}, "missing a required argument: 'depth'; it takes (shape, classes, *, depth)"),
        ("Net", {"depth": 3}, "got an unexpected keyword argument 'depth'; it takes (shape, classes, width=4"),
        ("Net", {"width": "wide"}, "cannot be made: TypeError"),
        ("too_few", {}, "gives torch.float32 of [2, 2] for a batch of 2, expected floats of [2, 3]"),
        ("integers", {}, "gives torch.int64 of [2, 3] for a batch of 2"),
        ("nan", {}, "gives NaN or infinite logits before any training"),
        ("pair", {}, "gives an object of type tuple, expected one tensor"),
        ("pair_in_training", {}, "in training, gives an object of type list, expected one tensor"),
        ("broken", {}, "fails on inputs of [2, 1, 8, 8] in eval: AttributeError: 'Other' object has no attribute"),
        ("detached", {}, "has no gradient: RuntimeError"),
        ("untrainable", {}, "has no parameter that learns"),
        ("shared", {}, "shares '1.weight' with the one of an earlier call"),
        ("numpys", {}, "has another 'head.bias' at each call of the factory under one seed"),
        ("grows", {}, "has another 'layer.weight' at each call"),
        ("Uncopied", {}, "cannot be copied: TypeError: a lock"),
        ("sized", {}, "gives torch.float32 of [2, 3] for a batch of 3, expected floats of [3, 3]"),
        ("leaves_late", {}, "fails on inputs of [2, 1, 8, 8] in eval: SystemExit: 0"),
        ("squeezed", {}, "gives torch.float32 of [3] for a batch of 1, expected floats of [1, 3]"),
        ("counting", {}, "has another state after a step than before (seen), and could not be saved"),
        ("Sparse", {}, "has a sparse gradient for 'table.weight', expected a dense one"),
        ("Named", {}, "has the name '\\ud800.weight' in its state, expected a printable one"),
        ("Expanded", {}, "has 'zeros' with all its values in one place of memory; clone()"),
        ("Extra", {}, "has an object of type dict as '_extra_state' in its state, expected tensors"),
    ],
)
def test_a_network_that_cannot_be_trained_is_one_sentence(
    folder: Path, attribute: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as raised:
        made(folder, attribute, **arguments)
    assert f"the network ownnetworks:{attribute}" in str(raised.value)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_trained_leaves_nothing_behind(folder: Path) -> None:
    with pytest.raises(DataError, match="unexpected keyword argument 'depth'"):
        train(folder / "recipe.toml", output=folder / "run", overrides=["network.depth=2"])
    assert not list(folder.glob("run*"))


@pytest.mark.parametrize("in_eval", ["false", "true"])
def test_code_that_fails_later_on_is_one_sentence(folder: Path, in_eval: str) -> None:
    sets = [f'network={{kind="ownnetworks:Late", in_eval={in_eval}}}']
    with pytest.raises(DataError) as raised:
        train(folder / "recipe.toml", output=folder / "run", overrides=sets)
    said = "the network ownnetworks:Late fails in the middle of the training: ValueError: late trouble; see that"
    assert str(raised.value).startswith(said)
    assert not list(folder.glob("run*"))


@pytest.mark.parametrize(
    ("name", "trouble"),
    [("late_gradient", "late trouble"), ("late_size", r"Expected input batch_size \(3\) to match target batch_size")],
)
def test_a_gradient_or_a_shape_that_is_wrong_later_on_is_one_sentence(folder: Path, name: str, trouble: str) -> None:
    with pytest.raises(DataError, match=f"fails in the middle of the training: ValueError: {trouble}"):
        train(folder / "recipe.toml", output=folder / "run", overrides=[f'network={{kind="ownnetworks:{name}"}}'])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("network.kind=own:", "has 'own:' as 'network.kind'; expected a kind of network, or module:factory"),
        ("network.kind=own/nets:make", "has 'own/nets:make' as 'network.kind'"),
        ("network.kind=own", "expected one of mlp"),
        ("network.width=inf", "has inf as 'network.width'; expected true or false, a text, a finite number"),
        ("network.width=1979-05-27", "as 'network.width'"),
        ("network.width={a = 1}", "has {'a': 1} as 'network.width'"),
        ("network.width=[[1]]", "has [[1]] as 'network.width'"),
        (f"network.width={2**63}", "as 'network.width'"),
        ("network.wide-r=1", "has 1 as 'network.wide-r'; expected a key that Python takes as the name of an argument"),
    ],
)
def test_a_recipe_is_read_strictly_and_without_running_code(folder: Path, change: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        load_recipe(folder / "recipe.toml", [change])
    assert message in str(raised.value)
    load_recipe(folder / "recipe.toml")
    assert "ownnetworks" not in sys.modules


def test_a_module_of_that_name_from_elsewhere_is_not_taken_for_it(folder: Path) -> None:
    made(folder, "make")
    other = folder / "other"
    other.mkdir()
    (other / "ownnetworks.py").write_text(MODULE)
    with pytest.raises(DataError, match=r"the name 'ownnetworks' is that of another module, .*ownnetworks\.py, which"):
        made(other, "make")
    (other / "sys.py").write_text(MODULE)
    with pytest.raises(DataError, match="'sys' is that of another module, one of Python itself"):
        make_trainable("sys:make", (1, 8, 8), 3, {}, (other,))


def test_beside_the_recipe_comes_before_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = folder / "current"
    current.mkdir()
    (current / "ownnetworks.py").write_text("raise ValueError('the wrong one')")
    (current / "elsewhere.py").write_text(MODULE)
    monkeypatch.chdir(current)
    few = ["train.epochs=1"]
    assert train(folder / "recipe.toml", output=folder / "one", overrides=few).path == folder / "one"
    train(folder / "recipe.toml", output=folder / "two", overrides=[*few, "network.kind=elsewhere:make"])
    with pytest.raises(DataError) as raised:
        train(folder / "recipe.toml", output=folder / "three", overrides=["network.kind=nowhere:make"])
    assert f"looked for in {folder} and {current} and on Python's path" in str(raised.value)
    monkeypatch.chdir(folder)
    with pytest.raises(DataError) as once:
        train(folder / "recipe.toml", output=folder / "three", overrides=["network.kind=nowhere:make"])
    assert f"looked for in {folder} and on Python's path" in str(once.value)


def test_channels_last_is_for_the_kernels_of_two_dimensions(folder: Path) -> None:
    sets = ['network={kind="ownnetworks:of_both"}', "train.channels_last=true", "train.epochs=1"]
    run = begin(made(folder, "of_both"), load_recipe(folder / "recipe.toml", sets), torch.device("cpu"))
    kernels = {tensor.ndim: tensor for tensor in run.network.parameters()}
    assert kernels[4].is_contiguous(memory_format=torch.channels_last)
    assert kernels[5].is_contiguous()
    assert train(folder / "recipe.toml", output=folder / "run", overrides=sets).meta["metrics"]["epochs"] == 1


class Stop(Exception):
    """What ends a run in the middle."""


def test_a_stopped_training_of_it_goes_on_to_the_same_bits(folder: Path) -> None:
    def stop(line: str) -> None:
        if line.startswith("epoch 2/"):
            raise Stop

    rich = ["train.ema=0.9", "optimizer.kind=adamw", "optimizer.learning_rate=0.01"]
    whole = train(folder / "recipe.toml", output=folder / "whole", overrides=rich)
    with pytest.raises(Stop):
        train(folder / "recipe.toml", output=folder / "run", overrides=rich, progress=stop)
    with pytest.raises(DataError, match=r"the recipe has 9 as 'network\.args\.width', but the run .* has 8"):
        train(folder / "recipe.toml", resume=folder / "run", overrides=[*rich, "network.width=9"])
    resumed = train(folder / "recipe.toml", resume=folder / "run", overrides=rich)
    assert weights(resumed) == weights(whole)


def weights(made: Checkpoint) -> bytes:
    return (made.path / "weights.safetensors").read_bytes()


def test_a_study_of_it_has_its_learning_rates_and_its_batches(folder: Path) -> None:
    small = ["train.epochs=1", "data.name=synthetic", "data.count=40", "data.size=4"]
    study = run_study(folder / "recipe.toml", output=folder / "study", overrides=small, seeds=1, device="cpu", jobs=1)
    assert [experiment.name for experiment in study.experiments] == ["rates", "batches"]
    assert {run.label for run in study.runs} == {"as the recipe has it"}
    assert {(run.experiment, run.place) for run in study.runs if run.failure} == {("batches", 1)}
    rates, batches = study.findings
    assert len(re.findall(r"% \(n = 1\) at [\d.]+", rates.sentence)) == 5
    assert re.search(r"Of 5, the largest at which .* is [\d.]+\. Final accuracy", rates.sentence)
    assert len(re.findall(r"% \(n = 1\) at \d+", batches.sentence)) == 5
    assert "At 1 it cannot be trained: train.batch_size is 1, and the norm" in batches.sentence
    assert study.about["command"].endswith(f"--seeds=1 --device=cpu --jobs=1 -o {folder / 'study'}")


@pytest.mark.parametrize("name", ["speed", "norms", "order", "bias"])
def test_a_study_of_it_is_refused_where_its_norm_would_be_changed(folder: Path, name: str) -> None:
    with pytest.raises(
        DataError, match=rf"'{name}' changes network\..*does not have; take another experiment \(rates, b"
    ):
        run_study(folder / "recipe.toml", output=folder / "study", experiments=[name], seeds=1)
    assert not (folder / "study").exists()
