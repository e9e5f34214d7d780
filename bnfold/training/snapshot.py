"""A training under way on disk, replaced as a whole after an epoch: from it a run goes on bit for bit.

One safetensors file: the tensors by `<part>/<name>`, and in its metadata one JSON document. It is written beside its
place and moved there by one rename, so that whatever stops the process, the last whole one is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bnfold.documents import Fields, parse_object
from bnfold.errors import BundleError, DataError
from bnfold.training.data import Dataset
from bnfold.training.fields import describe
from bnfold.training.networks import KINDS
from bnfold.training.optimizers import blank_tensors, optimizer_tensors
from bnfold.training.recipe import Augmentation, Data, Optimizer, Recipe, Train
from bnfold.training.run import Epoch, Run
from bnfold.training.trends import NUMBERS

SCHEMA_VERSION = 1
_DOCUMENT = "snapshot"


def fingerprint(data: Dataset) -> str:
    """SHA-256 of the images, the classes and the split of a data set."""
    digest = hashlib.sha256()
    for array in (data.images, data.classes, data.held_out):
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def write_snapshot(path: Path, run: Run, data: str) -> None:
    """Replace the snapshot at a path. data: the fingerprint of the data set.

    Raises DataError when it cannot be written; the one before is then still there.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe_document(run.recipe),
        "data": data,
        "history": [dataclasses.asdict(row) for row in run.history],
    }
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _tensors(run).items()}
    scratch = path.with_name(f".writing-{os.getpid()}")
    try:
        save_file(tensors, scratch, {_DOCUMENT: json.dumps(document, allow_nan=False)})
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except (OSError, SafetensorError) as problem:
        raise DataError(f"the snapshot {path} cannot be written: {problem}") from None
    finally:
        scratch.unlink(missing_ok=True)


def restore(path: Path, run: Run, data: str) -> None:
    """Bring a run that has just begun to where the snapshot was taken.

    Raises DataError for a file that is no snapshot, and for one of another recipe, other data or another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            document = _check(file.metadata(), str(path))
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError, BundleError) as problem:
        raise DataError(f"{path} is no snapshot of a training ({problem}); remove it and train anew") from None
    check_same(path.parent, recipe_document(run.recipe), document["recipe"])
    if document["data"] != data:
        raise DataError(
            f"the data set '{run.recipe.data.name}' has other images, classes or another split than when {path} was "
            "written; put them back, or train anew without --resume"
        )
    run.history = [Epoch(**row) for row in document["history"]]
    parts = {name.removeprefix("optimizer/"): None for name in found if name.startswith("optimizer/")}
    blank_tensors(run.optimizer, run.network, parts)
    run.norms = torch.zeros(len(run.history), len(run.trends.names), len(NUMBERS), dtype=torch.float64)
    if run.history:
        run.kept = {name: tensor.detach().clone() for name, tensor in run.judged.state_dict().items()}
    _fill(path, _tensors(run), found)
    steps = [tensor for name, tensor in found.items() if name.startswith("optimizer/") and name.endswith("/step")]
    if not all(bool(step >= 1) for step in steps):
        raise DataError(f"{path} has an optimiser that has taken less than one step; remove it and train anew")
    try:
        torch.set_rng_state(found["random/network"])
        run.generator.set_state(found["random/data"])
        if "random/cuda" in found and run.device.type == "cuda":
            torch.cuda.set_rng_state(found["random/cuda"])
    except RuntimeError as problem:
        raise DataError(f"{path} has no state of random numbers ({problem}); remove it and train anew") from None
    if _kept_is_judged(run):
        run.kept = {name: tensor.detach().clone() for name, tensor in run.judged.state_dict().items()}


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON has it, without where its file lies."""
    document: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe), default=str))
    del document["folder"]
    return document


def _tensors(run: Run) -> dict[str, torch.Tensor]:
    parts = {"network": run.network.state_dict(), "optimizer": optimizer_tensors(run.optimizer, run.network)}
    if run.average is not None:
        parts["average"] = run.average.network.state_dict()
    if not _kept_is_judged(run):
        parts["kept"] = run.kept
    parts["trends"] = {"norms": run.norms}
    parts["random"] = {"data": run.generator.get_state(), "network": torch.get_rng_state()}
    if run.device.type == "cuda":
        parts["random"]["cuda"] = torch.cuda.get_rng_state()
    return {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}


def _kept_is_judged(run: Run) -> bool:
    return run.kept_epoch == len(run.history)


def _fill(path: Path, wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Copy tensor for tensor; nothing is copied unless all fit. A run on CUDA may go on elsewhere and the other way."""
    names = {name for name in wanted.keys() | found.keys() if name != "random/cuda"}
    for name in sorted(names):
        if name not in wanted or name not in found:
            have = "has no" if name not in found else "has the"
            raise DataError(f"{path} {have} tensor '{name}', unlike this network; remove it and train anew")
        if found[name].shape != wanted[name].shape or found[name].dtype != wanted[name].dtype:
            raise DataError(
                f"{path}: tensor '{name}' is {found[name].dtype} {list(found[name].shape)}, expected "
                f"{wanted[name].dtype} {list(wanted[name].shape)}; remove it and train anew"
            )
    with torch.no_grad():
        for name in names:
            wanted[name].copy_(found[name])


def _check(metadata: Mapping[str, str] | None, what: str) -> Mapping[str, Any]:
    document = parse_object((metadata or {}).get(_DOCUMENT, "").encode(), what)
    fields = Fields.of(document, what, ("schema_version", "recipe", "data", "history"))
    fields.integer("schema_version", SCHEMA_VERSION, SCHEMA_VERSION)
    fields.text("data")
    if not isinstance(document["recipe"], Mapping):
        fields.refuse("recipe", "an object")
    names = [field.name for field in dataclasses.fields(Epoch)]
    for number, each in enumerate(fields.items("history"), start=1):
        row = Fields.of(each, f"{what}, history,", names)
        row.integer("epoch", number, number)
        for name in names:
            row.number(name)
    return document


def check_same(place: Path, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise DataError, with the key, where the recipe is not the one of the run at a place.

    A key that is younger than the run has its default there: until it came, nothing else was to be had.
    """
    mine = flat(wanted)
    theirs = {name: value for name, value in _defaults(wanted).items() if name in mine} | flat(found)
    for name in sorted(mine.keys() | theirs.keys()):
        # As text: to Python, true is 1, and to the code of one's own that gets it, it need not be.
        if json.dumps(mine.get(name)) != json.dumps(theirs.get(name)):
            raise DataError(
                f"the recipe has {mine.get(name)!r:.80} as '{name}', but the run to be resumed at {place} has "
                f"{theirs.get(name)!r:.80}; give the recipe and every --set of that run"
            )


def _defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Of the keys of a recipe that have one, by their names with dots."""
    tables: dict[str, type] = {"data": Data, "optimizer": Optimizer, "train": Train, "augmentation": Augmentation}
    kind = KINDS.get(recipe.get("network", {}).get("kind"))
    tables |= {"network.args": kind.args} if kind is not None else {}
    return {
        f"{table}.{each.name}": each.default
        for table, keys in tables.items()
        for each in describe(keys)
        if not each.required
    }


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A document without tables in it: the keys have dots."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
