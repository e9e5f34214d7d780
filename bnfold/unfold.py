"""The unfolded original back out of a bundle: every tensor checked against the hashes that the fold recorded."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bnfold.bundle import Bundle, hash_tensor, load_bundle
from bnfold.bundle.manifest import REFERENCE, SIDECAR, STATISTICS
from bnfold.errors import BundleError
from bnfold.folding.report import FoldReport
from bnfold.rename import rename_new

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Unfolded:
    """What was written. tensors, norms: how many were checked. replaced: a file of that name was there before."""

    path: Path
    sha256: str
    tensors: int
    norms: int
    replaced: bool


def unfold(bundle: Bundle | Path | str, destination: Path | str, *, overwrite: bool = False) -> Unfolded:
    """Write the unfolded network of a bundle as an ONNX file (above 2 GB with its data in `<name>.data` beside it).

    Every tensor must have the hash of the manifest, every norm the statistics of statistics.safetensors. The file
    appears whole or not at all. Raises BundleError on a mismatch, and for a file that exists unless `overwrite`.
    """
    loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    target = Path(os.path.abspath(destination))
    _check_target(target, overwrite=overwrite)
    model = _reference(loaded)
    tensors = _check_tensors(loaded, model)
    norms = _check_statistics(loaded, model)
    existed = os.path.lexists(target)
    digest = _write(model, loaded, target, overwrite=overwrite)
    return Unfolded(target, digest, tensors, norms, existed)


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.suffix != ".onnx":
        raise BundleError(f"{target} is no name for a model; expected one that ends with .onnx; give it that ending")
    if target.is_dir() or not target.parent.is_dir():
        found = "is a folder" if target.is_dir() else f"is in {target.parent}, which is no folder"
        raise BundleError(f"{target} {found}; expected a file in a folder that exists; choose another one")
    for path in (target, _data(target)):
        if os.path.lexists(path) and not overwrite:
            raise _exists(path)


def _reference(bundle: Bundle) -> onnx.ModelProto:
    """The unfolded model with all of its tensors in it."""
    import onnx

    from bnfold.bundle.modelfile import parse_model

    model = parse_model(bundle.read(REFERENCE), str(bundle.reference_path))
    if SIDECAR in bundle.manifest.files:
        onnx.external_data_helper.load_external_data_for_model(model, str(bundle.path))
    return model


def _check_tensors(bundle: Bundle, model: onnx.ModelProto) -> int:
    """Compare every tensor with the manifest, in both directions; gives their number."""
    from onnx import numpy_helper

    found = {tensor.name: hash_tensor(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    recorded = dict(bundle.manifest.source_tensors)
    parameters = {item.name: item.sha256 for item in bundle.manifest.parameters if item.name in found}
    for what, hashes in (("source tensors", recorded), ("parameters", parameters)):
        for name, digest in hashes.items():
            if name not in found:
                raise _mismatch(bundle, f"has no tensor '{name}', which is among the {what} of the manifest")
            if found[name] != digest:
                wanted = f"of the {what} of the manifest"
                raise _mismatch(
                    bundle, f"has in '{name}' a tensor with sha256 {found[name]}, not the {digest} {wanted}"
                )
    extra = next((name for name in found if name not in recorded), None)
    if extra is not None:
        raise _mismatch(bundle, f"has a tensor '{extra}', which is not among the source tensors of the manifest")
    return len(found)


def _check_statistics(bundle: Bundle, model: onnx.ModelProto) -> int:
    """Compare the norms of the model with statistics.safetensors, bit for bit; gives the number of those stored."""
    from bnfold.folding import onnx_file, onnx_graph
    from bnfold.folding.plan import make_plan
    from bnfold.folding.statistics import tensors_of

    report = FoldReport.from_dict(bundle.fold_report())
    graph = onnx_graph.read(
        onnx_file.load_model(bundle.reference_path)  # too large to be checked in memory
        if SIDECAR in bundle.manifest.files
        else onnx_file.from_proto(model, str(bundle.reference_path))
    )
    norms = {norm.name: norm for norm in make_plan(graph, keep=report.keep, moves=report.moves).norms}
    stored = bundle.statistics()
    for name, quantities in stored.items():
        if name not in norms:
            raise _mismatch(bundle, f"has no norm '{name}', of which {STATISTICS} has statistics")
        wanted = {key: hash_tensor(np.asarray(array)) for key, array in tensors_of(norms[name]).items()}
        found = {key: hash_tensor(np.asarray(array)) for key, array in quantities.items()}
        for key in sorted(wanted.keys() | found.keys()):
            if wanted.get(key) != found.get(key):
                raise _mismatch(bundle, f"has in norm '{name}' another {key} than {STATISTICS}")
    return len(stored)


def _write(model: onnx.ModelProto, bundle: Bundle, target: Path, *, overwrite: bool) -> str:
    """Write the file, the data of a large model first; gives the sha256 of the file."""
    if SIDECAR not in bundle.manifest.files:
        data = bundle.read(REFERENCE)  # byte for byte
        with _new_file(target, overwrite=overwrite) as write:
            write([data])
        return hashlib.sha256(data).hexdigest()
    import onnx

    small = onnx.ModelProto()
    small.CopyFrom(model)
    places: dict[str, tuple[int, int]] = {}
    with _new_file(_data(target), overwrite=overwrite) as write:
        write(_moved_out(small, places))
    for tensor in small.graph.initializer:
        if tensor.name in places:
            offset, length = places[tensor.name]
            onnx.external_data_helper.set_external_data(tensor, _data(target).name, offset=offset, length=length)
            tensor.ClearField("raw_data")
    data = small.SerializeToString(deterministic=True)
    try:
        with _new_file(target, overwrite=overwrite) as write:
            write([data])
    except BundleError:
        if not overwrite:
            _data(target).unlink(missing_ok=True)
        raise
    return hashlib.sha256(data).hexdigest()


_SMALL = 1024  # bytes; such tensors stay in the graph
_PAGE = 4096  # ONNX Runtime maps external data by pages


def _moved_out(model: onnx.ModelProto, places: dict[str, tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of the large tensors, each from a page of its own; where they are goes to `places`."""
    end = 0
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= _SMALL:
            continue
        padding = bytes(-end % _PAGE)
        places[tensor.name] = end + len(padding), len(tensor.raw_data)
        yield padding
        yield tensor.raw_data
        end += len(padding) + len(tensor.raw_data)


@contextlib.contextmanager
def _new_file(target: Path, *, overwrite: bool) -> Iterator[Callable[[Iterator[bytes] | list[bytes]], None]]:
    """Gives a function that writes blocks beside the target; in the end they get its name in one step."""
    temporary = target.with_name(f".{target.name[:100]}.writing-{secrets.token_hex(8)}")

    def write(blocks: Iterator[bytes] | list[bytes]) -> None:
        with temporary.open("xb") as stream:
            for block in blocks:
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())

    try:
        yield write
        if overwrite:
            temporary.replace(target)
        else:
            rename_new(temporary, target)
    except FileExistsError:
        raise _exists(target) from None
    except OSError as problem:
        raise BundleError(
            f"{target} cannot be written ({problem.strerror or problem}); expected a folder with room for it; "
            "nothing was changed; check the path and its permissions"
        ) from problem
    finally:
        temporary.unlink(missing_ok=True)


def _data(target: Path) -> Path:
    return target.with_name(f"{target.name}.data")


def _exists(path: Path) -> BundleError:
    return BundleError(
        f"{path} exists already; expected a free name, as nothing is overwritten unasked; choose another one, or say "
        "that it may be overwritten (--overwrite)"
    )


def _mismatch(bundle: Bundle, found: str) -> BundleError:
    return BundleError(
        f"{bundle.reference_path} {found}; expected the network that was folded; nothing was written; take the bundle "
        "anew from where it was built, or build it again"
    )
