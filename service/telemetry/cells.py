"""Where the counts lie: blocks of float64 cells, each counted up by one process and read by all of them.

One process keeps its blocks in memory. Several keep them in files of one folder, a subfolder for each worker, mapped
into the memory of whoever counts. So a count costs the same either way, a worker that is killed leaves what it counted,
and the worker that takes its place counts on from there: a sum over the workers never falls.

The first cell of a block says whether its owner still wants it shown.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np

Cells: TypeAlias = "memoryview[float]"

RESTARTS = "restarts"  # the block of the supervisor: after the first cell, how often each worker was started again

_logger = logging.getLogger(__name__)
_WIDTH = 8
_KEPT = 0


class Shelf:
    """The blocks of one process by name. folder: where those of all workers lie; None for a process on its own.

    `open` and `forget` may be called in any thread; a block is counted up on the event loop alone.
    """

    def __init__(self, folder: Path | None = None, worker: int = 0) -> None:
        self._folder = folder
        self._own = None if folder is None else folder / str(worker)
        self._blocks: dict[str, Cells] = {}
        self._users: Counter[str] = Counter()
        self._adrift: set[str] = set()  # blocks that found no room in the folder
        self._lock = threading.Lock()
        if self._own is not None:
            self._own.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in os.listdir(self._own):  # what the worker before this one had open
                with open(self._own / name, "r+b") as file:
                    file.write(bytes(_WIDTH))

    def open(self, name: str, size: int) -> Cells:
        """The block of a name, zero when it is new. Whoever opens it again gets the same one."""
        with self._lock:
            block = self._blocks.get(name)
            if block is None:
                block = self._blocks[name] = self._map(name, size * _WIDTH).cast("d")
            block[_KEPT] = 1.0
            self._users[name] += 1
            return block

    def forget(self, name: str) -> None:
        """The end of one use of a block; after the last it is not shown, once no worker uses it."""
        with self._lock:
            self._users[name] -= 1
            if self._users[name] > 0:
                return
            del self._users[name]
            block = self._blocks.pop(name, None)
            self._adrift.discard(name)
            if block is not None:
                block[_KEPT] = 0.0
            self._sweep()

    def total(self, name: str, size: int) -> list[float]:
        """The sum of a block over all workers."""
        if self._folder is None:
            block = self._blocks.get(name)
            return [0.0] * size if block is None else list(block)
        total = np.zeros(size)
        for cells in self._of_all(name):
            if len(cells) == size:
                total += cells
        return list(total.tolist())

    def names(self) -> list[str]:
        """The blocks that some worker uses."""
        if self._folder is None:
            return sorted(self._blocks)
        found = {file.name for worker in self._folder.iterdir() for file in worker.iterdir()} | self._adrift
        return sorted(name for name in found if any(cells[_KEPT] for cells in self._of_all(name)))

    def _of_all(self, name: str) -> Iterator[np.ndarray[tuple[int], np.dtype[np.float64]]]:
        if self._folder is None:
            return
        if name in self._adrift:
            yield np.array(self._blocks[name])
        for worker in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                found = (worker / name).read_bytes()
                if len(found) >= _WIDTH:  # it may have been made this moment
                    yield np.frombuffer(found, np.float64, len(found) // _WIDTH)

    def _sweep(self) -> None:
        """Remove own files that no worker uses."""
        if self._own is None:
            return
        for name in os.listdir(self._own):
            if not any(cells[_KEPT] for cells in self._of_all(name)):
                (self._own / name).unlink(missing_ok=True)

    def _map(self, name: str, size: int) -> memoryview:
        if self._own is not None:
            try:
                return memoryview(_map_file(self._own / name, size))
            except OSError as problem:
                _logger.warning("the counts of %s stay in this worker alone: %s", name, problem)
                self._adrift.add(name)
                (self._own / name).unlink(missing_ok=True)
        return memoryview(mmap.mmap(-1, size))  # the pages that are never counted in take no memory


def _map_file(path: Path, size: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, size)
        if hasattr(os, "posix_fallocate"):  # a count into a hole on a full disk would end the process by a signal
            os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
