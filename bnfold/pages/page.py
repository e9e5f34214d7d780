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


def write_page(text: str, path: Path, endings: Sequence[str] = PAGE) -> Path:
    """Write a page, in place of a page of that name. Raises DataError where it cannot be, or is something else."""
    target = Path(os.path.abspath(path))
    check_ending(path, endings)
    temporary = target.with_name(f".{target.name[:100]}.writing-{secrets.token_hex(8)}")
    try:
        with temporary.open("x", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
        temporary.replace(target)
    except OSError as problem:
        raise DataError(
            f"{path} cannot be written ({problem.strerror}); expected a folder to write in; check the path"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return target
