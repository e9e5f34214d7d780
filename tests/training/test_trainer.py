"""From a recipe to a checkpoint."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from bnfold.errors import DataError
from bnfold.training import Checkpoint, load_recipe, train, trainer
from bnfold.training.data import Dataset, load_dataset
from bnfold.training.fields import describe
from bnfold.training.loop import batch_slices
from bnfold.training.optimizers import build_optimizer
from bnfold.training.recipe import Data, Train
from bnfold.training.schedules import SCHEDULES
from bnfold.training.smallest_batch import smallest_batch
from bnfold.training.trainer import train_in_memory


def test_training_learns(checkpoint: Checkpoint) -> None:
    """Four epochs of a tiny network: far from done, far above the 10% of guessing."""
    assert checkpoint.meta["metrics"]["held_out_accuracy"] > 0.5
    assert checkpoint.meta["metrics"]["train_loss"] < np.log(10)


def test_the_recorded_accuracy_is_that_of_the_stored_weights(checkpoint: Checkpoint) -> None:
    images, classes = checkpoint.held_out()
    with torch.no_grad():
        answers = checkpoint.module()(torch.from_numpy(images)).argmax(1).numpy()
    assert (answers == classes).mean() == pytest.approx(checkpoint.meta["metrics"]["held_out_accuracy"], abs=1e-12)


def test_the_statistics_of_the_norms_are_trained(checkpoint: Checkpoint) -> None:
    state = load_file(checkpoint.path / "weights.safetensors")
    for name in ("features.1", "features.4"):
        assert (state[f"{name}.running_mean"] != 0).all()
        assert (state[f"{name}.running_var"] != 1).all()
        assert (state[f"{name}.weight"] != 1).any()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(recipe: Path, checkpoint: Checkpoint) -> None:
    again = train(
        recipe, output=recipe.parent / "again"
    )  # after another one in this process, which must leave no trace
    other = train(recipe, output=recipe.parent / "other", overrides=["seed=1"])
    states = [load_file(item.path / "weights.safetensors") for item in (checkpoint, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_training_leaves_the_global_generator_and_thread_count_alone(recipe: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    train(recipe, output=tmp_path / "run", overrides=["train.epochs=1"])
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_history_and_picture_are_written(checkpoint: Checkpoint) -> None:
    with (checkpoint.path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["held_out_accuracy"]) == pytest.approx(
        checkpoint.meta["metrics"]["held_out_accuracy"], abs=1e-5
    )
    with Image.open(checkpoint.path / "curves.png") as picture:
        assert picture.width > 500


def test_progress_has_a_line_an_epoch(recipe: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train(recipe, output=tmp_path / "run", overrides=["train.epochs=3"], progress=lines.append)
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_every_network_trains(recipe: Path, tmp_path: Path, kind: str) -> None:
    made = train(recipe, output=tmp_path / "run", overrides=[f"network.kind={kind}", "train.epochs=1"])
    assert made.module()(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_runs_are_counted_up(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [train(recipe, overrides=["train.epochs=1"]).path for _ in range(2)]
    assert made == [Path("runs/quick/1"), Path("runs/quick/2")]


def test_an_existing_folder_is_not_overwritten(recipe: Path, checkpoint: Checkpoint) -> None:
    before = (checkpoint.path / "weights.safetensors").read_bytes()
    with pytest.raises(DataError, match="exists"):
        train(recipe, output=checkpoint.path)
    assert (checkpoint.path / "weights.safetensors").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_without_a_checkpoint(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the loss became"):
        train(recipe, output=tmp_path / "run", overrides=["optimizer.learning_rate=1e6", "optimizer.weight_decay=1e6"])
    assert list(tmp_path.iterdir()) == []


def test_a_network_broken_by_its_last_step_leaves_no_checkpoint(recipe: Path, tmp_path: Path) -> None:
    """One step an epoch: the training loss is that of the initial weights, finite."""
    faults = ["train.epochs=1", "train.batch_size=2000", "train.schedule=constant", "network.widths=[4,4,4,4,4,4,4,4]"]
    faults += ["optimizer.learning_rate=1e6", "optimizer.weight_decay=1e6"]
    with pytest.raises(DataError, match="the held-out loss became"):
        train(recipe, output=tmp_path / "run", overrides=faults)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_before_training(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lines: list[str] = []
    with pytest.raises(DataError, match="is no folder that may be written to"):
        train(recipe, output=tmp_path / "file" / "run", progress=lines.append)
    assert lines == []


def test_a_number_that_another_run_took_meanwhile_is_passed_over(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "runs" / "quick" / "1"
    made = train(recipe, overrides=["train.epochs=1"], progress=lambda _: other.mkdir(parents=True))
    assert made.path == Path("runs/quick/2")
    assert list(other.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_one_sentence(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="finds no CUDA device"):
        train(recipe, output=tmp_path / "run", device="cuda")


def test_held_out_samples_are_every_fifth_and_not_trained_on() -> None:
    data = load_dataset(Data("digits"))
    assert data.held_out.sum() == 359
    assert np.flatnonzero(data.held_out)[:3].tolist() == [4, 9, 14]
    assert len(data.training_part()[0]) + len(data.held_out_part()[0]) == 1797
    assert set(np.unique(data.held_out_part()[1])) == set(range(10))


def test_held_out_samples_do_not_touch_the_weights(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With noise for the held-out digits the weights are the same; with one training digit changed they are not."""

    def trained(name: str, spoilt: Dataset) -> bytes:
        monkeypatch.setattr(trainer, "load_dataset", lambda *_: spoilt)
        made = train(recipe, output=tmp_path / name, overrides=["train.epochs=1"])
        return (made.path / "weights.safetensors").read_bytes()

    def spoil(where: np.ndarray) -> Dataset:
        images = data.images.copy()
        images[where] = np.random.default_rng(0).random(images[where].shape, dtype=np.float32)
        return dataclasses.replace(data, images=images)

    data = load_dataset(Data("digits"))
    plain = trained("plain", data)
    assert trained("held-out", spoil(data.held_out)) == plain
    assert trained("one", spoil(np.arange(len(data.images)) == 0)) != plain


def test_every_option_of_the_loop_has_its_effect(recipe: Path) -> None:
    options = [
        "optimizer.kind=adamw", "optimizer.momentum=0.5", "optimizer.weight_decay=0.1", "train.schedule=cosine",
        "train.label_smoothing=0.1", "train.batch_size=32", "augmentation.shift=0", "augmentation.flip=true",
        "augmentation.cutout=3", "optimizer.clip_norm=0.5", "train.ema=0.9", "train.precision=bfloat16",
    ]  # fmt: skip
    networks = [
        train_in_memory(load_recipe(recipe, ["train.epochs=1", *option]), device="cpu")[0]
        for option in ([], *([each] for each in options))
    ]
    weights = {network.head.weight.detach().numpy().tobytes() for network in networks}
    assert len(weights) == len(networks)


def test_norms_and_biases_do_not_decay(recipe: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    for kind in ("sgd", "adamw"):
        wanted = load_recipe(recipe, [f"optimizer.kind={kind}"]).optimizer
        decay = {
            id(p): group["weight_decay"]
            for group in build_optimizer(network, wanted).param_groups
            for p in group["params"]
        }
        found = {name: decay[id(parameter)] for name, parameter in network.named_parameters()}
        assert found == {"0.weight": 0.0005, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0}


def test_a_norm_and_a_bias_of_the_shape_of_a_picture_do_not_decay_either(recipe: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.LayerNorm((4, 8, 8)))
    network[0].bias = torch.nn.Parameter(torch.zeros(4, 1, 1))
    decays, spares = build_optimizer(network, load_recipe(recipe, ["optimizer.kind=sgd"]).optimizer).param_groups
    assert [id(each) for each in decays["params"]] == [id(network[0].weight)]
    assert (len(spares["params"]), spares["weight_decay"]) == (3, 0.0)


@pytest.mark.parametrize(
    ("schedule", "first", "peak", "last"),
    [("one_cycle", 0.05, 20, 0.0125), ("cosine", 1, 0, (1 + np.cos(0.99 * np.pi)) / 2), ("constant", 1, 0, 1)],
)
def test_the_learning_rate_follows_the_schedule(schedule: str, first: float, peak: int, last: float) -> None:
    factors = [SCHEDULES[schedule](step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(first)
    assert factors[peak] == max(factors) == 1
    assert factors[-1] == pytest.approx(last)


def test_every_schedule_of_a_recipe_is_there() -> None:
    (key,) = (each for each in describe(Train) if each.name == "schedule")
    assert set(key.choices) == set(SCHEDULES)


def test_every_step_has_the_rate_of_the_schedule(recipe: Path, tmp_path: Path) -> None:
    """The history has the rate of each epoch's first step: 45 steps in all, of which 9 go up."""
    made = train(recipe, output=tmp_path / "run", overrides=["train.batch_size=100", "train.epochs=3"])
    with (made.path / "history.csv").open() as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([0.1 * SCHEDULES["one_cycle"](step, 45) for step in (0, 15, 30)], rel=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_auto_is_the_cpu_without_a_device(checkpoint: Checkpoint) -> None:
    assert checkpoint.meta["metrics"]["device"] == "cpu"


def test_an_unknown_device_is_one_sentence(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected auto, cpu or cuda"):
        train(recipe, output=tmp_path / "run", device="tpu")


FEW = ["data.name=synthetic", "data.count=40", "data.size=8", "train.epochs=1", "train.batch_size=1"]


@pytest.mark.parametrize("norm", ["none", "layer", "group", "instance", "frozen_batch"])
def test_a_norm_without_the_batch_trains_on_one_sample_at_a_time(recipe: Path, norm: str) -> None:
    network, (row,) = train_in_memory(load_recipe(recipe, [*FEW, f"network.norm={norm}"]))
    again, _ = train_in_memory(load_recipe(recipe, [*FEW, f"network.norm={norm}", "train.batch_size=2"]))
    assert np.isfinite([row.train_loss, row.held_out_loss]).all()
    assert not torch.equal(network.state_dict()["head.weight"], again.state_dict()["head.weight"])


@pytest.mark.parametrize("kind", ["mlp", "plain_cnn"])
@pytest.mark.parametrize("norm", ["batch", "batch_renorm", "handwritten"])
def test_a_norm_of_the_batch_is_refused_one_sample_at_a_time(
    recipe: Path, tmp_path: Path, kind: str, norm: str
) -> None:
    words = [*FEW, f"network.kind={kind}", f"network.norm={norm}"]
    sentence = r"train.batch_size is 1, and the norm 'features.1' .* beta, .*; set train.batch_size to 2 or more"
    with pytest.raises(DataError, match=sentence) as raised:
        train(recipe, output=tmp_path / "run", overrides=words)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_norm_that_stays_in_eval_takes_nothing_from_the_batch() -> None:
    class Frozen(nn.BatchNorm2d):
        def train(self, _: bool = True) -> Frozen:
            return super().train(False)

    assert [smallest_batch(nn.Sequential(norm)) for norm in (Frozen(2), nn.BatchNorm2d(2))] == [1, 2]


def test_batches_of_one_are_of_one_and_no_other_has_a_single_sample() -> None:
    assert [batch.stop - batch.start for batch in batch_slices(3, 1)] == [1, 1, 1]
    assert [batch.stop - batch.start for batch in batch_slices(65, 32)] == [32, 33]
    assert [batch.stop - batch.start for batch in batch_slices(66, 32)] == [32, 32, 2]
