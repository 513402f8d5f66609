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
from uuid import uuid4

import click
import dask
from opentelemetry.context import Context
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from rich.console import Console
from rich.text import Text

from .. import __version__, config
from ..errors import SettingError
from ..identity import pending_id, trace_id
from ..otlp.environment import (
    METRICS,
    TRACES,
    Signal,
    is_default_endpoint,
    make_resource,
    read_variable,
    sdk_disabled,
    shown,
)
from ..otlp.exporter import DISABLED, NO_METRICS, Found, read_variables
from ..otlp.folder import FolderSender
from ..otlp.misspelt import KNOWN
from ..otlp.spans import SpanFactory
from ..otlp.transport import ExportResult, RetryDecision, Sender
from ..spantree.events import SpanInfo
from ..spantree.records import PendingRecord
from .doctor_advice import FOLDER_ADVICE, Failure, advice, server
from .doctor_lines import Findings, make_console, print_wrapped, reported
from .doctor_scheduler import check_scheduler

__all__ = ["doctor"]

#: Parts of the names of variables that may hold secrets.
_SECRET = ("HEADERS", "CLIENT_KEY")


@click.command()
@click.option("--endpoint", metavar="URL", help="Try this OTLP endpoint; over HTTP it gets /v1/traces appended.")
@click.option(
    "--scheduler", metavar="ADDRESS", help="Ask the bridge of a running scheduler, e.g. tcp://scheduler:8786."
)
@click.option("--all", "shows_all", is_flag=True, help="Show also the settings that have their default.")
def doctor(endpoint: str | None, scheduler: str | None, *, shows_all: bool) -> None:
    """Check the configuration and send a test span; exit code 1 if something is wrong."""
    console = make_console()
    good = _check(endpoint, console, shows_all=shows_all) if scheduler is None else check_scheduler(scheduler, console)
    raise SystemExit(0 if good else 1)


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


def _check(endpoint: str | None, console: Console, *, shows_all: bool) -> bool:
    """Check the configuration of this process and try each exporter; return whether all is well."""
    findings = _findings(endpoint)
    findings.print(console)
    console.print()
    print_wrapped(
        console,
        f"dask-otel {__version__}, configured here (a scheduler on another machine may be configured otherwise)",
    )
    settings = list(_settings())
    shown_settings = [each for each in settings if shows_all or each.origin != "default"]
    _print_values([*shown_settings, *_variables()], console)
    if hidden := len(settings) - len(shown_settings):
        print_wrapped(console, f"{hidden} settings have their default: --all shows them")
    return not findings.faults


def _print_values(values: list[_Value], console: Console) -> None:
    """Print values in columns if a terminal is wide enough, and always where it is no terminal."""
    if not values:
        return
    console.print()
    names, texts = (max(len(each[column]) for each in values) for column in (0, 1))
    is_wide = names + texts + 4 + max(len(each.origin) for each in values) <= console.width
    for each in values:
        if is_wide or not console.is_terminal:
            console.print(Text(f"{each.name:{names}}  {each.value:{texts}}  {each.origin}"))
        else:
            print_wrapped(console, f"{each.name} = {each.value} ({each.origin})", "    ")
    console.print()


def _findings(endpoint: str | None) -> Findings:
    findings = Findings()
    settings = config.load(lambda error: findings.fault(f"{error}; dask-otel {config.consequence(error)}"))
    if hidden := [name for name, is_shown in settings.capture.items() if not is_shown]:
        findings.remark(f"hidden by otel.capture: {', '.join(hidden)}")
    found = Found()
    try:
        config.check_limits()
        if not sdk_disabled():
            found = read_variables(endpoint)
    except SettingError as error:
        findings.fault(f"{error}; dask-otel stays off")
    except Exception as error:  # noqa: BLE001 -- a broken package may raise anything
        findings.fault(f"an exporter cannot be loaded ({type(error).__name__}: {error}); reinstall dask-otel")
    for line in _problems(found):
        findings.fault(line)
    has_problems = bool(findings.faults)
    for sender in found.spans:
        _try_spans(sender, findings, is_given=endpoint is not None)
    elsewhere = {_server(sender) for sender in found.metrics} - {_server(sender) for sender in found.spans}
    # Else the metrics would most likely fail for the same reason.
    if len(findings.good) == len(found.spans) or elsewhere:
        for sender in found.metrics:
            _try_metrics(sender, findings, is_optional=bool(found.spans) and is_default_endpoint(METRICS))
    if settings.folder and not sdk_disabled():
        _try_folder(settings.folder, settings.folder_size, findings)
    elif not (found.spans or found.metrics or has_problems):
        findings.works("nothing is sent, as configured; the page /otel/ on the scheduler shows the runs")
    if os.environ.get(TRACES.exporter, "").strip().lower() == "none" and endpoint is None:
        findings.remark(f"{TRACES.exporter} is none: no spans are sent")
    for line in found.remarks.readings:
        findings.remark(line)
    return findings


def _try_folder(path: str, size: int, findings: Findings) -> None:
    """Try whether files can be written to the folder of traces."""
    try:
        FolderSender(path, size, "doctor").folder.check()
    except OSError as error:
        findings.fault(f"otel.traces.folder, {path}: {FOLDER_ADVICE}", reported(error.strerror or str(error)))
    else:
        findings.works(f"otel.traces.folder, {path}: traces can be kept there")


def _server(sender: Sender) -> str:
    """Host and port that a sender sends to, or its name."""
    return server(sender.target) or sender.name


def _problems(found: Found) -> Iterator[str]:
    """Yield what is wrong with the standard variables, and its consequence."""
    yield from found.problems()
    if found.sampler and not _samples_any(found.sampler):
        yield "OTEL_TRACES_SAMPLER leaves out every trace that was tried: none would be sent"
    if sdk_disabled():
        yield DISABLED


def _samples_any(sampler: Sampler) -> bool:
    results = (sampler.should_sample(Context(), trace_id(f"{n}"), "dask-otel doctor") for n in range(1000))
    return any(each.decision is Decision.RECORD_AND_SAMPLE for each in results)


def _try_spans(sender: Sender, findings: Findings, *, is_given: bool) -> None:
    """Send a test span.

    Parameters
    ----------
    is_given
        Whether the endpoint is an argument of the command.
    """
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
    form = sender.form(SpanFactory(resource, InstrumentationScope("dask_otel", __version__), SpanLimits()))
    result = _send(sender, form.request([form.span(record)]))
    if result.decision is RetryDecision.SENT and not result.rejected:
        findings.works(f"{_where(sender)}: a test span has arrived, as trace {record.trace_id:032x}")
        return
    is_default = not (is_given or not is_default_endpoint(TRACES) or read_variable("OTEL_EXPORTER_OTLP_ENDPOINT"))
    hint = " No endpoint is set, and this is the default: OTEL_EXPORTER_OTLP_ENDPOINT names another."
    _fail(sender, TRACES, result, findings, hint=hint if is_default and sender.protocol else "")


def _try_metrics(sender: Sender, findings: Findings, *, is_optional: bool) -> None:
    """Send an empty request with metrics; it is no fault if the backend of the spans takes no metrics."""
    result = _send(sender, MetricsData([]))
    if result.decision is RetryDecision.SENT:
        findings.works(f"{_where(sender)}: metrics are taken")
    elif result.is_unsupported and is_optional:
        findings.remark(f"{_where(sender)}: {NO_METRICS}", reported(result.message))
    else:
        _fail(sender, METRICS, result, findings)


def _send(sender: Sender, data: Any) -> ExportResult:
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    try:
        with make_console(stderr=True).status(_waiting(sender)):
            result = sender.send(data)
            sender.shutdown()
    except Exception as error:  # noqa: BLE001 -- an exporter of another package may raise anything
        return ExportResult(RetryDecision.REFUSED, f"{type(error).__name__}: {error}")
    return result


def _waiting(sender: Sender) -> Text:
    """Describe what the command waits for; only a terminal shows it."""
    settings = getattr(sender, "settings", None)
    at_most = f", up to {settings.timeout:g} s" if settings else ""
    return Text(f"waiting for {sender.target or sender.name}{at_most}")


def _where(sender: Sender) -> str:
    through = f" through {sender.proxy}" if sender.proxy else ""
    return f"exporter {sender.name}" + (f", {sender.target}" if sender.target else "") + through


def _fail(sender: Sender, signal: Signal, result: ExportResult, findings: Findings, *, hint: str = "") -> None:
    """Describe the cause and what to do, and below it what the collector or the connection reported."""
    failure = Failure(sender.protocol, sender.target, result.message, sender.proxy, signal, headers=sender.header_names)
    with make_console(stderr=True).status(Text(f"trying what listens at {sender.target or sender.name}")):
        cause = advice(failure)
    findings.fault(f"{_where(sender)}: {cause}{hint}", reported(result.message))
