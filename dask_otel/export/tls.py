"""TLS by the standard variables, checked before an exporter reads them.

gRPC ends the whole process when it gets a client certificate without its key, or an empty file. The gRPC exporter does
not find what is given half for all signals and half for traces; older HTTP exporters take an empty variable for "do not
verify".
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Remarks, SettingError
from .signals import TRACES, Signal
from .variables import variable

__all__ = ["Tls", "is_insecure", "read_tls"]


@dataclass(frozen=True)
class Tls:
    """Files in PEM form; None where none is named."""

    authorities: str | None = None
    certificate: str | None = None
    #: Of the certificate; None if its file holds it too.
    key: str | None = None

    def credentials(self) -> Any:
        """Return them for gRPC."""
        from grpc import ssl_channel_credentials

        def read(path: str | None) -> bytes | None:
            return Path(path).read_bytes() if path else None

        return ssl_channel_credentials(
            read(self.authorities), read(self.key or self.certificate), read(self.certificate)
        )


def read_tls(signal: Signal = TRACES) -> Tls:
    """Read the variables.

    Raises
    ------
    SettingError
        If a file cannot be read, or does not hold what it should.
    """
    authority_name, authorities = _file("CERTIFICATE", signal)
    name, certificate = _file("CLIENT_CERTIFICATE", signal)
    key_name, key = _file("CLIENT_KEY", signal)
    if key and not certificate:
        raise SettingError(key_name, key, "given together with OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authorities:
        try:
            context.load_verify_locations(authorities)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise SettingError(authority_name, authorities, f"a file of certificates in PEM form ({error})") from error
    if certificate:
        try:
            context.load_cert_chain(certificate, key or None, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            allowed = (
                f"a certificate in PEM form whose key, without password, is in OTEL_EXPORTER_OTLP_CLIENT_KEY ({error})"
            )
            raise SettingError(name, certificate, allowed) from error
    return Tls(authorities or None, certificate or None, key or None)


def is_insecure(endpoint: str, remarks: Remarks, signal: Signal = TRACES) -> bool:
    """Whether gRPC goes without TLS: the endpoint's scheme says, and where there is none, the variable."""
    name, value = variable("INSECURE", signal)
    if value and value.lower() not in ("true", "false"):
        remarks.fall_back(SettingError(name, value, "true or false"), "false is used")
    if endpoint.startswith(("http://", "https://")):
        return endpoint.startswith("http://")
    return value.lower() == "true"


def _file(what: str, signal: Signal) -> tuple[str, str]:
    name, path = variable(what, signal)
    if path and not (os.path.isfile(path) and os.access(path, os.R_OK)):
        raise SettingError(name, path, "a file that can be read")
    return name, path


def _no_password() -> str:
    raise ValueError("it has a password")
