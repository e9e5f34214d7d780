"""Writing a bundle: beside its place, proven there, and moved in by one rename that replaces nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bnfold.bundle.goldens import Golden, encode_goldens
from bnfold.bundle.manifest import (
    FOLD,
    MANIFEST,
    MODEL,
    PARITY,
    PARITY_PAGE,
    REFERENCE,
    SCHEMA_VERSION,
    STATISTICS,
    Manifest,
    TensorSpec,
    check_name,
    parse_version,
)
from bnfold.bundle.modelfile import check_model, check_specs
from bnfold.bundle.parameters import Parameter
from bnfold.bundle.reader import Bundle, check_contents, list_versions, load_bundle
from bnfold.bundle.sidecar import encode_models
from bnfold.bundle.tensorfile import Array, dump_tensors, group_statistics
from bnfold.documents import dump_object, parse_object
from bnfold.errors import BundleError
from bnfold.preprocessing import Preprocessing
from bnfold.rename import rename_new

if TYPE_CHECKING:
    import onnx

_UNFINISHED = ".writing-"  # with a dot first it is neither a version nor the name of a model
_ATTEMPTS = 100
_NO_HASH = "0" * 64


@dataclass(frozen=True, eq=False)
class BundleDraft:
    """What a bundle is made of: the fields of Manifest that the writer does not fill in itself, and the contents.

    The folder gives the name of the model. statistics: per norm, as `Bundle.statistics` gives them back (eps may be a
    float). The writer numbers the goldens by position.
    """

    source: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    output_kind: Literal["logits", "probabilities", "raw"]
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    fold_map: tuple[Mapping[str, Any], ...]
    source_tensors: Mapping[str, str]
    tool_versions: Mapping[str, str]
    model: onnx.ModelProto
    reference: onnx.ModelProto
    statistics: Mapping[str, Mapping[str, Array | float]]
    fold_report: Mapping[str, Any]
    goldens: Sequence[Golden]
    parameters: tuple[Parameter, ...] = ()


def write_bundle(
    destination: Path | str,
    draft: BundleDraft,
    *,
    prove: Callable[[Bundle], dict[str, Any]],
    draw: Callable[[Bundle, Mapping[str, Any]], str] | None = None,
) -> Bundle:
    """Write, prove and publish a bundle.

    destination: `models/x` takes the next version under it, `models/x/7` that one, which must not exist. prove: called
    with the bundle in its unfinished folder, where parity.json and manifest.json are still missing; gives the document
    of parity.json, which should not name the version: it moves up when another writer is faster. draw: gives the page
    of that document, parity.html. Whatever they raise leaves nothing behind. Raises BundleError for a draft outside
    the schema, a version that exists, a full disk.
    """
    folder, version = check_destination(destination)
    manifest = _manifest(draft, folder.name, version or next_version(folder))
    files = _encode(draft)
    with _unfinished(folder) as temporary:
        with _plain_errors(folder):
            hashes = encode_models(temporary, {MODEL: draft.model, REFERENCE: draft.reference}, _write)
            for path, data in files.items():
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                hashes[path] = _write(temporary / path, data)
        manifest = dataclasses.replace(manifest, files=hashes)
        _check_manifest(manifest)
        bundle = Bundle(temporary, manifest)
        check_contents(bundle)
        document = prove(bundle)
        proof = {PARITY: dump_object(document, PARITY)}
        if draw is not None:
            proof[PARITY_PAGE] = draw(bundle, document).encode("utf-8", "replace")
        with _plain_errors(folder):
            hashes |= {file: _write(temporary / file, data) for file, data in proof.items()}
            manifest = dataclasses.replace(manifest, files=hashes)
            return _publish(temporary, folder, manifest, fixed=version is not None)


def parse_destination(destination: Path | str) -> tuple[Path, int | None]:
    """The folder of the model and the version asked for (None: the next one). Raises BundleError for a bad name."""
    folder = Path(os.path.abspath(destination))  # not resolve(), which would follow links
    version = parse_version(folder.name)
    if version is not None:
        folder = folder.parent
    elif folder.name.isdigit():
        found = f"destination {destination} ends with {folder.name}, which is no version"
        raise BundleError(f"{found}; expected a number from 1 without zeros first; say models/<name>/1")
    check_name(folder.name, f"destination {destination}")
    return folder, version


def check_destination(destination: Path | str) -> tuple[Path, int | None]:
    """As `parse_destination`; raises BundleError for a version that exists too, before any work is done for it."""
    folder, version = parse_destination(destination)
    if version is not None and os.path.lexists(folder / str(version)):
        raise _exists(folder / str(version))
    return folder, version


def next_version(folder: Path) -> int:
    """One above the highest version under the folder of a model; 1 when there is none."""
    return max(list_versions(folder), default=0) + 1


def _manifest(draft: BundleDraft, name: str, version: int) -> Manifest:
    shared = {
        field.name: getattr(draft, field.name)
        for field in dataclasses.fields(draft)
        if field.name in Manifest.__dataclass_fields__
    }
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Manifest(schema_version=SCHEMA_VERSION, name=name, version=version, files={}, created=now, **shared)


def _check_manifest(manifest: Manifest) -> None:
    """Refuse before the proof what the reader would refuse after it."""
    document = {**manifest.to_dict(), "files": {**manifest.files, PARITY: _NO_HASH, PARITY_PAGE: _NO_HASH}}
    Manifest.from_dict(parse_object(dump_object(document, MANIFEST), MANIFEST), f"the manifest of {manifest.name}")


def _encode(draft: BundleDraft) -> dict[str, bytes]:
    """Check the draft before anything is written; gives the files by path, but for the models and parity.json."""
    for what, model in (("the folded model", draft.model), ("the reference model", draft.reference)):
        check_model(model, what)
        check_specs(model, what, draft.inputs, draft.outputs)
    statistics = {
        f"{norm}.{quantity}": np.asarray(value, dtype=np.float64 if quantity == "eps" else None)
        for norm, quantities in draft.statistics.items()
        for quantity, value in quantities.items()
    }
    group_statistics(statistics, "the statistics")
    return {
        STATISTICS: dump_tensors(statistics, STATISTICS),
        FOLD: dump_object(draft.fold_report, FOLD),
        **encode_goldens(draft.goldens, draft.inputs, draft.outputs),
    }


def _publish(temporary: Path, folder: Path, manifest: Manifest, *, fixed: bool) -> Bundle:
    """Write the manifest, read the whole bundle as a stranger would, and rename it into its place."""
    for _ in range(_ATTEMPTS):
        path = temporary / MANIFEST
        path.unlink(missing_ok=True)
        _write(path, dump_object(manifest.to_dict(), MANIFEST))
        bundle = load_bundle(temporary)
        for inside, _folders, _files in os.walk(temporary):
            _sync_folder(Path(inside))
        target = folder / str(manifest.version)
        try:
            rename_new(temporary, target)
        except FileExistsError:
            if fixed:
                raise _exists(target) from None
            manifest = dataclasses.replace(manifest, version=max(next_version(folder), manifest.version + 1))
            continue
        try:
            _sync_folder(folder)
        except OSError as problem:
            found = f"{target} is written, but the disk did not confirm its name ({problem.strerror})"
            raise BundleError(f"{found}; expected it to; check the disk, then load the bundle") from problem
        return dataclasses.replace(bundle, path=target)
    raise BundleError(f"{folder} got {_ATTEMPTS} versions from others meanwhile; expected a free one; try again")


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A new hidden folder beside the versions; gone in the end, with the parents made for it, unless renamed."""
    made = [
        parent for parent in (folder, *folder.parents) if not os.path.exists(parent)
    ]  # False where it may not be looked at
    temporary = folder / f"{_UNFINISHED}{secrets.token_hex(8)}"
    try:
        with _plain_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: it has the new version, or somebody else's
                parent.rmdir()


@contextlib.contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space and try again" if full else "check the path and its permissions"
        raise BundleError(
            f"the bundle cannot be written under {folder} ({problem.strerror or problem});"
            f" expected a folder with room for it; nothing was kept; {remedy}"
        ) from problem


def _write(path: Path, data: bytes) -> str:
    """Write a new file through to the disk; gives its sha256."""
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exists(target: Path) -> BundleError:
    return BundleError(
        f"{target} exists already; expected a free version, as none is ever overwritten;"
        f" choose another one, or {target.parent} for the next"
    )
