"""Why a scheduler runs without dask-otel, for ``dask-otel doctor --scheduler``."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import dask

from ..page.routes import STATUS_CALL

__all__ = ["Facts", "ask_facts", "ask_workers", "why_without"]

#: The variable that preloads something in a scheduler.
VARIABLE = "DASK_DISTRIBUTED__SCHEDULER__PRELOAD"
SETTING = "distributed.scheduler.preload"
#: Seconds for each question to a scheduler.
PATIENCE = 5.0
#: Workers that are asked what was preloaded in them.
MAX_WORKERS = 3
#: What else can preload dask_otel.
ROLES = ("worker", "nanny", "client")


@dataclass(frozen=True)
class Facts:
    """What a scheduler without dask-otel says of its process."""

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
    #: Whether Python finds ``dask_otel`` there, and which version.
    installed: bool = True
    version: str | None = None
    python: str = ""
    #: The last lines that dask-otel logged there.
    log: Sequence[str] = ()
    #: Whether it has a bridge to ask.
    answers: bool = False
    #: Addresses of workers and nannies that have preloaded dask_otel, of those that were asked.
    elsewhere: Sequence[str] = ()
    #: Why the rest is not known; None if it is.
    unknown: str | None = None


#: Of builtins only, so that the scheduler needs no package of ours and any version of Python runs it. Only reads.
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
    "version": getattr(__import__("sys").modules.get("dask_otel"), "__version__", None),
    "python": __import__("sys").executable,
    "log": [
        str(line) for at, line in getattr(__import__("sys").modules.get("dask_otel.safety"), "recent", ())
        if at >= dask_scheduler.time_started
    ],
})""".replace("STATUS_CALL", repr(STATUS_CALL))
_QUESTION_TO_WORKERS = """(lambda f: setattr(f, "__name__", "dask_otel_doctor") or f)(
    lambda dask_worker: [str(each.name) for each in dask_worker.preloads]
)"""


class _Expression:
    """Pickled, it is what an expression gives where it is loaded."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (self._source,)


async def ask_facts(server: Any) -> Facts:
    """Ask a scheduler what it knows of its process. Never raises.

    Parameters
    ----------
    server
        A ``distributed.rpc`` of it.
    """
    try:
        answer = await asyncio.wait_for(
            server.run_function(function=pickle.dumps(_Expression(_QUESTION), 4)), timeout=PATIENCE
        )
        if answer["status"] != "OK":
            return Facts(unknown=f"the question failed there: {answer.get('exception_text') or answer['status']}")
        return Facts(**answer["result"])
    except Exception as error:  # noqa: BLE001 -- a scheduler may forbid to run functions, or be of any version
        return Facts(unknown=str(error) or type(error).__name__)


async def ask_workers(server: Any, facts: Facts) -> Facts:
    """Ask the first workers of a scheduler, and their nannies, whether they preloaded dask_otel. Never raises."""
    elsewhere: list[str] = []
    with suppress(Exception):  # these are only hints
        elsewhere += await asyncio.wait_for(_preloaded_in(server, "worker"), timeout=PATIENCE)
        elsewhere += await asyncio.wait_for(_preloaded_in(server, "nanny"), timeout=PATIENCE)
    return replace(facts, elsewhere=elsewhere)


async def _preloaded_in(server: Any, role: str) -> list[str]:
    workers = list((await server.identity())["workers"])[:MAX_WORKERS]
    answers = await server.broadcast(
        msg={"op": "run", "function": pickle.dumps(_Expression(_QUESTION_TO_WORKERS), 4)},
        workers=workers,
        nanny=role == "nanny",
        on_error="ignore",
    )
    return [
        f"the {role} {address}"
        for address, answer in answers.items()
        if isinstance(answer, dict) and _has(answer.get("result"))
    ]


def why_without(facts: Facts, environment: Mapping[str, str] | None = None) -> list[str]:
    """Say why a scheduler runs without dask-otel, the most likely cause first, each with what to do about it.

    Parameters
    ----------
    environment
        Of this process.
    """
    environment = os.environ if environment is None else environment
    if facts.unknown is not None:
        return [
            "start it with --preload dask_otel on its command line",
            f"why it runs without cannot be told, since it does not answer that ({facts.unknown})",
        ]
    causes = list(_causes_there(facts))
    if not causes and facts.preloads:
        causes = [_nothing_asks(facts)]
    causes += _causes_elsewhere(facts)
    if _wanted_by(facts) is None:
        causes += _hints(facts, environment)
    return causes or [_nothing_asks(facts)]


def _causes_there(facts: Facts) -> Iterator[str]:
    """Give causes in the scheduler's own process."""
    why = [
        line
        for line in facts.log
        if line.startswith("dask-otel") and (" is off" in line or " turns itself off" in line)
    ]
    if why:
        yield f"it is off, since its log says: {why[-1]}"
        return
    if _has(facts.preloads):
        yield "it was preloaded, but did not start: see what the scheduler's log says of distributed.dask_otel"
        return
    if not facts.installed:
        yield f"dask-otel is not installed there ({facts.python}): install it with that Python, and preload it"
    wanted_by = _wanted_by(facts)
    if wanted_by is None:
        return
    given = _on_command_line(facts)
    others = " ".join(facts.preloads)
    if given:
        yield (
            f"the scheduler was started with --preload {' --preload '.join(given)}, which makes Dask ignore {wanted_by}"
            ": add --preload dask_otel to its command line"
        )
    elif facts.preloads and not _same(facts.preloads, facts.setting):
        yield (
            f"the scheduler was made with preload={list(facts.preloads)!r}, which makes Dask ignore {wanted_by}: add "
            "'dask_otel' to that list"
        )
    elif not _has(facts.setting) and facts.preloads:
        yield (
            f"the setting {SETTING} there is {others}, whatever {wanted_by} says: add dask_otel to it before the "
            "scheduler starts"
        )
    elif not _has(facts.setting):
        yield (
            f"{wanted_by} was set after Dask had read its configuration: set it before Python starts, or use "
            f"dask.config.set({{{SETTING!r}: ['dask_otel']}}) before the scheduler is made"
        )
    else:
        yield f"{wanted_by} was set after the scheduler had been made: set it before"


def _causes_elsewhere(facts: Facts) -> Iterator[str]:
    """Give causes in what was meant for the scheduler and reached another, or nobody."""
    for name, value in facts.variables.items():
        if name.upper() != VARIABLE and not _is_for_a_role(name):
            yield f"{name}={value} is set there, which Dask does not read as a preload: use {VARIABLE}=dask_otel"
    for role in ROLES:
        if _has(facts.roles.get(role)):
            yield (
                f"distributed.{role}.preload there names dask_otel, and in a {role} it does nothing yet: name it in "
                f"{SETTING}"
            )
    if facts.elsewhere:
        yield (
            f"dask_otel was preloaded in {', '.join(facts.elsewhere)}, where it does nothing yet: start the scheduler "
            "with --preload dask_otel"
        )


def _nothing_asks(facts: Facts) -> str:
    given = _on_command_line(facts)
    if given:
        return (
            f"the scheduler was started with --preload {' --preload '.join(given)} and without dask_otel: add "
            "--preload dask_otel to its command line (the setting and the variable are ignored beside --preload)"
        )
    if facts.preloads:
        return f"the scheduler preloads {', '.join(facts.preloads)} only: add dask_otel to these"
    return f"nothing there asks for it: start it with --preload dask_otel, or with {VARIABLE}=dask_otel"


def _hints(facts: Facts, environment: Mapping[str, str]) -> Iterator[str]:
    """Say what is set here, and does not reach the scheduler."""
    if "dask_otel" in environment.get(VARIABLE, ""):
        yield f"{VARIABLE}=dask_otel is set here, but not in the scheduler's process: set it where that is started"
    elif _has(dask.config.get(SETTING, None)):
        yield f"{SETTING} is set here, but not in the scheduler's process: set it where that is started"
    for role in ROLES:
        if _has(dask.config.get(f"distributed.{role}.preload", None)):
            yield f"distributed.{role}.preload here names dask_otel, and in a {role} it does nothing yet"


def _wanted_by(facts: Facts) -> str | None:
    """Name what in the scheduler's process asks for dask_otel, as a person wrote it."""
    for name, value in facts.variables.items():
        if name.upper() == VARIABLE:
            return f"{name}={value}"
    return f"the setting {SETTING}: {facts.setting!r}" if _has(facts.setting) else None


def _is_for_a_role(name: str) -> bool:
    return name.upper() in {f"DASK_DISTRIBUTED__{role.upper()}__PRELOAD" for role in ROLES}


def _has(preloads: Any) -> bool:
    """Whether a list of preloads, or one, names dask_otel: as a module, a class of it, or a file."""
    names = [preloads] if isinstance(preloads, str) else preloads if isinstance(preloads, list | tuple) else ()
    return any("dask_otel" in str(each) for each in names)


def _same(preloads: Sequence[str], setting: Any) -> bool:
    return list(preloads) == ([setting] if isinstance(setting, str) else list(setting or ()))


def _on_command_line(facts: Facts) -> list[str]:
    """Give the preloads that come from the command line."""
    given = [after for option, after in zip(facts.argv, facts.argv[1:], strict=False) if option == "--preload"]
    given += [each.partition("=")[2] for each in facts.argv if each.startswith("--preload=")]
    return [each for each in given if each in facts.preloads]
