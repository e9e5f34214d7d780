"""A checkpoint folder: written whole or not at all, read strictly."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from bnfold.bundle.manifest import check_name
from bnfold.documents import Fields, parse_object
from bnfold.errors import BundleError, DataError
from bnfold.preprocessing import Preprocessing
from bnfold.rename import rename_new
from bnfold.training.curves import draw_curves, write_history
from bnfold.training.datasets import Array, load_dataset
from bnfold.training.loop import Epoch
from bnfold.training.networks import build_network
from bnfold.training.recipe import DATASETS, MAX_BLOCKS, MAX_WIDTH, MAX_WIDTHS, NETWORKS

SCHEMA_VERSION = 1
WEIGHTS = "weights.safetensors"
META = "checkpoint.json"
_KEYS = (
    "schema_version", "name", "network", "input", "labels", "preprocessing", "data", "recipe", "seed", "versions",
    "metrics",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A trained network on disk. meta: the document of checkpoint.json, checked on reading."""

    path: Path
    meta: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the recipe."""
        return str(self.meta["name"])

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""
        return tuple(self.meta["labels"])

    @property
    def preprocessing(self) -> Preprocessing:
        """How a picture becomes the network's input."""
        return Preprocessing.from_dict(self.meta["preprocessing"])

    @property
    def output_kind(self) -> str:
        """Always "logits": the networks end in a linear layer."""
        return "logits"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch."""
        return tuple(self.meta["input"]["shape"])

    def module(self) -> torch.nn.Module:
        """The network in eval mode, on the CPU. Raises DataError unless the weights fit it tensor for tensor."""
        network = self.meta["network"]
        # Without storage first: a document that asks for terabytes is refused by the tensors that are there.
        with torch.device("meta"):
            module = build_network(network["kind"], self.input_shape, len(self.labels), dict(network["args"]))
        state = _read_weights(self.path / WEIGHTS)
        _check_fit(self.path / WEIGHTS, module.state_dict(), state)
        module.load_state_dict(state, strict=True, assign=True)
        return module.eval()

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Zeros, a batch of 2."""
        return (torch.zeros((2, *self.input_shape)),)

    def held_out(self) -> tuple[Array, Array]:
        """Images (N, C, H, W) float32 as the network takes them and classes (N,) int64 that training never saw.

        Raises DataError when the data set has another shape or other classes than the checkpoint.
        """
        data = load_dataset(self.meta["data"])
        if data.images.shape[1:] != self.input_shape or data.labels != self.labels:
            raise DataError(
                f"the checkpoint {self.path} takes {list(self.input_shape)} and has {len(self.labels)} classes, "
                f"expected {list(data.images.shape[1:])} and {len(data.labels)} as in its data set '{data.name}'; "
                "train the network again"
            )
        return data.held_out_part()


def check_folder(folder: Path) -> None:
    """Raise DataError, before any work is done for it, for a folder that exists or that cannot be made."""
    if os.path.lexists(folder):
        raise _exists(folder)
    for parent in Path(os.path.abspath(folder)).parents:
        if os.path.lexists(parent):
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise DataError(
                    f"the checkpoint {folder} cannot be written, as {parent} is no folder that may be written to; "
                    "name another with -o"
                )
            return


def save_checkpoint(
    folder: Path, module: torch.nn.Module, meta: Mapping[str, Any], history: Sequence[Epoch], *, counted: bool = False
) -> Checkpoint:
    """Write a checkpoint: beside its place first, then moved in by one rename that replaces nothing.

    counted: the folder's name is a number, and where it is taken meanwhile the next free one will do.

    Raises DataError when the folder exists or cannot be written; then nothing is left behind.
    """
    scratch: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        scratch.chmod(0o755)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        save_file(state, scratch / WEIGHTS)
        (scratch / META).write_text(json.dumps(meta, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        write_history(scratch / "history.csv", history)
        accuracy = history[-1].held_out_accuracy
        draw_curves(scratch / "curves.png", history, f"{meta['name']}, seed {meta['seed']}: {accuracy:.2%} held out")
        for item in scratch.iterdir():
            item.chmod(0o644)  # safetensors makes its files readable by their owner alone
            with item.open("rb") as file:
                os.fsync(file.fileno())
        folder = _publish(scratch, folder, counted)
    except FileExistsError:
        raise _exists(folder) from None
    except (OSError, SafetensorError) as problem:
        raise DataError(f"the checkpoint {folder} cannot be written: {problem}") from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return load_checkpoint(folder)


def _publish(scratch: Path, folder: Path, counted: bool) -> Path:
    while True:
        try:
            rename_new(scratch, folder)
            return folder
        except FileExistsError:
            if not counted:
                raise
            folder = folder.with_name(str(int(folder.name) + 1))


def load_checkpoint(folder: Path | str) -> Checkpoint:
    """Read a checkpoint folder. Raises DataError for what is none, or says something that it may not."""
    folder = Path(folder)
    try:
        for name in (META, WEIGHTS):
            if not (folder / name).is_file():
                raise DataError(
                    f"{folder} is no checkpoint: it has no {name}; expected a folder that bnfold train wrote"
                )
        document = parse_object((folder / META).read_bytes(), str(folder / META))
        _check(document, str(folder / META))
    except OSError as problem:
        raise DataError(f"{folder / META} cannot be read: {problem}") from None
    except BundleError as problem:
        raise DataError(str(problem)) from None
    return Checkpoint(folder, document)


def _check(document: Mapping[str, Any], what: str) -> None:
    fields = Fields.of(document, what, _KEYS)
    fields.integer("schema_version", SCHEMA_VERSION, SCHEMA_VERSION)
    check_name(fields.text("name"), what)
    fields.choice("data", DATASETS)
    fields.integer("seed", 0, 2**31 - 1)
    fields.texts("versions")
    for key in ("recipe", "metrics"):
        if not isinstance(document[key], Mapping):
            fields.refuse(key, "an object")
    labels = fields.items("labels")
    if not labels or not all(isinstance(label, str) and label for label in labels):
        fields.refuse("labels", "a list of texts")
    network = Fields.of(document["network"], f"{what}, network,", ("kind", "args"))
    network.choice("kind", NETWORKS)
    args = Fields.of(network.values["args"], f"{what}, network.args,", ("widths", "blocks"))
    args.integer("blocks", 1, MAX_BLOCKS)
    widths = args.items("widths")
    if not 1 <= len(widths) <= MAX_WIDTHS or any(type(w) is not int or not 1 <= w <= MAX_WIDTH for w in widths):
        args.refuse("widths", f"a list of 1 to {MAX_WIDTHS} integers from 1 to {MAX_WIDTH}")
    picture = Preprocessing.from_dict(document["preprocessing"], f"{what}, preprocessing,")
    given = Fields.of(document["input"], f"{what}, input,", ("name", "shape", "dtype"))
    given.choice("name", ("input",))
    given.choice("dtype", ("float32",))
    shape = [picture.channels, picture.height, picture.width]
    if list(given.items("shape")) != shape:
        given.refuse("shape", f"{shape}, what the preprocessing gives")


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load(path.read_bytes())  # not mapped: the network stays whole whatever becomes of the file
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem}") from None
    except (SafetensorError, ValueError, KeyError) as problem:
        raise DataError(f"{path} is no safetensors file ({problem}); train the network again") from None


def _exists(folder: Path) -> DataError:
    return DataError(f"the checkpoint folder {folder} exists; expected a new one; name another with -o")


def _check_fit(path: Path, wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    for name in wanted:
        if name not in found:
            raise DataError(f"{path} has no tensor '{name}', which the network needs; train the network again")
    for name, tensor in found.items():
        if name not in wanted:
            raise DataError(f"{path} has the tensor '{name}', which the network does not know; train it again")
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            raise DataError(
                f"{path}: tensor '{name}' is {tensor.dtype} {list(tensor.shape)}, "
                f"expected {wanted[name].dtype} {list(wanted[name].shape)}; train the network again"
            )
