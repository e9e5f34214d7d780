"""From what happened to a gRPC status: the one table of codes."""

from __future__ import annotations

import logging

import grpc

from service.errors import (
    BadRequest,
    Busy,
    Expired,
    Fault,
    Forbidden,
    LoadFailed,
    ModelFault,
    SlowClient,
    TooLarge,
    Unauthorized,
    UnknownModel,
    Unsupported,
)

Metadata = tuple[tuple[str, str], ...]

_logger = logging.getLogger(__name__)

_CODES: dict[type[Fault], grpc.StatusCode] = {
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    Busy: grpc.StatusCode.UNAVAILABLE,
    Expired: grpc.StatusCode.DEADLINE_EXCEEDED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    LoadFailed: grpc.StatusCode.FAILED_PRECONDITION,
    ModelFault: grpc.StatusCode.INTERNAL,
    SlowClient: grpc.StatusCode.DEADLINE_EXCEEDED,
    TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unauthorized: grpc.StatusCode.UNAUTHENTICATED,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    Unsupported: grpc.StatusCode.UNIMPLEMENTED,
}
_PUSHBACK = "grpc-retry-pushback-ms"  # what the client library waits before it tries again (gRPC proposal A6)


def code_of(problem: Exception) -> grpc.StatusCode:
    """The code of a fault: its own, or that of the nearest kind above it; INTERNAL for what nobody foresaw."""
    return next((_CODES[kind] for kind in type(problem).__mro__ if kind in _CODES), grpc.StatusCode.INTERNAL)


def metadata_of(problem: Exception) -> Metadata:
    """What goes with the code."""
    if isinstance(problem, Busy) and code_of(problem) is grpc.StatusCode.UNAVAILABLE:
        return ((_PUSHBACK, f"{problem.retry_after}000"),)
    return ()


def message_of(problem: Exception, method: str) -> str:
    """One sentence for the client; what nobody foresaw goes to the log alone."""
    if isinstance(problem, Fault):
        return str(problem)
    _logger.error("%s failed in an unforeseen way", method, exc_info=problem)
    return "the server failed on this request; its log says why"
