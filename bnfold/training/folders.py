"""A folder of results: written beside its place first, then moved in by one rename that replaces nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from bnfold.errors import DataError
from bnfold.rename import rename_new

_MOST_BYTES = 64 * 2**20  # of a text


def read_text(path: Path) -> str:
    """A text of a folder of results, its line ends as they are; empty where it cannot be read or none is so large."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)  # a link may lead to what never ends
        return content.decode() if len(content) <= _MOST_BYTES else ""
    except (OSError, UnicodeDecodeError):
        return ""


def check_folder(folder: Path, what: str) -> None:
    """Raise DataError, before any work is done for it, for a folder that exists or that cannot be made.

    what: is to be in it, as a sentence names that.
    """
    if os.path.lexists(folder):
        raise _exists(folder, what)
    for parent in Path(os.path.abspath(folder)).parents:
        if os.path.lexists(parent):
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise DataError(
                    f"the {what} {folder} cannot be written, as {parent} is no folder that may be written to; "
                    "name another with -o"
                )
            return


def write_folder(folder: Path, what: str, fill: Callable[[Path], None], *, counted: bool = False) -> Path:
    """Write a folder whole, or not at all: where it is then. fill: writes the files into a folder that it is given.

    counted: the folder's name is a number, and where it is taken meanwhile the next free one will do.
    Raises DataError when the folder exists or cannot be written; then nothing is left behind.
    """
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
        return _publish(scratch, folder, counted)
    except FileExistsError:
        raise _exists(folder, what) from None
    except (OSError, SafetensorError) as problem:
        raise DataError(f"the {what} {folder} cannot be written: {problem}") from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, folder: Path, counted: bool) -> Path:
    while True:
        try:
            rename_new(scratch, folder)
            return folder
        except FileExistsError:
            if not counted:
                raise
            folder = folder.with_name(str(int(folder.name) + 1))


def _exists(folder: Path, what: str) -> DataError:
    return DataError(f"the {what} folder {folder} exists; expected a new one; name another with -o")
