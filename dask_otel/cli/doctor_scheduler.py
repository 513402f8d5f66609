"""``dask-otel doctor --scheduler``: the status of a running scheduler's bridge.

If no scheduler answers at the address, or it runs without dask-otel, it explains why and what to do.
"""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import pairwise
from socket import gethostname
from typing import Any

import dask
from distributed import rpc
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.registry import backends
from distributed.security import Security
from rich.console import Console
from rich.text import Text

from ..otlp.environment import METRICS, TRACES, Proxy, Signal
from ..otlp.folder import FOLDER
from ..status.handlers import STATUS_CALL
from ..status.report import destination
from .doctor_advice import FOLDER_ADVICE, Failure, advice, server
from .doctor_lines import Findings, WrappedError, make_console, print_wrapped, reported

__all__ = ["Facts", "ask_facts", "check_scheduler", "why_without"]

#: Seconds that a scheduler may take to answer a call; half of it, to connect.
TIMEOUT = 10.0
#: Seconds for each question about a scheduler's process, and for a probe of an address.
REQUEST_TIMEOUT = 5.0
#: Number of workers that are asked for their preloads.
MAX_WORKERS = 3
SETTING = "distributed.scheduler.preload"
VARIABLE = "DASK_DISTRIBUTED__SCHEDULER__PRELOAD"
#: What else can preload dask_otel.
ROLES = ("worker", "nanny", "client")

_EXAMPLE = "tcp://scheduler:8786"
_WEB = "is a web address, such as the dashboard's: give the address that workers and clients use, usually tcp://{host}:8786"
#: Schemes that cannot be used, and what to do instead.
_SCHEMES = {
    "http": _WEB,
    "https": _WEB,
    "gateway": "works with dask-gateway's own client only: open /otel/ in the place of /status in the link to the "
    "cluster's dashboard (cluster.dashboard_link), or run the doctor in the scheduler's pod or machine",
    "inproc": "is reached from its own process only: make the cluster with protocol='tcp', or open /otel/ beside its "
    "dashboard (client.dashboard_link)",
}
#: Expressions of builtins only, so that the scheduler needs no package of ours and any version of Python runs them.
#: They only read.
_QUESTION = """(lambda f: setattr(f, "__name__", "dask_otel_doctor") or f)(lambda dask_scheduler: {
    "answers": STATUS_CALL in dask_scheduler.handlers,
    "argv": [str(each) for each in __import__("sys").argv],
    "preloads": [str(each.name) for each in dask_scheduler.preloads],
    "setting": __import__("dask").config.get("distributed.scheduler.preload", None),
    "variables": {
        name: value for name, value in __import__("os").environ.items()
        if name.upper().startswith("DASK") and "dask_otel" in value.replace("-", "_")
    },
    "roles": {
        role: __import__("dask").config.get("distributed." + role + ".preload", None)
        for role in ("worker", "nanny", "client")
    },
    "installed": __import__("sys").modules.get("dask_otel") is not None
    or __import__("importlib.util").util.find_spec("dask_otel") is not None,
    "python": __import__("sys").executable,
    "host": __import__("socket").gethostname(),
    "log": [
        str(line) for at, line in getattr(__import__("sys").modules.get("dask_otel.safety"), "recent", ())
        if at >= dask_scheduler.time_started
    ],
})""".replace("STATUS_CALL", repr(STATUS_CALL))
_QUESTION_TO_WORKERS = """(lambda f: setattr(f, "__name__", "dask_otel_doctor") or f)(
    lambda dask_worker: [str(each.name) for each in dask_worker.preloads]
)"""


@dataclass(frozen=True)
class Facts:
    """What a scheduler answered about its process."""

    #: ``sys.argv``.
    argv: Sequence[str] = ()
    #: Names of the preloads that it has loaded.
    preloads: Sequence[str] = ()
    #: The setting ``distributed.scheduler.preload``, as it is now.
    setting: Any = None
    #: Environment variables for Dask that mention dask_otel.
    variables: Mapping[str, str] = field(default_factory=dict)
    #: The settings ``distributed.<role>.preload`` of other roles.
    roles: Mapping[str, Any] = field(default_factory=dict)
    #: Whether Python finds ``dask_otel`` there.
    installed: bool = True
    #: ``sys.executable``.
    python: str = ""
    #: Name of the machine; empty if it is not known.
    host: str = ""
    #: The last lines that dask-otel logged there.
    log: Sequence[str] = ()
    #: Whether it has the call ``otel_status``.
    answers: bool = False
    #: Addresses of workers and nannies that have preloaded dask_otel, of those that were asked.
    elsewhere: Sequence[str] = ()
    #: Why the rest is not known; None if it is.
    unknown: str | None = None


def check_scheduler(address: str, console: Console) -> bool:
    """Print the status of the bridge of the scheduler at an address; return whether all is well."""
    # People paste blanks, a slash or a password along.
    address = re.sub(r"//[^/]*@", "//", address.strip())
    address = address if address.endswith("://") else address.rstrip("/")
    try:
        connection = dict(Security().get_connection_args("client"))
    except (OSError, ValueError, TypeError) as error:
        raise WrappedError(
            f"the TLS configuration here cannot be used ({type(error).__name__}: {error}): see distributed.comm.tls"
        ) from error
    if problem := _wrong_address(address, connection):
        raise WrappedError(problem)
    try:
        with make_console(stderr=True).status(Text(f"asking {address}, up to {TIMEOUT:g} s")):
            kind, status, facts = asyncio.run(_status(address, connection))
    except Exception as error:
        raise WrappedError(asyncio.run(_explain_failure(address, error))) from error
    if kind != "Scheduler":
        raise WrappedError(f"at {address} is a {kind}, not a scheduler")
    if status is None or not status["started"]:
        cause, *others = [f"it is off: {status['why']}"] if status else why_without(facts)
        findings = Findings()
        findings.fault(f"the scheduler at {address} runs without dask-otel: {cause}", *others)
        findings.print(console)
        return False
    return _print_status(status, facts, console)


def _describe(status: dict[str, Any], machine: str) -> Findings:
    """Describe the status of a bridge.

    Parameters
    ----------
    machine
        Name of the scheduler's machine; empty if it is this one.
    """
    findings = Findings()
    if status["on"]:
        findings.works("is on")
    else:
        findings.fault(f"has stopped: {status['why']}")
    for line in status["problems"]:
        findings.fault(line)
    failing: set[str] = set()
    for each in status["exporters"]:
        _describe_spans(each, findings, machine)
        if each["failing"]:
            failing.add(server(each["target"]))
    for each in status["metrics"]:
        is_shared = any(_is_same_way(each, other) for other in status["exporters"] if other["failing"] is not False)
        _describe_metrics(each, findings, machine, is_known=server(each["target"]) in failing, is_shared=is_shared)
    if any(each["failing"] is None and not _waiting(each) and not each["requested_at"] for each in status["exporters"]):
        findings.remark(
            "whether traces arrive is not known yet: run some work and ask again, or run dask-otel doctor with the "
            "scheduler's environment"
        )
    for each in status["errors"]:
        findings.fault(f"{each['type']}, {each['count']} times, in the {each['where']}: see the scheduler's log")
    if not (
        status["exporters"] or any("no spans are sent" in line for line in (*status["problems"], *status["remarks"]))
    ):
        findings.remark("no spans are sent, as configured there; its page /otel/ shows the runs")
    elif status["unsampled"] and not any(each["sent"] or each["dropped"] for each in status["exporters"]):
        findings.remark("the sampler has excluded every span so far: look at OTEL_TRACES_SAMPLER there")
    if status["hidden"]:
        findings.remark(f"hidden by otel.capture: {', '.join(status['hidden'])}")
    for line in status["remarks"]:
        findings.remark(line)
    return findings


def _describe_spans(each: dict[str, Any], findings: Findings, machine: str) -> None:
    waiting = _waiting(each)
    counts = f"{sum(each['sent'].values())} spans sent, {waiting} waiting"
    if each["failing"]:
        findings.fault(f"{_where(each)}: {_cause(each, TRACES, machine)}", _since(counts, each), _reported(each))
    else:
        _describe_working(_where(each), counts, waiting, each, findings)
    for drop in each["dropped"]:
        details = [_reported(each)] if each["last_error"] else []
        findings.fault(f"{drop['count']} {drop['kind']} spans dropped: {drop['reason']}", *details)


def _is_same_way(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two exporters send to the same server with the same protocol and headers."""
    return server(one["target"]) == server(other["target"]) and all(
        one[name] == other[name] for name in ("protocol", "headers")
    )


def _describe_metrics(
    each: dict[str, Any], findings: Findings, machine: str, *, is_known: bool, is_shared: bool
) -> None:
    where, counts = f"metrics, {_where(each)}", f"{each['exports']} times sent"
    if each["failing"]:
        cause = "fail as the spans do" if is_known else _cause(each, METRICS, machine, is_shared=is_shared)
        findings.fault(f"{where}: {cause}", _since(counts, each), _reported(each))
    elif each["unsupported"]:
        findings.remark(f"{where}: the backend takes no metrics, only spans are sent", reported(each["unsupported"]))
    else:
        _describe_working(where, counts, 0, each, findings)


def _waiting(exporter: dict[str, Any]) -> int:
    """Return the number of spans that wait for an answer."""
    return int(exporter["queue"]["spans"] + exporter["in_flight"])


def _describe_working(where: str, counts: str, waiting: int, each: dict[str, Any], findings: Findings) -> None:
    """Describe an exporter that has not failed; it works only if something has arrived."""
    waits = f", {waiting} waiting" if waiting else ""
    if each["failing"] is False:
        findings.works(f"{where}: {counts}")
    elif each["requested_at"]:
        findings.remark(f"{where}: no answer yet since {_utc(each['requested_at'])}{waits}")
    else:
        findings.remark(f"{where}: nothing was sent yet{waits}")


def _where(exporter: dict[str, Any]) -> str:
    place = destination(exporter)
    return f"exporter {exporter['name']}" + (f", {place}" if place != exporter["name"] else "")


def _cause(exporter: dict[str, Any], signal: Signal, machine: str, *, is_shared: bool = False) -> str:
    if exporter["name"] == FOLDER:
        return FOLDER_ADVICE
    proxy = Proxy(**exporter["via"]) if exporter["via"] else None
    return advice(
        Failure(
            exporter["protocol"],
            exporter["target"],
            exporter["last_error"],
            proxy,
            signal,
            is_shared,
            tuple(exporter["headers"]),
            machine,
        )
    )


def _since(counts: str, exporter: dict[str, Any]) -> str:
    return f"{counts}; fails since {_utc(exporter['since'])}"


def _reported(exporter: dict[str, Any]) -> str:
    return reported(exporter["last_error"])


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _print_status(status: dict[str, Any], facts: Facts, console: Console) -> bool:
    machine = "" if facts.host == gethostname() else facts.host or "the scheduler's machine"
    findings = _describe(status, machine)
    findings.print(console)
    console.print()
    print_wrapped(console, f"dask-otel {status['version']} on {status['scheduler']}")
    for name, why in (("unsampled", "left out by the sampler"), ("over_budget", "over otel.traces.max-rate")):
        if count := sum(status[name].values()):
            console.print(f"{count} spans {why}")
    console.print(f"{status['open_segments']} open segments, {len(status['finished'])} finished roots")
    if findings.faults:
        print_wrapped(
            console, "Variables and settings are those of the scheduler's process: set them where it is started."
        )
    return not findings.faults


async def _status(address: str, connection: dict[str, Any]) -> tuple[str, Any, Facts]:
    """Return the kind of server at an address, the status of its bridge, and facts about its process."""
    async with rpc(address, timeout=TIMEOUT / 2, connection_args=connection) as server:
        kind = (await asyncio.wait_for(server.identity(), TIMEOUT))["type"]
        if kind != "Scheduler":
            return kind, None, Facts()
        facts = await ask_facts(server)
        if facts.answers or facts.unknown:  # else the call would leave a traceback in the scheduler's log
            status = await asyncio.wait_for(getattr(server, STATUS_CALL)(), TIMEOUT)
            if status or facts.unknown:
                return kind, status, facts
        return kind, None, await _ask_workers(server, facts)


def _wrong_address(address: str, connection: Mapping[str, Any]) -> str | None:
    """Describe in one line what is wrong with an address, and what to give instead; None if it can be tried.

    Parameters
    ----------
    connection
        Dask's ``Security.get_connection_args("client")`` of this process.
    """
    scheme, _, rest = address.rpartition("://")
    scheme = scheme.lower()
    if not rest:
        return f"--scheduler needs the address of a scheduler, e.g. {_EXAMPLE}"
    if scheme in _SCHEMES:
        return f"{address!r} {_SCHEMES[scheme].format(host=re.split('[:/]', rest)[0])}"
    if scheme in ("ucx", "ucxx"):
        try:
            backends[scheme].get_connector()
        except (KeyError, TypeError, ImportError):
            return (
                f"{address!r} needs the package distributed-ucxx, here too: install it, or run the doctor where it is"
            )
    if scheme and scheme not in backends:
        known = ", ".join(each for each in sorted(backends) if each not in ("inproc", "ucx"))
        return f"{address!r} has a scheme that Dask does not know here ({known}): give an address like {_EXAMPLE}"
    try:
        host, port = parse_host_port(rest)
    except ValueError:
        host, port = "", 0
    if not host or not 0 < port < 65536:
        host = re.split("[:/]", rest)[0]
        host = host if host and not host.isdigit() and host not in backends else "scheduler"
        example = f"{scheme or 'tcp'}://{host}:8786"
        return f"{address!r} is no address with a host and a port: give the scheduler's, e.g. {example}"
    if scheme in ("tls", "wss") and not connection.get("ssl_context"):
        return (
            f"{address!r} needs TLS, which is not configured here: set what clients of this cluster have, "
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and "
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY (or distributed.comm.tls in a YAML file)"
        )
    return None


async def _explain_failure(address: str, error: BaseException) -> str:
    """Describe in one line why no scheduler answers, and what to do."""
    causes = list(_causes(error))
    message = next((f"{type(each).__name__}: {each}" for each in causes if str(each)), type(error).__name__)
    advice = f"give the address that workers use, e.g. {_EXAMPLE}"
    scheme, rest = parse_address(address)
    host, port = parse_host_port(rest)
    if any("certificate" in str(each).lower() for each in causes):
        advice = "the certificates here are not those of this cluster: see distributed.comm.tls"
    else:
        listener = await _find_listener(host, port)
        if listener == "no address":
            advice = f"{host!r} has no address here; {advice}"
        elif listener == "nobody":
            advice = f"nothing listens there; {advice}"
        elif listener == "dask" and scheme != "tcp":
            advice = f"the scheduler there does not use {scheme}: give tcp://{rest}"
        elif listener == "http" and scheme not in ("ws", "wss"):
            advice = (
                f"it is a web server that listens there, perhaps the dashboard's: give the scheduler's own port, "
                f"usually tcp://{host}:8786"
            )
        elif listener == "hangs up" and scheme == "tcp":
            advice = f"it hangs up: if the cluster uses TLS, give tls://{rest}"
        elif any(isinstance(each, TimeoutError) for each in causes):
            advice = f"nothing came back: is a firewall in between? Else {advice}"
    return f"no scheduler answers at {address!r} ({message}); {advice}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


async def _find_listener(host: str, port: int) -> str | None:
    """Find out what listens: "dask", "http", something that "hangs up", "nobody", "no address", or None (unknown)."""
    with suppress(OSError, TimeoutError, asyncio.TimeoutError):
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), REQUEST_TIMEOUT)
        except socket.gaierror:
            return "no address"
        except OSError as error:  # where a name has several addresses, their errors are in the text only
            return "nobody" if f"[Errno {errno.ECONNREFUSED}]" in str(error) else None
        try:
            # A Dask server speaks first.
            with suppress(asyncio.TimeoutError, TimeoutError):
                return "dask" if b"pickle-protocol" in await asyncio.wait_for(reader.read(1024), 1) else None
            # Too short for a message of Dask's, which begins with its length: a late server must not read gigabytes.
            writer.write(b"?\r\n\r\n")
            try:
                answer = await asyncio.wait_for(reader.read(1024), REQUEST_TIMEOUT)
            except ConnectionError:
                return "hangs up"
            return "http" if answer.startswith(b"HTTP/") else None if answer else "hangs up"
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    return None


def _pickled(expression: str) -> bytes:
    """Return a pickle that is the value of an expression where it is loaded."""

    class Expression:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return eval, (expression,)

    return pickle.dumps(Expression(), 4)


async def ask_facts(server: Any) -> Facts:
    """Ask a scheduler for facts about its process. Never raises.

    Parameters
    ----------
    server
        A ``distributed.rpc`` of it.
    """
    try:
        answer = await asyncio.wait_for(server.run_function(function=_pickled(_QUESTION)), timeout=REQUEST_TIMEOUT)
        if answer["status"] != "OK":
            return Facts(unknown=f"the question failed there: {answer.get('exception_text') or answer['status']}")
        return Facts(**answer["result"])
    except Exception as error:  # noqa: BLE001 -- a scheduler may forbid to run functions, or be of any version
        return Facts(unknown=str(error) or type(error).__name__)


async def _ask_workers(server: Any, facts: Facts) -> Facts:
    """Ask the first workers of a scheduler, and their nannies, whether they preloaded dask_otel. Never raises."""
    elsewhere: list[str] = []
    with suppress(Exception):  # these are only hints
        workers = list((await asyncio.wait_for(server.identity(), REQUEST_TIMEOUT))["workers"])[:MAX_WORKERS]
        message = {"op": "run", "function": _pickled(_QUESTION_TO_WORKERS)}
        for role in ("worker", "nanny"):
            question = server.broadcast(msg=message, workers=workers, nanny=role == "nanny", on_error="ignore")
            answers = await asyncio.wait_for(question, REQUEST_TIMEOUT)
            elsewhere += [
                f"the {role} {address}"
                for address, answer in answers.items()
                if isinstance(answer, dict) and _has(answer.get("result"))
            ]
    return replace(facts, elsewhere=elsewhere)


def why_without(facts: Facts) -> list[str]:
    """Give the causes why a scheduler runs without dask-otel, the most likely first, each with what to do about it."""
    if facts.unknown is not None:
        return [
            "start it with --preload dask_otel on its command line",
            f"the cause is not known, since it does not answer the question ({facts.unknown})",
        ]
    causes = list(_causes_there(facts))
    if not causes and facts.preloads:
        causes = [_not_requested(facts)]
    causes += _causes_elsewhere(facts)
    if _requested_by(facts) is None:
        causes += _hints(facts)
    return causes or [_not_requested(facts)]


def _causes_there(facts: Facts) -> Iterator[str]:
    """Give causes in the scheduler's own process."""
    if off := [line for line in facts.log if re.match("dask-otel.* (is|turns itself) off", line)]:
        yield f"it is off; its log has: {off[-1]}"
        return
    if _has(facts.preloads):
        yield "it was preloaded, but did not start: see the lines of distributed.dask_otel in the scheduler's log"
        return
    if not facts.installed:
        yield f"dask-otel is not installed there ({facts.python}): install it with that Python, and preload it"
    source = _requested_by(facts)
    if source is None:
        return
    given = _on_command_line(facts)
    if given:
        yield (
            f"the scheduler was started with --preload {' --preload '.join(given)}, which makes Dask ignore {source}"
            ": add --preload dask_otel to its command line"
        )
    elif facts.preloads and list(facts.preloads) != _listed(facts.setting):
        yield (
            f"the scheduler was made with preload={list(facts.preloads)!r}, which makes Dask ignore {source}: add "
            "'dask_otel' to that list"
        )
    elif not _has(facts.setting) and facts.preloads:
        yield (
            f"the setting {SETTING} there is {' '.join(facts.preloads)}, in spite of {source}: add dask_otel to it "
            "before the scheduler starts"
        )
    elif not _has(facts.setting):
        yield (
            f"{source} was set after Dask had read its configuration: set it before Python starts, or use "
            f"dask.config.set({{{SETTING!r}: ['dask_otel']}}) before the scheduler is made"
        )
    else:
        yield f"{source} was set after the scheduler had been made: set it before"


def _causes_elsewhere(facts: Facts) -> Iterator[str]:
    """Give settings that were meant for the scheduler and reach another process, or none."""
    known = {VARIABLE, *(f"DASK_DISTRIBUTED__{role.upper()}__PRELOAD" for role in ROLES)}
    for name, value in facts.variables.items():
        if name.upper() not in known:
            yield f"{name}={value} is set there, which Dask does not read as a preload: use {VARIABLE}=dask_otel"
    for role in ROLES:
        if _has(facts.roles.get(role)):
            yield (
                f"distributed.{role}.preload there names dask_otel, and in a {role} it does not send the cluster's "
                f"traces: name it in {SETTING}"
            )
    if facts.elsewhere:
        yield (
            f"dask_otel was preloaded in {', '.join(facts.elsewhere)}, where it does not send the cluster's traces: "
            "start the scheduler with --preload dask_otel"
        )


def _not_requested(facts: Facts) -> str:
    given = _on_command_line(facts)
    if given:
        return (
            f"the scheduler was started with --preload {' --preload '.join(given)} and without dask_otel: add "
            "--preload dask_otel to its command line (the setting and the variable are ignored beside --preload)"
        )
    if facts.preloads:
        return f"the scheduler preloads {', '.join(facts.preloads)} only: add dask_otel to these"
    return f"nothing there preloads it: start it with --preload dask_otel, or with {VARIABLE}=dask_otel"


def _hints(facts: Facts) -> Iterator[str]:
    """Give the settings of this process that do not reach the scheduler."""
    if "dask_otel" in os.environ.get(VARIABLE, ""):
        yield f"{VARIABLE}=dask_otel is set here, but not in the scheduler's process: set it where that is started"
    elif _has(dask.config.get(SETTING, None)):
        yield f"{SETTING} is set here, but not in the scheduler's process: set it where that is started"
    for role in ROLES:
        if _has(dask.config.get(f"distributed.{role}.preload", None)):
            yield (
                f"distributed.{role}.preload here names dask_otel, and in a {role} it does not send the cluster's "
                "traces"
            )


def _requested_by(facts: Facts) -> str | None:
    """Name the setting or variable in the scheduler's process that names dask_otel, as a person wrote it."""
    for name, value in facts.variables.items():
        if name.upper() == VARIABLE:
            return f"{name}={value}"
    return f"the setting {SETTING}: {facts.setting!r}" if _has(facts.setting) else None


def _has(preloads: Any) -> bool:
    """Whether a list of preloads, or one, names dask_otel: as a module, a class of it, or a file."""
    return any("dask_otel" in str(each) for each in _listed(preloads))


def _listed(preloads: Any) -> list[Any]:
    return [preloads] if isinstance(preloads, str) else list(preloads) if isinstance(preloads, list | tuple) else []


def _on_command_line(facts: Facts) -> list[str]:
    """Give the preloads that come from the command line."""
    given = [after for option, after in pairwise(facts.argv) if option == "--preload"]
    given += [each.partition("=")[2] for each in facts.argv if each.startswith("--preload=")]
    return [each for each in given if each in facts.preloads]
