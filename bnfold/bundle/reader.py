"""Reading a bundle: whatever is in the folder is checked before any of it is used."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from bnfold.bundle.goldens import Golden, decode_goldens
from bnfold.bundle.manifest import (
    FOLD,
    MANIFEST,
    MODEL,
    PARITY,
    REFERENCE,
    SIDECAR,
    STATISTICS,
    Manifest,
    parse_version,
)
from bnfold.bundle.modelfile import check_model, check_specs, parse_model
from bnfold.bundle.tensorfile import Array, group_statistics, load_tensors
from bnfold.documents import MAX_BYTES, parse_object
from bnfold.errors import BundleError

_BLOCK = 2**20
MAX_FILE_BYTES = 2**31 - 1  # where a protobuf message ends; the sidecar may be larger, as it is never read whole


@dataclass(frozen=True)
class Bundle:
    """A checked bundle at a path. Every read checks the hash of the very bytes that it gives out.

    hashes: sha256 by path as found on loading; those of the manifest unless `inspect_bundle` said otherwise.
    """

    path: Path
    manifest: Manifest
    hashes: Mapping[str, str] = field(repr=False, default_factory=dict)

    @property
    def model_path(self) -> Path:
        """Where the folded model is. To open what was checked, and nothing newer, use `session_source`."""
        return self.path / MODEL

    @property
    def reference_path(self) -> Path:
        """Where the unfolded model is."""
        return self.path / REFERENCE

    def session_source(self, file: str = MODEL) -> bytes | Path:
        """What to open a session on: the bytes of a model with their hash checked.

        Where there is a sidecar it is the path, as the runtime finds external data only beside a path.
        """
        data = self.read(file)
        return self.path / file if SIDECAR in self.manifest.files else data

    def read(self, file: str) -> bytes:
        """The bytes of a file of the bundle. Raises BundleError when they are not those that were loaded."""
        expected = self.hashes.get(file) or self.manifest.files.get(file)
        if expected is None:
            raise BundleError(f"bundle {self.path} has no file {file!r:.120}; expected one that its manifest lists")
        data = read_file(self.path / file, MAX_BYTES if file.endswith(".json") else MAX_FILE_BYTES)
        if hashlib.sha256(data).hexdigest() != expected:
            found = f"{self.path / file} changed while it was in use"
            raise BundleError(f"{found}; expected sha256 {expected}; load the bundle again")
        return data

    def statistics(self) -> dict[str, dict[str, Array]]:
        """Per norm: gamma, beta, mean, variance, eps as trained, or scale and shift."""
        return group_statistics(load_tensors(self.read(STATISTICS), STATISTICS), str(self.path / STATISTICS))

    def fold_report(self) -> dict[str, Any]:
        """The document of fold.json."""
        return parse_object(self.read(FOLD), str(self.path / FOLD))

    def parity(self) -> dict[str, Any]:
        """The document of parity.json."""
        return parse_object(self.read(PARITY), str(self.path / PARITY))

    def goldens(self) -> tuple[Golden, ...]:
        """The golden vectors in order."""
        return decode_goldens(self.read, self.manifest)


def load_bundle(path: Path | str) -> Bundle:
    """Load the folder of a version, `<name>/<version>/`. Raises BundleError on whatever is outside the schema."""
    bundle, problems = _hashed(Path(path))
    if problems:
        raise BundleError(problems[0])
    check_contents(bundle)
    bundle.parity()
    return bundle


def inspect_bundle(path: Path | str) -> tuple[Bundle, tuple[str, ...]]:
    """As `load_bundle`, but a hash that is not the manifest's comes back as a problem, one sentence each.

    Raises BundleError on any other fault, also when a changed file is no longer of its kind.
    """
    bundle, problems = _hashed(Path(path))
    try:
        check_contents(bundle)
        bundle.parity()
    except BundleError as fault:
        if problems:
            more = f" (and {len(problems) - 1} more changed files)" if len(problems) > 1 else ""
            raise BundleError(f"{problems[0]}{more}; as it stands it cannot be read: {fault}") from fault
        raise
    return bundle, problems


def check_contents(bundle: Bundle) -> None:
    """Read every file but parity.json and raise BundleError for what does not fit the manifest."""
    manifest = bundle.manifest
    sidecar = _size(bundle.path / SIDECAR) if SIDECAR in manifest.files else None
    unread = sidecar is not None
    for file in (MODEL, REFERENCE):
        model = parse_model(bundle.read(file), str(bundle.path / file))
        check_model(model, str(bundle.path / file), sidecar_bytes=sidecar)
        check_specs(model, str(bundle.path / file), manifest.inputs, manifest.outputs)
        unread = unread and not any(tensor.external_data for tensor in model.graph.initializer)
    if unread:
        raise BundleError(
            f"bundle {bundle.path} has a {SIDECAR} that no tensor is in; expected none; build the bundle again"
        )
    bundle.goldens()
    bundle.statistics()
    bundle.fold_report()


def list_versions(folder: Path) -> tuple[int, ...]:
    """The versions under `models/<name>`, ascending; unfinished and foreign folders are none of them."""
    try:
        with os.scandir(folder) as entries:
            found = [parse_version(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return ()
    except OSError as problem:
        raise BundleError(
            f"{folder} cannot be listed ({problem.strerror}); expected a folder of versions; check the path"
        ) from None
    return tuple(sorted(version for version in found if version is not None))


def read_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a plain file of at most `limit` bytes. Raises BundleError for anything else, a link included."""
    with _open(path) as stream:
        if os.fstat(stream.fileno()).st_size > limit:
            raise BundleError(f"{path} has more than {limit} bytes; expected no more; build the bundle again")
        return stream.read(limit)


def hash_file(path: Path) -> str:
    """The sha256 of a plain file of any size."""
    digest = hashlib.sha256()
    with _open(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _size(path: Path) -> int:
    with _open(path) as stream:
        return os.fstat(stream.fileno()).st_size


def _open(path: Path) -> BinaryIO:
    # Without O_NONBLOCK a pipe put in the place of a file would hold the reader for ever.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as problem:
        raise _unreadable(path, problem) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is no plain file; expected one; build the bundle again")
    return os.fdopen(descriptor, "rb")


def _hashed(folder: Path) -> tuple[Bundle, tuple[str, ...]]:
    manifest = _read_manifest(folder)
    _check_listing(folder, manifest)
    hashes = {file: hash_file(folder / file) for file in sorted(manifest.files)}
    problems = tuple(
        f"{folder / file} has sha256 {found}; expected {manifest.files[file]} as in the manifest;"
        " take the bundle anew from where it was built, or build it again"
        for file, found in hashes.items()
        if found != manifest.files[file]
    )
    return Bundle(folder, manifest, hashes), problems


def _read_manifest(folder: Path) -> Manifest:
    try:
        mode = folder.lstat().st_mode
    except OSError as problem:
        raise _unreadable(folder, problem) from None
    if not stat.S_ISDIR(mode):
        found = "a link" if stat.S_ISLNK(mode) else "no folder"
        raise BundleError(f"bundle {folder} is {found}; expected the folder of a version; give that folder")
    path = folder / MANIFEST
    if not os.path.lexists(path):
        expected = "expected the folder of a version, say models/<name>/1"
        raise BundleError(f"bundle {folder} has no {MANIFEST}; {expected}; give that folder")
    return Manifest.from_dict(parse_object(read_file(path, MAX_BYTES), str(path)), str(path))


def _check_listing(folder: Path, manifest: Manifest) -> None:
    """The folder holds the listed files and nothing else."""
    wanted = {*manifest.files, MANIFEST}
    folders = {parent for file in manifest.files if (parent := file.rpartition("/")[0])}
    found = set()
    for path, mode in _walk(folder, folders):
        if stat.S_ISLNK(mode):
            raise BundleError(f"bundle {folder} has the link {path!r}; expected plain files; build the bundle again")
        if path not in (folders if stat.S_ISDIR(mode) else wanted):
            raise BundleError(
                f"bundle {folder} has {path!r}, which its manifest does not list; expected nothing else; remove it"
            )
        found.add(path)
    missing = sorted(wanted - found)
    if missing:
        raise BundleError(
            f"bundle {folder} has no {missing[0]}, which its manifest lists; expected every file; build it again"
        )


def _walk(folder: Path, folders: Set[str], under: str = "") -> Iterator[tuple[str, int]]:
    try:
        with os.scandir(folder / under) as entries:
            for entry in entries:
                path = f"{under}/{entry.name}" if under else entry.name
                mode = entry.stat(follow_symlinks=False).st_mode
                yield path, mode
                if stat.S_ISDIR(mode) and path in folders:
                    yield from _walk(folder, folders, path)
    except OSError as problem:
        raise _unreadable(folder / under, problem) from None


def _unreadable(path: Path, problem: OSError) -> BundleError:
    return BundleError(
        f"{path} cannot be read ({problem.strerror}); expected a bundle; check the path and its permissions"
    )
