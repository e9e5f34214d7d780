"""Writing a page: whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from bnfold.errors import DataError


def write_page(text: str, path: Path) -> Path:
    """Write a page, in place of a page of that name. Raises DataError where it cannot be, or is something else."""
    target = Path(os.path.abspath(path))
    if target.suffix not in (".html", ".htm"):
        raise DataError(f"{path} is no name for a page; expected one that ends with .html; give it that ending")
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
