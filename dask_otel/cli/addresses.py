"""Addresses of schedulers: what people give instead, and why nobody answers there."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.registry import backends
from distributed.security import Security

__all__ = ["connection_arguments", "explain_failure", "mend", "wrong_address"]

#: Seconds that whoever listens at an address may take to say something.
PATIENCE = 5.0
_EXAMPLE = "tcp://scheduler:8786"


def mend(address: str) -> str:
    """Take away what people paste along: blanks, a slash, a password."""
    address = re.sub(r"//[^/]*@", "//", address.strip())
    return address if address.endswith("://") else address.rstrip("/")


def wrong_address(address: str, connection: Mapping[str, Any] | None = None) -> str | None:
    """Say in one line what is wrong with an address, and what to give instead; None if it can be tried.

    Parameters
    ----------
    connection
        What this process has for connections: Dask's ``Security.get_connection_args("client")``.
    """
    scheme, _, rest = address.rpartition("://")
    scheme = scheme.lower()
    if not rest:
        return f"--scheduler needs the address of a scheduler, e.g. {_EXAMPLE}"
    if scheme in ("http", "https"):
        host = rest.partition("/")[0].partition(":")[0]
        return (
            f"{address!r} is a web address, such as the dashboard's: give the address that workers and clients use, "
            f"usually tcp://{host}:8786"
        )
    if scheme == "gateway":
        return (
            f"{address!r} works with dask-gateway's own client only: open /otel/ in the place of /status in the link "
            "to the cluster's dashboard (cluster.dashboard_link), or run the doctor in the scheduler's pod or machine"
        )
    if scheme == "inproc":
        return (
            f"{address!r} is reached from its own process only: make the cluster with protocol='tcp', or open /otel/ "
            "beside its dashboard (client.dashboard_link)"
        )
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
        good = bool(host) and 0 < port < 65536
    except ValueError:
        good = False
    if not good:
        return f"{address!r} is no address with a host and a port: give the scheduler's, e.g. {scheme or 'tcp'}://{_host(rest)}:8786"
    if scheme in ("tls", "wss") and connection is not None and not connection.get("ssl_context"):
        return (
            f"{address!r} needs TLS, which is not configured here: set what clients of this cluster have, "
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and "
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY (or distributed.comm.tls in a YAML file)"
        )
    return None


def _host(rest: str) -> str:
    host = rest.partition("/")[0].partition(":")[0]
    return host if host and not host.isdigit() and host not in backends else "scheduler"


def connection_arguments() -> dict[str, Any]:
    """Read the TLS configuration of Dask's clients.

    Raises
    ------
    ValueError
        If it names files that cannot be used.
    """
    try:
        return dict(Security().get_connection_args("client"))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"the TLS configuration here cannot be used ({type(error).__name__}: {error}): see distributed.comm.tls"
        ) from error


async def explain_failure(address: str, error: BaseException) -> str:
    """Say in one line why nobody answers as a scheduler, and what to do."""
    causes = list(_causes(error))
    said = next((f"{type(each).__name__}: {each}" for each in causes if str(each)), type(error).__name__)
    advice = f"give the address that workers use, e.g. {_EXAMPLE}"
    scheme, rest = parse_address(address)
    host, port = parse_host_port(rest)
    if any("certificate" in str(each).lower() for each in causes):
        advice = "the certificates here are not those of this cluster: see distributed.comm.tls"
    else:
        speaks = await _what_speaks(host, port)
        if speaks == "no address":
            advice = f"{host!r} has no address here; {advice}"
        elif speaks == "nobody":
            advice = f"nothing listens there; {advice}"
        elif speaks == "dask" and scheme != "tcp":
            advice = f"the scheduler there does not use {scheme}: give tcp://{rest}"
        elif speaks == "http" and scheme not in ("ws", "wss"):
            advice = (
                f"it is a web server that listens there, perhaps the dashboard's: give the scheduler's own port, "
                f"usually tcp://{host}:8786"
            )
        elif speaks == "hangs up" and scheme == "tcp":
            advice = f"it hangs up: if the cluster uses TLS, give tls://{rest}"
        elif any(isinstance(each, TimeoutError) for each in causes):
            advice = f"nothing came back: is a firewall in between? Else {advice}"
    return f"no scheduler answers at {address!r} ({said}); {advice}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


async def _what_speaks(host: str, port: int) -> str | None:
    """Tell who listens: "dask", "http", somebody who "hangs up", "nobody", "no address", or None."""
    with suppress(OSError, TimeoutError, asyncio.TimeoutError):
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), PATIENCE)
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
                answer = await asyncio.wait_for(reader.read(1024), PATIENCE)
            except ConnectionError:
                return "hangs up"
            return "http" if answer.startswith(b"HTTP/") else None if answer else "hangs up"
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    return None
