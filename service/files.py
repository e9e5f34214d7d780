"""Files that an operator names, opened without waiting: a named pipe in the place of one would be waited for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def open_at_once(path: str | Path, flags: int) -> int:
    """A descriptor, as an opener of `open` gives it. Raises OSError."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def descriptor_of(path: Path) -> Iterator[int]:
    """A descriptor to look at before it is read, of whatever kind the file is. Raises OSError.

    A folder can be opened too, and cannot be made a Python file, which would close it.
    """
    descriptor = open_at_once(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
