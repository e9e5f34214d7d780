"""What was asked of the repository at run time, on disk: which models are to be loaded or unloaded, and how often.

Every worker process follows this one file, and a worker that starts again reads it first, so that a request to one of
them reaches all. It is written to a temporary sibling and renamed; each change has a number (epoch) of its own, by
which a worker knows what it has done already.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnfold.bundle.manifest import check_name
from bnfold.documents import dump_object, parse_object
from bnfold.errors import BnfoldError
from service.errors import Unsaved
from service.files import open_at_once
from service.repository.policy import parse_policy

try:
    import fcntl
except ImportError:  # Windows, where there is one process anyway
    fcntl = None  # type: ignore[assignment]

_logger = logging.getLogger(__name__)

FILE = "desired.json"
_LOCK = "desired.lock"
_SCHEMA = 1
_MOST_BYTES = 16 * 2**20
_PAUSE = 0.01

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Wish:
    """What is asked of one model. epoch: the number of the change. policy: its version policy, "" for the server's."""

    action: Literal["load", "unload"]
    epoch: int
    policy: str = ""


Wishes = Mapping[str, Wish]


@dataclass(frozen=True)
class Look:
    """What was asked until one moment. stamp: of the file, as it was then or just before."""

    stamp: Stamp | None
    wishes: Wishes


class DesiredState:
    """desired.json in a folder; without a folder it is kept in memory, for one process and until it ends.

    patience: seconds for another worker to write; one that was halted in the midst of it must not halt all.
    """

    def __init__(self, folder: Path | None, patience: float = 5.0) -> None:
        self._folder = folder
        self._patience = patience
        self._memory: dict[str, Wish] = {}
        self._latest = 0  # the highest epoch seen: numbers go on, also when somebody removes the file
        self._lock = threading.Lock()
        if folder is not None:
            _warn_of_others(folder)

    def stamp(self) -> Stamp | None:
        """Changes whenever the file does; None where there is none."""
        if self._folder is None:
            return None
        try:
            found = os.stat(self._folder / FILE)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def look(self) -> Look:
        """Everything so far. Raises BnfoldError as `read` does."""
        stamp = self.stamp()  # first: a change between the two is then read twice, and not missed
        wishes = self.read()
        with self._lock:
            self._latest = max([self._latest, *(wish.epoch for wish in wishes.values())])
        return Look(stamp, wishes)

    def read(self) -> Wishes:
        """By name of the model. Raises BnfoldError for a file that is not what `change` writes."""
        if self._folder is None:
            return dict(self._memory)
        path = self._folder / FILE
        try:
            with open(path, "rb", opener=open_at_once) as stream:
                _check_kind(path, os.fstat(stream.fileno()), os.stat(self._folder))
                data = stream.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as problem:
            raise BnfoldError(
                f"{path} cannot be read ({problem.strerror}); expected a folder as state_dir, and a file in it that "
                "the server may read; correct its mode, or give another --state-dir"
            ) from None
        if len(data) > _MOST_BYTES:
            raise _damaged(path, f"has more than {_MOST_BYTES} bytes")
        document = parse_object(data, str(path))
        models = document.get("models")
        if set(document) != {"schema", "models"} or document["schema"] != _SCHEMA or not isinstance(models, dict):
            raise _damaged(path, f"has other keys than schema ({_SCHEMA}) and models")
        return {name: _read_wish(path, name, wish) for name, wish in models.items()}

    def change(self, name: str, action: Literal["load", "unload"], policy: str = "") -> Wish:
        """Write down what is asked of a model, durably; gives it with its epoch. For a thread: it waits for the disk.

        Raises Unsaved, and then nothing is changed.
        """
        with self._lock:
            if self._folder is None:
                self._memory[name] = self._next(self._memory, action, policy)
                return self._memory[name]
            try:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                with _locked(self._folder / _LOCK, self._patience):
                    wishes = dict(self.read())
                    wish = wishes[name] = self._next(wishes, action, policy)
                    _replace(self._folder / FILE, _write_wishes(wishes))
                    return wish
            except OSError as problem:
                found = f"the state of the repository cannot be written ({problem.strerror or problem})"
            except BnfoldError as problem:
                _logger.error("%s", problem)
                found = f"the state of the repository ({FILE}) is damaged"
            raise Unsaved(f"{found}, so nothing was changed; look at the server's state_dir, then try again")

    def _next(self, wishes: Wishes, action: Literal["load", "unload"], policy: str) -> Wish:
        self._latest = 1 + max([self._latest, *(wish.epoch for wish in wishes.values())])
        return Wish(action, self._latest, policy)


def _read_wish(path: Path, name: str, wish: Any) -> Wish:
    check_name(name, str(path))
    if not isinstance(wish, dict) or set(wish) != {"action", "epoch", "policy"}:
        raise _damaged(path, f"has something else than action, epoch and policy for {name}")
    action, epoch, policy = wish["action"], wish["epoch"], wish["policy"]
    if action not in ("load", "unload") or type(epoch) is not int or epoch < 1 or not isinstance(policy, str):
        raise _damaged(path, f"has values that are none of its own for {name}")
    try:
        parse_policy(policy or "latest")
    except BnfoldError as problem:
        raise _damaged(path, f"has values that are none of its own for {name} ({problem})") from None
    return Wish(action, epoch, policy)


def _check_kind(path: Path, file: os.stat_result, folder: os.stat_result) -> None:
    """Raise BnfoldError for a file that is none, or that others could have written.

    Where the group of the folder can put another file in its place, as is warned of, the file may be that group's too:
    Kubernetes sets the modes of both so, each time it mounts a volume with an fsGroup.
    """
    if not stat.S_ISREG(file.st_mode):
        raise _damaged(path, "is no regular file")
    writers = file.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if folder.st_mode & stat.S_IWGRP and not folder.st_mode & stat.S_ISVTX and folder.st_gid == file.st_gid:
        writers &= ~stat.S_IWGRP
    if os.name == "posix" and writers:
        raise BnfoldError(
            f"{path} can be written by others than its owner; expected mode 600, because it says which versions are "
            "served; say chmod 600, or remove it to start from the settings"
        )


def _warn_of_others(folder: Path) -> None:
    """Not refused, because that is how Kubernetes mounts volumes; and only what is proven can be asked for."""
    try:
        mode = os.stat(folder).st_mode
    except OSError:  # it is made with the first change
        return
    if os.name == "posix" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        _logger.warning(
            "the state_dir %s can be written by others than its owner, who then say which of the proven versions are "
            "served; say chmod 700",
            folder,
        )


def _write_wishes(wishes: Wishes) -> bytes:
    models = {
        name: {"action": wish.action, "epoch": wish.epoch, "policy": wish.policy} for name, wish in wishes.items()
    }
    return dump_object({"schema": _SCHEMA, "models": models}, FILE)


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also when the power fails."""
    sibling = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        sibling.unlink(missing_ok=True)  # of a process before this one, or a link that somebody put there
        descriptor = os.open(sibling, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(sibling, path)
    except BaseException:
        with contextlib.suppress(OSError):
            sibling.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path, patience: float) -> Iterator[None]:
    """One process at a time; the kernel lets go of it when the process dies. Raises OSError when it takes too long."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        until = time.monotonic() + patience
        while fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(_PAUSE)
        yield
    finally:
        os.close(descriptor)


def _damaged(path: Path, found: str) -> BnfoldError:
    return BnfoldError(f"{path} {found}; expected what the server itself writes; remove it to start from the settings")
