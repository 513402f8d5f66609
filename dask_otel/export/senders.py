"""Sends through the standard exporters, and hears what the collector answers.

An exporter's ``export`` says only success or failure, after retries of its own that nobody can influence: status,
``Retry-After`` and partial success would be lost. So each request is listened to, and one that fails ends the
exporter's own retrying: ``Pipeline`` does that, with all that waits in view.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from time import monotonic
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from ..safety import Safety
from .answers import Answer, Meaning, of_grpc, of_http, short
from .proxies import Proxy

__all__ = ["GrpcSender", "HttpSender", "Sender", "shut_down"]

_SENT = Answer(Meaning.SENT)
#: Bytes read of an answer; there is no reason for a longer one.
MAX_BODY = 4096


class Sender:
    """Sends through an exporter that says no more than whether it failed.

    Parameters
    ----------
    exporter
        Of spans or of metrics.
    target
        Where it sends to, for a person; holds no secret.
    proxy
        What its requests go through.
    """

    #: What it means if sending raises an exception.
    broken = Answer(Meaning.REFUSED, "the exporter raises an exception")

    def __init__(
        self, name: str, exporter: SpanExporter | MetricExporter, target: str = "", proxy: Proxy | None = None
    ) -> None:
        self.name = name
        self.target = target
        self.proxy = proxy
        self.exporter = exporter

    def send(self, data: Any) -> Answer:
        """Send what the exporter takes, and say what came of it; may raise any ``Exception``."""
        try:
            # Some exporters return nothing.
            failed = getattr(self.exporter.export(data), "name", "") == "FAILURE"
        except Exception:
            raise
        except BaseException as error:  # it must not end the thread
            raise RuntimeError(f"the exporter raised {type(error).__name__}") from error
        return Answer(Meaning.REFUSED, "the exporter says FAILURE") if failed else _SENT

    def reconnect(self) -> None:
        """See to it that the next request tries to connect, however short ago that has failed."""

    def shutdown(self) -> None:
        """Shut the exporter down; may raise anything."""
        self.exporter.shutdown()


def shut_down(sender: Sender, safety: Safety, *, is_sending: bool) -> None:
    """Shut a sender's exporter down; while it sends, that ends its own waiting, but may itself wait: not here."""

    def run() -> None:
        with safety.guard("exporter shutdown"):
            sender.shutdown()

    if is_sending:
        threading.Thread(target=run, name="dask-otel shutdown", daemon=True).start()
    else:
        run()


class _Failed(BaseException):
    """A request has failed. No ``Exception``: the exporters catch those and try again."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.said)
        self.answer = answer


class _OtlpSender(Sender):
    #: Nothing was asked, so the spans were never encoded.
    broken = Answer(Meaning.INVALID, "the exporter cannot encode it")

    def __init__(
        self, name: str, exporter: SpanExporter | MetricExporter, target: str, proxy: Proxy | None = None
    ) -> None:
        super().__init__(name, exporter, target, proxy)
        self._answer: Answer | None = None
        #: The thread that sends.
        self._thread: int | None = None

    def send(self, data: Any) -> Answer:
        """Send spans or metrics and say what the collector answered."""
        self._answer, self._thread = None, threading.get_ident()
        try:
            self.exporter.export(data)
        except _Failed as failed:
            return failed.answer
        finally:
            self._thread = None
        return self._answer or self.broken

    @property
    def _is_ours(self) -> bool:
        """Whether the calling thread sends for us; somebody else may share the session."""
        return self._thread == threading.get_ident()

    def _heard(self, answer: Answer) -> None:
        """Keep an answer; a failure goes past the exporter at once."""
        self._answer = answer
        if answer.meaning is not Meaning.SENT:
            raise _Failed(answer)


class HttpSender(_OtlpSender):
    """Sends through the standard OTLP exporter over HTTP, made with ``session``, a ``requests.Session``.

    Parameters
    ----------
    verify
        As for ``requests``: a file of authorities, or True.
    without
        Names of headers, in lower case, that the exporter takes from the variable and that cannot be sent.
    """

    def __init__(
        self,
        name: str,
        exporter: SpanExporter | MetricExporter,
        target: str,
        session: Any,
        verify: Any,
        timeout: float,
        proxy: Proxy | None = None,
        without: Collection[str] = (),
    ) -> None:
        super().__init__(name, exporter, target, proxy)
        self._without = without
        self._timeout = timeout
        #: What every request is made with. A redirected POST would become a GET: lost, and reported as sent. Without
        #: ``verify``, REQUESTS_CA_BUNDLE would win over OTEL_EXPORTER_OTLP_CERTIFICATE.
        self._options = {"allow_redirects": False, "stream": True, "verify": verify}
        session.request = self._listening(session.request)

    def _listening(self, request: Callable[..., Any]) -> Callable[..., Any]:
        def listening(*args: Any, **options: Any) -> Any:
            if not self._is_ours:
                return request(*args, **options)
            deadline = monotonic() + self._timeout
            if self._without and options.get("headers"):
                sent = options["headers"].items()
                options["headers"] = {name: value for name, value in sent if name.lower() not in self._without}
            try:
                response = _request(request, *args, **options | self._options)
                body = _read(response, deadline)
            except Exception as error:  # noqa: BLE001 -- a credential provider may raise anything
                self._heard(_of_error(error))
            text = body.decode("utf-8", "replace")
            answer = of_http(response.status_code, response.reason or "", response.headers, text)
            self._heard(_taken_in_part(body) if answer.meaning is Meaning.SENT else answer)
            return response

        return listening


class GrpcSender(_OtlpSender):
    """Sends through the standard OTLP exporter over gRPC.

    The exporter's stub is a private attribute; tests on both ends of the version range hold it.

    Parameters
    ----------
    again
        Makes another such exporter, whose channel shares nothing with the first one's.
    """

    def __init__(self, name: str, exporter: Any, target: str, proxy: Proxy | None, again: Callable[[], Any]) -> None:
        super().__init__(name, exporter, target, proxy)
        self._again = again
        self._call = self._listen_to(exporter)

    def _listen_to(self, exporter: Any) -> Callable[..., Any]:
        """Stand in for an exporter's stub, and return its call."""
        call: Callable[..., Any] = exporter._client.Export
        exporter._client = self
        return call

    def reconnect(self) -> None:
        """Use a new channel: one that could not connect fails all requests until it has waited for its back-off."""
        exporter = self._again()
        self.exporter, before = exporter, self.exporter
        self._call = self._listen_to(exporter)
        before.shutdown()

    def Export(self, request: Any, **options: Any) -> Any:  # noqa: N802 -- the stub's name for it
        """Stand in for the exporter's stub."""
        from grpc import RpcError

        try:
            response = self._call(request, **options)
        except RpcError as error:
            answer = of_grpc(error.code().name, error.details() or "", _retry_delay(error))
            self._heard(replace(answer, was_reached=_has_answered(error, answer)))
        except Exception as error:  # noqa: BLE001 -- headers that gRPC does not take, for instance
            self._heard(_of_error(error))
        self._heard(_rejected(response))
        return response


def _request(request: Callable[..., Any], *args: Any, **options: Any) -> Any:
    from requests import ConnectionError as LostConnection
    from requests import ConnectTimeout

    try:
        return request(*args, **options)
    except ConnectTimeout:
        raise
    except LostConnection:  # the server may have closed one that was kept open
        return request(*args, **options)


def _read(response: Any, deadline: float) -> bytes:
    """Read an answer as it is, without waiting for one that never ends."""
    body = bytearray()
    for byte in response.raw.stream(1, decode_content=False):
        body += byte
        if len(body) >= MAX_BODY or monotonic() > deadline:
            response.close()
            break
    return bytes(body)


def _of_error(error: Exception) -> Answer:
    """Say what an exception means that was raised on the way to the collector."""
    from requests import ConnectionError as NoConnection
    from requests import RequestException

    if isinstance(error, RequestException) and not isinstance(error, ValueError):
        return Answer(Meaning.LATER, _reason(error), was_reached=not isinstance(error, NoConnection))
    # Not what it says: it may hold headers or the URL.
    return Answer(
        Meaning.REFUSED, f"{type(error).__name__}: the request cannot be made; look at endpoint, headers and proxy"
    )


def _taken_in_part(body: bytes) -> Answer:
    try:
        # That for metrics has the same fields.
        return _rejected(ExportTraceServiceResponse.FromString(body))
    except DecodeError:  # JSON, or nothing of the kind; the status did say success
        return _SENT


def _rejected(response: Any) -> Answer:
    partial = response.partial_success
    # ``rejected_spans`` or ``rejected_data_points``
    rejected = next((value for field, value in partial.ListFields() if field.number == 1), 0)
    return Answer(Meaning.SENT, short(partial.error_message), rejected=max(0, rejected))


def _has_answered(error: Any, answer: Answer) -> bool:
    """Whether a status came from the collector; gRPC itself gives the same one where there is no connection."""
    if not answer.said.startswith("UNAVAILABLE"):
        return True
    describe = getattr(error, "debug_error_string", None)
    return describe is None or "received from peer" in (describe() or "received from peer")


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
    return short(f"{type(error).__name__}: {error.args[-1] if error.args else ''}")
