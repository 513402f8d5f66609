"""What is probably wrong when spans cannot be sent, in one line, from what the way there says.

What the configuration is, and where each value comes from.

``dask-otel doctor``: what the configuration is, and whether spans arrive.
"""

from __future__ import annotations

import asyncio
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
from distributed import rpc
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
    make_resource,
    not_read,
    otlp_protocol,
    sdk_disabled,
    shown,
)
from ..otlp.exporter import NO_METRICS, Found, read_variables
from ..otlp.spans import SpanFactory
from ..otlp.transport import ExportResult, RetryDecision, Sender
from ..spantree.events import SpanInfo
from ..spantree.records import PendingRecord
from ..status.page import STATUS_CALL
from . import remote
from . import remote as addresses

__all__ = ["Value", "advice", "doctor", "settings", "variables"]

_OTHER = {
    "grpc": "This is not a gRPC port: use {PROTOCOL}=http/protobuf, or the gRPC port, usually 4317.",
    "http/protobuf": "This is not an HTTP port: use {PROTOCOL}=grpc, or the HTTP port, usually 4318.",
}
_TLS = (
    "The port may speak TLS: write https:// in the endpoint. If that is there, the collector may want a client "
    "certificate: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY."
)
#: Pattern of what was said, and advice; the first that matches.
_KNOWN: tuple[tuple[str, str], ...] = (
    (r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE", "The port does not speak TLS: write http:// in the endpoint."),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "The collector's certificate is not trusted: OTEL_EXPORTER_OTLP_CERTIFICATE names the file of its authority.",
    ),
    (
        r"CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE|alert certificate",
        "The collector wants a client certificate: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _CLIENT_KEY.",
    ),
    (r"ALPN", _OTHER["grpc"]),
    (
        r"Domain name not found|resolv|Name or service not known|getaddrinfo",
        "The endpoint's host has no address here: is it spelled right, and known in this network?",
    ),
    (r"HTTP 407", "A proxy on the way wants to know who you are, but no variable names one."),
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
        "The collector wants to know who you are: OTEL_EXPORTER_OTLP_HEADERS, e.g. authorization=Bearer%20<token>.",
    ),
    (
        r"DEADLINE_EXCEEDED|timed out",
        "Something takes the connection and does not answer: a firewall, an overloaded collector, or another protocol.",
    ),
    (
        r"HTTP (429|50[234])|RESOURCE_EXHAUSTED",
        "The collector has too much to do; the bridge tries again.",
    ),
)


#: What only the collector says, or what a proxy says too, of a request that came through one.
_OF_COLLECTOR = (
    r"HTTP \d|UNIMPLEMENTED|UNAUTHENTICATED|PERMISSION_DENIED|RESOURCE_EXHAUSTED|INVALID_ARGUMENT|INTERNAL"
    r"|CERTIFICATE|certificate|WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HANDSHAKE_FAILURE|ALPN|HTTP/2|http1"
)
_OF_EITHER = r"HTTP (40[0357]|5\d\d|3\d\d|200)"


def advice(protocol: str, target: str, said: str, proxy: Proxy | None = None, signal: Signal = TRACES) -> str:
    """Say what is probably wrong.

    Parameters
    ----------
    protocol
        ``grpc`` or ``http/protobuf``.
    said
        As ``ExportResult.said``.
    proxy
        What requests go through.
    signal
        What could not be sent; advice must not break the other.
    """
    line = _line(protocol, said)
    if proxy:
        line = _with_proxy(proxy, target, said, line)
    of = "" if signal is TRACES else f"{signal.name}_"
    names = {
        "{PROTOCOL}": f"OTEL_EXPORTER_OTLP_{of}PROTOCOL",
        "{ENDPOINT}": f"OTEL_EXPORTER_OTLP_{signal.name}_ENDPOINT",
        "{path}": signal.path,
    }
    for name, value in names.items():
        line = line.replace(name, value)
    return line


def _with_proxy(proxy: Proxy, target: str, said: str, line: str) -> str:
    """Name the proxy, before or behind the advice that would be given without one, or instead of it."""
    host = urlsplit(target if "://" in target else f"//{target}").hostname or target
    exempt = f"add {host} to {proxy.exempting} to go without it"
    named = f"Requests go through the proxy {proxy.address} that {proxy.variable} names"
    if not re.search(_OF_COLLECTOR, said) or "HTTP 407" in said:
        return f"{named}. Look there first: is it up, and does it let them through? Or {exempt}."
    # Over TLS, a proxy only passes on what the collector says.
    if target.startswith("http://") and re.search(_OF_EITHER, said):
        first = f"{named}, which may be what answers so: look there first, or {exempt}."
        return f"{first} If the collector itself says so: {line}"
    return f"{line} {named}; {exempt}."


def _line(protocol: str, said: str) -> str:
    if protocol == "grpc" and re.search(r"Failed parsing HTTP/2|http1", said):
        return _OTHER["grpc"]
    for pattern, line in _KNOWN:
        if re.search(pattern, said):
            return line
    if re.search(r"[Cc]losed|reset|RemoteDisconnected", said):
        return _TLS
    if re.search(r"ProtocolError|BadStatusLine", said):
        return _OTHER[protocol]
    return "Ask whoever runs the collector, and show them this message."


#: Variables whose values are secrets, or may hold some.
_SECRET = ("HEADERS", "CLIENT_KEY")


class Value(NamedTuple):
    """A setting or variable."""

    name: str
    value: str
    origin: str


def settings() -> Iterator[Value]:
    """Yield our own settings."""
    files = [(str(path), values) for path, values in dask.config.collect_yaml(dask.config.paths, return_paths=True)]
    for name, default in _flat(config.DEFAULTS["otel"], "otel"):
        value = dask.config.get(name, default)
        # A link may hold a password, or a token.
        text = f"{shown(value)}…" if isinstance(value, str) and re.search("[@?]", value) else _text(value)
        yield Value(name, text, _origin(name, value, default, files))


def variables() -> Iterator[Value]:
    """Yield the standard variables that are set."""
    for name, value in sorted(os.environ.items()):
        if name.startswith("OTEL_"):
            secret = any(each in name for each in _SECRET)
            yield Value(name, "(set, not shown)" if secret else _shown(value), "environment")


def _origin(name: str, value: object, default: object, files: list[tuple[str, Any]]) -> str:
    variable = "DASK_" + name.upper().replace("-", "_").replace(".", "__")
    if variable in os.environ:
        return f"environment, {variable}"
    for path, values in reversed(files):
        if dask.config.get(name, None, config=values) is not None:
            return str(path)
    return "default" if value == default else "dask.config.set"


def _flat(values: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: str) -> str:
    return shown(value) if re.search("://|@", value) else value


#: Seconds that a scheduler may take to answer.
PATIENCE = 10.0


@click.command()
@click.option(
    "--endpoint",
    metavar="URL",
    help="Try this OTLP endpoint; over HTTP it gets /v1/traces appended.",
)
@click.option(
    "--scheduler", metavar="ADDRESS", help="Ask the bridge of a running scheduler, e.g. tcp://scheduler:8786."
)
def doctor(endpoint: str | None, scheduler: str | None) -> None:
    """Check the configuration and send a test span; exit code 1 if something is wrong."""
    console = Console(highlight=False, soft_wrap=True)
    good = _check(endpoint, console) if scheduler is None else _ask(scheduler, console)
    raise SystemExit(0 if good else 1)


def _check(endpoint: str | None, console: Console) -> bool:
    console.print(
        f"dask-otel {__version__}, configured here (a scheduler on another machine may be configured otherwise)\n"
    )
    _show(console, [*settings(), *variables()])
    problems: list[str] = []
    config.load(lambda error: problems.append(f"{error}; the bridge {config.consequence(error)}"))
    problems += [f"{name} is set, but not read; use the other OTEL_* variables" for name in not_read()]
    found = Found()
    try:
        config.check_limits()
        if not sdk_disabled():
            found = read_variables(endpoint)
    except SettingError as error:
        problems.append(f"{error}; the bridge stays off")
    except Exception as error:  # noqa: BLE001 -- a broken package may raise anything
        problems.append(f"an exporter cannot be loaded ({type(error).__name__}: {error}); reinstall dask-otel")
    problems += found.remarks.problems
    if found.spans_error and str(found.spans_error) == str(found.metrics_error):
        problems.append(f"{found.spans_error}; the bridge stays off")
    else:
        problems += [f"{found.spans_error}; no spans are sent"] if found.spans_error else []
        problems += [f"{found.metrics_error}; no metrics are sent"] if found.metrics_error else []
    if not _takes_any(found.sampler):
        problems.append("OTEL_TRACES_SAMPLER leaves out every trace that was tried: none would be sent")
    if sdk_disabled():
        problems.append("OTEL_SDK_DISABLED is true: the bridge stays off")
    elif os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none" and not endpoint:
        problems.append("OTEL_TRACES_EXPORTER is none: no spans are sent")
    for problem in problems:
        _say(console, problem, good=False)
    for line in found.remarks.readings:
        console.print(Text(f"· {line}"))
    arrived = [_try(sender, console) for sender in found.spans]
    elsewhere = {meter.target for meter in found.metrics} - {sender.target for sender in found.spans}
    if all(arrived) or elsewhere:  # else the metrics would most likely fail for the same reason
        arrived += [_try_metrics(meter, console) for meter in found.metrics]
    return not problems and all(arrived)


def _takes_any(sampler: Sampler | None) -> bool:
    tried = (
        (sampler.should_sample(Context(), trace_id(f"{n}"), "dask-otel doctor") for n in range(1000)) if sampler else ()
    )
    return sampler is None or any(each.decision is Decision.RECORD_AND_SAMPLE for each in tried)


def _show(console: Console, values: list[Value]) -> None:
    table = Table(Column("setting", no_wrap=True), "value", "from", box=None, pad_edge=False)
    for value in values:
        table.add_row(*(Text(each, overflow="fold") for each in value))
    console.print(table)
    console.print()


def _try(sender: Sender, console: Console) -> bool:
    """Send a span that says what it is."""
    root, now = str(uuid4()), time()
    record = PendingRecord(
        span=SpanInfo(root, ("dask-otel doctor",), None, now),
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
    answer = _send(sender, [factory.span(record)])
    if answer.decision is RetryDecision.SENT and not answer.rejected:
        _say(console, f"{_where(sender)}: a test span has arrived, as trace {record.trace_id:032x}", good=True)
        return True
    _blame(sender, TRACES, answer, console)
    return False


def _try_metrics(sender: Sender, console: Console) -> bool:
    """Send metrics of which there are none."""
    answer = _send(sender, MetricsData([]))
    if answer.decision is RetryDecision.SENT:
        _say(console, f"{_where(sender)}: metrics are taken", good=True)
    elif answer.is_unsupported:  # which is no fault
        console.print(Text(f"· {_where(sender)}: {NO_METRICS} ({answer.said})"))
    else:
        _blame(sender, METRICS, answer, console)
        return False
    return True


def _send(sender: Sender, data: Any) -> ExportResult:
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    try:
        answer = sender.send(data)
        sender.shutdown()
    except Exception as error:  # noqa: BLE001 -- somebody else's exporter may raise anything
        return ExportResult(RetryDecision.REFUSED, f"{type(error).__name__}: {error}")
    return answer


def _where(sender: Sender) -> str:
    through = f" through {sender.proxy}" if sender.proxy else ""
    return f"exporter {sender.name}" + (f", {sender.target}" if sender.target else "") + through


def _blame(sender: Sender, signal: Signal, answer: ExportResult, console: Console) -> None:
    """Say what came back, and what is probably wrong."""
    _say(console, f"{_where(sender)}: {answer.said}", good=False)
    known = {"otlp_proto_grpc": "grpc", "otlp_proto_http": "http/protobuf"}
    protocol = known.get(sender.name) or otlp_protocol(Remarks(), signal)
    console.print(Text("  " + advice(protocol, sender.target, answer.said, sender.proxy, signal)))


def _ask(address: str, console: Console) -> bool:
    address = addresses.mend(address)
    problem = addresses.wrong_address(address)
    if problem:
        raise click.ClickException(problem)
    try:
        connection = addresses.connection_arguments()
        problem = addresses.wrong_address(address, connection)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if problem:
        raise click.ClickException(problem)
    try:
        kind, status, facts = asyncio.run(_status(address, connection))
    except Exception as error:
        raise click.ClickException(asyncio.run(addresses.explain_failure(address, error))) from error
    if kind != "Scheduler":
        raise click.ClickException(f"at {address} is a {kind}, not a scheduler")
    if status is None:
        cause, *others = remote.why_without(facts)
        _say(console, f"the scheduler at {address} runs without dask-otel: {cause}", good=False)
        for each in others:
            console.print(Text(f"  {each}"))
        return False
    console.print(f"dask-otel {status['version']} on {status['scheduler']}\n")
    good = bool(status["on"])
    _say(console, "is on" if good else f"has stopped: {status['why']}", good=good)
    for each in status["exporters"]:
        good &= _tell(each, console)
    for each in status["metrics"]:
        good &= _tell_of_metrics(each, console)
    for each in status["errors"]:
        _say(console, f"{each['type']}, {each['count']} times, in the {each['where']}: see the log", good=False)
    for what in ("unsampled", "over_budget"):
        if count := sum(status[what].values()):
            console.print(
                f"{count} spans {'left out by the sampler' if what == 'unsampled' else 'over otel.traces.max-rate'}"
            )
    console.print(f"{status['open_segments']} open segments, {len(status['finished'])} finished roots")
    return good and not status["errors"]


async def _status(address: str, connection: dict[str, Any]) -> tuple[str, Any, remote.Facts]:
    """Who is there, what its bridge says of itself, and what its process knows."""
    async with rpc(address, timeout=PATIENCE / 2, connection_args=connection) as server:
        kind = (await asyncio.wait_for(server.identity(), PATIENCE))["type"]
        if kind != "Scheduler":
            return kind, None, remote.Facts()
        facts = await remote.ask_facts(server)
        if facts.answers or facts.unknown:  # else the call would leave a traceback in the scheduler's log
            status = await asyncio.wait_for(getattr(server, STATUS_CALL)(), PATIENCE)
            if status or facts.unknown:
                return kind, status, facts
        return kind, None, await remote.ask_workers(server, facts)


def _tell(exporter: dict[str, Any], console: Console) -> bool:
    sent, waiting = sum(exporter["sent"].values()), exporter["queue"]["spans"] + exporter["in_flight"]
    _say(
        console,
        f"exporter {exporter['name']} {exporter['target']}: {sent} spans sent, {waiting} waiting"
        + (f"; fails: {exporter['last_error']}" if exporter["failing"] else ""),
        good=not exporter["failing"],
    )
    for drop in exporter["dropped"]:
        _say(console, f"{drop['count']} {drop['kind']} spans dropped: {drop['reason']}", good=False)
    return not exporter["failing"] and not exporter["dropped"]


def _tell_of_metrics(exporter: dict[str, Any], console: Console) -> bool:
    failing = bool(exporter["failing"])
    _say(
        console,
        f"metrics, exporter {exporter['name']} {exporter['target']}: {exporter['exports']} times sent"
        + (f"; fails: {exporter['last_error']}" if failing else ""),
        good=not failing,
    )
    return not failing


def _say(console: Console, text: str, *, good: bool) -> None:
    console.print(Text.assemble(("✓ ", "bold green") if good else ("✗ ", "bold red"), text))
