"""The way out as the scheduler makes it from the standard variables, and what it meets: certificates, encodings."""

from __future__ import annotations

import io
import logging
import threading
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import pytest
import trustme
from distributed.utils_test import captured_logger

from dask_otel.otlp.exporter import connect
from dask_otel.privacy import Capture
from dask_otel.safety import Safety
from support.misbehaving import Misbehaving
from support.records import segment
from support.wire import Wire

PATIENCE = 30.0


def make_sink():
    capture = {field.name: True for field in fields(Capture)}
    names = dict.fromkeys(("service_name", "instance_id", "version", "cluster_name"), "ours")
    return connect(**names, safety=Safety(), capture=capture, max_rate=0)


class Run:
    def __init__(self, log: io.StringIO) -> None:
        self.log = log
        self.sink = make_sink()

    @property
    def first(self):
        return self.sink.status()["exporters"][0]

    def wait_until(self, condition) -> None:
        deadline = monotonic() + PATIENCE
        while not condition():
            assert monotonic() < deadline, self.sink.status()
            threading.Event().wait(0.005)

    def put(self, *numbers) -> None:
        for number in numbers:
            self.sink.put([segment(name=f"{number}", span_id=number + 1)])

    def is_refused(self) -> None:
        """One that was put in cannot be sent: it is tried again and again, and counted in the end."""
        self.put(0)
        self.wait_until(lambda: self.first["failing"] or self.first["dropped"])
        assert self.first["dropped"] == []
        at = self.first["last_error_at"]
        self.wait_until(lambda: self.first["last_error_at"] > at)
        assert (self.first["in_flight"], self.first["dropped"]) == (1, [])
        self.sink.close(PATIENCE)
        assert self.first["dropped"] == [{"kind": "span", "reason": "shutdown", "count": 1}]


@contextmanager
def running(endpoint: str | None = None, **variables):
    with pytest.MonkeyPatch.context() as patch, captured_logger("distributed.dask_otel", level=logging.DEBUG) as log:
        if endpoint is not None:
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        # Nothing here waits for others to share its request with.
        for name, value in ({"BSP_SCHEDULE_DELAY": 0} | variables).items():
            patch.setenv(f"OTEL_{name}", str(value))
        run = Run(log)
        yield run
        run.sink.close(PATIENCE)


def otlp(signal: str = "", **variables):
    return {f"EXPORTER_OTLP_{signal}{name}": value for name, value in variables.items()}


def arrives(receiver, run, number: int = 1):
    run.put(*range(number))
    run.wait_until(lambda: run.first["sent"] == {"span": number})
    assert receiver.taken == Counter(map(str, range(number)))
    return {name.lower(): value for name, value in receiver.headers[0].items()}


class Deflating(Misbehaving):
    def _handler(self):
        class Handler(super()._handler()):
            def do_POST(self):
                if self.headers["Content-Encoding"] == "deflate":
                    body = zlib.decompress(self.rfile.read(int(self.headers["Content-Length"])))
                    self.rfile = io.BytesIO(body)
                    self.headers.replace_header("Content-Length", str(len(body)))
                super().do_POST()

        return Handler


class Listening(Wire):
    """Keeps what passes it: a gRPC server's handlers are not told of the compression."""

    def _pump(self, source, sink, outwards):
        passed = self.__dict__.setdefault("passed", bytearray())

        class Heard:
            def recv(self, size):
                data = source.recv(size)
                passed.extend(data if outwards else b"")
                return data

            def __getattr__(self, name):
                return getattr(source, name)

        super()._pump(Heard(), sink, outwards)


class Certificates(NamedTuple):
    """Paths of PEM files."""

    authority: Path
    other_authority: Path
    client: Path
    client_key: Path
    #: For ``Misbehaving``: private key, certificate chain, and the authority that clients need or None.
    server: tuple[bytes, bytes, None]
    strict_server: tuple[bytes, bytes, bytes]


def make_certificates(folder: Path) -> Certificates:
    """Make a receiver's and a client's certificates, and write what the variables name."""
    authority, other, paths = trustme.CA(), trustme.CA(), [folder / f"{n}.pem" for n in range(4)]
    server, client = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("dask@localhost")
    for path, pem in zip(
        paths,
        (authority.cert_pem, other.cert_pem, client.cert_chain_pems[0], client.private_key_pem),
        strict=True,
    ):
        pem.write_to_path(str(path))
    key, chain = server.private_key_pem.bytes(), b"".join(pem.bytes() for pem in server.cert_chain_pems)
    return Certificates(*paths, (key, chain, None), (key, chain, authority.cert_pem.bytes()))
