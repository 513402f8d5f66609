"""Sends through the standard exporters, and hears what the collector answers.

An exporter's ``export`` says only success or failure, after retries of its own that nobody can influence: status,
``Retry-After`` and partial success would be lost. So each request is listened to, and one that fails ends the
exporter's own retrying: ``Pipeline`` does that, with all that waits in view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from .answers import MAX_SAID, Answer, Meaning, of_grpc, of_http

__all__ = ["GrpcSender", "HttpSender", "Sender"]

_SENT = Answer(Meaning.SENT)


class Sender:
    """Sends through an exporter that says no more than whether it failed.

    Parameters
    ----------
    target
        Where it sends to, for a person; holds no secret.
    """

    #: What it means if sending raises an exception.
    broken = Answer(Meaning.REFUSED, "the exporter raises an exception")

    def __init__(self, name: str, exporter: SpanExporter, target: str = "") -> None:
        self.name = name
        self.target = target
        self.exporter = exporter

    def send(self, spans: Sequence[ReadableSpan]) -> Answer:
        """Send spans and say what came of it; may raise anything."""
        # Some exporters return nothing.
        failed = self.exporter.export(spans) is SpanExportResult.FAILURE
        return Answer(Meaning.REFUSED, "the exporter says FAILURE") if failed else _SENT

    def shutdown(self) -> None:
        """Shut the exporter down; may raise anything."""
        self.exporter.shutdown()


class _Failed(BaseException):
    """A request has failed. No ``Exception``: the exporters catch those and try again."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.said)
        self.answer = answer


class _OtlpSender(Sender):
    #: Nothing was asked, so the spans were never encoded.
    broken = Answer(Meaning.INVALID, "the exporter cannot encode it")

    def __init__(self, name: str, exporter: SpanExporter, target: str) -> None:
        super().__init__(name, exporter, target)
        self._answer: Answer | None = None

    def send(self, spans: Sequence[ReadableSpan]) -> Answer:
        """Send spans and say what the collector answered."""
        self._answer = None
        try:
            self.exporter.export(spans)
        except _Failed as failed:
            return failed.answer
        return self._answer or self.broken

    def _heard(self, answer: Answer) -> None:
        """Keep an answer; a failure goes past the exporter at once."""
        self._answer = answer
        if answer.meaning is not Meaning.SENT:
            raise _Failed(answer)


class HttpSender(_OtlpSender):
    """Sends through the standard OTLP exporter over HTTP, made with ``session``, a ``requests.Session``."""

    def __init__(self, name: str, exporter: SpanExporter, target: str, session: Any) -> None:
        super().__init__(name, exporter, target)
        session.request = self._listening(session, session.request)

    def _listening(self, session: Any, request: Callable[..., Any]) -> Callable[..., Any]:
        from requests import RequestException

        def listening(*args: Any, **options: Any) -> Any:
            if session.verify is not True:  # else REQUESTS_CA_BUNDLE would win over OTEL_EXPORTER_OTLP_CERTIFICATE
                options.setdefault("verify", session.verify)
            options["allow_redirects"] = False  # a redirected POST becomes a GET: lost, and reported as sent
            try:
                response = request(*args, **options)
            except RequestException as error:
                self._heard(Answer(Meaning.LATER, _reason(error)))
            body = response.content
            answer = of_http(
                response.status_code, response.reason or "", response.headers, body[:2000].decode("utf-8", "replace")
            )
            self._heard(_taken_in_part(body) if answer.meaning is Meaning.SENT else answer)
            return response

        return listening


class GrpcSender(_OtlpSender):
    """Sends through the standard OTLP exporter over gRPC.

    The exporter's stub is a private attribute; tests on both ends of the version range hold it.
    """

    def __init__(self, name: str, exporter: Any, target: str) -> None:
        super().__init__(name, exporter, target)
        self._call = exporter._client.Export
        exporter._client = self

    def Export(self, request: Any, **options: Any) -> Any:  # noqa: N802 -- the stub's name for it
        """Stand in for the exporter's stub."""
        from grpc import RpcError

        try:
            response = self._call(request, **options)
        except RpcError as error:
            self._heard(of_grpc(error.code().name, error.details() or "", _retry_delay(error)))
        self._heard(_rejected(response))
        return response


def _taken_in_part(body: bytes) -> Answer:
    try:
        return _rejected(ExportTraceServiceResponse.FromString(body))
    except DecodeError:  # JSON, or nothing of the kind; the status did say success
        return _SENT


def _rejected(response: Any) -> Answer:
    partial = response.partial_success
    return Answer(Meaning.SENT, partial.error_message[:MAX_SAID], rejected=max(0, partial.rejected_spans))


def _retry_delay(error: Any) -> float | None:
    from google.rpc.error_details_pb2 import RetryInfo

    packed = dict(error.trailing_metadata() or ()).get("google.rpc.retryinfo-bin")
    try:
        delay = RetryInfo.FromString(packed).retry_delay if packed else None
    except DecodeError:
        return None
    return delay.seconds + delay.nanos / 1e9 if delay else None


def _reason(error: BaseException) -> str:
    """Say what lies at the bottom of an error, without the URL, which may hold a password."""
    for _ in range(5):
        inner = getattr(error, "reason", None) or next(iter(error.args), None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    return f"{type(error).__name__}: {error.args[-1] if error.args else ''}"[:MAX_SAID]
