"""The sockets that a server listens on."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys

from bnfold.errors import BnfoldError

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_BPF_RET = 0x06  # BPF_RET | BPF_K of linux/filter.h: end, and keep so many bytes of the packet


def bind_socket(host: str, port: int, *, share: bool = False) -> socket.socket:
    """A bound socket that does not listen yet: until the models are proven, clients are refused, not kept waiting.

    share: other processes of this user may bind the same address, as workers do, and each gets its part of the
    connections. Raises BnfoldError when the address is taken, forbidden or unknown.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as problem:
        raise no_address(host, port, problem) from None
    try:
        if sys.platform != "win32":  # there it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as problem:
        listener.close()
        raise no_address(host, port, problem) from None
    return listener


def reserve_socket(host: str, port: int) -> socket.socket:
    """A socket that holds an address for the workers, which bind it too; it never listens.

    Raises BnfoldError when the address is taken, also by another server with workers.
    """
    with bind_socket(host, port) as alone:  # sharing would let it through beside a stranger that shares as well
        port = int(alone.getsockname()[1])
    return bind_socket(host, port, share=True)


def refuse_new(listener: socket.socket) -> None:
    """Let no new connection come to a listening socket, so that those in its queue can be accepted before it closes.

    The kernel resets what is in the queue of a socket that closes, though the client is connected by then. A filter
    that drops the first packet (SYN) makes the client try again a second later, when nobody listens. Linux; elsewhere
    nothing is done.
    """
    if sys.platform != "linux":
        return
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))  # struct sock_filter
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))  # struct sock_fprog
    with contextlib.suppress(OSError):  # forbidden in some sandboxes
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def write_url(listener: socket.socket, *, secure: bool = False) -> str:
    """Where a bound socket is reached. secure: over TLS."""
    scheme = "https" if secure else "http"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def no_address(host: str, port: int, problem: OSError) -> BnfoldError:
    """The error for an address that cannot be had."""
    return BnfoldError(
        f"the server cannot listen on {host}:{port} ({problem.strerror or problem}); expected a free address of this "
        "machine; stop what uses it, or give another --host or --port"
    )
