"""Rename a folder to a name that must be free: the one step that publishes what was written beside it."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

_AT_FDCWD = -100  # fcntl.h on Linux
_RENAME_NOREPLACE = 1  # renameat2(2)


def rename_new(source: Path, target: Path) -> None:
    """Rename in one atomic step. Raises FileExistsError when the target exists, were it an empty folder.

    POSIX rename silently replaces an empty folder; Linux can be told not to. Elsewhere the target is looked for first,
    which leaves a gap for an empty folder made at that moment; anything else is never replaced.
    """
    if sys.platform == "linux" and _renameat2(source, target):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    try:
        source.rename(target)
    except OSError as problem:
        if problem.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise


def _renameat2(source: Path, target: Path) -> bool:
    """True when done, False when it cannot be done this way: old C library, kernel or file system, or worse."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return True
    if ctypes.get_errno() == errno.EEXIST:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    return False
