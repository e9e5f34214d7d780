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
    """Rename in one atomic step. Raises FileExistsError when the target exists in any form, an empty folder included.

    POSIX rename silently replaces an empty folder; Linux can be told not to. Where that is missing the target is
    looked for first: a folder with something in it, or a file, is then still never replaced.
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
    """True when done, False when this C library, kernel or file system does not know the call."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(target))
