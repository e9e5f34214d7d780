"""Traces for OpenTelemetry: a span for each request, and below it one for its wait and one for its run.

On where `otlp_endpoint` is set; needs the extra `otel`. A traceparent of the client is continued (W3C Trace Context).
Spans are sent in batches over OTLP/HTTP by a thread of the SDK; what cannot be sent is dropped, never waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import bnfold
from bnfold.errors import BnfoldError
from service.settings import Settings
from service.telemetry.watch import Account, Watch

_SCOPE = "bnfold"
_FAILURE = 500
_PATIENCE = 5.0  # seconds for the last batch when the server stops
_CARRIED = (b"traceparent", b"tracestate")
_logger = logging.getLogger(__name__)


def open_tracer(settings: Settings) -> OpenTelemetryTracer | None:
    """The tracer, None where no endpoint is set. Raises BnfoldError without the extra, or for what is no address."""
    if not settings.otlp_endpoint:
        return None
    parts = urlsplit(settings.otlp_endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BnfoldError(
            f"the server setting otlp_endpoint is {settings.otlp_endpoint!r:.80}; expected an address as in "
            "http://127.0.0.1:4318; correct it"
        )
    try:
        return OpenTelemetryTracer(settings.otlp_endpoint)
    except ModuleNotFoundError as problem:
        raise BnfoldError(
            f"otlp_endpoint is set, but the package {problem.name} is not installed; install bnfold with the extra "
            "`otel`, or leave otlp_endpoint empty"
        ) from None


def open_watch(settings: Settings) -> Watch | None:
    """What is noted of each request, None when nothing is. Raises BnfoldError as `open_tracer` does."""
    tracer = open_tracer(settings)
    if tracer is None and not settings.access_log:
        return None
    return Watch(access_log=settings.access_log, tracer=tracer)


class OpenTelemetryTracer:
    """Makes spans of accounts. endpoint: of a collector, without /v1/traces."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "bnfold", "service.version": bnfold.__version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_PATIENCE)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(_SCOPE, bnfold.__version__)
        self._propagator = TraceContextTextMapPropagator()
        self._server, self._inner = trace.SpanKind.SERVER, trace.SpanKind.INTERNAL
        self._failed = trace.Status(trace.StatusCode.ERROR)
        self._context_of = trace.set_span_in_context

    def begin(self, account: Account, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Open the span of a request."""
        parent = self._propagator.extract(_carrier(headers))
        account.trace = self._tracer.start_span(
            "request",
            context=parent,
            kind=self._server,
            start_time=account.began,
            attributes={
                "http.request.method": account.method,
                "url.path": account.path,
                "bnfold.request_id": account.request_id.decode("ascii"),
            },
        )

    def end(self, account: Account) -> None:
        """Close it, with its wait and its run as children."""
        span = account.trace
        if account.model:
            span.set_attributes({"bnfold.model": account.model, "bnfold.version": account.version})
        if account.delivered:
            context = self._context_of(span)
            stages = (("queue", account.queued, account.computed), ("compute", account.computed, account.delivered))
            for name, start, end in stages:
                child = self._tracer.start_span(name, context=context, kind=self._inner, start_time=start)
                child.end(max(start, end))
        if account.status:
            span.set_attribute("http.response.status_code", account.status)
        if account.status >= _FAILURE:
            span.set_status(self._failed)
        span.end(account.ended)

    def close(self) -> None:
        """Send what is left; waits for as long as one batch may take."""
        self._provider.shutdown()


def _carrier(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, Any]:
    return {name.decode("ascii"): value.decode("latin-1") for name, value in headers if name in _CARRIED}
