"""The short way of an inference: from the parser of a connection to the queue and back, without ASGI in between.

A request whose body is small goes here: no task, no future, no scope, and its answer is one write. It passes the same
checks in the same order as in infer.py, and every other request, or one whose body does not come soon, takes the
way through ASGI as if there were no other. Measured: ASGI and its task cost as much as all the rest of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine
from typing import Any
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.errors import Fault
from service.http.answers import Headers, error_body, fault_headers, status_of
from service.http.bounds import Bounds
from service.http.compression import choose_coding
from service.http.connection import LONGEST_URL, MOST_HEADERS, Connection
from service.http.infer import ACCEPTED, HEADER_LENGTH, Answer, Target, compose, compose_now, find_target, pack
from service.http.rest import parse_header_length, parse_request
from service.hub import Count, Hub
from service.queueing.backlog import Outputs, Ticket
from service.telemetry.watch import ID_HEADER, identify

_logger = logging.getLogger(__name__)

_SMALL = 64 * 2**10  # bytes of a body: beyond it uvicorn stops reading until the application asks for more
_SOON = 1.0  # seconds for such a body after its head; then its sender is watched on the way through ASGI
_MOST_TARGETS, _LONGEST_TARGET = 1024, 512  # addresses that are kept, and the bytes of each
_ONCE = frozenset((HEADER_LENGTH, b"content-encoding", b"accept-encoding"))
_WRONG = "the server failed on this request; its log says why"


class Express(Connection):
    """A connection on which small inferences take the short way. hub, targets: of one server."""

    hub: Hub
    targets: dict[bytes, Target | None]
    _course: Course | None = None  # the request whose body arrives
    _running: Course | None = None  # the request that waits for its answer
    _soon: asyncio.TimerHandle | None = None
    _close_at = math.inf

    def on_headers_complete(self) -> None:
        """The end of a head: whether it takes the short way."""
        course = self._find_course()
        if course is None:
            super().on_headers_complete()
            return
        self._end_head()
        self._course = course
        # To uvicorn it is a cycle like its own: a request that is being answered.
        self.cycle = course  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        course = self._course
        if course is None:
            super().on_body(body)
            return
        self._silent = 0
        course.body = course.body + body if course.body else body
        if len(course.body) > course.room:
            self._go_long()

    def on_message_complete(self) -> None:
        """The end of a body."""
        course = self._course
        if course is None:
            super().on_message_complete()
            return
        self._silent = 0
        self._course = None
        self._stop_waiting()
        self._running = course
        course.begin()

    def data_received(self, data: bytes) -> None:
        """What has arrived. A body that is not whole with it is waited for."""
        super().data_received(data)
        if self._course is not None and self._soon is None:
            self._soon = self.loop.call_later(_SOON, self._go_long)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        course, self._course, self._running = self._course or self._running, None, None
        self._stop_waiting()
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        if course is not None:
            course.leave()

    def _find_course(self) -> Course | None:
        hub = self.hub
        cycle: Any = self.cycle  # None before the first request
        if (
            hub.watch is not None
            or len(self.headers) > MOST_HEADERS
            or len(self.url) > LONGEST_URL
            or not (cycle is None or cycle.response_complete)
            or self.expect_100_continue
            or self.flow.write_paused
            or self.transport.is_closing()
            or self.parser.get_method() != b"POST"
            or self.parser.get_http_version() != "1.1"
            or self._hosts != 1
            or self.parser.should_upgrade()
        ):
            return None
        url = self.url
        try:
            target = self.targets[url]
        except KeyError:
            target = self._learn(url)
        if target is None:
            return None
        course = Course(self, target)
        return course if course.read_headers(self.headers) and course.hold() else None

    def _learn(self, url: bytes) -> Target | None:
        if b"?" in url or b"#" in url or not url.startswith(b"/") or not url.isascii():
            return None
        target = find_target(unquote(url.decode("ascii")))
        if len(url) <= _LONGEST_TARGET:
            if len(self.targets) >= _MOST_TARGETS:  # strangers choose the addresses
                self.targets.clear()
            self.targets[url] = target
        return target

    def _go_long(self) -> None:
        """Let the request whose body arrives take the way through ASGI after all."""
        self._stop_waiting()
        course = self._course
        if course is None or self.transport.is_closing():  # the end of the connection ends it too
            return
        self._course = None
        self.cycle = None  # type: ignore[assignment]
        super().on_headers_complete()
        scope: Any = self.scope
        scope[ACCEPTED] = True
        cycle: Any = self.cycle
        cycle.keep_alive = cycle.keep_alive and course.keep_alive  # the server may have begun to stop since the head
        if course.body:
            super().on_body(course.body)
        # Its task begins after this, and takes the engine for itself.
        self.loop.call_soon(course.count.release)

    def end_course(self) -> None:
        """An answer was written by the short way: what uvicorn does after one, with the timer that is there."""
        self._running = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._see_off()
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None and not self._is_answering():
            self._refuse(*self._refusal)
        else:
            self._close_in(self.timeout_keep_alive)

    def _close_in(self, seconds: float) -> None:
        """As above; a timer that is set already is left to find out that there is more time.

        Otherwise each request would set four of them and take them back.
        """
        self._close_at = self.loop.time() + seconds
        if self._timer is None or self._timer.when() > self._close_at:
            self._set_timer(seconds)

    def _set_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _stop_timer(self) -> None:
        self._close_at = math.inf

    def _give_up(self) -> None:
        self._timer = None
        left = self._close_at - self.loop.time()
        if left <= 0:
            super()._give_up()
        elif left < math.inf:
            self._set_timer(left)

    def _stop_waiting(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None


class Course:
    """One request on the short way. The first fields are those that uvicorn's protocol reads of a cycle."""

    __slots__ = (
        "accepted", "body", "connection", "count", "disconnected", "header_length", "held", "keep_alive",
        "message_event", "more_body", "request", "request_id", "response_complete", "room", "target", "ticket",
    )  # fmt: skip

    def __init__(self, connection: Express, target: Target) -> None:
        self.connection = connection
        self.target = target
        self.body = b""
        self.more_body = True
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self.message_event = _NO_EVENT
        self.room = min(_SMALL, connection.hub.settings.max_body_bytes)
        self.held = 0
        self.count = Count(connection.hub.metrics, time.perf_counter())
        self.request: Any = None
        self.request_id = b""
        self.ticket: Ticket | None = None
        self.header_length: bytes | None = None
        self.accepted: bytes | None = None

    def read_headers(self, headers: Headers) -> bool:
        """Take what is needed of the head; whether the short way will do."""
        seen = 0
        for name, value in headers:
            if name in _ONCE:
                if name is HEADER_LENGTH or name == HEADER_LENGTH:
                    self.header_length = value
                    seen += 1
                elif name == b"accept-encoding":
                    if self.accepted is not None:
                        return False
                    self.accepted = value
                else:
                    return False
            elif name == b"content-length" and value.isdigit() and len(value) < 18 and int(value) > self.room:
                return False
        self.keep_alive = bool(self.connection.parser.should_keep_alive())
        return seen < 2

    def hold(self) -> bool:
        """Check the head and take the engine; whether that went well. What did not is told by the way through ASGI."""
        hub, headers = self.connection.hub, self.connection.headers
        try:
            if hub.keys.are_asked_for:
                hub.keys.check(headers, "infer")
            hub.check_open()
            self.count.use(hub.repository.find(self.target.model, self.target.version))
        except Fault:
            return False
        self.request_id = identify(headers)
        return True

    def begin(self) -> None:
        """The body is here: check it and put it into the queue."""
        self.more_body = False
        hub, engine = self.connection.hub, self.count.engine
        if engine is None:  # never: `hold` took it
            return
        try:
            hub.budget.take(len(self.body))
            self.held = len(self.body)
            length = parse_header_length(self.header_length, self.held)
            self.request = request = parse_request(self.body, length, engine.signature, hub.limits)
            self.body = b""  # while it is warm, the next one takes its place
            limit = hub.settings.request_timeout
            timeout = limit if request.timeout is None else min(request.timeout, limit)
            self.ticket = hub.batcher.submit(
                engine, request.inputs, request.rows, timeout, request.priority, self.finish
            )
        except Exception as problem:
            self._fail(problem)

    def finish(self, ticket: Ticket, answer: Outputs | Exception) -> None:
        """The outputs are here, or what went wrong."""
        self.count.queued = ticket.started - ticket.queued
        if isinstance(answer, Exception):
            self._fail(answer)
            return
        engine = self.count.engine
        if engine is None:  # never: it was found before the ticket was made
            return
        hub = self.connection.hub
        accepted = self.accepted if hub.settings.compress_answers else None
        try:
            if self.request.ranks:
                self._finish_later(compose(hub, engine, self.request, answer, accepted))
                return
            composed = compose_now(engine, self.request, answer)
            if accepted is not None and choose_coding(accepted, len(composed.body)) is not None:
                self._finish_later(pack(hub, composed, accepted))
                return
        except Exception as problem:
            self._fail(problem)
            return
        self._succeed(composed)

    def leave(self) -> None:
        """The client has gone."""
        self.disconnected = True
        if not self.response_complete and (self.ticket is None or not self.ticket.done):
            if self.ticket is not None:
                self.connection.hub.batcher.cancel(self.ticket)
            self.response_complete = True
            self.count.fail("client_gone")
            self._release()

    def _finish_later(self, work: Coroutine[Any, Any, Answer]) -> None:
        """Classify or compress, which may be work for another thread."""
        task = self.connection.loop.create_task(self._finish_after(work))
        self.connection.tasks.add(task)
        task.add_done_callback(self.connection.tasks.discard)

    async def _finish_after(self, work: Coroutine[Any, Any, Answer]) -> None:
        try:
            composed = await work
        except Exception as problem:
            self._fail(problem)
        else:
            self._succeed(composed)

    def _succeed(self, answer: Answer) -> None:
        self.count.succeed()
        self._release()
        self._write(200, answer.body, answer.headers, answer.content_type, answer.engine.head)

    def _fail(self, problem: Exception) -> None:
        if isinstance(problem, Fault):
            status, message, headers, reason = status_of(problem), str(problem), fault_headers(problem), problem.reason
        else:
            _logger.error(
                "POST %s failed in an unforeseen way", self.target.path, exc_info=problem,
                extra={"request_id": self.request_id.decode()},
            )  # fmt: skip
            status, message, headers, reason = 500, _WRONG, [], "internal"
        if status == 500:
            _logger.error("a request failed", extra={"request_id": self.request_id.decode(), "status": status})
        self.count.fail(reason)
        self._release()
        self._write(status, error_body(message), headers, b"application/json")

    def _release(self) -> None:
        self.count.release()
        self.connection.hub.budget.give_back(self.held)
        self.held = 0
        self.request = self.ticket = None

    def _write(self, status: int, body: bytes, headers: Headers, content_type: bytes, proof: bytes = b"") -> None:
        connection = self.connection
        self.response_complete = True
        if self.disconnected or connection.transport.is_closing():
            return
        lines = [STATUS_LINE[status]]
        lines += [b"%b: %b\r\n" % header for header in connection.server_state.default_headers]
        lines.append(b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type, len(body)))
        for name, value in headers:
            if name == b"connection":
                self.keep_alive = False
            else:
                lines += (name, b": ", value, b"\r\n")
        lines += (proof, ID_HEADER, b": ", self.request_id, b"\r\n")
        if connection.hub.lifecycle.draining:
            self.keep_alive = False
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        lines.append(body)
        connection.transport.write(b"".join(lines))
        if not self.keep_alive:
            connection.transport.close()
        connection.end_course()


class _NoEvent:
    """Stands where a cycle has the event that its application waits for."""

    def set(self) -> None:
        """Nobody waits."""


_NO_EVENT = _NoEvent()


def make_protocol(bounds: Bounds, hub: Hub) -> type[Express]:
    """The protocol class for one server."""
    return type("Connection", (Express,), {"bounds": bounds, "hub": hub, "targets": {}})
