"""A checkpoint folder is read strictly."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bnfold.errors import DataError
from bnfold.preprocessing import decode_image
from bnfold.training import Checkpoint, load_checkpoint
from bnfold.training.run import Epoch
from bnfold.training.saving import save_checkpoint
from bnfold.training.trends import NUMBERS, Trends


@pytest.fixture
def copy(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint.path, tmp_path / "copy"))


def test_reads_what_was_written(checkpoint: Checkpoint, copy: Path) -> None:
    again = load_checkpoint(copy)
    assert again.meta == checkpoint.meta
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.module()(x), checkpoint.module()(x))
    assert not again.module().training


@pytest.mark.parametrize("name", ["weights.safetensors", "checkpoint.json", "held_out.safetensors"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(DataError, match=name):
        load_checkpoint(copy)


def test_a_file_is_no_checkpoint(copy: Path) -> None:
    with pytest.raises(DataError, match="is no checkpoint"):
        load_checkpoint(copy / "checkpoint.json")


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "weights.safetensors")
    edit(state)
    save_file(state, folder / "weights.safetensors")


def edit_document(folder: Path, change: dict[str, Any]) -> None:
    document = json.loads((folder / "checkpoint.json").read_text()) | change
    (folder / "checkpoint.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("head.bias"), "has no tensor 'head.bias'"),
        (lambda state: state.update(extra=torch.zeros(1)), "has the tensor 'extra'"),
        (lambda state: state.update({"head.bias": torch.zeros(3)}), "'head.bias'"),
        (lambda state: state.update({"head.bias": torch.zeros(10, dtype=torch.float64)}), "'head.bias'"),
    ],
)
def test_weights_must_fit_tensor_for_tensor(copy: Path, edit: Callable[..., Any], message: str) -> None:
    edit_weights(copy, edit)
    with pytest.raises(DataError, match=message):
        load_checkpoint(copy).module()


def test_damaged_weights_are_one_sentence(copy: Path) -> None:
    (copy / "weights.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(DataError, match="no safetensors file"):
        load_checkpoint(copy).module()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "schema_version"),
        ({"labels": []}, "labels"),
        ({"labels": ["\x1b[31mred", *"123456789"]}, "a list of printable texts"),
        ({"extra": 1}, "unknown key"),
        ({"network": {"kind": "mlp", "args": {"widths": [10**9]}}}, "widths"),
        ({"network": {"kind": "resnet", "args": {"widths": [1] * 1000, "blocks": 1}}}, "widths"),
        ({"network": {"kind": "resnet", "args": {"widths": [1], "blocks": 10**6}}}, "blocks"),
        ({"network": {"kind": "other", "args": {"widths": [1], "blocks": 1}}}, "'other' as 'kind'"),
        ({"network": {"kind": "mlp", "args": {"widths": [8], "depth": 1}}}, "unknown key 'depth'"),
        ({"network": {"kind": "mlp", "args": {}}}, "no key 'widths'"),
        ({"network": {"kind": "mlp", "args": [8]}}, "an object"),
        ({"name": "../up"}, "no dot first"),
        ({"data": ""}, "'' as 'data'"),
        ({"metrics": 5}, "metrics"),
        ({"input": {"name": "input", "shape": [1, 16384, 16384], "dtype": "float32"}}, "shape"),
        ({"input": {"name": "input", "shape": [1, -8, 8], "dtype": "float32"}}, "shape"),
        ({"preprocessing": {"mode": "L"}}, "preprocessing"),
    ],
)
def test_a_document_outside_the_schema_is_refused(copy: Path, change: dict[str, Any], message: str) -> None:
    edit_document(copy, change)
    with pytest.raises(DataError, match=message) as raised:
        load_checkpoint(copy)
    assert "bundle" not in str(raised.value)


def test_a_document_that_is_no_json_is_refused(copy: Path) -> None:
    (copy / "checkpoint.json").write_text("{")
    with pytest.raises(DataError, match="not strict JSON"):
        load_checkpoint(copy)


def test_a_document_that_asks_for_terabytes_is_refused_by_the_tensors_that_are_there(copy: Path) -> None:
    edit_document(copy, {"network": {"kind": "mlp", "args": {"widths": [65536] * 64}}})
    with pytest.raises(DataError, match=r"features\.\d+\.weight"):
        load_checkpoint(copy).module()


def test_held_out_samples_of_another_shape_than_the_input_are_refused(copy: Path) -> None:
    picture = {"mode": "L", "height": 4, "width": 4, "scale": 1.0, "mean": [0.0], "std": [1.0]}
    edit_document(copy, {"preprocessing": picture, "input": {"name": "input", "shape": [1, 4, 4], "dtype": "float32"}})
    with pytest.raises(DataError, match=r"no images of \[1, 4, 4\]"):
        load_checkpoint(copy).held_out()


@pytest.mark.parametrize(
    ("images", "classes", "message"),
    [
        (torch.zeros(3, 1, 8, 8), torch.tensor([0, 1]), "for 3 images"),
        (torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 10]), "one of 0 to 9"),
        (torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, -1]), "one of 0 to 9"),
        (torch.zeros(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2]), "float64"),
        (torch.zeros(3, 1, 8, 8), torch.tensor([0.0, 1.0, 2.0]), "int64 classes"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64), "no images"),
        (None, torch.tensor([0]), "no images"),
    ],
)
def test_held_out_samples_that_do_not_fit_are_refused(
    copy: Path, images: torch.Tensor | None, classes: torch.Tensor, message: str
) -> None:
    tensors = {"classes": classes} if images is None else {"images": images, "classes": classes}
    save_file(tensors, copy / "held_out.safetensors")
    with pytest.raises(DataError, match=message):
        load_checkpoint(copy).held_out()


def test_held_out_pictures_are_prepared_as_a_served_picture_is(copy: Path) -> None:
    picture = {"mode": "L", "height": 8, "width": 8, "scale": 1 / 255, "mean": [0.3], "std": [0.2]}
    edit_document(copy, {"preprocessing": picture})
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8)
    save_file({"images": torch.from_numpy(pixels), "classes": torch.tensor([0, 1, 2])}, copy / "held_out.safetensors")
    images, _ = load_checkpoint(copy).held_out()
    for at in range(3):
        data = io.BytesIO()
        Image.fromarray(pixels[at, 0]).save(data, "PNG")
        assert np.array_equal(images[at], decode_image(data.getvalue(), load_checkpoint(copy).preprocessing))


def test_a_loaded_network_does_not_share_memory_with_the_file_or_another_load(checkpoint: Checkpoint) -> None:
    first = checkpoint.module()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert any(parameter.abs().sum() > 0 for parameter in checkpoint.module().parameters())
    assert all(not tensor.is_meta for tensor in first.state_dict().values())


def test_of_many_held_out_samples_those_that_are_kept_are_spread_over_all(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnfold.training.saving._MOST_BYTES", 20 * 64)
    classes = np.repeat(np.arange(10), 100)  # sorted, as a folder a class gives them
    images = np.zeros((1000, 1, 8, 8), np.uint8)
    epoch = Epoch(1, 0.1, 1.0, 0.5, 1.0, 0.5, 1.0)
    trends = Trends((), np.zeros((1, 0, len(NUMBERS))), 1)
    made = save_checkpoint(tmp_path / "new", checkpoint.module(), checkpoint.meta, [epoch], (images, classes), trends)
    kept_images, kept_classes = made.held_out()
    assert len(kept_images) == len(kept_classes) == 20
    assert set(kept_classes.tolist()) == set(range(10))
