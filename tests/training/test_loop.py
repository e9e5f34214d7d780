"""What the loop does with a recipe's options, and with trainings that cannot go on."""

from __future__ import annotations

import copy
import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bnfold.errors import DataError
from bnfold.preprocessing import Preprocessing
from bnfold.training import load_recipe, train, trainer
from bnfold.training.data import Dataset, load_dataset, prepare, scaling
from bnfold.training.divergence import Watch, first_layer_not_finite
from bnfold.training.duration import duration
from bnfold.training.ema import Average
from bnfold.training.execution import tf32
from bnfold.training.loop import Feed, evaluate
from bnfold.training.recipe import Data
from bnfold.training.run import Epoch, begin, best_epoch
from bnfold.training.trainer import train_in_memory
from bnfold.training.trends import norm_numbers

TINY = ["network.widths=[4, 4]", "train.epochs=2"]


def accuracies(folder: Path) -> list[float]:
    with (folder / "history.csv").open() as file:
        return [float(row["held_out_accuracy"]) for row in csv.DictReader(file)]


def test_an_average_follows_weights_and_statistics_and_copies_counts() -> None:
    network = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2))
    average = Average(network, decay=0.5)
    oracle = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    for step in range(1, 30):
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.add_(1)
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            oracle[name] = decay * oracle[name] + (1 - decay) * tensor.double().numpy()
    found = average.network.state_dict()
    assert int(found["1.num_batches_tracked"]) == 29
    for name in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert np.abs(found[name].double().numpy() - oracle[name]).max() < 1e-4
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_the_averaged_weights_are_those_that_are_saved_and_measured(recipe: Path, tmp_path: Path) -> None:
    made = train(recipe, output=tmp_path / "run", overrides=[*TINY, "train.ema=0.9"])
    plain = train(recipe, output=tmp_path / "plain", overrides=TINY)
    states = [load_file(each.path / "weights.safetensors") for each in (made, plain)]
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])
    assert not torch.equal(states[0]["features.1.running_var"], states[1]["features.1.running_var"])
    images, classes = made.held_out()
    with torch.no_grad():
        share = (made.module()(torch.from_numpy(images)).argmax(1).numpy() == classes).mean()
    assert share == pytest.approx(made.meta["metrics"]["held_out_accuracy"], abs=1e-12)


def rows(*accuracies_and_losses: tuple[float, float]) -> list[Epoch]:
    return [Epoch(n, 0.1, 1.0, 0.5, loss, right, 1.0) for n, (right, loss) in enumerate(accuracies_and_losses, 1)]


def test_the_best_epoch_is_the_most_accurate_then_the_one_of_lower_loss_then_the_first() -> None:
    assert best_epoch([]) == 0
    assert best_epoch(rows((0.5, 1), (0.9, 2), (0.8, 0.1))) == 2
    assert best_epoch(rows((0.9, 1), (0.9, 0.5), (0.9, 0.7))) == 2
    assert best_epoch(rows((0.9, 1), (0.9, 1))) == 1


def test_patience_counts_the_epochs_since_the_best(recipe: Path) -> None:
    run = begin(nn.Linear(2, 2), load_recipe(recipe, ["train.epochs=9", "train.patience=2"]), torch.device("cpu"))
    for row, is_over in zip(rows((0.5, 1), (0.6, 1), (0.5, 1), (0.55, 1)), (False, False, False, True), strict=True):
        run.add(row, norm_numbers(None, None))
        assert run.is_over is is_over


def test_the_best_weights_are_kept_when_the_recipe_says_so(recipe: Path, tmp_path: Path) -> None:
    """A learning rate at which the accuracy goes up and down."""
    wild = ["network.widths=[4, 4]", "train.epochs=8", "train.schedule=constant", "optimizer.learning_rate=2"]
    best, last = (
        train(recipe, output=tmp_path / keep, overrides=[*wild, f"train.keep={keep}"]) for keep in ("best", "last")
    )
    found = accuracies(best.path)
    assert found == accuracies(last.path)
    assert max(found) > found[-1], "nothing to choose"
    metrics = best.meta["metrics"]
    assert metrics["held_out_accuracy"] == pytest.approx(max(found), abs=1e-5)
    assert found[metrics["kept_epoch"] - 1] == max(found)
    assert metrics["epochs"] == 8
    images, classes = best.held_out()
    with torch.no_grad():
        share = (best.module()(torch.from_numpy(images)).argmax(1).numpy() == classes).mean()
    assert share == pytest.approx(max(found), abs=1e-5)
    assert last.meta["metrics"]["kept_epoch"] == 8


def test_pictures_stay_bytes_until_they_are_a_batch() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), np.uint8)
    how = Preprocessing(mode="RGB", height=4, width=4, scale=1 / 255, mean=(0.1, 0.4, 0.7), std=(0.2, 0.3, 0.4))
    data = Dataset("made", pixels, np.arange(6), np.zeros(6, bool), tuple("abcdef"), how)
    feed = Feed(data.training_part(), data, torch.device("cpu"), channels_last=True)
    assert feed.images.dtype == torch.uint8
    images, classes = feed.batch(torch.tensor([4, 1]))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert classes.tolist() == [4, 1]
    assert np.abs(images.numpy() - prepare(pixels[[4, 1]], how)).max() < 1e-6
    factor, offset = scaling(how)
    assert np.array_equal(images.numpy(), pixels[[4, 1]].astype(np.float32) * factor + offset), "to the bit"
    assert torch.equal(feed.batch(slice(6))[0][[4, 1]], images)
    assert np.array_equal(feed.images.numpy(), pixels), "what is stored stays"


@pytest.mark.parametrize("option", ["train.precision=bfloat16", "train.channels_last=true", "optimizer.clip_norm=0.5"])
def test_a_network_learns_with_every_arithmetic(recipe: Path, option: str) -> None:
    network, history = train_in_memory(load_recipe(recipe, [option]), device="cpu")
    assert history[-1].held_out_accuracy > 0.4
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in network.state_dict().values())


def test_in_memory_it_is_the_same_training_and_nothing_is_written(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = train(recipe, output=tmp_path / "run", overrides=TINY)
    monkeypatch.chdir(tmp_path)
    network, history = train_in_memory(load_recipe(recipe, TINY), device="cpu")
    state = load_file(made.path / "weights.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert [row.epoch for row in history] == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(DataError, match="the loss became"):
        train_in_memory(load_recipe(recipe, ["optimizer.learning_rate=1e6", "optimizer.weight_decay=1e6"]))


def test_gradients_are_scaled_down_to_the_norm(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain SGD at a constant rate of 1: a step is as long as its gradient, and no longer than the norm."""
    lengths = []
    step = torch.optim.SGD.step

    def measured(self: torch.optim.SGD) -> None:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        lengths.append(math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients)))
        step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", measured)
    train_in_memory(load_recipe(recipe, [*TINY, "optimizer.clip_norm=0.25"]), device="cpu")
    assert max(lengths) == pytest.approx(0.25, rel=1e-3)


def test_tf32_is_put_back() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    for allowed in (True, False):
        with tf32(allowed):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_frozen_parameters_stay_and_are_not_decayed(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(*args: object) -> nn.Module:
        network = build(*args)
        network.features[1].weight.requires_grad_(False)
        return network

    build = trainer.build_network
    monkeypatch.setattr(trainer, "build_network", frozen)
    network, _ = train_in_memory(load_recipe(recipe, [*TINY, "optimizer.weight_decay=0.1"]), device="cpu")
    assert bool((network.features[1].weight == 1).all())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (7300, "2 h 1 min")]
)
def test_time_left_is_said_as_a_person_would(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_says_speed_and_time_left_until_the_last_epoch(recipe: Path) -> None:
    lines: list[str] = []
    train_in_memory(load_recipe(recipe, TINY), device="cpu", progress=lines.append)
    assert "images/s" in lines[0]
    assert lines[0].endswith(" left")
    assert lines[-1].endswith("images/s")


# ------------------------------------------------------------------------------- trainings that cannot go on


def test_the_first_layer_that_is_not_finite_is_named_in_the_order_of_computation() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.Linear(2, 2))
    assert first_layer_not_finite(network, torch.ones(3, 2)) is None
    with torch.no_grad():
        network[1][1].bias[0] = math.inf
        network[2].bias[0] = math.nan
    assert first_layer_not_finite(network, torch.ones(3, 2)) == "1.1"
    assert not any(module._forward_hooks for module in network.modules())


def test_the_watch_tells_finite_losses_from_others() -> None:
    watch = Watch(torch.device("cpu"))
    for value, finite in ((1.0, True), (math.nan, False), (math.inf, False), (0.0, True)):
        watch.note(torch.tensor(value, requires_grad=True) * 1)
        assert watch.is_finite() is finite


class Breaking(nn.Module):
    """A layer that multiplies, with infinity from some training step on."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._left = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._left -= self.training
        return x * (math.inf if self._left < 0 else 1.0)


def breaking(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    def build_broken(*args: object) -> nn.Module:
        network = build(*args)
        network.features.append(Breaking(step))
        return network

    build = trainer.build_network
    monkeypatch.setattr(trainer, "build_network", build_broken)


def test_a_loss_that_breaks_later_leaves_the_checkpoint_of_the_last_good_epoch(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """23 steps an epoch; step 60 is in the third one."""
    good = train(recipe, output=tmp_path / "good", overrides=["train.epochs=2", "train.schedule=constant"])
    breaking(monkeypatch, 60)
    with pytest.raises(DataError) as raised:
        train(recipe, output=tmp_path / "run", overrides=["train.epochs=4", "train.schedule=constant"])
    sentence = str(raised.value)
    assert "the loss became nan in epoch 3, first in the output of the layer 'features.7'" in sentence
    assert "lower optimizer.learning_rate or set optimizer.clip_norm=1" in sentence
    assert f"the checkpoint {tmp_path / 'run'} has the weights of epoch 2" in sentence
    assert (tmp_path / "run/weights.safetensors").read_bytes() == (good.path / "weights.safetensors").read_bytes()
    assert json.loads((tmp_path / "run/checkpoint.json").read_text())["metrics"]["epochs"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "run"]


class Hungry(nn.Module):
    """A layer for which the memory is full above some batch."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines.")
        return x


@pytest.mark.parametrize(
    ("most", "words", "message"),
    [
        (20, [], "is 64, which does not fit .*; a step of 16 went through: set train.batch_size=16 or lower"),
        (2, [], "set train.batch_size=2$"),
        (1, [], "and neither does a batch of 2; take a smaller network"),
        (1, ["network.norm=group"], "set train.batch_size=1$"),
        (0, ["network.norm=group"], "and neither does a batch of 1; take a smaller network"),
        (0, ["network.norm=group", "train.batch_size=1"], "not fit the memory of the device 'cpu'; take a smaller"),
    ],
)
def test_a_batch_that_does_not_fit_says_which_one_would(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, words: list[str], message: str
) -> None:
    build = trainer.build_network
    monkeypatch.setattr(trainer, "build_network", lambda *args: nn.Sequential(Hungry(most), build(*args)))
    with pytest.raises(DataError, match=message) as raised:
        train(recipe, output=tmp_path / "run", overrides=words)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_the_network_can_be_compiled_or_says_why_not(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler itself is torch's and takes half a minute: here it is the part that hands the graph to it."""
    seen = []

    def compiled(network: nn.Module, **options: object) -> nn.Module:
        seen.append(options)
        return copy.copy(network) if len(seen) == 1 else Failing()

    class Failing(nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            import torch._dynamo.exc

            raise torch._dynamo.exc.Unsupported("a thing\nthat has many lines", "NO")

    plain, _ = train_in_memory(load_recipe(recipe, TINY), device="cpu")
    monkeypatch.setattr(torch, "compile", compiled)
    wanted = load_recipe(recipe, [*TINY, "train.compile=true"])
    network, _ = train_in_memory(wanted, device="cpu")
    assert seen == [{"dynamic": False, "mode": "default"}]
    assert torch.equal(network.head.weight, plain.head.weight)
    with pytest.raises(DataError, match=r"the network cannot be compiled: a thing; .*train\.compile=false") as raised:
        train_in_memory(wanted, device="cpu")
    assert "\n" not in str(raised.value)


def test_held_out_parts_larger_than_one_batch_are_evaluated_whole() -> None:
    data = load_dataset(Data("digits"))
    feed = Feed(data.training_part(), data, torch.device("cpu"), channels_last=False)
    assert len(feed) == 1438
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        logits = network(feed.images)
    loss, accuracy = evaluate(network, feed)
    assert accuracy == pytest.approx(float((logits.argmax(1) == feed.classes).double().mean()), abs=1e-12)
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, feed.classes)), rel=1e-5)
