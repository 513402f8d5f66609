"""Which proxy requests to a target go through; neither gRPC nor requests says so when the proxy fails."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from urllib.parse import urlsplit

from .targets import shown

__all__ = ["Proxy", "find_proxy"]


class Proxy(NamedTuple):
    """A proxy that applies to a target."""

    #: Name of the variable.
    variable: str
    #: Host and port, without user and password.
    address: str
    #: Name of the variable in which a host is exempted.
    exempting: str

    def __str__(self) -> str:
        return f"the proxy {self.address} ({self.variable})"


def find_proxy(target: str, *, grpc: bool) -> Proxy | None:
    """Find the proxy for a target.

    Parameters
    ----------
    target
        As an exporter gets it.
    grpc
        gRPC reads other variables than requests, which the exporter over HTTP uses.
    """
    return _of_grpc(target) if grpc else _of_requests(target)


def _of_requests(target: str) -> Proxy | None:
    from requests.utils import get_environ_proxies, select_proxy

    try:
        proxy = select_proxy(target, get_environ_proxies(target))
    except ValueError:
        return None
    if not proxy:
        return None
    scheme = urlsplit(target).scheme
    variable = _set(f"{scheme}_proxy") or _set("all_proxy") or "settings of this system"
    return Proxy(variable, _address(proxy), "no_proxy" if os.environ.get("no_proxy") else "NO_PROXY")


def _set(name: str) -> str:
    """Name of a variable as it is spelled: of several, the lower-case one counts."""
    found = [each for each, value in os.environ.items() if each.lower() == name and value]
    return name if name in found else next(iter(found), "")


def _of_grpc(target: str) -> Proxy | None:
    """Do as gRPC's core: the first variable that is set counts, even if it is empty, for any target but a socket file.

    Unlike for requests, only the lower-case names count, and only proxies that are spoken to in plain HTTP. An exempted
    name stands for all below it, too; for older versions of gRPC, for any name that ends so.
    """
    names = ("grpc_proxy", "https_proxy", "http_proxy")
    variable = next((name for name in names if name in os.environ), "")
    try:
        parts = urlsplit(os.environ.get(variable, ""))
        if parts.scheme != "http" or not parts.hostname:
            return None
    except ValueError:
        return None
    if target.startswith(("unix:", "vsock:")):
        return None
    exempting = "no_proxy" if "no_proxy" in os.environ and "no_grpc_proxy" not in os.environ else "no_grpc_proxy"
    host = _host(target).lower()
    for each in os.environ.get(exempting, "").lower().split(","):
        name = each.strip().lstrip(".")
        if name and (host == name or host.endswith(f".{name}") or _is_in(host, name)):
            return None
    return Proxy(variable, _address(os.environ[variable]), exempting)


def _host(target: str) -> str:
    rest = target.rpartition("/")[2] if target.startswith(("dns:", "xds:")) else target.partition("://")[2] or target
    rest = re.sub(r"^(dns|ipv4|ipv6):", "", rest)
    return urlsplit(f"//{rest}").hostname or ""


def _is_in(host: str, network: str) -> bool:
    try:
        return "/" in network and ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def _address(proxy: str) -> str:
    """Host and port, if they can be told apart from a password."""
    rest = proxy.partition("://")[2] if "://" in proxy else proxy
    authority = re.split("[/?#]", rest)[0]
    # A proxy has no path, so an @ behind the first slash belongs to a password.
    return "…" if "@" in rest[len(authority) :] else shown(authority) or "…"
