"""Keeps the exporter's thread from starving the event loop.

Encoding holds the interpreter lock for 74 µs a span; a loop that wants it back waits up to 5 ms. So the thread lets go
of it by itself, many times a batch.

What a collector's answer means for the batch that was sent, by the OTLP specification and by what collectors do.

Sends through the standard exporters, and hears what the collector answers.

An exporter's ``export`` says only success or failure, after retries of its own that nobody can influence: status,
``Retry-After`` and partial success would be lost. So each request is listened to, and one that fails ends the
exporter's own retrying: ``Pipeline`` does that, with all that waits in view.

The exporters that the standard variables name, each with somebody who listens to what the collector answers.

Nothing global is touched: the process's own tracer provider belongs to the user.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timezone
from email.utils import parsedate_to_datetime
from enum import Enum
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from time import monotonic, perf_counter, sleep, time
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.trace.export import SpanExporter

from ..errors import Remarks, SettingError
from ..safety import Safety
from .environment import (
    METRICS,
    TRACES,
    Proxy,
    Signal,
    find_proxy,
    is_insecure,
    nowhere_to_go,
    otlp_compression,
    otlp_endpoint,
    otlp_headers,
    otlp_protocol,
    otlp_timeout,
    read_tls,
    sdk_disabled,
    shown,
)

__all__ = [
    "LONGEST_WAIT",
    "ExportResult",
    "GrpcSender",
    "HttpSender",
    "Paced",
    "Pacer",
    "RetryDecision",
    "Sender",
    "import_exporters",
    "make_senders",
    "of_grpc",
    "of_http",
    "retry_after",
    "short",
    "shut_down",
]

#: Seconds of work at most between two rests, and of a rest.
SLICE = 0.001
REST = 0.0005

Item = TypeVar("Item")


class Pacer:
    """Knows when the next rest is due; one for all lists that are worked on in turn."""

    def __init__(self) -> None:
        self._until = perf_counter() + SLICE

    def rest(self) -> None:
        """Rest, if it is time."""
        if perf_counter() > self._until:
            sleep(REST)
            self._until = perf_counter() + SLICE

    def paced(self, items: Iterable[Item]) -> Paced[Item]:
        """Return items as a list that rests."""
        return Paced(items, self)


class Paced(list[Item]):
    """A list that rests now and then while somebody iterates over it, such as an exporter that encodes spans."""

    def __init__(self, items: Iterable[Item], pacer: Pacer | None = None) -> None:
        super().__init__(items)
        self._pacer = pacer or Pacer()

    def __iter__(self) -> Iterator[Item]:
        for item in super().__iter__():
            self._pacer.rest()
            yield item


#: Seconds that a collector may ask for at most.
LONGEST_WAIT = 300.0
#: Characters kept of what a collector says.
MAX_SAID = 300


class RetryDecision(Enum):
    """What to do with a batch."""

    #: It has arrived.
    SENT = "sent"
    #: Send it again later: the collector is away or overloaded.
    LATER = "later"
    #: The collector seems to take nothing until somebody changes something: a wrong path, no permission, a bug.
    REFUSED = "refused"
    #: It is too large; its halves may not be.
    TOO_LARGE = "too large"
    #: Something in it is invalid; one of its halves may not be.
    INVALID = "invalid"


@dataclass(frozen=True)
class ExportResult:
    """What a collector, or the way there, said of one request."""

    decision: RetryDecision
    #: For a person, e.g. ``HTTP 503 Service Unavailable: overloaded``; empty if there is nothing to say.
    said: str = ""
    #: Seconds that the collector asks to wait.
    wait: float | None = None
    #: Spans of a batch, or points of metrics, that was taken which the collector rejected all the same.
    rejected: int = 0
    #: False if nobody was there to answer: no connection could be made, or it was lost.
    was_reached: bool = True

    @property
    def knows_no_such_thing(self) -> bool:
        """Whether the server has no place for this kind of data: a backend for traces asked to take metrics."""
        return self.decision is RetryDecision.REFUSED and self.said.startswith(("UNIMPLEMENTED", "HTTP 404"))


_HTTP = {
    400: RetryDecision.INVALID,
    408: RetryDecision.LATER,
    413: RetryDecision.TOO_LARGE,
    422: RetryDecision.INVALID,
    425: RetryDecision.LATER,
    429: RetryDecision.LATER,
    502: RetryDecision.LATER,
    503: RetryDecision.LATER,
    504: RetryDecision.LATER,
}
_GRPC = {
    "CANCELLED": RetryDecision.LATER,
    "DEADLINE_EXCEEDED": RetryDecision.LATER,
    "ABORTED": RetryDecision.LATER,
    "OUT_OF_RANGE": RetryDecision.LATER,
    "UNAVAILABLE": RetryDecision.LATER,
    "DATA_LOSS": RetryDecision.LATER,
    "RESOURCE_EXHAUSTED": RetryDecision.LATER,
    "INVALID_ARGUMENT": RetryDecision.INVALID,
}
#: How servers say that a message is too large, though they use the status for overload. Not "size": rate limits speak
#: of sizes too.
_TOO_LARGE = re.compile(r"larger than max|too large|exceeds? (the )?max\w* (message|size|request)", re.IGNORECASE)


def of_http(status: int, reason: str, headers: Mapping[str, str], body: str) -> ExportResult:
    """Read the answer to a request over HTTP that did not succeed, or that no OTLP receiver would give."""
    html = "html" in headers.get("Content-Type", "").lower()
    detail = "a web page" if html else short(body)
    said = f"HTTP {status} {short(reason)}".rstrip() + (f": {detail}" if detail else "")
    if 200 <= status < 300:  # whoever sends web pages has not taken spans
        return ExportResult(RetryDecision.REFUSED if html else RetryDecision.SENT, said if html else "")
    return ExportResult(_HTTP.get(status, RetryDecision.REFUSED), said, retry_after(headers.get("Retry-After")))


def of_grpc(code: str, details: str, wait: float | None) -> ExportResult:
    """Read the answer to a call over gRPC that failed.

    Parameters
    ----------
    code
        Name of the status.
    wait
        Seconds, from a ``RetryInfo``.
    """
    decision = _GRPC.get(code, RetryDecision.REFUSED)
    if code == "RESOURCE_EXHAUSTED" and wait is None and _TOO_LARGE.search(details):
        decision = RetryDecision.TOO_LARGE
    if wait is not None:
        wait = min(max(0.0, wait), LONGEST_WAIT)
    return ExportResult(decision, f"{code}: {short(details)}", wait)


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by an HTTP header ``Retry-After``, a number or a date; None if it says neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            # HTTP's dates are in GMT, whether they say so or not.
            seconds = date.replace(tzinfo=date.tzinfo or timezone.utc).timestamp() - time()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), LONGEST_WAIT) if math.isfinite(seconds) else None


def short(text: str) -> str:
    """Return what somebody else says as one line of printable text, not too long."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_SAID]).split())[:MAX_SAID]


_SENT = ExportResult(RetryDecision.SENT)
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
    broken = ExportResult(RetryDecision.REFUSED, "the exporter raises an exception")

    def __init__(
        self, name: str, exporter: SpanExporter | MetricExporter, target: str = "", proxy: Proxy | None = None
    ) -> None:
        self.name = name
        self.target = target
        self.proxy = proxy
        self.exporter = exporter

    def send(self, data: Any) -> ExportResult:
        """Send what the exporter takes, and say what came of it; may raise any ``Exception``."""
        try:
            # Some exporters return nothing.
            failed = getattr(self.exporter.export(data), "name", "") == "FAILURE"
        except Exception:
            raise
        except BaseException as error:  # it must not end the thread
            raise RuntimeError(f"the exporter raised {type(error).__name__}") from error
        return ExportResult(RetryDecision.REFUSED, "the exporter says FAILURE") if failed else _SENT

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

    def __init__(self, answer: ExportResult) -> None:
        super().__init__(answer.said)
        self.answer = answer


class _OtlpSender(Sender):
    #: Nothing was asked, so the spans were never encoded.
    broken = ExportResult(RetryDecision.INVALID, "the exporter cannot encode it")

    def __init__(
        self, name: str, exporter: SpanExporter | MetricExporter, target: str, proxy: Proxy | None = None
    ) -> None:
        super().__init__(name, exporter, target, proxy)
        self._answer: ExportResult | None = None
        #: The thread that sends.
        self._thread: int | None = None

    def send(self, data: Any) -> ExportResult:
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

    def _heard(self, answer: ExportResult) -> None:
        """Keep an answer; a failure goes past the exporter at once."""
        self._answer = answer
        if answer.decision is not RetryDecision.SENT:
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
            self._heard(_taken_in_part(body) if answer.decision is RetryDecision.SENT else answer)
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


def _of_error(error: Exception) -> ExportResult:
    """Say what an exception means that was raised on the way to the collector."""
    from requests import ConnectionError as NoConnection
    from requests import RequestException

    if isinstance(error, RequestException) and not isinstance(error, ValueError):
        return ExportResult(RetryDecision.LATER, _root_cause(error), was_reached=not isinstance(error, NoConnection))
    # Not what it says: it may hold headers or the URL.
    return ExportResult(
        RetryDecision.REFUSED,
        f"{type(error).__name__}: the request cannot be made; look at endpoint, headers and proxy",
    )


def _taken_in_part(body: bytes) -> ExportResult:
    try:
        # That for metrics has the same fields.
        return _rejected(ExportTraceServiceResponse.FromString(body))
    except DecodeError:  # JSON, or nothing of the kind; the status did say success
        return _SENT


def _rejected(response: Any) -> ExportResult:
    partial = response.partial_success
    # ``rejected_spans`` or ``rejected_data_points``
    rejected = next((value for field, value in partial.ListFields() if field.number == 1), 0)
    return ExportResult(RetryDecision.SENT, short(partial.error_message), rejected=max(0, rejected))


def _has_answered(error: Any, answer: ExportResult) -> bool:
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


def _root_cause(error: BaseException) -> str:
    """Say what lies at the bottom of an error, without the URL, which may hold a password."""
    for _ in range(5):
        inner = getattr(error, "reason", None) or next(iter(error.args), None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    return short(f"{type(error).__name__}: {error.args[-1] if error.args else ''}")


Exporter = SpanExporter | MetricExporter

_OTLP = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
#: Names in other languages, or of what has gone, and what to write instead.
_HINTS = {
    "logging": "console is its name in Python",
    "stdout": "console is its name in Python",
    "jaeger": "Jaeger takes what otlp sends",
}
#: Seconds between two attempts of gRPC's own to connect; its default grows to two minutes, in which all requests fail.
_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 1000))
#: Channels to one target share the connection, and the wait after it could not be made. One with this shares nothing.
_UNSHARED = (("grpc.use_local_subchannel_pool", 1),)


def make_senders(endpoint: str | None = None, signal: Signal = TRACES, remarks: Remarks | None = None) -> list[Sender]:
    """Make the exporters that ``OTEL_TRACES_EXPORTER``, or ``OTEL_METRICS_EXPORTER``, names.

    Parameters
    ----------
    endpoint
        Send here over OTLP, whatever the variables for exporter and endpoint say. Without a path, as
        ``OTEL_EXPORTER_OTLP_ENDPOINT``.
    remarks
        Gets what is worth knowing and stops nothing, such as the exporters that cannot be used beside others that can.

    Returns
    -------
    None of them if the variable says ``none``, or if only the other signal has somewhere to go.

    Raises
    ------
    SettingError
        If no exporter can be used.
    """
    remarks = remarks or Remarks()
    if endpoint is not None:
        return [_make(signal, "otlp", _entry_point(signal, "otlp", "otlp", remarks), remarks, endpoint)]
    setting = os.environ.get(signal.exporter, "").strip()
    if not setting and (why := nowhere_to_go(signal)):
        remarks.reading(why)
        return []
    setting = setting or "otlp"
    names = [name.strip() for name in setting.split(",") if name.strip()]
    if {name.lower() for name in names} == {"none"}:
        return []
    if not names:
        raise SettingError(signal.exporter, setting, "none alone, or exporters separated by commas")
    senders: list[Sender] = []
    errors: list[SettingError] = []
    for name in dict.fromkeys(names):
        try:
            point = _entry_point(signal, name, setting, remarks)
            senders.append(_make(signal, "otlp" if name.lower() == "otlp" else point.name, point, remarks))
        except SettingError as error:
            errors.append(error)
    if not senders:
        raise errors[0]
    for unused in errors:
        remarks.fall_back(unused, f"it goes on with {', '.join(sender.name for sender in senders)}")
    return senders


def import_exporters(endpoint: str | None = None) -> None:
    """Import what ``make_senders`` will need, and do nothing else; that says what cannot be imported."""
    for signal in () if sdk_disabled() else (TRACES, METRICS):
        setting = "otlp" if endpoint is not None else os.environ.get(signal.exporter, "").strip()
        if not setting and nowhere_to_go(signal):
            continue
        for name in filter(None, map(str.strip, (setting or "otlp").split(","))):
            with suppress(SettingError):
                point = _entry_point(signal, name, setting, Remarks())
                _load(signal, name, point)
                if point.name == _OTLP["http/protobuf"]:
                    importlib.import_module("requests")  # the exporter waits for its first use


def _entry_point(signal: Signal, name: str, setting: str, remarks: Remarks) -> EntryPoint:
    installed = {point.name: point for point in entry_points(group=signal.group)}
    known = name if name in installed else name.lower()
    unusable, instead = signal.unusable
    if known == unusable:
        raise SettingError(signal.exporter, setting, instead)
    if known == "none":
        raise SettingError(signal.exporter, setting, "none alone, or exporters separated by commas")
    resolved = _OTLP[otlp_protocol(remarks, signal)] if known == "otlp" else known
    if resolved not in installed:
        allowed = ", ".join(sorted({"none", "otlp"} | set(installed) - {unusable}))
        hint = _HINTS.get(known, f"there is no {name!r} here")
        raise SettingError(signal.exporter, setting, f"one or more of {allowed}, separated by commas ({hint})")
    return installed[resolved]


def _make(signal: Signal, name: str, point: EntryPoint, remarks: Remarks, endpoint: str | None = None) -> Sender:
    exporter = _load(signal, name, point)
    if point.name not in _OTLP.values():
        return Sender(name, _start(signal, name, exporter))
    grpc = point.name == _OTLP["grpc"]
    target, tls = otlp_endpoint(signal, grpc=grpc, given=endpoint), read_tls(signal)
    timeout = otlp_timeout(remarks, signal, grpc=grpc)
    headers = otlp_headers(remarks, signal)
    proxy = find_proxy(target, grpc=grpc)
    # Exporters report on themselves to the user's global meter provider, unless they are given another.
    parameters = inspect.signature(exporter).parameters
    options: dict[str, Any] = {"meter_provider": NoOpMeterProvider()} if "meter_provider" in parameters else {}
    options |= {
        "endpoint": target,
        "timeout": timeout,
        "compression": _compression(signal, grpc, remarks),
        "headers": headers,
    }
    if grpc:
        options["insecure"] = is_insecure(target, remarks, signal)
        if not options["insecure"] and not any(map(os.environ.get, _credential_providers(signal, "GRPC"))):
            options["credentials"] = tls.credentials()
        start = partial(_start, signal, name, exporter, **options)
        again = partial(start, channel_options=_CHANNEL + _UNSHARED)
        return GrpcSender(name, start(channel_options=_CHANNEL), shown(target), proxy, again)
    session = _session(signal)
    verify = tls.authorities or session.verify
    options |= {
        "certificate_file": tls.authorities,
        "client_certificate_file": tls.certificate,
        "client_key_file": tls.key,
        "session": session,
    }
    started = _start(signal, name, exporter, **options)
    return HttpSender(name, started, shown(target), session, verify, timeout, proxy, headers.skipped)


def _load(signal: Signal, name: str, point: EntryPoint) -> type[Exporter]:
    try:
        exporter: type[Exporter] = point.load()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise SettingError(signal.exporter, name, f"one that can be imported, but this one says {said}") from error
    return exporter


def _start(signal: Signal, name: str, exporter: type[Exporter], **options: Any) -> Exporter:
    try:
        with _header_warnings_left_out():
            return exporter(**options)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise SettingError(signal.exporter, name, f"one that starts, but this one says {said}") from error


@contextmanager
def _header_warnings_left_out() -> Iterator[None]:
    """Keep a secret out of the log: exporters read the variable, too, and show an entry that they cannot use."""
    thread, log = threading.get_ident(), logging.getLogger("opentelemetry.util.re")

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    log.addFilter(is_of_others)
    try:
        yield
    finally:
        log.removeFilter(is_of_others)


def _compression(signal: Signal, grpc: bool, remarks: Remarks) -> Any:
    name = otlp_compression(remarks, signal, grpc=grpc)
    if grpc:
        from grpc import Compression

        return Compression.Gzip if name == "gzip" else Compression.NoCompression
    from opentelemetry.exporter.otlp.proto.http import Compression as HttpCompression

    return HttpCompression(name)


def _session(signal: Signal) -> Any:
    """Return the session to send with, from a credential provider if one is named, as the standard exporter would."""
    from requests import Session

    for variable in _credential_providers(signal, "HTTP"):
        if name := os.environ.get(variable):
            return _provided(variable, name, Session)
    return Session()


def _credential_providers(signal: Signal, protocol: str) -> list[str]:
    """Name the variables that may name one, the first wins."""
    names = (protocol, f"{protocol}_{signal.name}")
    return [f"OTEL_PYTHON_EXPORTER_OTLP_{name}_CREDENTIAL_PROVIDER" for name in names]


def _provided(variable: str, name: str, wanted: type) -> Any:
    for point in entry_points(group="opentelemetry_otlp_credential_provider", name=name):
        try:
            session = point.load()()
        except Exception as error:
            raise SettingError(variable, name, f"one that works, but this one says: {error}") from error
        if isinstance(session, wanted):
            return session
    raise SettingError(variable, name, "a credential provider that is installed and gives a requests.Session")
