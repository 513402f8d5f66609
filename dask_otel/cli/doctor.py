"""``dask-otel doctor``: what the configuration is, and whether spans arrive."""

from __future__ import annotations

import asyncio
import logging
import os
from time import time
from typing import Any
from uuid import uuid4

import click
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
from ..export.answers import Answer, Meaning
from ..export.connect import Exporters, read_variables
from ..export.meter import NO_METRICS
from ..export.resource import make_resource
from ..export.senders import Sender
from ..export.signals import METRICS, TRACES, Signal
from ..export.spans import SpanFactory
from ..export.variables import not_read, otlp_protocol, sdk_disabled
from ..mirror.ids import marker_id, trace_id
from ..mirror.model import SpanInfo
from ..mirror.records import MarkerRecord
from ..page.routes import STATUS_CALL
from . import addresses, origins, remote
from .advice import advice

__all__ = ["doctor"]

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
    _show(console, [*origins.settings(), *origins.variables()])
    problems: list[str] = []
    config.load(lambda error: problems.append(f"{error}; the bridge {config.consequence(error)}"))
    problems += [f"{name} is set, but not read; use the other OTEL_* variables" for name in not_read()]
    found = Exporters()
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


def _show(console: Console, values: list[origins.Value]) -> None:
    table = Table(Column("setting", no_wrap=True), "value", "from", box=None, pad_edge=False)
    for value in values:
        table.add_row(*(Text(each, overflow="fold") for each in value))
    console.print(table)
    console.print()


def _try(sender: Sender, console: Console) -> bool:
    """Send a span that says what it is."""
    root, now = str(uuid4()), time()
    record = MarkerRecord(
        span=SpanInfo(root, ("dask-otel doctor",), None, now),
        trace_id=trace_id(root),
        span_id=marker_id(root, 0),
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
    if answer.meaning is Meaning.SENT and not answer.rejected:
        _say(console, f"{_where(sender)}: a test span has arrived, as trace {record.trace_id:032x}", good=True)
        return True
    _blame(sender, TRACES, answer, console)
    return False


def _try_metrics(sender: Sender, console: Console) -> bool:
    """Send metrics of which there are none."""
    answer = _send(sender, MetricsData([]))
    if answer.meaning is Meaning.SENT:
        _say(console, f"{_where(sender)}: metrics are taken", good=True)
    elif answer.knows_no_such_thing:  # which is no fault
        console.print(Text(f"· {_where(sender)}: {NO_METRICS} ({answer.said})"))
    else:
        _blame(sender, METRICS, answer, console)
        return False
    return True


def _send(sender: Sender, data: Any) -> Answer:
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    try:
        answer = sender.send(data)
        sender.shutdown()
    except Exception as error:  # noqa: BLE001 -- somebody else's exporter may raise anything
        return Answer(Meaning.REFUSED, f"{type(error).__name__}: {error}")
    return answer


def _where(sender: Sender) -> str:
    through = f" through {sender.proxy}" if sender.proxy else ""
    return f"exporter {sender.name}" + (f", {sender.target}" if sender.target else "") + through


def _blame(sender: Sender, signal: Signal, answer: Answer, console: Console) -> None:
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
