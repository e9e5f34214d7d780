"""A checkpoint folder: written whole or not at all, read strictly."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from bnfold.bundle.manifest import check_name
from bnfold.documents import Fields, parse_object
from bnfold.errors import BundleError, DataError
from bnfold.preprocessing import Preprocessing
from bnfold.rename import rename_new
from bnfold.training.architecture import build, check_factory, check_network, factory_of
from bnfold.training.curves import draw_curves, write_history
from bnfold.training.data import Array, prepare
from bnfold.training.loop import Epoch
from bnfold.training.trends import Trends, write_trends

SCHEMA_VERSION = 2
WEIGHTS = "weights.safetensors"
HELD_OUT = "held_out.safetensors"
META = "checkpoint.json"
_MOST_BYTES = 64 * 2**20
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

    @property
    def factory(self) -> str | None:
        """The `module:factory` that its network was made by; None for a network of this package."""
        return factory_of(self.meta["network"])

    def module(self, factory: str | None = None) -> torch.nn.Module:
        """The network in eval mode, on the CPU. Raises DataError unless the weights fit it tensor for tensor.

        factory: for a network of the user's own code, the `module:factory` that makes it, as the checkpoint has it; it
        is looked for in the current folder and where Python looks. A checkpoint is a file from somewhere: what it
        names is not imported unless the caller names it too.
        """
        network, path = self.meta["network"], self.path / WEIGHTS
        check_factory(network, factory, self.path)
        state = read_tensors(path)
        module = build(network, self.input_shape, len(self.labels), lambda wanted: _check_fit(path, wanted, state))
        # Those of a user's own may hold more than their state dict has, so that they keep the storage they came with.
        module.load_state_dict(state, strict=True, assign=factory is None)
        return module.eval()

    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Zeros, a batch of 2."""
        return (torch.zeros((2, *self.input_shape)),)

    def held_out(self) -> tuple[Array, Array]:
        """Images (N, C, H, W) float32 as the network takes them and classes (N,) int64 that training never saw.

        They come with the checkpoint, so that it can be proved where its data set is not. Raises DataError unless they
        fit the network.
        """
        path = self.path / HELD_OUT
        tensors = read_tensors(path)
        images, classes = tensors.get("images"), tensors.get("classes")
        if images is None or classes is None or images.shape[1:] != self.input_shape or not len(images):
            raise DataError(
                f"{path} holds no images of {list(self.input_shape)} with their classes; train the network again"
            )
        if images.dtype not in (torch.uint8, torch.float32) or classes.dtype != torch.int64:
            raise DataError(
                f"{path} holds {images.dtype} and {classes.dtype}; expected uint8 or float32 images and int64 classes; "
                "train the network again"
            )
        if classes.shape != images.shape[:1] or int(classes.min()) < 0 or int(classes.max()) >= len(self.labels):
            raise DataError(
                f"{path} has classes of shape {list(classes.shape)} for {len(images)} images; expected one of 0 to "
                f"{len(self.labels) - 1} for each; train the network again"
            )
        return prepare(images.numpy(), self.preprocessing), classes.numpy()


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
        write_history(scratch / "history.csv", history)
        write_trends(scratch / "norms.csv", trends)
        accuracy = meta["metrics"]["held_out_accuracy"]
        draw_curves(scratch / "curves.png", history, f"{meta['name']}, seed {meta['seed']}: {accuracy:.2%} held out")

    return _written(folder, fill, counted)


def save_again(folder: Path, old: Checkpoint, module: torch.nn.Module, meta: Mapping[str, Any]) -> Checkpoint:
    """Write a checkpoint of a network that came out of another one, with its held-out samples and its history.

    Its page of readiness has no trends: these end with other statistics than the new network has.
    Raises DataError as `save_checkpoint` does.
    """

    def fill(scratch: Path) -> None:
        for name in (HELD_OUT, "history.csv", "norms.csv", "curves.png"):
            if (old.path / name).is_file():
                shutil.copyfile(old.path / name, scratch / name)
        _fill(scratch, module, meta, read_tensors(old.path / HELD_OUT)["images"].numpy(), None)

    return _written(folder, fill, counted=False)


def _written(folder: Path, fill: Callable[[Path], None], counted: bool) -> Checkpoint:
    scratch: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        scratch.chmod(0o755)
        fill(scratch)
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
        for name in (META, WEIGHTS, HELD_OUT):
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
    fields.text("data")
    fields.integer("seed", 0, 2**31 - 1)
    fields.texts("versions")
    for key in ("recipe", "metrics"):
        if not isinstance(document[key], Mapping):
            fields.refuse(key, "an object")
    labels = fields.items("labels")
    if not labels or not all(isinstance(label, str) and label for label in labels):
        fields.refuse("labels", "a list of texts")
    check_network(document["network"], what)
    picture = Preprocessing.from_dict(document["preprocessing"], f"{what}, preprocessing,")
    given = Fields.of(document["input"], f"{what}, input,", ("name", "shape", "dtype"))
    given.choice("name", ("input",))
    given.choice("dtype", ("float32",))
    shape = [picture.channels, picture.height, picture.width]
    if list(given.items("shape")) != shape:
        given.refuse("shape", f"{shape}, what the preprocessing gives")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises DataError for what is none."""
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
