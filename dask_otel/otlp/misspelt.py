"""Finds environment variables whose names are misspelt: OpenTelemetry and Dask ignore them without a message."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import opentelemetry.environment_variables as api
import opentelemetry.sdk.environment_variables as sdk

from ..config import DEFAULTS

__all__ = ["KNOWN", "misspelt"]

#: How alike two names must be, for ``difflib``.
SIMILARITY = 0.85
#: Names that belong to other programs; names below ``DASK_OTEL__`` are settings, which ``config.load`` checks.
_FOREIGN = ("OTEL_PYTHON_", "OTEL_INSTRUMENTATION_", "DASK_OTEL__")
_OTLP = (
    "ENDPOINT",
    "PROTOCOL",
    "HEADERS",
    "COMPRESSION",
    "TIMEOUT",
    "CERTIFICATE",
    "CLIENT_CERTIFICATE",
    "CLIENT_KEY",
    "INSECURE",
)
#: The variables that have an effect; those with other limits are among the SDK's.
_READ = {
    *(f"OTEL_EXPORTER_OTLP_{signal}{name}" for signal in ("", "TRACES_", "METRICS_") for name in _OTLP),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_SDK_DISABLED",
}
#: Variables of other languages, and of OpenTelemetry's file configuration, which resemble some of those above.
_OTHERS = {"OTEL_CONFIG_FILE", "OTEL_EXPERIMENTAL_CONFIG_FILE", "OTEL_LOGS_EXPORTER", "OTEL_LOGS_SAMPLER"}
#: Names that are certainly spelled as they are meant.
KNOWN = (
    _READ
    | _OTHERS
    | {
        value
        for module in (api, sdk)
        for value in vars(module).values()
        if isinstance(value, str) and value.startswith("OTEL_")
    }
)


def misspelt() -> list[str]:
    """Return a line for each variable that has no effect, and whose name is close to one that has."""
    settings = set(_variables(DEFAULTS["otel"], "DASK_OTEL"))
    lines = []
    for name in sorted(os.environ):
        upper = name.upper()
        # Of Dask's variables, only those that look like a setting of dask-otel.
        candidates = settings if upper.startswith(("DASK_OT", "DASKOT")) else _READ
        if name in KNOWN or upper.startswith(_FOREIGN) or not upper.startswith(("OTEL", "OTLP", "DASK_OT", "DASKOT")):
            continue
        close = difflib.get_close_matches(upper, sorted(candidates), n=1, cutoff=SIMILARITY)
        if close and not _is_of_other_signal(upper):
            lines.append(f"{name} has no effect: did you mean {close[0]}?")
    return lines


def _variables(settings: Mapping[str, Any], path: str) -> Iterator[str]:
    """Yield the variables that set a setting."""
    for name, value in settings.items():
        variable = f"{path}__{name.upper().replace('-', '_')}"
        if isinstance(value, dict):
            yield from _variables(value, variable)
        else:
            yield variable


def _is_of_other_signal(name: str) -> bool:
    """Whether a name is one for logs or profiles, which dask-otel does not send."""
    return any(f"_{signal}_" in name for signal in ("LOGS", "PROFILES", "BLRP", "LOGRECORD"))
