"""What lies in the repository's folder: names, versions, and fingerprints that tell whether a version has changed."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from bnfold.bundle import list_versions
from bnfold.bundle.manifest import MAX_FILES, check_name
from bnfold.errors import BnfoldError

_logger = logging.getLogger(__name__)

_DEEPEST = 3  # golden/test_data_set_0/input_0.pb

Snapshot = Mapping[str, Mapping[int, str]]


class Lookout:
    """Tells which models have changed and have stopped changing: the same at two looks in a row."""

    def __init__(self) -> None:
        self._last: Snapshot = {}
        self._done: dict[str, Mapping[int, str]] = {}

    def look(self, found: Snapshot) -> list[str]:
        """The models to look at again; until `done` they come up each time. Those without versions never do."""
        last, self._last = self._last, found
        return [name for name, marks in found.items() if marks and marks == last.get(name) != self._done.get(name)]

    def done(self, name: str) -> None:
        """A model was looked at as it was at the last look."""
        self._done[name] = self._last[name]


def list_models(folder: Path, *, warn: bool = False) -> list[str]:
    """The names of folders that may hold versions, sorted. Raises BnfoldError when the repository cannot be listed.

    warn: name the folders that can be no model in the log.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as problem:
        raise BnfoldError(
            f"the model repository {folder} cannot be listed ({problem.strerror}); expected a folder of "
            "<name>/<version>/ bundles; check the path"
        ) from None
    found = [name for name in names if is_name(name)]
    for name in sorted(set(names) - set(found)) if warn else ():
        _logger.warning("folder %r in the repository is no name of a model and is left out", name)
    return found


def is_name(name: str) -> bool:
    """Whether a model may have this name: a plain word without a path in it."""
    try:
        check_name(name, "the repository")
    except BnfoldError:
        return False
    return True


def snapshot(folder: Path, *, marks: bool = True, only: str | None = None) -> Snapshot:
    """The fingerprints of all versions of all models. Raises BnfoldError when the repository cannot be listed.

    marks: without them every fingerprint is "", which costs less. only: this model alone. A model whose own folder
    cannot be listed is left out, as if it were away for the moment.
    """
    found = {}
    for name in list_models(folder):
        if only not in (None, name):
            continue
        try:
            versions = list_versions(folder / name)
        except BnfoldError as problem:
            _logger.warning("%s", problem)
            continue
        found[name] = {version: fingerprint(folder / name / str(version)) if marks else "" for version in versions}
    return found


def fingerprint(version: Path) -> str:
    """Stands for the files of a version as they are now, without reading them: paths, sizes, times of change.

    "" where the folder cannot be walked, say because it goes away meanwhile.
    """
    digest = hashlib.sha256()
    try:
        for count, line in enumerate(_walk(version, 1)):
            digest.update(line.encode("utf-8", "surrogateescape"))
            if count > MAX_FILES:  # more than any bundle has: refused as it is, and looked at no further
                break
    except OSError:
        return ""
    return digest.hexdigest()


def _walk(folder: Path, depth: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        found = entry.stat(follow_symlinks=False)
        # ctime too: it moves when a copy keeps the time of its source, and nobody can set it.
        yield f"{depth}/{entry.name}\0{found.st_mode}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}\n"
        if stat.S_ISDIR(found.st_mode) and depth < _DEEPEST:
            yield from _walk(folder / entry.name, depth + 1)
