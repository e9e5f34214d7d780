"""Request ids, access log and traces of gRPC: a call is noted as the HTTP/2 request that it is.

Its status is that which the same fault has over REST, so that one log can be read alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from service.errors import Fault
from service.http.answers import status_of
from service.hub import Hub
from service.telemetry.watch import CURRENT, ID_HEADER, identify

RawHeaders = list[tuple[bytes, bytes]]

ID_KEY = ID_HEADER.decode("ascii")


def raw_headers(context: Any) -> RawHeaders:
    """The metadata of a call as the headers that they are."""
    return [
        (key.encode(), value if isinstance(value, bytes) else value.encode())
        for key, value in context.invocation_metadata() or ()
    ]


@contextmanager
def watched(hub: Hub, path: str, headers: RawHeaders) -> Iterator[str]:
    """Note one request while an access log or traces are on; gives its id. Faults pass through."""
    request_id = identify(headers)
    if hub.watch is None:
        yield request_id.decode("ascii")
        return
    account = hub.watch.begin({"method": "POST", "path": path, "headers": headers}, request_id)
    token = CURRENT.set(account)
    try:
        yield request_id.decode("ascii")
        account.status = 200
    except Fault as fault:
        account.status = status_of(fault)
        raise
    except asyncio.CancelledError:
        raise
    except Exception:
        account.status = 500
        raise
    finally:
        CURRENT.reset(token)
        hub.watch.end(account)
