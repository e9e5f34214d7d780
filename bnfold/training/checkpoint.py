"""A checkpoint folder, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from bnfold.bundle.manifest import check_name
from bnfold.documents import Fields, parse_object
from bnfold.errors import BundleError, DataError
from bnfold.preprocessing import Preprocessing
from bnfold.training.architecture import build, check_factory, check_network, factory_of
from bnfold.training.data import Array, prepare

SCHEMA_VERSION = 2
WEIGHTS = "weights.safetensors"
HELD_OUT = "held_out.safetensors"
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
    if not labels or not all(isinstance(label, str) and label and label.isprintable() for label in labels):
        fields.refuse("labels", "a list of printable texts")
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
