"""What the connections of one server may take, each alone and all together."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from service.settings import Settings

_SPARE_FILES = 64  # descriptors for what is no connection: models, logs, the event loop

_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Bounds:
    """What the connections of one server may take together and alone. Times are in seconds.

    unsent: bytes of answers that clients have not read, which most_unsent bounds. turned_away: connections beyond
    most_connections that are still told so. count: told the reason of every connection that was cut or turned away.
    """

    header_timeout: float
    keep_alive_timeout: float
    write_timeout: float
    most_connections: int
    most_unsent: int
    count: Callable[[str], None]
    unsent: int = 0
    turned_away: int = 0

    @staticmethod
    def of(settings: Settings, count: Callable[[str], None]) -> Bounds:
        """The bounds that the settings name; no more connections than there are files that the process may open."""
        most = share_files(settings)
        if most < settings.max_connections:
            _logger.warning(
                "the limit on open files allows %d connections instead of %d; raise ulimit -n",
                most,
                settings.max_connections,
            )
        return Bounds(
            header_timeout=settings.header_timeout,
            keep_alive_timeout=settings.keep_alive_timeout,
            write_timeout=settings.write_timeout,
            most_connections=most,
            most_unsent=settings.max_memory_bytes,
            count=count,
        )


def share_files(settings: Settings) -> int:
    """The connections of one door, HTTP's or gRPC's: as many as are wanted, or as the limit on open files leaves.

    The limit is raised as far as it may be.
    """
    wanted, doors = settings.max_connections, 1 if settings.grpc_port is None else 2
    try:
        import resource  # not on Windows
    except ImportError:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = doors * (wanted + wanted // 8) + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft < needed:
            return max(1, (soft - _SPARE_FILES) * 8 // 9 // doors)
    return wanted
