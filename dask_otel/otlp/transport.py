"""Sends requests over OTLP, by HTTP or gRPC, and decides by the answer whether a request is to be made again.

``RETRY_HTTP`` and ``RETRY_GRPC`` are the decisions by status. OpenTelemetry's OTLP exporters are not used, since they
return success or failure only, after retries of their own: status, ``Retry-After`` and partial success would be lost.
Exporters for anything but OTLP are used as they are.
"""

from __future__ import annotations

import gzip
import importlib
import math
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timezone
from email.utils import parsedate_to_datetime
from enum import Enum
from importlib.metadata import entry_points
from pathlib import Path
from time import monotonic, perf_counter, sleep, time
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.version import __version__ as encoder_version
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from .. import __version__
from ..errors import Remarks, SettingError
from ..safety import Safety
from .encoding import SpanEncoder
from .environment import (
    METRICS,
    TRACES,
    OtlpSettings,
    Proxy,
    Signal,
    Tls,
    credential_provider,
    exporter_names,
    otlp_protocol,
    read_otlp,
    read_variable,
    sdk_disabled,
    shown,
)
from .spans import SpanFactory, SpanForm

__all__ = [
    "ExportResult",
    "GrpcSender",
    "HttpSender",
    "Paced",
    "Pacer",
    "RetryDecision",
    "Sender",
    "grpc_result",
    "http_result",
    "import_exporters",
    "make_senders",
    "retry_after",
    "shut_down",
]


class RetryDecision(Enum):
    """What to do with the data of a request."""

    #: It has arrived.
    SENT = "sent"
    #: Send it again later: the collector is away or overloaded.
    LATER = "later"
    #: The collector takes nothing until somebody changes something: a wrong path, no permission, a bug.
    REFUSED = "refused"
    #: It is too large; its halves may not be.
    TOO_LARGE = "too large"
    #: Something in it is invalid; one of its halves may not be.
    INVALID = "invalid"


#: Decision by status over HTTP; any other status but 2xx is REFUSED.
RETRY_HTTP = {
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
#: Decision by status over gRPC; any other status but OK is REFUSED.
RETRY_GRPC = {
    "CANCELLED": RetryDecision.LATER,
    "DEADLINE_EXCEEDED": RetryDecision.LATER,
    "ABORTED": RetryDecision.LATER,
    "OUT_OF_RANGE": RetryDecision.LATER,
    "UNAVAILABLE": RetryDecision.LATER,
    "DATA_LOSS": RetryDecision.LATER,
    "RESOURCE_EXHAUSTED": RetryDecision.LATER,
    "INVALID_ARGUMENT": RetryDecision.INVALID,
}
#: Text of RESOURCE_EXHAUSTED where it means TOO_LARGE, not overload. Not "size": rate limits speak of sizes too.
TOO_LARGE = re.compile(r"larger than max|too large|exceeds? (the )?max\w* (message|size|request)", re.IGNORECASE)

#: Text of UNAVAILABLE where gRPC itself gives it.
_NO_CONNECTION = re.compile("failed to connect|DNS resolution failed|Connection reset|Socket closed|Broken pipe")

#: Seconds that a collector may ask to wait, at most.
LONGEST_WAIT = 300.0
#: Bytes read of an answer over HTTP, and characters kept of its text.
MAX_BODY = 4096
MAX_SAID = 300
#: Milliseconds between two attempts of gRPC to connect, at first and at most. By default they grow to two minutes, in
#: which every request fails.
CHANNEL_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 1000))
#: Channels to one target share a connection, and the pause after it has failed; one with this option shares neither.
UNSHARED = (("grpc.use_local_subchannel_pool", 1),)
#: As the specification asks for: a distribution's own product before the exporter's.
USER_AGENT = f"dask-otel/{__version__} OTel-OTLP-Exporter-Python/{encoder_version}"
#: Seconds of encoding between two rests, and of a rest. Encoding takes 70 µs a span with the interpreter lock held, and
#: an event loop that needs the lock waits up to 5 ms for it; so the export thread releases it many times a batch.
SLICE = 0.0005
REST = 0.0005

#: Protocol by the name of an OTLP exporter; that of ``otlp`` is in a variable.
_OTLP = {"otlp": "", "otlp_proto_grpc": "grpc", "otlp_proto_http": "http/protobuf"}
_STUBS = {
    TRACES: ("opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc", "TraceServiceStub"),
    METRICS: ("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc", "MetricsServiceStub"),
}
_COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "none": bytes}
#: Exporters of other languages or of the past, and what to write instead.
_HINTS = {
    "logging": "console is its name in Python",
    "stdout": "console is its name in Python",
    "jaeger": "Jaeger takes what otlp sends",
}

Item = TypeVar("Item")


class Pacer:
    """Keeps track of when the next rest is due, for all lists that are iterated over in turn."""

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
    """A list that rests now and then while an encoder iterates over it."""

    def __init__(self, items: Iterable[Item], pacer: Pacer | None = None) -> None:
        super().__init__(items)
        self._pacer = pacer or Pacer()

    def __iter__(self) -> Iterator[Item]:
        for item in super().__iter__():
            self._pacer.rest()
            yield item


@dataclass(frozen=True)
class ExportResult:
    """What became of one request."""

    decision: RetryDecision
    #: For a person, e.g. ``HTTP 503 Service Unavailable: overloaded``; empty if there is nothing to report.
    message: str = ""
    #: Seconds that the collector asks to wait.
    wait: float | None = None
    #: Spans, or points of metrics, that were rejected though the request was taken: partial success.
    rejected: int = 0
    #: False if no connection could be made, or it was lost.
    was_reached: bool = True

    @property
    def is_unsupported(self) -> bool:
        """Whether the server has no place for this signal: a backend for traces that gets metrics."""
        return self.decision is RetryDecision.REFUSED and self.message.startswith(("UNIMPLEMENTED", "HTTP 404"))


def http_result(status: int, reason: str, headers: Mapping[str, str], body: str) -> ExportResult:
    """Interpret an answer over HTTP, but for partial success."""
    html = "html" in headers.get("Content-Type", "").lower()
    detail = "a web page" if html else _short(body)
    message = f"HTTP {status} {_short(reason)}".rstrip() + (f": {detail}" if detail else "")
    if 200 <= status < 300:  # a server that sends web pages has not taken spans
        return ExportResult(RetryDecision.REFUSED if html else RetryDecision.SENT, message if html else "")
    return ExportResult(RETRY_HTTP.get(status, RetryDecision.REFUSED), message, retry_after(headers.get("Retry-After")))


def grpc_result(code: str, details: str, wait: float | None) -> ExportResult:
    """Interpret a call over gRPC that failed.

    Parameters
    ----------
    code
        Name of the status.
    wait
        Seconds, from a ``RetryInfo``.
    """
    decision = RETRY_GRPC.get(code, RetryDecision.REFUSED)
    if code == "RESOURCE_EXHAUSTED" and wait is None and TOO_LARGE.search(details):
        decision = RetryDecision.TOO_LARGE
    if wait is not None:
        wait = min(max(0.0, wait), LONGEST_WAIT)
    return ExportResult(decision, f"{code}: {_short(details)}", wait)


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by an HTTP header ``Retry-After``, a number or a date; None if it is neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            # HTTP's dates are in GMT, with or without a time zone.
            seconds = date.replace(tzinfo=date.tzinfo or timezone.utc).timestamp() - time()
        except (TypeError, ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), LONGEST_WAIT) if math.isfinite(seconds) else None


def _short(text: str) -> str:
    """Return a server's text as one line of printable characters, not too long."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_SAID]).split())[:MAX_SAID]


_SENT = ExportResult(RetryDecision.SENT)
#: Not the exception's text: it may hold headers or the URL.
_CANNOT_REQUEST = "{}: the request cannot be made; look at endpoint, headers and proxy"


class Sender:
    """Sends through an exporter that returns only success or failure: ``console``, or one of an entry point.

    Parameters
    ----------
    exporter
        Of spans or of metrics.
    """

    #: Result if ``send`` raises an exception.
    broken = ExportResult(RetryDecision.REFUSED, "the exporter raises an exception")
    #: Where it sends to, for a person, without secrets; empty for exporters that are not OTLP.
    target = ""
    #: What its requests go through.
    proxy: Proxy | None = None
    #: ``grpc`` or ``http/protobuf``; empty for exporters that are not OTLP.
    protocol = ""
    #: Whether it writes to this machine's disk: says nothing about whether any backend can be reached.
    is_local = False
    #: Names of the headers that a variable adds to each request; the values may be secrets.
    header_names: tuple[str, ...] = ()

    def __init__(self, name: str, exporter: Any = None) -> None:
        self.name = name
        self.exporter = exporter

    def send(self, data: Any) -> ExportResult:
        """Send a request that the ``form`` has put together, or metrics' data; may raise any ``Exception``."""
        try:
            # Some exporters return nothing.
            failed = getattr(self.exporter.export(data), "name", "") == "FAILURE"
        except Exception:
            raise
        except BaseException as error:  # it must not end the thread
            raise RuntimeError(f"the exporter raised {type(error).__name__}") from error
        return ExportResult(RetryDecision.REFUSED, "the exporter returns FAILURE") if failed else _SENT

    def form(self, factory: SpanFactory) -> SpanForm:
        """Return what makes spans and requests as this exporter takes them."""
        return factory

    def reconnect(self) -> None:
        """Make the next request try to connect, however short ago that has failed."""

    def shutdown(self) -> None:
        """Shut the exporter down; may raise anything."""
        self.exporter.shutdown()


class _OtlpSender(Sender):
    #: Only encoding raises an exception.
    broken = ExportResult(RetryDecision.INVALID, "it cannot be encoded")

    def __init__(self, name: str, signal: Signal, settings: OtlpSettings) -> None:
        super().__init__(name)
        self.target = shown(settings.endpoint)
        self.proxy = settings.proxy
        self.protocol = settings.protocol
        # Without a value, the name may itself be a key that somebody has written without a name.
        self.header_names = tuple(name for name, value in settings.headers.items() if value.strip("= "))
        self.settings = settings
        self._signal = signal

    def form(self, factory: SpanFactory) -> SpanForm:
        """Return what encodes spans."""
        return SpanEncoder(factory)

    def _request(self, data: Any) -> Any:
        """Return an encoded request; those with spans are encoded."""
        return data if self._signal is TRACES else encode_metrics(data)


class HttpSender(_OtlpSender):
    """Sends over OTLP/HTTP.

    Parameters
    ----------
    session
        A ``requests.Session``. It may be a credential provider's and shared with others: nothing of it is changed.
    """

    def __init__(self, name: str, signal: Signal, settings: OtlpSettings, session: Any) -> None:
        super().__init__(name, signal, settings)
        self._session = session
        self._headers = {"content-type": "application/x-protobuf", "user-agent": USER_AGENT} | settings.headers
        if settings.compression != "none":
            self._headers["content-encoding"] = settings.compression

    def send(self, data: Any) -> ExportResult:
        """Send spans or metrics."""
        body = _COMPRESS[self.settings.compression](self._request(data).SerializeToString())
        deadline = monotonic() + self.settings.timeout
        try:
            response = self._post(body)
            answer = _read(response, deadline)
        except Exception as error:  # noqa: BLE001 -- a credential provider may raise anything
            return _of_request_error(error)
        text = answer.decode("utf-8", "replace")
        result = http_result(response.status_code, response.reason or "", response.headers, text)
        return _partial_success(answer) if result.decision is RetryDecision.SENT else result

    def shutdown(self) -> None:
        """Close the session."""
        self._session.close()

    def _post(self, body: bytes) -> Any:
        from requests import ConnectionError as LostConnection
        from requests import ConnectTimeout

        tls = self.settings.tls

        def post() -> Any:
            return self._session.post(
                self.settings.endpoint,
                data=body,
                headers=self._headers,
                timeout=self.settings.timeout,
                # Given with each request: REQUESTS_CA_BUNDLE would win over the session's.
                verify=tls.authorities or self._session.verify,
                cert=(tls.certificate, tls.key) if tls.key else tls.certificate,
                # A redirected POST would become a GET: lost, and reported as sent.
                allow_redirects=False,
                stream=True,
            )

        try:
            return post()
        except ConnectTimeout:
            raise
        except LostConnection:  # the server may have closed one that was kept open
            return post()


class GrpcSender(_OtlpSender):
    """Sends over OTLP/gRPC.

    Parameters
    ----------
    credentials
        ``grpc.ChannelCredentials``; None for a channel without TLS.
    """

    def __init__(self, name: str, signal: Signal, settings: OtlpSettings, credentials: Any) -> None:
        super().__init__(name, signal, settings)
        module, stub = _STUBS[signal]
        self._stub = getattr(importlib.import_module(module), stub)
        self._credentials = credentials
        self._connect(CHANNEL_OPTIONS)

    def send(self, data: Any) -> ExportResult:
        """Send spans or metrics."""
        from grpc import RpcError

        request = self._request(data)
        metadata = tuple(self.settings.headers.items())
        try:
            return _rejected(self._export(request, timeout=self.settings.timeout, metadata=metadata))
        except RpcError as error:
            result = grpc_result(error.code().name, error.details() or "", _retry_delay(error))
            return replace(result, was_reached=_is_from_collector(error, result))
        except Exception as error:  # noqa: BLE001 -- headers that gRPC does not take, for instance
            return ExportResult(RetryDecision.REFUSED, _CANNOT_REQUEST.format(type(error).__name__))

    def reconnect(self) -> None:
        """Use a new channel: one that could not connect fails all requests until its back-off is over."""
        before = self._channel
        self._connect(CHANNEL_OPTIONS + UNSHARED)
        before.close()

    def shutdown(self) -> None:
        """Close the channel; that ends a request."""
        self._channel.close()

    def _connect(self, options: tuple[tuple[str, Any], ...]) -> None:
        from grpc import Compression, insecure_channel, secure_channel

        target = re.sub(r"^https?://([^/?#]*).*", r"\1", self.settings.endpoint)
        compression = Compression.Gzip if self.settings.compression == "gzip" else Compression.NoCompression
        options = (("grpc.primary_user_agent", USER_AGENT), *options)
        if self._credentials is None:
            self._channel = insecure_channel(target, options, compression)
        else:
            self._channel = secure_channel(target, self._credentials, options, compression)
        self._export = self._stub(self._channel).Export


def make_senders(endpoint: str | None = None, signal: Signal = TRACES, remarks: Remarks | None = None) -> list[Sender]:
    """Make the exporters that ``OTEL_TRACES_EXPORTER``, or ``OTEL_METRICS_EXPORTER``, names.

    Parameters
    ----------
    endpoint
        Send here over OTLP, whatever the variables for exporter and endpoint hold. Without a path, as
        ``OTEL_EXPORTER_OTLP_ENDPOINT``.
    remarks
        Gets what a person should know of what stops nothing, such as exporters that cannot be used beside others.

    Returns
    -------
    None of them if the variable is ``none``, or if only the other signal has an endpoint.

    Raises
    ------
    SettingError
        If no exporter can be used.
    """
    remarks = remarks or Remarks()
    names = ["otlp"] if endpoint is not None else exporter_names(signal, remarks)
    senders: list[Sender] = []
    errors: list[SettingError] = []
    for name in names:
        try:
            senders.append(_make(signal, name, remarks, endpoint))
        except SettingError as error:
            errors.append(error)
    if errors and not senders:
        raise errors[0]
    for unused in errors:
        remarks.fall_back(unused, f"the others are used: {', '.join(sender.name for sender in senders)}")
    return senders


def import_exporters() -> None:
    """Import what ``make_senders`` will need, and do nothing else."""
    for signal in () if sdk_disabled() else (TRACES, METRICS):
        with suppress(SettingError):
            for name in exporter_names(signal, Remarks()):
                if name.lower() not in _OTLP:
                    _load(signal, name)
                elif _protocol(signal, name, Remarks()) == "grpc":
                    importlib.import_module(_STUBS[signal][0])
                else:
                    importlib.import_module("requests")


def shut_down(sender: Sender, safety: Safety, *, is_sending: bool) -> None:
    """Shut a sender down. While it sends, that ends its request, but may itself wait: then in a thread."""

    def run() -> None:
        with safety.guard("exporter shutdown"):
            sender.shutdown()

    if is_sending:
        threading.Thread(target=run, name="dask-otel shutdown", daemon=True).start()
    else:
        run()


def _make(signal: Signal, name: str, remarks: Remarks, endpoint: str | None) -> Sender:
    if name.lower() in _OTLP:
        protocol = _protocol(signal, name, remarks)
        settings = read_otlp(signal, protocol, remarks, endpoint)
        if protocol == "grpc":
            return GrpcSender(name.lower(), signal, settings, _credentials(signal, settings))
        return HttpSender(name.lower(), signal, settings, _session(signal))
    name, exporter = _load(signal, name)
    try:
        return Sender(name, exporter())
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
        raise SettingError(signal.exporter, name, f"one that starts, but this one raises {raised}") from error


def _protocol(signal: Signal, name: str, remarks: Remarks) -> str:
    return _OTLP[name.lower()] or otlp_protocol(remarks, signal)


def _load(signal: Signal, name: str) -> tuple[str, Callable[[], Any]]:
    """Name and class of an exporter that is installed as an entry point."""
    setting = read_variable(signal.exporter)
    installed = {point.name: point for point in entry_points(group=signal.group)}
    known = name if name in installed else name.lower()
    unusable, instead = signal.unusable
    if known == unusable:
        raise SettingError(signal.exporter, setting, instead)
    if known == "none":
        raise SettingError(signal.exporter, setting, "none alone, or exporters separated by commas")
    if known not in installed:
        allowed = ", ".join(sorted({"none", *_OTLP, *installed} - {unusable}))
        hint = _HINTS.get(known, f"there is no {name!r} here")
        raise SettingError(signal.exporter, setting, f"one or more of {allowed}, separated by commas ({hint})")
    try:
        return known, installed[known].load()
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
        raise SettingError(signal.exporter, name, f"one that can be imported, but this one raises {raised}") from error


def _session(signal: Signal) -> Any:
    """Return the session to send with: a credential provider's, if one is named."""
    from requests import Session

    return _from_provider(signal, "http/protobuf", Session) or Session()


def _credentials(signal: Signal, settings: OtlpSettings) -> Any:
    """Return the credentials of a channel: a credential provider's, if one is named; None for one without TLS."""
    from grpc import ChannelCredentials, ssl_channel_credentials

    if settings.is_insecure:
        return None
    return _from_provider(signal, "grpc", ChannelCredentials) or ssl_channel_credentials(*_pem(settings.tls))


def _pem(tls: Tls) -> list[bytes | None]:
    """Authorities, private key and certificate, as gRPC takes them."""
    files = (tls.authorities, tls.key or tls.certificate, tls.certificate)
    return [Path(path).read_bytes() if path else None for path in files]


def _from_provider(signal: Signal, protocol: str, wanted: type) -> Any:
    variable, name = credential_provider(signal, protocol)
    if not name:
        return None
    for point in entry_points(group="opentelemetry_otlp_credential_provider", name=name):
        try:
            provided = point.load()()
        except Exception as error:
            raise SettingError(variable, name, f"one that works, but this one raises {error}") from error
        if isinstance(provided, wanted):
            return provided
    raise SettingError(variable, name, f"a credential provider that is installed and gives a {wanted.__name__}")


def _read(response: Any, deadline: float) -> bytes:
    """Read an answer, but not one that is too long, or that has no end."""
    body = bytearray()
    for byte in response.raw.stream(1, decode_content=False):
        body += byte
        if len(body) >= MAX_BODY or monotonic() > deadline:
            response.close()
            break
    return bytes(body)


def _of_request_error(error: Exception) -> ExportResult:
    from requests import ConnectionError as NoConnection
    from requests import RequestException

    if isinstance(error, RequestException) and not isinstance(error, ValueError):
        return ExportResult(RetryDecision.LATER, _root_cause(error), was_reached=not isinstance(error, NoConnection))
    return ExportResult(RetryDecision.REFUSED, _CANNOT_REQUEST.format(type(error).__name__))


def _root_cause(error: BaseException) -> str:
    """Describe what lies at the bottom of an error, without the URL, which may hold a password."""
    for _ in range(5):
        inner = getattr(error, "reason", None) or next(iter(error.args), None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    return _short(f"{type(error).__name__}: {error.args[-1] if error.args else ''}")


def _partial_success(body: bytes) -> ExportResult:
    try:
        # That for metrics has the same fields.
        return _rejected(ExportTraceServiceResponse.FromString(body))
    except DecodeError:  # JSON, or anything else: the status was success
        return _SENT


def _rejected(response: Any) -> ExportResult:
    partial = response.partial_success
    # ``rejected_spans`` or ``rejected_data_points``
    rejected = next((value for field, value in partial.ListFields() if field.number == 1), 0)
    return ExportResult(RetryDecision.SENT, _short(partial.error_message), rejected=max(0, rejected))


def _is_from_collector(error: Any, result: ExportResult) -> bool:
    """Whether the collector sent a status; gRPC itself gives UNAVAILABLE where there is no connection."""
    if not result.message.startswith("UNAVAILABLE"):
        return True
    describe = getattr(error, "debug_error_string", None)
    # Before 1.81 or so, gRPC writes that of all of them.
    is_from_peer = describe is None or "received from peer" in (describe() or "received from peer")
    return is_from_peer and not _NO_CONNECTION.search(result.message)


def _retry_delay(error: Any) -> float | None:
    from google.rpc.error_details_pb2 import RetryInfo

    packed = dict(error.trailing_metadata() or ()).get("google.rpc.retryinfo-bin")
    try:
        delay = RetryInfo.FromString(packed).retry_delay if packed else None
    except DecodeError:
        return None
    return delay.seconds + delay.nanos / 1e9 if delay else None
