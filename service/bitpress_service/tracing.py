"""Traces of jobs for OpenTelemetry: from the submit through the dispatcher and the driver to each block.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set; its SDK reads that and its other variables itself. A trace crosses
processes as a W3C `traceparent`, which is stored with the job.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bitpress.errors import Unavailable

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

_tracer = trace.get_tracer("bitpress")
_propagator = TraceContextTextMapPropagator()


def configure(process: str) -> None:
    """Send this process' spans to the endpoint, if there is one. Raises Unavailable without the SDK."""
    if not os.environ.get(ENDPOINT):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise Unavailable(f"{ENDPOINT} is set, but OpenTelemetry is not here: pip install 'bitpress[traces]'") from None
    provider = TracerProvider(resource=Resource.create({"service.name": f"bitpress-{process}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # sends what is left when the process ends
    trace.set_tracer_provider(provider)


@contextmanager
def span(name: str, parent: str = "", **attributes: str | int) -> Iterator[None]:
    """A span within `parent`, a traceparent, else within the current one; an exception marks it as failed."""
    context = _propagator.extract({"traceparent": parent}) if parent else None
    with _tracer.start_as_current_span(name, context, attributes=attributes):
        yield


def past_span(name: str, begin_ns: int, attributes: Mapping[str, str | int]) -> None:
    """A span that began at a time since 1970 and ends now."""
    _tracer.start_span(name, start_time=begin_ns, attributes=attributes).end()


def traceparent() -> str:
    """The current span for another process; empty when there is none."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent", "")
