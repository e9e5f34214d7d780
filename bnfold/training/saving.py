"""Writing a checkpoint folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from bnfold.preprocessing import Preprocessing
from bnfold.training.checkpoint import HELD_OUT, META, WEIGHTS, Checkpoint, load_checkpoint, read_tensors
from bnfold.training.curves import draw_curves, read_history, write_history
from bnfold.training.data import Array, prepare
from bnfold.training.folders import read_text, write_folder
from bnfold.training.run import Epoch
from bnfold.training.trends import Trends, is_trends, norm_names, write_trends

HISTORY, TRENDS, CURVES = "history.csv", "norms.csv", "curves.png"
_MOST_BYTES = 64 * 2**20


def save_checkpoint(
    folder: Path,
    module: torch.nn.Module,
    meta: Mapping[str, Any],
    history: Sequence[Epoch],
    held_out: tuple[Array, Array],
    trends: Trends,
    *,
    counted: bool = False,
) -> Checkpoint:
    """Write a checkpoint: beside its place first, then moved in by one rename that replaces nothing.

    held_out: images and classes as a data set stores them; up to 64 MiB of them are kept. trends: of the norms, an
    epoch each as the history has. counted: the folder's name is a number, and where it is taken meanwhile the next free
    one will do.

    Raises DataError when the folder exists or cannot be written; then nothing is left behind.
    """

    def fill(scratch: Path) -> None:
        kept = _kept(*held_out)
        save_file({name: torch.from_numpy(np.array(part)) for name, part in kept.items()}, scratch / HELD_OUT)
        _fill(scratch, module, meta, kept["images"], trends)
        write_history(scratch / HISTORY, history)
        write_trends(scratch / TRENDS, trends)
        draw_curves(scratch / CURVES, history, _title(meta, meta["metrics"]["held_out_accuracy"]))

    return load_checkpoint(write_folder(folder, "checkpoint", fill, counted=counted))


def save_again(folder: Path, old: Checkpoint, module: torch.nn.Module, meta: Mapping[str, Any]) -> Checkpoint:
    """Write a checkpoint of a network that came out of another one, with its held-out samples and its history.

    Its page of readiness has no trends: these end with other statistics than the new network has.
    Raises DataError as `save_checkpoint` does.
    """

    def fill(scratch: Path) -> None:
        shutil.copyfile(old.path / HELD_OUT, scratch / HELD_OUT)
        _copy_past(old, norm_names(module), scratch)
        _fill(scratch, module, meta, read_tensors(old.path / HELD_OUT)["images"].numpy(), None)

    return load_checkpoint(write_folder(folder, "checkpoint", fill))


def _copy_past(old: Checkpoint, norms: Collection[str], scratch: Path) -> None:
    """What tells of the training of another checkpoint, as far as it is there.

    A checkpoint may come from anybody: what its links point to is not for whoever gets the new one, unless it reads as
    what it should be. Stores of large files keep all of theirs as links.
    """
    there = [path for path in (old.path / name for name in (HISTORY, TRENDS, CURVES)) if path.is_file()]
    for path in there:
        if not path.is_symlink():
            shutil.copyfile(path, scratch / path.name)
    linked = {path.name for path in there if path.is_symlink()}
    history = read_history(old.path / HISTORY) if linked else []
    if history and HISTORY in linked:
        write_history(scratch / HISTORY, history)
    if history and CURVES in linked:  # drawn again: a picture says nothing of what it is
        draw_curves(scratch / CURVES, history, _title(old.meta, history[-1].held_out_accuracy))
    text = read_text(old.path / TRENDS) if TRENDS in linked else ""
    if is_trends(text, norms):
        (scratch / TRENDS).write_bytes(text.encode())


def _title(meta: Mapping[str, Any], accuracy: float) -> str:
    return f"{meta['name']}, seed {meta['seed']}: {accuracy:.2%} held out"


def _fill(
    scratch: Path, module: torch.nn.Module, meta: Mapping[str, Any], images: Array, trends: Trends | None
) -> None:
    """The weights, the document, and what they tell of how the network will fold."""
    from bnfold.training.readiness import measured_part, write_readiness

    # Copies: safetensors takes no tensor that two layers share.
    state = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, scratch / WEIGHTS)
    (scratch / META).write_text(json.dumps(meta, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    picture = Preprocessing.from_dict(meta["preprocessing"])
    write_readiness(scratch, module, meta, prepare(measured_part(images), picture), trends)


def _kept(images: Array, classes: Array) -> dict[str, Array]:
    """As many held-out samples as a checkpoint carries, evenly spaced: they may be sorted by class."""
    count = min(len(images), max(1, _MOST_BYTES // max(1, images[:1].nbytes)))
    index = np.linspace(0, len(images) - 1, count).astype(np.int64)
    return {"images": images[index], "classes": classes[index]}
