"""One prediction on this machine: a bundle, an input from a file, an answer as the manifest's output kind has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from bnfold.bundle import Bundle, TensorSpec
from bnfold.bundle.tensorfile import find_dtype
from bnfold.errors import BnfoldError, DataError, ParityError
from bnfold.parity.gate import check_gate
from bnfold.preprocessing import decode_image
from bnfold.runtime import open_session, run
from bnfold.scores import rank, to_chances

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_MAX_JSON_BYTES = 2**28


@dataclass(frozen=True)
class Prediction:
    """The answer for one sample.

    kind "class": index, label (None without labels) and probability of the likeliest class. kind "raw": the outputs
    of the sample by name.
    """

    kind: Literal["class", "raw"]
    index: int | None = None
    label: str | None = None
    probability: float | None = None
    outputs: Mapping[str, Array] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-ready values."""
        if self.kind == "raw":
            return {"outputs": {name: array.tolist() for name, array in (self.outputs or {}).items()}}
        return {"class": self.index, "label": self.label, "probability": self.probability}


def predict(bundle: Bundle, file: Path, *, device: Literal["auto", "cpu", "cuda"] = "cpu") -> tuple[Prediction, ...]:
    """Answer for every sample in a file: an image, a .npy array, or JSON.

    The bundle passes the server's gate first: what may not be served gives no prediction here either.

    Raises DataError for an input that does not fit, ParityError for a bundle that is not proven on this machine,
    BundleError for a damaged one, BnfoldError for a device that is not there.
    """
    inputs = read_inputs(bundle, file)
    gate = check_gate(bundle, device=device)
    if not gate.passed:
        raise ParityError(f"{bundle.path} is not proven on this machine, so it gives no prediction: {gate.reasons[0]}")
    session = open_session(bundle.session_source(), optimise=True, device=device)
    return interpret(bundle, run(session, inputs))


def read_inputs(bundle: Bundle, file: Path) -> dict[str, Array]:
    """The network's inputs out of a file, each (N, ...) in the dtype of its spec; a sample without N gets N = 1.

    JSON is a nested list (or {"instances": list}) for a network with one input, otherwise an object of them by name.
    """
    specs = bundle.manifest.inputs
    if not file.is_file():
        raise DataError(f"{file} is not there or no file; expected an image, a .npy array, or a .json document")
    if file.suffix == ".json":
        values = _json_values(file, specs)
    elif len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise DataError(f"{file} can fill one input, the network has {names}; give a .json object of them by name")
    elif file.suffix == ".npy":
        values = {specs[0].name: read_npy(file)}
    else:
        values = {specs[0].name: _image_values(bundle, file)}
    return {spec.name: _fitted(values[spec.name], spec, file) for spec in specs}


def interpret(bundle: Bundle, outputs: Mapping[str, Array]) -> tuple[Prediction, ...]:
    """Say what the outputs mean, sample by sample.

    logits and probabilities (N, C) give the likeliest class; every other output comes back as it is. Raises BnfoldError
    for scores that are not finite, or not one for each label.
    """
    manifest = bundle.manifest
    first = outputs[manifest.outputs[0].name]
    if manifest.output_kind == "raw" or first.ndim != 2:
        return _raw(outputs)
    labels = manifest.labels
    if not first.shape[1] or (labels is not None and first.shape[1] != len(labels)):
        wanted = "at least one" if labels is None else f"{len(labels)}, one for each label"
        raise BnfoldError(
            f"{bundle.path} answered {first.shape[1]} scores a sample, expected {wanted}; "
            "build the bundle again with labels that fit"
        )
    if not np.isfinite(first.astype(np.float64)).all():
        raise BnfoldError(f"{bundle.path} answered NaN or infinity where class scores were expected; check the input")
    chances = to_chances(first, manifest.output_kind)
    return tuple(
        Prediction("class", int(index), None if labels is None else labels[index], float(chances[row, index]))
        for row, index in enumerate(rank(first, 1)[:, 0])
    )


def _raw(outputs: Mapping[str, Array]) -> tuple[Prediction, ...]:
    """The outputs sample by sample; in one piece where their first axes are not one and the same."""
    counts = {array.shape[:1] for array in outputs.values()}
    if len(counts) != 1 or counts == {()}:
        return (Prediction("raw", outputs=outputs),)
    ((count,),) = counts
    return tuple(
        Prediction("raw", outputs={name: array[row] for name, array in outputs.items()}) for row in range(count)
    )


def read_json(file: Path) -> Any:
    """The document of a .json file. Raises DataError."""
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise DataError(
                f"{file} has {file.stat().st_size} bytes, expected at most {_MAX_JSON_BYTES}; give a .npy file"
            )
        return json.loads(file.read_bytes())
    except OSError as problem:
        raise DataError(f"{file} cannot be read ({problem.strerror}); check the file") from None
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{file} is no JSON ({problem}); expected a nested list of numbers") from None


def _json_values(file: Path, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    document = read_json(file)
    if len(specs) == 1 and not (isinstance(document, dict) and specs[0].name in document):
        document = {specs[0].name: document.get("instances") if isinstance(document, dict) else document}
    if not isinstance(document, dict) or any(document.get(spec.name) is None for spec in specs):
        names = ", ".join(spec.name for spec in specs)
        raise DataError(f"{file} does not name every input of the network; expected a JSON object with {names}")
    try:
        return {spec.name: np.asarray(document[spec.name]) for spec in specs}
    except (ValueError, OverflowError):
        raise DataError(f"{file} holds lists of unequal length; expected one array of numbers an input") from None


def read_npy(file: Path) -> Array:
    """The numbers of a .npy file; pickled objects and an .npz of another name are refused. Raises DataError."""
    try:
        with file.open("rb") as stream:
            values: Array = np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as problem:
        raise DataError(f"{file} is no .npy array without pickled objects ({problem})") from None
    if values.dtype.kind not in "fiub":
        raise DataError(f"{file} holds {values.dtype} values, expected numbers")
    return values


def _image_values(bundle: Bundle, file: Path) -> Array:
    preprocessing = bundle.manifest.preprocessing
    if preprocessing is None:
        raise DataError(
            f"{file} is taken for an image, but {bundle.path} says nothing of how an image becomes its input; "
            "give a .npy or .json file, or build the bundle with --preprocessing"
        )
    try:
        return decode_image(file.read_bytes(), preprocessing)
    except DataError as problem:
        raise DataError(f"{file}: {problem}") from None


def _fitted(values: Array, spec: TensorSpec, file: Path) -> Array:
    if values.dtype.kind not in "fiub":
        raise DataError(f"{file} holds {values.dtype} values, expected numbers for the input '{spec.name}'")
    batch = values[np.newaxis] if values.ndim == len(spec.shape) - 1 else values
    fits = batch.ndim == len(spec.shape) and all(
        wanted in (-1, found) for wanted, found in zip(spec.shape, batch.shape, strict=True)
    )
    if not fits or not batch.size:
        raise DataError(
            f"{file} has the shape {list(values.shape)}, expected {list(spec.shape)} for the input '{spec.name}' "
            "(-1: any size)"
        )
    return np.ascontiguousarray(batch.astype(find_dtype(spec.dtype)))
