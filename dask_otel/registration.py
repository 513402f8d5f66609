"""What ``Client.register_plugin`` shows of the plugin: where the scheduler sends to, and what is amiss.

Dask's method returns nothing and shows nothing. What it does with a plugin depends on the plugin's type, by single
dispatch: for ``OTelPlugin``, it also shows a line before it returns, in the thread that called it. A notebook shows
only what that thread prints in the cell that is running.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import singledispatchmethod
from inspect import isawaitable
from typing import Any
from urllib.parse import urlsplit

from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin

from .links import Description, page_link
from .otlp_options import OtlpOptions, own_variables
from .safety import Safety
from .status.report import destinations

__all__ = ["ClientProcess", "show_when_registered"]

#: Name of the call that returns what a client is to show, for ``distributed.rpc``.
REGISTERED_CALL = "otel_registered"
#: Variables whose values can be compared in another process; they are no secrets, but for passwords in endpoints.
_COMPARED = re.compile(r"OTEL_EXPORTER_OTLP_((TRACES|METRICS)_)?(ENDPOINT|PROTOCOL)")
_LOOPBACK = re.compile(r"localhost$|127\.|::1$")


class ClientProcess:
    """The process that registers the plugin.

    Parameters
    ----------
    client
        Id of its client; empty if it is not known.
    variables
        Of the ``OTEL_*`` variables that say where and how to send, those that are set there: the values of endpoints
        and protocols without passwords, else an empty text.
    """

    def __init__(self, host: str, pid: int, client: str, variables: Mapping[str, str]) -> None:
        self._host = host
        self._pid = pid
        self._client = client
        self._variables = variables

    @classmethod
    def this(cls, client: str, options: OtlpOptions) -> ClientProcess:
        """Describe this process. With an endpoint among the options, its variables do not matter."""
        variables = {} if options.has_endpoint else _comparable(own_variables())
        return cls(socket.gethostname(), os.getpid(), client, variables)

    def report(self, scheduler: Any, status: Mapping[str, Any], options: OtlpOptions, log: Sequence[str]) -> None:
        """Keep for the client, until another one registers the plugin, where the scheduler sends to and what is amiss.

        Parameters
        ----------
        status
            Of the exporters.
        log
            What was logged when the plugin started.
        """
        line = f"dask-otel {destinations(status)}"
        if self._is_elsewhere and any(map(_is_loopback, [*status["exporters"], *status["metrics"]])):
            line += f" (on the scheduler's host, {socket.gethostname()})"
        amiss = [each for each in log if "cannot be used" in each or "sends no " in each]
        theirs = _comparable(options.merged())
        others = [name for name, value in self._variables.items() if theirs.get(name) != value]
        if others:
            amiss.append(
                f"dask-otel does not use {', '.join(sorted(others))} of this process: the scheduler's process has "
                "other values, or none. To send with those of this process: "
                "client.register_plugin(dask_otel.OTelPlugin.from_env())"
            )

        def registered(client: str) -> tuple[str, list[str]] | None:
            return (line, amiss) if client == self._client else None

        scheduler.handlers[REGISTERED_CALL] = registered

    @property
    def _is_elsewhere(self) -> bool:
        return (self._host, self._pid) != (socket.gethostname(), os.getpid())


def show_when_registered(kind: type) -> None:
    """Have ``Client.register_plugin`` show, for plugins of a type, what the scheduler reports of the registration.

    It does so before it returns; with an asynchronous client, before its result has been awaited. A version of
    distributed that registers plugins in another way shows nothing.

    Parameters
    ----------
    kind
        Its instances have an attribute ``client_id`` that the id of the client is written to.
    """
    method = vars(Client).get("_register_plugin")
    if not isinstance(method, singledispatchmethod):
        return
    register = method.dispatcher.dispatch(SchedulerPlugin)

    def register_and_show(client: Any, plugin: Any, *args: Any, **kwargs: Any) -> Any:
        plugin.client_id = client.id
        registered = register(client, plugin, *args, **kwargs)
        if isawaitable(registered):
            return _await_and_show(client, registered)
        reported = None
        with Safety().guard("report to the client"):
            reported = client.sync(_ask, client)
        _show(client, reported, stacklevel=4)  # between are single dispatch and Client.register_plugin
        return registered

    method.register(kind, register_and_show)


async def _await_and_show(client: Any, registered: Any) -> Any:
    result, reported = await registered, None
    with Safety().guard("report to the client"):
        reported = await _ask(client)
    _show(client, reported, stacklevel=2)
    return result


async def _ask(client: Any) -> Any:
    return await getattr(client.scheduler, REGISTERED_CALL)(client=client.id)


def _show(client: Any, reported: tuple[str, Sequence[str]] | None, stacklevel: int) -> None:
    """Show a line in the cell or on stdout, and warn; ``stacklevel`` is as for ``warnings.warn`` in the caller."""
    if not reported:  # another client has registered the plugin meanwhile
        return
    line, amiss = reported
    with Safety().guard("report to the client"):
        described = Description(line, page=page_link(client))
        ipython = sys.modules.get("IPython")
        if ipython and ipython.get_ipython():
            importlib.import_module("IPython.display").display(described)
        else:
            print(described, flush=True)  # noqa: T201 -- the call is to show it
    for each in amiss:  # outside the guard: a filter may make exceptions of warnings
        warnings.warn(each, stacklevel=stacklevel + 1)


def _comparable(variables: Mapping[str, str]) -> dict[str, str]:
    return {
        name: re.sub("//[^/]*@", "//", value.strip()) if _COMPARED.fullmatch(name) else ""
        for name, value in variables.items()
        if value.strip()
    }


def _is_loopback(exporter: Mapping[str, Any]) -> bool:
    target = exporter["target"]
    with suppress(ValueError):
        return bool(_LOOPBACK.match(urlsplit(target if "://" in target else f"//{target}").hostname or ""))
    return False
