"""Ports for processes that must be told theirs before they start."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_DEALT = Path("/proc/sys/net/ipv4/ip_local_port_range")  # Linux's; others begin higher


def choose_port() -> int:
    """A port on which nobody listens, below those that the kernel deals out: no socket is given it in the meantime."""
    lowest = int(_DEALT.read_text().split()[0]) if _DEALT.exists() else 32768
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(10_000, max(lowest, 20_000))
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
