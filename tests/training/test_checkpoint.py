"""A checkpoint folder is read strictly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bnfold.errors import DataError
from bnfold.training import Checkpoint, load_checkpoint


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


@pytest.mark.parametrize("name", ["weights.safetensors", "checkpoint.json"])
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
        ({"schema_version": 2}, "schema_version"),
        ({"labels": []}, "labels"),
        ({"extra": 1}, "unknown key"),
        ({"network": {"kind": "mlp", "args": {"widths": [10**9], "blocks": 1}}}, "widths"),
        ({"input": {"name": "input", "shape": [1, -8, 8], "dtype": "float32"}}, "shape"),
        ({"preprocessing": {"mode": "L"}}, "preprocessing"),
    ],
)
def test_a_document_outside_the_schema_is_refused(copy: Path, change: dict[str, Any], message: str) -> None:
    document = json.loads((copy / "checkpoint.json").read_text()) | change
    (copy / "checkpoint.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=message) as raised:
        load_checkpoint(copy)
    assert "bundle" not in str(raised.value)


def test_a_document_that_is_no_json_is_refused(copy: Path) -> None:
    (copy / "checkpoint.json").write_text("{")
    with pytest.raises(DataError, match="not strict JSON"):
        load_checkpoint(copy)


def test_an_unknown_network_is_named(copy: Path) -> None:
    document = json.loads((copy / "checkpoint.json").read_text())
    document["network"]["kind"] = "other"
    (copy / "checkpoint.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="network 'other'"):
        load_checkpoint(copy).module()
