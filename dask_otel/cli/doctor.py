"""``dask-otel doctor``: shows the configuration and where each value comes from, and sends a test span.

With ``--scheduler`` it asks a running scheduler instead: ``doctor_scheduler``.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from time import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import click
import dask
from opentelemetry.context import Context
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from .. import __version__, config
from ..errors import Remarks, SettingError
from ..identity import pending_id, trace_id
from ..otlp.environment import (
    METRICS,
    TRACES,
    Proxy,
    Signal,
    is_default_endpoint,
    make_resource,
    not_read,
    otlp_protocol,
    sdk_disabled,
    shown,
)
from ..otlp.exporter import NO_METRICS, Found, read_variables
from ..otlp.misspelt import KNOWN
from ..otlp.spans import SpanFactory
from ..otlp.transport import ExportResult, RetryDecision, Sender
from ..spantree.events import SpanInfo
from ..spantree.records import PendingRecord
from .doctor_scheduler import check_scheduler, print_line, print_remark
from .probe import HTTP, what_listens

__all__ = ["advice", "doctor"]

#: Parts of the names of variables that may hold secrets.
_SECRET = ("HEADERS", "CLIENT_KEY")
_USE_HTTP = "This is not a gRPC port: use {PROTOCOL}=http/protobuf, or the gRPC port, usually 4317."
_USE_GRPC = "This is not an HTTP port: use {PROTOCOL}=grpc, or the HTTP port, usually 4318."
#: Patterns of ``<protocol>: <message>`` and the advice; the first that matches counts.
_ADVICE: tuple[tuple[str, str], ...] = (
    (r"^grpc: .*(Failed parsing HTTP/2|http1)", _USE_HTTP),
    (r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE", "The port does not speak TLS: write http:// in the endpoint."),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "The collector's certificate is not trusted: OTEL_EXPORTER_OTLP_CERTIFICATE names the file of its authority.",
    ),
    (
        r"CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE|alert certificate",
        "The collector wants a client certificate: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY.",
    ),
    (r"ALPN", _USE_HTTP),
    (
        r"Domain name not found|resolv|Name or service not known|getaddrinfo",
        "The endpoint's host has no address here: is it spelled right, and known in this network?",
    ),
    (r"HTTP 407", "A proxy on the way asks for a user and password, but no variable names a proxy."),
    (r"[Cc]onnection refused", "Nothing listens there: is the collector up, and host and port right?"),
    (
        r"HTTP 404|UNIMPLEMENTED",
        "The server has no such path. {ENDPOINT} is used as it is and must end in {path}; "
        "OTEL_EXPORTER_OTLP_ENDPOINT gets it appended.",
    ),
    (
        r"HTTP 405|HTTP 200|HTTP 3\d\d",
        "This is a web server, or a proxy's page, and no OTLP receiver. Prometheus takes metrics at "
        "/api/v1/otlp/v1/metrics, if it is started with --web.enable-otlp-receiver.",
    ),
    (
        r"HTTP 40[13]|UNAUTHENTICATED|PERMISSION_DENIED",
        "The collector wants credentials: OTEL_EXPORTER_OTLP_HEADERS, e.g. authorization=Bearer%20<token>.",
    ),
    (
        r"DEADLINE_EXCEEDED|timed out",
        "Something takes the connection and does not answer: a firewall, an overloaded collector, or another protocol.",
    ),
    (r"HTTP (429|50[234])|RESOURCE_EXHAUSTED", "The collector is overloaded; the bridge tries again."),
    (
        r"[Cc]losed|reset|RemoteDisconnected",
        "The port may speak TLS: write https:// in the endpoint. If that is there, the collector may want a client "
        "certificate: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY.",
    ),
    (r"^grpc: .*(ProtocolError|BadStatusLine)", _USE_HTTP),
    (r"ProtocolError|BadStatusLine", _USE_GRPC),
    ("", "Ask whoever runs the collector, and show them this message."),
)
#: Messages where a connection ends early, for one of several reasons.
_ENDS_EARLY = r"[Cc]losed|reset|RemoteDisconnected|EOF|ProtocolError|BadStatusLine"
#: Messages that come from the collector, also through a proxy, and those of them that a proxy may send itself.
_OF_COLLECTOR = (
    r"HTTP \d|UNIMPLEMENTED|UNAUTHENTICATED|PERMISSION_DENIED|RESOURCE_EXHAUSTED|INVALID_ARGUMENT|INTERNAL"
    r"|CERTIFICATE|certificate|WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HANDSHAKE_FAILURE|ALPN|HTTP/2|http1"
)
_OF_EITHER = r"HTTP (40[0357]|5\d\d|3\d\d|200)"


@click.command()
@click.option("--endpoint", metavar="URL", help="Try this OTLP endpoint; over HTTP it gets /v1/traces appended.")
@click.option(
    "--scheduler", metavar="ADDRESS", help="Ask the bridge of a running scheduler, e.g. tcp://scheduler:8786."
)
def doctor(endpoint: str | None, scheduler: str | None) -> None:
    """Check the configuration and send a test span; exit code 1 if something is wrong."""
    console = Console(highlight=False, soft_wrap=True)
    good = _check(endpoint, console) if scheduler is None else check_scheduler(scheduler, console)
    raise SystemExit(0 if good else 1)


def advice(protocol: str, target: str, message: str, proxy: Proxy | None = None, signal: Signal = TRACES) -> str:
    """Describe in one line what is probably wrong when an export fails.

    Parameters
    ----------
    protocol
        ``grpc`` or ``http/protobuf``.
    message
        What the collector or the connection reported: ``ExportResult.message``.
    proxy
        What requests go through.
    signal
        What could not be sent; advice must not break the other.
    """
    line = next(line for pattern, line in _ADVICE if re.search(pattern, f"{protocol}: {message}"))
    if not proxy and re.search(_ENDS_EARLY, message):
        line = _by_probe(protocol, target) or line
    if proxy:
        line = _with_proxy(proxy, target, message, line)
    infix = "" if signal is TRACES else f"{signal.name}_"
    return (
        line.replace("{PROTOCOL}", f"OTEL_EXPORTER_OTLP_{infix}PROTOCOL")
        .replace("{ENDPOINT}", f"OTEL_EXPORTER_OTLP_{signal.name}_ENDPOINT")
        .replace("{path}", signal.path)
    )


def _by_probe(protocol: str, target: str) -> str | None:
    """Describe what is wrong by what the port speaks; None if that is not known, or is what was expected."""
    found = what_listens(target)
    if found is None:
        return None
    spoken, is_tls = found
    if is_tls and not target.startswith("https://"):
        other = " and set {PROTOCOL}=grpc" if spoken not in (None, protocol) and protocol == HTTP else ""
        return f"The port speaks TLS: write https:// in the endpoint{other}."
    if spoken not in (None, protocol):
        return _USE_HTTP if spoken == HTTP else _USE_GRPC
    return None


def _with_proxy(proxy: Proxy, target: str, message: str, line: str) -> str:
    """Name the proxy, before or behind the advice that would be given without one, or instead of it."""
    host = urlsplit(target if "://" in target else f"//{target}").hostname or target
    exempt = f"add {host} to {proxy.exempting} to go without it"
    named = f"Requests go through the proxy {proxy.address} that {proxy.variable} names"
    if not re.search(_OF_COLLECTOR, message) or "HTTP 407" in message:
        return f"{named}. Look there first: is it up, and does it let them through? Or {exempt}."
    # Over TLS, a proxy only passes on what the collector says.
    if target.startswith("http://") and re.search(_OF_EITHER, message):
        first = f"{named}, which may be what answers so: look there first, or {exempt}."
        return f"{first} If the collector itself says so: {line}"
    return f"{line} {named}; {exempt}."


class _Value(NamedTuple):
    """A setting or variable, as a row of the table."""

    name: str
    value: str
    origin: str


def _settings() -> Iterator[_Value]:
    """Yield our own settings."""
    files = [(str(path), values) for path, values in dask.config.collect_yaml(dask.config.paths, return_paths=True)]
    for name, default in _flat(config.DEFAULTS["otel"], "otel"):
        value = dask.config.get(name, default)
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        # A link may hold a password, or a token.
        secret = isinstance(value, str) and re.search("[@?]", value)
        yield _Value(name, f"{shown(text)}…" if secret else text, _origin(name, value, default, files))


def _flat(values: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def _origin(name: str, value: object, default: object, files: list[tuple[str, Any]]) -> str:
    variable = "DASK_" + name.upper().replace("-", "_").replace(".", "__")
    if variable in os.environ:
        return f"environment, {variable}"
    for path, values in reversed(files):
        if dask.config.get(name, None, config=values) is not None:
            return str(path)
    return "default" if value == default else "dask.config.set"


def _variables() -> Iterator[_Value]:
    """Yield the standard variables that are set."""
    for name, value in sorted(os.environ.items()):
        if name.startswith("OTEL_"):
            # The value of a misspelt name may be a secret, too.
            if name not in KNOWN or any(each in name for each in _SECRET):
                value = "(set, not shown)"
            elif re.search("://|@", value):
                value = shown(value)
            yield _Value(name, value, "environment")


class _Findings:
    """Lines about what was checked, the most serious first when they are printed."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.good: list[str] = []
        self.remarks: list[str] = []

    def print(self, console: Console) -> None:
        """Print the lines: faults, what works, remarks."""
        for lines, good in ((self.faults, False), (self.good, True)):
            for line in lines:
                print_line(console, line, good=good)
        for line in self.remarks:
            print_remark(console, line)


def _check(endpoint: str | None, console: Console) -> bool:
    """Check the configuration of this process and try each exporter; return whether all is well."""
    findings = _findings(endpoint)
    findings.print(console)
    console.print(
        f"\ndask-otel {__version__}, configured here (a scheduler on another machine may be configured otherwise)\n"
    )
    table = Table(Column("setting", no_wrap=True), "value", "from", box=None, pad_edge=False)
    for value in (*_settings(), *_variables()):
        table.add_row(*(Text(each, overflow="fold") for each in value))
    console.print(table)
    return not findings.faults


def _findings(endpoint: str | None) -> _Findings:
    findings = _Findings()
    problems = findings.faults
    settings = config.load(lambda error: problems.append(f"{error}; the bridge {config.consequence(error)}"))
    if hidden := [name for name, is_shown in settings.capture.items() if not is_shown]:
        findings.remarks.append(f"hidden by otel.capture: {', '.join(hidden)}")
    found = Found()
    try:
        config.check_limits()
        if not sdk_disabled():
            found = read_variables(endpoint)
    except SettingError as error:
        problems.append(f"{error}; the bridge stays off")
    except Exception as error:  # noqa: BLE001 -- a broken package may raise anything
        problems.append(f"an exporter cannot be loaded ({type(error).__name__}: {error}); reinstall dask-otel")
    problems += _problems(found)
    for sender in found.spans:
        _try_spans(sender, findings)
    elsewhere = {_server(sender) for sender in found.metrics} - {_server(sender) for sender in found.spans}
    # Else the metrics would most likely fail for the same reason.
    if len(findings.good) == len(found.spans) or elsewhere:
        for sender in found.metrics:
            _try_metrics(sender, findings, is_optional=bool(found.spans) and is_default_endpoint(METRICS))
    if not (found.spans or found.metrics or problems):
        findings.good.append("nothing is sent, as configured; the page /otel/ on the scheduler shows the runs")
    if os.environ.get(TRACES.exporter, "").strip().lower() == "none" and endpoint is None:
        findings.remarks.append(f"{TRACES.exporter} is none: no spans are sent")
    findings.remarks += found.remarks.readings
    return findings


def _server(sender: Sender) -> str:
    """Host and port that a sender sends to, or its name."""
    target = sender.target
    return urlsplit(target if "://" in target else f"//{target}").netloc or target or sender.name


def _problems(found: Found) -> Iterator[str]:
    """Yield what is wrong with the standard variables, and its consequence."""
    yield from found.remarks.problems
    for name in not_read():
        yield f"{name} is set, but not read; use the other OTEL_* variables"
    if found.spans_error and str(found.spans_error) == str(found.metrics_error):
        yield f"{found.spans_error}; the bridge stays off"
    else:
        for error, what in ((found.spans_error, "spans"), (found.metrics_error, "metrics")):
            if error:
                yield f"{error}; no {what} are sent"
    if found.sampler and not _samples_any(found.sampler):
        yield "OTEL_TRACES_SAMPLER leaves out every trace that was tried: none would be sent"
    if sdk_disabled():
        yield "OTEL_SDK_DISABLED is true: the bridge stays off"


def _samples_any(sampler: Sampler) -> bool:
    results = (sampler.should_sample(Context(), trace_id(f"{n}"), "dask-otel doctor") for n in range(1000))
    return any(each.decision is Decision.RECORD_AND_SAMPLE for each in results)


def _try_spans(sender: Sender, findings: _Findings) -> None:
    """Send a test span."""
    root, now = str(uuid4()), time()
    info = SpanInfo(root, ("dask-otel doctor",), None, now)
    record = PendingRecord(
        span=info,
        top=info,
        caller=None,
        trace_id=trace_id(root),
        span_id=pending_id(root, 0),
        parent_id=None,
        name="dask-otel doctor",
        start=now,
        end=time(),
        links=(),
        failure=None,
    )
    resource = make_resource(service_name="dask-otel-doctor", instance_id=root, version=__version__, cluster_name=None)
    factory = SpanFactory(resource, InstrumentationScope("dask_otel", __version__), SpanLimits())
    result = _send(sender, [factory.span(record)])
    if result.decision is RetryDecision.SENT and not result.rejected:
        findings.good.append(f"{_where(sender)}: a test span has arrived, as trace {record.trace_id:032x}")
    else:
        findings.faults.append(_failure(sender, TRACES, result))


def _try_metrics(sender: Sender, findings: _Findings, *, is_optional: bool) -> None:
    """Send an empty request with metrics; it is no fault if the backend of the spans takes no metrics."""
    result = _send(sender, MetricsData([]))
    if result.decision is RetryDecision.SENT:
        findings.good.append(f"{_where(sender)}: metrics are taken")
    elif result.is_unsupported and is_optional:
        findings.remarks.append(f"{_where(sender)}: {NO_METRICS} ({result.message})")
    else:
        findings.faults.append(_failure(sender, METRICS, result))


def _send(sender: Sender, data: Any) -> ExportResult:
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    try:
        result = sender.send(data)
        sender.shutdown()
    except Exception as error:  # noqa: BLE001 -- an exporter of another package may raise anything
        return ExportResult(RetryDecision.REFUSED, f"{type(error).__name__}: {error}")
    return result


def _where(sender: Sender) -> str:
    through = f" through {sender.proxy}" if sender.proxy else ""
    return f"exporter {sender.name}" + (f", {sender.target}" if sender.target else "") + through


def _failure(sender: Sender, signal: Signal, result: ExportResult) -> str:
    """Describe the cause, what to do, and what the collector or the connection reported."""
    known = {"otlp_proto_grpc": "grpc", "otlp_proto_http": "http/protobuf"}
    protocol = known.get(sender.name) or otlp_protocol(Remarks(), signal)
    cause = advice(protocol, sender.target, result.message, sender.proxy, signal)
    return f"{_where(sender)}: {cause} ({result.message})"
