"""Which process the spans come from."""

from __future__ import annotations

import socket
from typing import Any

from opentelemetry.sdk.resources import OTELResourceDetector, ProcessResourceDetector, Resource

from .text import clean

__all__ = ["make_resource"]


def make_resource(*, service_name: str, instance_id: str, version: str, cluster_name: str | None) -> Resource:
    """Describe the process. What the ``OTEL_*`` variables say wins."""
    values: dict[str, Any] = {
        "service.name": service_name,
        "service.instance.id": instance_id,
        "service.version": version,
        "host.name": socket.gethostname(),
    }
    # Only these: command lines may hold secrets.
    detected = ProcessResourceDetector().detect().attributes
    values |= {
        name: value for name, value in detected.items() if name == "process.pid" or name.startswith("process.runtime.")
    }
    if cluster_name:
        values["dask.cluster.name"] = cluster_name
    sdk = {name: value for name, value in Resource.create().attributes.items() if name.startswith("telemetry.sdk.")}
    values |= sdk | dict(OTELResourceDetector().detect().attributes)
    return Resource({name: clean(value) if isinstance(value, str) else value for name, value in values.items()})
