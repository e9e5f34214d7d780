"""The doors of a server: how a batch goes in, and how an answer becomes outputs again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bnfold.bundle import Manifest
from bnfold.datatypes import BINARY_ONLY, DATATYPES
from bnfold.errors import DataError
from bnfold.parity.runtimes.cells import Door
from bnfold.remote import Reply
from bnfold.scores import to_chances
from bnfold.wire import read_numbers, read_response, write_request, write_rows

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Outputs: TypeAlias = Mapping[str, Array]

_MOST_CLASSES = 1000  # that /predict names


@dataclass(frozen=True)
class Entrance:
    """One door. path: behind the server's address. write: inputs to a body and headers. read: a reply of status 200,
    and outputs of the shapes that are expected, to outputs. view: what of a model's outputs the door shows.

    missing: why this network cannot go through it; empty where it can. softmax: the output of which the door shows
    probabilities instead.
    """

    door: Door
    path: str
    write: Callable[[Outputs], tuple[bytes, dict[str, str]]]
    read: Callable[[Reply, Outputs], dict[str, Array]]
    view: Callable[[Outputs], Outputs]
    missing: str = ""
    softmax: str | None = None


def list_entrances(manifest: Manifest, like: Outputs) -> tuple[Entrance, ...]:
    """The Open Inference Protocol with blobs, with JSON, and /predict. like: outputs of one batch."""
    names = [spec.name for spec in manifest.outputs]
    path = f"/v2/models/{manifest.name}/versions/{manifest.version}/infer"

    def read(reply: Reply, _: Outputs) -> dict[str, Array]:
        return read_response(reply, manifest.outputs)

    tensors = (*manifest.inputs, *manifest.outputs)
    halves = [spec.name for spec in tensors if DATATYPES.get(spec.dtype) in BINARY_ONLY]
    no_json = f"'{halves[0]}' is half precision, which the protocol's JSON does not carry" if halves else ""
    return (
        Entrance("v2 binary", path, lambda inputs: write_request(inputs, names, binary=True), read, _same),
        Entrance("v2 JSON", path, lambda inputs: write_request(inputs, names, binary=False), read, _same, no_json),
        _predict(manifest, like),
    )


def _same(outputs: Outputs) -> Outputs:
    return outputs


def _predict(manifest: Manifest, like: Outputs) -> Entrance:
    """/predict: rows in, probabilities out where the network gives classes, else its outputs."""
    first = manifest.outputs[0]
    classes = manifest.output_kind != "raw" and len(first.shape) == 2
    missing = ""
    if any(spec.shape[:1] != (-1,) for spec in (*manifest.inputs, *manifest.outputs)):
        missing = "/predict is for networks with a free batch size"
    if classes and (count := like[first.name].shape[1]) > _MOST_CLASSES:
        missing = f"/predict names {_MOST_CLASSES:,} classes at most, the network has {count:,}"

    def view(outputs: Outputs) -> Outputs:
        return {first.name: to_chances(outputs[first.name], manifest.output_kind)} if classes else outputs

    def read(reply: Reply, like: Outputs) -> dict[str, Array]:
        rows = _predictions(reply, manifest)
        return {first.name: _chances(rows, manifest, like[first.name])} if classes else _raw(rows, manifest, like)

    path = f"/models/{manifest.name}/predict?top={_MOST_CLASSES}"
    softmax = first.name if classes and manifest.output_kind == "logits" else None
    return Entrance("/predict", path, write_rows, read, view, missing, softmax)


def _predictions(reply: Reply, manifest: Manifest) -> list[Mapping[str, Any]]:
    try:
        document = reply.document()
    except ValueError as problem:
        raise DataError(f"the answer is no JSON ({str(problem)[:120]})") from None
    rows = document.get("predictions") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError("the answer has no list of predictions")
    name, version = document.get("model"), document.get("version")
    if (name, version) != (manifest.name, str(manifest.version)):
        raise DataError(
            f"the answer is of model {name!r:.80}, version {version!r:.40}; expected {manifest.name}/{manifest.version}"
        )
    return rows


def _chances(rows: Sequence[Mapping[str, Any]], manifest: Manifest, like: Array) -> Array:
    """Probabilities (N, C) in float64 out of rows that name every class once, the likeliest first."""
    count = like.shape[1]
    if len(rows) != len(like):
        raise DataError(f"the answer has {len(rows)} predictions, expected {len(like)}")
    found = np.full((len(rows), count), np.nan)
    for at, row in enumerate(rows):
        top = row.get("top")
        if not isinstance(top, list) or len(top) != count or not all(isinstance(entry, dict) for entry in top):
            raise DataError(f"prediction {at} does not name {count} classes")
        for entry in top:
            index, chance = entry.get("class"), entry.get("probability")
            if type(index) is not int or not 0 <= index < count or not isinstance(chance, int | float):
                raise DataError(f"prediction {at} has a class {index!r:.40} with the probability {chance!r:.40}")
            label = None if manifest.labels is None else manifest.labels[index]
            if entry.get("label") != label:
                raise DataError(
                    f"prediction {at} calls class {index} {entry.get('label')!r:.80}, expected {label!r:.80}"
                )
            found[at, index] = float(chance)
        if any(row.get(key) != top[0].get(key) for key in ("class", "label", "probability")):
            raise DataError(f"prediction {at} is of class {row.get('class')!r:.40}, which is not the first in its list")
        if not np.isfinite(found[at]).all() or found[at, top[0]["class"]] < found[at].max():
            raise DataError(f"prediction {at} does not name each class once, the likeliest first")
    return found


def _raw(rows: Sequence[Mapping[str, Any]], manifest: Manifest, like: Outputs) -> dict[str, Array]:
    found = {}
    for spec in manifest.outputs:
        values = [row["outputs"].get(spec.name) if isinstance(row.get("outputs"), dict) else None for row in rows]
        shape = like[spec.name].shape
        if len(rows) != shape[0]:
            raise DataError(f"the answer has {len(rows)} predictions, expected {shape[0]}")
        found[spec.name] = read_numbers(values, spec, math.prod(shape)).reshape(shape)
    return found
