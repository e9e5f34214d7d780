"""Writing a page, or another text for people to open: whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from bnfold.errors import DataError

PAGE = (".html", ".htm")
JUNIT = (".xml",)


def check_ending(path: Path, endings: Sequence[str] = PAGE) -> None:
    """Raise DataError for a name that does not say what the file is; before any work is done for it."""
    if path.suffix not in endings:
        what = "a page" if endings == PAGE else "such a file"
        raise DataError(f"{path} is no name for {what}; expected one that ends with {endings[0]}; give it that ending")


def check_place(path: Path, endings: Sequence[str] = PAGE) -> None:
    """Raise DataError where no file can be written under this name; before any work is done for it."""
    check_ending(path, endings)
    target = Path(os.path.abspath(path))
    if target.is_dir():
        raise DataError(f"{path} is a folder; expected the name of a file, as in {path}/report{endings[0]}")
    temporary = _beside(target)
    try:
        temporary.touch(exist_ok=False)
    except OSError as problem:
        raise _unwritable(path, problem) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_page(text: str, path: Path, endings: Sequence[str] = PAGE) -> Path:
    """Write a page, in place of a page of that name. Raises DataError where it cannot be, or is something else."""
    target = Path(os.path.abspath(path))
    check_ending(path, endings)
    temporary = _beside(target)
    try:
        with temporary.open("x", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
        temporary.replace(target)
    except OSError as problem:
        raise _unwritable(path, problem) from None
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name[:100]}.writing-{secrets.token_hex(8)}")


def _unwritable(path: Path, problem: OSError) -> DataError:
    return DataError(f"{path} cannot be written ({problem.strerror}); expected a folder to write in; check the path")
