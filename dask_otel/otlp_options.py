"""The options of ``OTelPlugin``, which are written as the standard ``OTEL_*`` variables that they stand for.

A client gives them and the scheduler uses them. Their values may be secrets: they are never shown, and a pickled plugin
does not hold them as text. Dask logs the beginning of a pickle that cannot be loaded, and at level DEBUG every message.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from .errors import SettingError

__all__ = ["OtlpOptions", "own_variables"]

#: By option, the end of its variable's name: ``OTEL_EXPORTER_OTLP_<signal_><end>``.
_ENDS = {
    "endpoint": "ENDPOINT",
    "protocol": "PROTOCOL",
    "headers": "HEADERS",
    "compression": "COMPRESSION",
    "timeout": "TIMEOUT",
    "certificate": "CERTIFICATE",
    "client_certificate": "CLIENT_CERTIFICATE",
    "client_key": "CLIENT_KEY",
    "insecure": "INSECURE",
}
_SIGNALS = {"traces": "TRACES", "metrics": "METRICS"}
#: Ends of variables whose values are meant for one backend and must not be sent to another one.
_CREDENTIALS = ("HEADERS", "CLIENT_CERTIFICATE", "CLIENT_KEY")
#: Variables that say where and how to send. The others describe a process.
_PREFIX = "OTEL_EXPORTER_OTLP_"
_EXPORTERS = ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER")
_PYTHON_PREFIX, _PROVIDER = "OTEL_PYTHON_EXPORTER_OTLP_", "CREDENTIAL_PROVIDER"
#: Seconds; see ``otlp.environment``.
_MAX_TIMEOUT = 3600
#: Bytes of a pickle that Dask logs at level INFO if it cannot load it.
_LOGGED = 10_000
_KEY = secrets.token_bytes(32)


class OtlpOptions:
    """Where and how to send, as variables that take the place of those of the scheduler's process.

    Parameters
    ----------
    variables
        Values by the names of variables.
    options
        By name of a variable, how the option is written in a call; else the variable itself was given.
    """

    def __init__(self, variables: Mapping[str, str] | None = None, options: Mapping[str, str] | None = None) -> None:
        self.variables = dict(variables or {})
        if self.variables:
            _check(self.variables, options or {})

    @classmethod
    def from_call(cls, *, traces: Any, metrics: Any, **common: Any) -> OtlpOptions:
        """Make them of the arguments of a call; None stands for what is not given.

        Raises
        ------
        TypeError
            If an option does not exist, or has a value of another type.
        ValueError
            If a value cannot be used.
        """
        variables: dict[str, str] = {}
        options: dict[str, str] = {}

        def add(values: Mapping[Any, Any], scope: str, where: str) -> None:
            for name, value in values.items():
                if name not in _ENDS:
                    raise TypeError(f"{where} takes no option {name!r}; it takes {', '.join(_ENDS)}")
                if value is not None:
                    option = f"{where}[{name!r}]" if where else name
                    variable = f"{_PREFIX}{scope}{_ENDS[name]}"
                    variables[variable], options[variable] = _as_text(name, value, option), option

        add(common, "", "")
        for where, given in (("traces", traces), ("metrics", metrics)):
            if given is False:
                variables[f"OTEL_{_SIGNALS[where]}_EXPORTER"] = "none"
            elif isinstance(given, Mapping):
                add(given, f"{_SIGNALS[where]}_", where)
            elif given is not None:
                raise TypeError(f"{where} must be a mapping of options or False, not a {type(given).__name__}")
        if traces is False and metrics is False:
            raise ValueError("traces and metrics are both False: nothing would be sent")
        checked = cls(_exporters_for_endpoints(variables) | variables, options)
        _check_schemes(variables, options)
        return checked

    @classmethod
    def from_env(cls) -> OtlpOptions:
        """Take the variables of this process that say where and how to send.

        Raises
        ------
        ValueError
            If none of them is set, or one cannot be used.
        """
        variables = own_variables()
        if not any(name.startswith(_PREFIX) for name in variables):
            raise ValueError(f"no {_PREFIX}… variable is set in this process: set one, or give OTelPlugin an endpoint")
        return cls(_exporters_for_endpoints(variables) | variables)

    @property
    def has_endpoint(self) -> bool:
        """Whether they say where to send, for any signal."""
        return any(name.endswith("_ENDPOINT") for name in self.variables)

    def merged(self) -> dict[str, str]:
        """Return the ``OTEL_*`` variables of this process, with the options in their place.

        A variable for all signals also takes the place of its forms for one signal. Where another endpoint is given,
        what authenticates at the endpoint of this process is left out: headers, client certificates and credential
        providers.
        """
        given = self.variables
        merged = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
        for signal in _SIGNALS.values():
            endpoint = _endpoint_of(signal, given)
            if endpoint and endpoint != _endpoint_of(signal, merged):
                for form in (
                    *(f"{_PREFIX}{{}}{each}" for each in _CREDENTIALS),
                    *(f"{_PYTHON_PREFIX}{each}_{{}}{_PROVIDER}" for each in ("GRPC", "HTTP")),
                ):
                    _take_from(signal, form, merged)
        for name in given:
            for signal in _SIGNALS.values():
                merged.pop(name.replace(_PREFIX, f"{_PREFIX}{signal}_"), None)
        return merged | given

    def fingerprint(self) -> bytes:
        """Return what is the same for the same variables in this process, and holds none of their values."""
        variables = json.dumps(sorted(self.merged().items()))
        return hashlib.blake2b(variables.encode("utf-8", "surrogateescape"), key=_KEY, digest_size=16).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OtlpOptions) and self.variables == other.variables

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{', '.join(sorted(self.variables))}: values not shown>" if self.variables else "<none>"

    def __reduce__(self) -> Any:
        return _restore, (_seal(json.dumps(self.variables).encode()) if self.variables else b"",)


def own_variables() -> dict[str, str]:
    """Return the variables of this process that say where and how to send."""
    return {
        name: value.strip()
        for name, value in os.environ.items()
        if value.strip()
        and (
            name.startswith(_PREFIX)
            or name in _EXPORTERS
            or (name.startswith(_PYTHON_PREFIX) and name.endswith(_PROVIDER))
        )
    }


def _endpoint_of(signal: str, variables: Mapping[str, str]) -> str:
    names = (f"{_PREFIX}{signal}_ENDPOINT", f"{_PREFIX}ENDPOINT")
    return next((variables[name].strip() for name in names if variables.get(name, "").strip()), "")


def _take_from(signal: str, form: str, variables: dict[str, str]) -> None:
    """Remove a variable for one signal; one for all signals is left to the other signal."""
    (other,) = set(_SIGNALS.values()) - {signal}
    variables.pop(form.format(f"{signal}_"), None)
    for_all = variables.pop(form.format(""), None)
    if for_all:
        variables.setdefault(form.format(f"{other}_"), for_all)


def _restore(sealed: bytes) -> OtlpOptions:
    restored = OtlpOptions()
    restored.variables = json.loads(_masked(sealed[:-_LOGGED], sealed[-_LOGGED:])) if sealed else {}
    return restored


def _exporters_for_endpoints(variables: Mapping[str, str]) -> dict[str, str]:
    """Whoever gives an endpoint wants the exporter for OTLP, whichever one the scheduler's process has."""
    return {
        f"OTEL_{signal}_EXPORTER": "otlp"
        for signal in _SIGNALS.values()
        if f"{_PREFIX}ENDPOINT" in variables or f"{_PREFIX}{signal}_ENDPOINT" in variables
    }


def _as_text(name: str, value: Any, option: str) -> str:
    """Write an option's value as its variable would be written."""
    if name == "headers":
        return _headers(value, option)
    if name == "insecure":
        if not isinstance(value, bool):
            raise TypeError(f"{option} must be True or False, not a {type(value).__name__}")
        return str(value).lower()
    if name == "timeout":
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{option} must be a number of seconds, not a {type(value).__name__}")
        if not 0 < value <= _MAX_TIMEOUT:
            raise SettingError(option, value, f"a number of seconds above 0, at most {_MAX_TIMEOUT}")
        return repr(value)
    if name not in ("endpoint", "protocol", "compression"):  # a file's name
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(value, str):
        raise TypeError(f"{option} must be a str, not a {type(value).__name__}")
    if not value.strip():
        raise SettingError(
            option, value, "a text that is not empty; leave the option out to use the scheduler's own value"
        )
    return value.strip()


def _headers(value: Any, option: str) -> str:
    """Write headers as in a variable. The errors do not show them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for pair in value.items() for each in pair):
        raise TypeError(f"{option} must be a mapping of names to values, both of them str")
    return ",".join(f"{quote(name, safe='')}={quote(text, safe='')}" for name, text in value.items())


def _check(variables: Mapping[str, str], options: Mapping[str, str]) -> None:
    try:
        environment = importlib.import_module("dask_otel.otlp.environment")
    except Exception:  # noqa: BLE001 -- OpenTelemetry is broken in this process; the scheduler checks them too
        return
    try:
        environment.check_given(variables)
    except SettingError as error:
        message, setting = str(error), error.setting
        option = options.get(setting, setting)
        if option != setting and setting.endswith("HEADERS"):
            allowed = "a mapping of names to values, in Latin-1 and without line breaks, or a text as in the variable"
            raise SettingError(option, "(not shown)", allowed) from None
        raise ValueError(message.replace(setting, option, 1)) from None


def _check_schemes(variables: Mapping[str, str], options: Mapping[str, str]) -> None:
    """Fail at ``host:port`` in a call without an option about TLS.

    In a variable it means gRPC with TLS, as OpenTelemetry specifies. Most who write it mean a collector without TLS.
    """
    for name, value in variables.items():
        scope, is_endpoint, _ = name.removeprefix(_PREFIX).partition("ENDPOINT")
        if is_endpoint and "://" not in value and "@" not in value and not value.startswith("unix:"):
            names = [f"{_PREFIX}{form}{end}" for form in (scope, "") for end in ("INSECURE", "CERTIFICATE")]
            if not any(each in variables for each in names):
                allowed = f"'http://{value}', or 'https://{value}' for TLS; else also give insecure=True or False"
                raise SettingError(options[name], value, allowed)


def _seal(data: bytes) -> bytes:
    """Mask data with a key that is made of random bytes behind it; all of them are needed.

    There are so many that their end is not in what Dask logs of a pickle that cannot be loaded.
    """
    salt = secrets.token_bytes(_LOGGED)
    return _masked(data, salt) + salt


def _masked(data: bytes, salt: bytes) -> bytes:
    key = hashlib.shake_256(salt).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, key, strict=True))
