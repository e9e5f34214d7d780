"""Where a run lies: its checkpoint folder, and beside it, while it is under way, `<folder>.partial` with a snapshot."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import DataError
from bnfold.training.folders import check_folder

RUNS = Path("runs")
_SUFFIX = ".partial"


@dataclass(frozen=True)
class Place:
    """folder: the checkpoint that is to be. counted: its name is a number, and the next free one will do as well."""

    folder: Path
    counted: bool = False

    @property
    def partial(self) -> Path:
        """The folder of what is under way."""
        return self.folder.with_name(self.folder.name + _SUFFIX)

    @property
    def snapshot(self) -> Path:
        """The file from which the run can go on."""
        return self.partial / "snapshot.safetensors"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """For one training alone, as long as its process lives: two would replace each other's snapshots, and the
        later one lose its place at the end. Raises DataError where another one is at it. Windows has no such lock.
        """
        if sys.platform == "win32":
            yield
            return
        import fcntl

        with contextlib.ExitStack() as stack:
            try:
                folder = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, FileNotFoundError):
                raise DataError(
                    f"another training is writing to {self.partial}; wait for its end, or name another folder with -o"
                ) from None
            except OSError:
                pass  # a file system without locks
            yield

    def release(self) -> None:
        """Nothing is under way any more."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def release_unless_resumable(self) -> None:
        """Leave nothing behind from which no run can go on."""
        if not self.snapshot.exists():
            self.release()


def claim(folder: Path) -> Place:
    """The place of a new run. Raises DataError where there is a checkpoint, or a run that was stopped."""
    check_folder(folder, "checkpoint")
    place = Place(folder)
    try:
        place.partial.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DataError(f"the folder {place.partial} cannot be made: {problem}; name another with -o") from None
    with place.held():
        if place.snapshot.exists():
            raise DataError(
                f"{place.partial} holds a run that was stopped; go on with --resume {folder}, remove it, or name "
                "another folder with -o"
            )
    return place


def claim_next(name: str) -> Place:
    """`runs/<name>/<n>` with the first number above all that are taken. Raises DataError when it cannot be made."""
    root = RUNS / name
    check_folder(root / "next", "checkpoint")
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            stems = (item.name.removesuffix(_SUFFIX) for item in root.iterdir())
            number = max((int(stem) for stem in stems if stem.isdecimal()), default=0) + 1
            place = Place(root / str(number), counted=True)
            try:
                place.partial.mkdir()
                return place
            except FileExistsError:  # another run was faster
                continue
    except OSError as problem:
        raise DataError(f"the folder {root} cannot be written: {problem}; name another with -o") from None


def reopen(folder: Path) -> Place:
    """The place of a run that was stopped, by its checkpoint folder or by the one beside it. Raises DataError."""
    place = Place(folder.with_name(folder.name.removesuffix(_SUFFIX)) if folder.name else folder)
    if not place.folder.name or not (place.partial.is_dir() or place.folder.is_dir()):
        raise DataError(
            f"there is no run to resume at {folder}; expected the folder {place.folder.name}{_SUFFIX}, which a run "
            "that was stopped leaves behind; train without --resume"
        )
    return place
