"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bnfold.errors import DataError
from bnfold.training import load_recipe, train, trainer
from bnfold.training.data import load_dataset
from bnfold.training.recipe import Data
from bnfold.training.run import best_epoch
from bnfold.training.snapshot import check_same
from bnfold.training.trainer import train_in_memory

SHORT = ["train.epochs=4", "network.widths=[4, 4]"]
# What makes the state larger: each adds tensors or random numbers to it.
RICH = [
    "optimizer.kind=adamw", "optimizer.learning_rate=0.01", "train.ema=0.9", "train.keep=best",
    "augmentation.flip=true", "augmentation.cutout=2", "train.schedule=cosine",
]  # fmt: skip


class Stop(Exception):
    """What ends a run in the middle, in place of a signal."""


def stop_after(epoch: int) -> Callable[[str], None]:
    def progress(line: str) -> None:
        if line.startswith(f"epoch {epoch}/"):
            raise Stop

    return progress


def stopped(recipe: Path, folder: Path, epoch: int, overrides: list[str]) -> Path:
    with pytest.raises(Stop):
        train(recipe, output=folder, overrides=overrides, progress=stop_after(epoch))
    assert not folder.exists()
    return folder.with_name(folder.name + ".partial") / "snapshot.safetensors"


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("more", [[], ["optimizer.momentum=0.0"], RICH], ids=["plain", "no momentum", "rich"])
def test_a_resumed_run_gives_the_bits_of_one_that_was_not_stopped(
    recipe: Path, tmp_path: Path, more: list[str]
) -> None:
    overrides = SHORT + more
    whole = train(recipe, output=tmp_path / "whole", overrides=overrides)
    for epoch in (1, 3):
        folder = tmp_path / f"after {epoch}"
        stopped(recipe, folder, epoch, overrides)
        made = train(recipe, resume=folder, overrides=overrides)
        assert weights(made.path) == weights(whole.path)
        metrics = [dict(each.meta["metrics"], seconds=0) for each in (made, whole)]
        assert metrics[0] == metrics[1]
        assert not folder.with_name(folder.name + ".partial").exists()


def test_the_best_weights_so_far_are_resumed_with(recipe: Path, tmp_path: Path) -> None:
    """At a learning rate of 2 the accuracy goes up and down: the run is stopped where it has gone down."""
    wild = [*SHORT, "train.epochs=8", "train.schedule=constant", "optimizer.learning_rate=2", "train.keep=best"]
    _, history = train_in_memory(load_recipe(recipe, wild), device="cpu")
    worse = next(row.epoch for row in history[:-1] if best_epoch(history[: row.epoch]) < row.epoch)
    whole = train(recipe, output=tmp_path / "whole", overrides=wild)
    path = stopped(recipe, tmp_path / "run", worse, wild)
    assert "kept/head.bias" in load_file(path)
    assert weights(train(recipe, resume=tmp_path / "run", overrides=wild).path) == weights(whole.path)


@pytest.mark.parametrize("norm", ["batch_renorm", "handwritten"])
def test_norms_with_a_state_of_their_own_resume_with_it(recipe: Path, tmp_path: Path, norm: str) -> None:
    overrides = [*SHORT, f"network.norm={norm}"]
    whole = train(recipe, output=tmp_path / "whole", overrides=overrides)
    stopped(recipe, tmp_path / "run", 2, overrides)
    assert weights(train(recipe, resume=tmp_path / "run", overrides=overrides).path) == weights(whole.path)


def test_a_network_that_draws_random_numbers_resumes_with_them(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dropping(*args: object) -> torch.nn.Module:
        network = build(*args)
        network.features.append(torch.nn.Dropout(0.5))
        return network

    build = trainer.build_network
    monkeypatch.setattr(trainer, "build_network", dropping)
    whole = train(recipe, output=tmp_path / "whole", overrides=SHORT)
    stopped(recipe, tmp_path / "run", 2, SHORT)
    torch.rand(1)
    assert weights(train(recipe, resume=tmp_path / "run", overrides=SHORT).path) == weights(whole.path)


def test_the_folder_beside_the_checkpoint_names_the_run_as_well(recipe: Path, tmp_path: Path) -> None:
    path = stopped(recipe, tmp_path / "run", 2, SHORT)
    assert train(recipe, resume=path.parent, overrides=SHORT).path == tmp_path / "run"


def test_a_run_that_was_stopped_after_its_checkpoint_was_there_is_finished(recipe: Path, tmp_path: Path) -> None:
    made = train(recipe, output=tmp_path / "run", overrides=SHORT)
    (tmp_path / "run.partial").mkdir()
    assert train(recipe, resume=tmp_path / "run", overrides=SHORT).meta == made.meta
    assert not (tmp_path / "run.partial").exists()
    with pytest.raises(DataError, match=r"'train\.epochs'"):
        train(recipe, resume=tmp_path / "run", overrides=[*SHORT, "train.epochs=5"])


def test_a_run_that_was_stopped_before_its_first_epoch_begins_again(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run.partial").mkdir()
    whole = train(recipe, output=tmp_path / "whole", overrides=SHORT)
    assert weights(train(recipe, resume=tmp_path / "run", overrides=SHORT).path) == weights(whole.path)


def test_snapshots_are_as_far_apart_as_the_recipe_says(recipe: Path, tmp_path: Path) -> None:
    overrides = [*SHORT, "train.snapshot=2"]
    whole = train(recipe, output=tmp_path / "whole", overrides=overrides)
    path = stopped(recipe, tmp_path / "run", 3, overrides)
    with safe_open(path, framework="pt") as file:
        assert len(json.loads(file.metadata()["snapshot"])["history"]) == 2
    assert weights(train(recipe, resume=tmp_path / "run", overrides=overrides).path) == weights(whole.path)


@pytest.mark.parametrize(
    ("other", "key"),
    [("seed=1", "seed"), ("train.epochs=5", "train.epochs"), ("network.widths=[4, 5]", "network.args.widths")],
)
def test_another_recipe_is_refused_with_the_key_that_differs(
    recipe: Path, tmp_path: Path, other: str, key: str
) -> None:
    path = stopped(recipe, tmp_path / "run", 1, SHORT)
    before = path.read_bytes()
    with pytest.raises(DataError, match=rf"as '{key}', but the run to be resumed at .*run\.partial has"):
        train(recipe, resume=tmp_path / "run", overrides=[*SHORT, other])
    assert path.read_bytes() == before


def test_true_is_another_argument_than_one() -> None:
    with pytest.raises(DataError, match=r"has True as 'network\.args\.deep', but .* has 1;"):
        check_same(Path("run"), {"network": {"args": {"deep": True}}}, {"network": {"args": {"deep": 1}}})


def test_a_key_that_is_younger_than_the_run_was_at_its_default() -> None:
    def recipe(**more: object) -> dict[str, object]:
        return {"network": {"kind": "resnet", "args": {"widths": [4], **more}}, "train": {"epochs": 3}}

    check_same(Path("run"), recipe(block="basic") | {"augmentation": {"flip": False}}, recipe())
    with pytest.raises(DataError, match=r"has 'bottleneck' as 'network\.args\.block', but .* has 'basic';"):
        check_same(Path("run"), recipe(block="bottleneck"), recipe())
    with pytest.raises(DataError, match=r"has \[8\] as 'network\.args\.widths'"):
        check_same(Path("run"), recipe(widths=[8]), recipe())


def test_a_run_that_is_older_than_a_key_goes_on(recipe: Path, tmp_path: Path) -> None:
    made = train(recipe, output=tmp_path / "run", overrides=SHORT)
    meta = json.loads((made.path / "checkpoint.json").read_text())
    del meta["recipe"]["network"]["args"]["bias"], meta["recipe"]["augmentation"]["cutout"]
    (made.path / "checkpoint.json").write_text(json.dumps(meta))
    (tmp_path / "run.partial").mkdir()
    assert train(recipe, resume=tmp_path / "run", overrides=SHORT).path == made.path


def test_other_data_are_refused(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(recipe, tmp_path / "run", 1, SHORT)
    data = load_dataset(Data("digits"))
    spoilt = dataclasses.replace(data, images=np.roll(data.images, 1, axis=0))
    monkeypatch.setattr(trainer, "load_dataset", lambda *_: spoilt)
    with pytest.raises(DataError, match="the data set 'digits' has other images"):
        train(recipe, resume=tmp_path / "run", overrides=SHORT)


def test_a_new_run_does_not_write_over_one_that_was_stopped(recipe: Path, tmp_path: Path) -> None:
    path = stopped(recipe, tmp_path / "run", 1, SHORT)
    before = path.read_bytes()
    with pytest.raises(DataError, match="holds a run that was stopped; go on with --resume"):
        train(recipe, output=tmp_path / "run", overrides=SHORT)
    assert path.read_bytes() == before


@pytest.mark.parametrize("apart", [1, 9])
def test_a_run_that_is_under_way_is_left_alone_by_others(recipe: Path, tmp_path: Path, apart: int) -> None:
    sets, refused = [*SHORT, f"train.snapshot={apart}"], []

    def others(_line: str) -> None:
        for how in ({"output": tmp_path / "run"}, {"resume": tmp_path / "run"}):
            with pytest.raises(DataError, match=r"another training is writing to .*run\.partial; wait for its end"):
                train(recipe, overrides=sets, **how)  # type: ignore[arg-type]
            refused.append(how)

    made = train(recipe, output=tmp_path / "run", overrides=sets, progress=others)
    assert len(refused) == 8
    assert made.meta["metrics"]["epochs"] == 4


def test_a_counted_run_passes_over_one_that_was_stopped(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stop):
        train(recipe, overrides=SHORT, progress=stop_after(1))
    assert train(recipe, overrides=SHORT).path == Path("runs/quick/2")
    assert train(recipe, overrides=SHORT, resume="runs/quick/1").path == Path("runs/quick/1")


@pytest.mark.parametrize("folder", ["nothing", "recipe.toml", "/", "."])
def test_what_is_no_run_is_one_sentence(recipe: Path, tmp_path: Path, folder: str) -> None:
    with pytest.raises(DataError) as raised:
        train(recipe, resume=tmp_path / folder)
    assert "\n" not in str(raised.value)


def test_a_new_folder_and_one_to_resume_are_not_both_taken(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected one of them"):
        train(recipe, output=tmp_path / "a", resume=tmp_path / "b")


def edit(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, object]], object]) -> None:
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["snapshot"])
    tensors = load_file(path)
    change(tensors, document)
    save_file(tensors, path, {"snapshot": json.dumps(document)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, _: tensors.pop("network/head.bias"), "has no tensor 'network/head.bias'"),
        (lambda tensors, _: tensors.pop("random/data"), "has no tensor 'random/data'"),
        (lambda tensors, _: tensors.update({"network/more": torch.zeros(1)}), "has the tensor 'network/more'"),
        (lambda tensors, _: tensors.update({"optimizer/x/step": torch.zeros(1)}), "has the tensor 'optimizer/x/step'"),
        (
            lambda tensors, _: tensors.pop("optimizer/head.bias/momentum_buffer"),
            None,
        ),
        (lambda tensors, _: tensors.update({"network/head.bias": torch.zeros(3)}), "'network/head.bias' is"),
        (lambda tensors, _: tensors.update({"random/data": torch.zeros(3, dtype=torch.uint8)}), "'random/data' is"),
        (lambda tensors, _: tensors["random/data"].fill_(255), "no state of random numbers"),
        (lambda tensors, _: tensors.pop("trends/norms"), "has no tensor 'trends/norms'"),
        (lambda tensors, _: tensors.update({"trends/norms": torch.zeros(2, 2, 10).double()}), "'trends/norms' is"),
        (lambda _, document: document.update(schema_version=2), "schema_version"),
        (lambda _, document: document.update(history=[{}]), "no key 'epoch'"),
        (lambda _, document: document["history"].append(document["history"][0]), "'epoch'"),
        (lambda _, document: document["history"][0].update(seconds="1"), "'seconds'"),
        (lambda _, document: document.update(recipe=[]), "'recipe'"),
    ],
)
def test_a_snapshot_that_is_not_as_it_was_written_is_refused(
    recipe: Path, tmp_path: Path, change: Callable[..., object], message: str | None
) -> None:
    path = stopped(recipe, tmp_path / "run", 1, SHORT)
    edit(path, change)
    before = path.read_bytes()
    if message is None:  # a parameter without a gradient so far has no state
        train(recipe, resume=tmp_path / "run", overrides=SHORT)
        return
    with pytest.raises(DataError) as raised:
        train(recipe, resume=tmp_path / "run", overrides=SHORT)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("steps", [-1.0, float("nan")])
def test_a_snapshot_of_no_steps_is_refused(recipe: Path, tmp_path: Path, steps: float) -> None:
    path = stopped(recipe, tmp_path / "run", 1, SHORT + RICH)
    edit(path, lambda tensors, _: tensors["optimizer/head.bias/step"].fill_(steps))
    with pytest.raises(DataError, match="has an optimiser that has taken less than one step; remove it"):
        train(recipe, resume=tmp_path / "run", overrides=SHORT + RICH)


@pytest.mark.parametrize("size", [0, 7, 1000, -10])
def test_a_snapshot_that_was_cut_short_is_refused(recipe: Path, tmp_path: Path, size: int) -> None:
    path = stopped(recipe, tmp_path / "run", 1, SHORT)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="is no snapshot of a training"):
        train(recipe, resume=tmp_path / "run", overrides=SHORT)


def test_tensors_without_a_document_are_no_snapshot(recipe: Path, tmp_path: Path) -> None:
    path = stopped(recipe, tmp_path / "run", 1, SHORT)
    save_file(load_file(path), path)
    with pytest.raises(DataError, match="is no snapshot of a training"):
        train(recipe, resume=tmp_path / "run", overrides=SHORT)
