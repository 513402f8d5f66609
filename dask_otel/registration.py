"""What a client is shown when it registers the plugin: where the scheduler sends to, and what it should know of that.

``Client.register_plugin`` returns nothing. The scheduler therefore sends a line to the client, which prints it, as
Dask's ``distributed.print`` and ``distributed.warn`` do from a worker.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import time
from typing import Any
from urllib.parse import urlsplit

from distributed import default_client

from .otlp_options import OtlpOptions, own_variables
from .status.report import destinations

__all__ = ["ClientProcess"]

#: Variables whose values can be compared in another process; they are no secrets, but for passwords in endpoints.
_COMPARED = re.compile(r"OTEL_EXPORTER_OTLP_((TRACES|METRICS)_)?(ENDPOINT|PROTOCOL)")
_LOOPBACK = re.compile(r"localhost$|127\.|::1$")


class ClientProcess:
    """The process that registers the plugin.

    Parameters
    ----------
    variables
        Of the ``OTEL_*`` variables that say where and how to send, those that are set there: the values of endpoints
        and protocols without passwords, else an empty text.
    client
        Id of its client; empty if it is not known.
    """

    def __init__(self, host: str, pid: int, client: str, variables: Mapping[str, str]) -> None:
        self._host = host
        self._pid = pid
        self._client = client
        self._variables = variables

    @classmethod
    def this(cls, options: OtlpOptions) -> ClientProcess:
        """Describe this process. With an endpoint among the options, its variables do not matter."""
        client = ""
        with suppress(ValueError):
            client = default_client().id
        return cls(
            socket.gethostname(), os.getpid(), client, {} if options.has_endpoint else _comparable(own_variables())
        )

    def report(self, scheduler: Any, status: Mapping[str, Any], options: OtlpOptions, log: Sequence[str]) -> None:
        """Have the client print where the scheduler sends to, and warn about what is amiss.

        Parameters
        ----------
        status
            Of the exporters.
        log
            What was logged when the plugin started.
        """
        where = destinations(status)
        if self._is_elsewhere and any(map(_is_loopback, [*status["exporters"], *status["metrics"]])):
            where += f" (on the scheduler's host, {socket.gethostname()})"
        self._send(scheduler, "print", f"dask-otel sends {where}. dask_otel.describe() shows this again, with links")
        for line in log:
            if "cannot be used" in line or "sends no " in line:
                self._send(scheduler, "warn", line)
        theirs = _comparable(options.merged())
        others = [name for name, value in self._variables.items() if theirs.get(name) != value]
        if others:
            self._send(
                scheduler,
                "warn",
                f"dask-otel does not use {', '.join(sorted(others))} of this process: the scheduler's process has "
                "other values, or none. To send with those of this process: "
                "client.register_plugin(dask_otel.OTelPlugin.from_env())",
            )

    @property
    def _is_elsewhere(self) -> bool:
        return (self._host, self._pid) != (socket.gethostname(), os.getpid())

    def _send(self, scheduler: Any, topic: str, line: str) -> None:
        if self._client in scheduler.clients:
            scheduler.report({"op": "event", "topic": topic, "event": (time(), line)}, client=self._client)
        else:
            scheduler.log_event(topic, line)


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
