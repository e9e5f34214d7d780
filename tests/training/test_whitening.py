"""The first layer of the speed run, computed from the data that it is trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import bnfold
from bnfold.training import load_checkpoint, train
from bnfold.training.data import Dataset, load_dataset
from bnfold.training.networks import build_network
from bnfold.training.recipe import Data
from bnfold.training.whitening import FLOOR, PICTURES, whitening_kernels

WHITENED = ["network.kind=airbench", "network.widths=[4, 6]", "network.whiten=true", "train.epochs=2", "train.ema=0.5"]
FIRST = "features.0.weight"


def coloured(count: int = 60) -> Dataset:
    """Pictures whose neighbouring pixels and channels go together; every fifth one is another, and held out."""
    data = load_dataset(Data("synthetic", count=count, size=8, classes=2))
    random = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(random.normal(size=(count, 1, 8, 8)), 2), 3) * np.array([1, 0.8, -0.5])[:, None, None]
    levels = np.clip(128 + 12 * smooth + random.normal(0, 4, data.images.shape), 0, 255).astype(np.uint8)
    held_out = np.arange(count) % 5 == 4
    levels[held_out] = 255 - levels[held_out] // 3
    return replace(data, images=levels, held_out=held_out)


def patches(data: Dataset) -> torch.Tensor:
    """Of 2x2, of the pictures that are trained on."""
    picture = data.preprocessing
    mean, std = (np.array(part)[:, None, None] for part in (picture.mean, picture.std))
    images = (data.images[~data.held_out] * picture.scale - mean) / std
    return F.unfold(torch.from_numpy(images), 2).transpose(1, 2).flatten(0, 1)


def test_what_comes_out_has_variance_one_and_no_two_go_together() -> None:
    data = coloured()
    rows = patches(data)
    before = torch.cov(rows.T)
    assert float(before.fill_diagonal_(0).abs().max()) > 0.5, "there is something to whiten"
    kernels = whitening_kernels(data, 2).double()
    assert kernels.shape == (24, 3, 2, 2)
    assert torch.equal(kernels[:12], -kernels[12:])
    variances = torch.linalg.eigvalsh(torch.cov(rows.T)).flip(0)
    after = torch.cov((rows @ kernels[:12].flatten(1).T).T)
    assert torch.allclose(after, torch.diag(variances / (variances + FLOOR)), atol=1e-4)


def test_a_picture_that_never_changes_makes_no_kernel_infinite() -> None:
    data = coloured()
    kernels = whitening_kernels(replace(data, images=np.full_like(data.images, 7)), 2)
    assert bool(kernels.isfinite().all())
    assert float(kernels.abs().max()) <= FLOOR**-0.5 * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_pictures_that_are_there_mirrored_too_give_the_same_kernels_in_any_order(seed: int) -> None:
    data = load_dataset(Data("synthetic", count=40, size=8, classes=2, mode="L"))
    random = np.random.default_rng(seed)
    smooth = np.cumsum(np.cumsum(random.normal(size=(10, 1, 8, 8)), 2), 3)
    some = np.clip(128 + 12 * smooth, 0, 255).astype(np.uint8)
    all_ways = np.concatenate([some, some[..., ::-1], some[:, :, ::-1], some[:, :, ::-1, ::-1]])
    first, second = (
        whitening_kernels(replace(data, images=all_ways[order], held_out=np.zeros(40, bool)), 2)
        for order in (np.arange(40), random.permutation(40))
    )
    assert torch.allclose(first, second, atol=1e-4)


def test_only_what_is_trained_on_is_looked_at_and_of_many_pictures_some() -> None:
    data = coloured()
    other = data.images.copy()
    other[data.held_out] = 0
    assert torch.equal(whitening_kernels(data, 2), whitening_kernels(replace(data, images=other), 2))
    other[~data.held_out] //= 2
    assert not torch.equal(whitening_kernels(data, 2), whitening_kernels(replace(data, images=other), 2))
    # Of twice as many as are taken, every second one.
    many = np.tile(data.images[~data.held_out][:1], (2 * PICTURES, 1, 1, 1))
    many[: PICTURES // 2] = data.images[0] // 2
    none = np.zeros(len(many), bool)
    few = replace(data, images=many[::2], held_out=none[::2])
    found = whitening_kernels(replace(data, images=many, held_out=none), 2)
    assert torch.allclose(found, whitening_kernels(few, 2), rtol=1e-4)


def test_the_layer_stays_as_it_was_computed_and_its_bias_learns(recipe: Path, tmp_path: Path) -> None:
    made = train(recipe, output=tmp_path / "made", overrides=WHITENED)
    state = load_file(made.path / "weights.safetensors")
    assert torch.equal(state[FIRST], whitening_kernels(load_dataset(Data("digits")), 2))
    assert bool(state["features.0.bias"].any())
    network = load_checkpoint(made.path).module()
    assert torch.equal(network.state_dict()[FIRST], state[FIRST])
    report = bnfold.fold(network, (torch.rand(2, 1, 8, 8),)).report
    assert report.counts["folded"] == len(report.norms) == 4


def test_nothing_of_it_is_computed_unless_it_is_asked_for(recipe: Path, tmp_path: Path) -> None:
    made = train(recipe, output=tmp_path / "made", overrides=[*WHITENED, "network.whiten=false"])
    state = load_file(made.path / "weights.safetensors")
    assert not torch.equal(state[FIRST][:4], -state[FIRST][4:])
    torch.manual_seed(0)
    begun = build_network("airbench", (1, 8, 8), 10, {"widths": [4, 6]}).state_dict()
    assert not torch.equal(state[FIRST], begun[FIRST]), "it learns"


def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(recipe: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        """What ends a run in the middle."""

    def stop(_: str) -> None:
        raise Stop

    whole = train(recipe, output=tmp_path / "whole", overrides=WHITENED)
    with pytest.raises(Stop):
        train(recipe, output=tmp_path / "stopped", overrides=WHITENED, progress=stop)
    again = train(recipe, resume=tmp_path / "stopped", overrides=WHITENED)
    name = "weights.safetensors"
    assert (again.path / name).read_bytes() == (whole.path / name).read_bytes()
