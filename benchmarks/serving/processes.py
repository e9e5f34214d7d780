"""A server's processes: started with a mark in their environment, counted in CPU time, and stopped by their ids.

CPU time is user and system time of every thread of every process that bears the mark, from /proc (Linux), those that
have ended included as soon as their parent has collected them. The kernel counts it in ticks of 10 ms.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_MARK = "SERVE_PEERS_SERVER"
_START_S = 120.0
_STOP_S = 4.0


class Tree:
    """A server and whatever it started, also what has left its process group."""

    def __init__(self, child: subprocess.Popen[bytes], mark: str) -> None:
        self.child = child
        self._mark = f"{_MARK}={mark}".encode()

    def pids(self) -> list[int]:
        """The processes that bear the mark now."""
        names = (entry.name for entry in os.scandir("/proc"))
        return [int(name) for name in names if name.isdigit() and self._is_marked(int(name))]

    def _is_marked(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False

    def cpu_seconds(self) -> float:
        """User and system time until now."""
        return sum(_cpu_ticks(pid) for pid in self.pids()) / _TICK

    def resident_bytes(self) -> int:
        """Memory of all processes; what they share counts in each."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError, ValueError, IndexError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return total

    def stop(self) -> None:
        """SIGTERM to the server, then SIGKILL to whatever bears the mark still."""
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(_STOP_S)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.child.wait(_STOP_S)


def _cpu_ticks(pid: int) -> int:
    """utime, stime, cutime and cstime of /proc/pid/stat (proc(5), fields 14 to 17)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))


@contextlib.contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, port: int, log: Path
) -> Iterator[Tree]:
    """A server, from the moment its port answers; its output goes to a file. Raises RuntimeError if it does not."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    with log.open("wb") as stream:
        child = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env={**os.environ, **environment, _MARK: mark},
        )  # fmt: skip
    tree = Tree(child, mark)
    try:
        end = time.monotonic() + _START_S
        while not _listens(port):
            if child.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-800:]}")
            time.sleep(0.1)
        yield tree
    finally:
        tree.stop()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
