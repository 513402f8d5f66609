"""Endpoints as people write them."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

__all__ = ["is_endpoint", "shown"]


def is_endpoint(value: str, *, grpc: bool) -> bool:
    """Whether somebody could be there: a URL; over gRPC also ``host:port`` or another target of gRPC's."""
    if re.search(r"\s", value):
        return False
    if value.startswith("unix:"):
        return grpc and re.fullmatch(r"unix:(//)?[^/]*/.+", value) is not None
    if "://" not in value:
        return grpc and re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:/\[\]]+):0*[1-9]\d{0,4}", value) is not None
    try:
        parts = urlsplit(value)
        if parts.port == 0:
            return False
    except ValueError:  # the port is no number
        return False
    if parts.scheme in ("http", "https"):
        return bool(parts.hostname)
    return grpc and parts.scheme in ("dns", "ipv4", "ipv6", "xds")


def shown(endpoint: str) -> str:
    """Return an endpoint without what may be secret: user, password, query, fragment."""
    if endpoint.startswith("unix:"):
        return endpoint
    scheme, separator, rest = endpoint.partition("://") if "://" in endpoint else ("", "", endpoint)
    authority = re.split("[/?#]", rest)[0]
    host = authority.rpartition("@")[2]
    if not re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?", host):
        host = "…"  # it may be part of a password
    path = rest[len(authority) :]
    return f"{scheme}{separator}{host}" + ("" if "@" in path else re.split("[?#]", path)[0])
