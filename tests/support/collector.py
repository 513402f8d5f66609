"""A real OpenTelemetry Collector with the compose file's configuration; only the addresses are ours."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from time import monotonic, sleep

from support.backends import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


class Collector:
    """Starts at once, with ``addresses`` in the place of those in the file; ``stop`` ends it."""

    def __init__(self, binary: Path, folder: Path, addresses: dict[str, str]) -> None:
        ports = {"0.0.0.0:4317": free_port(), "0.0.0.0:4318": free_port()}
        text = (ROOT / "grafana/collector.yml").read_text(encoding="utf-8")
        for theirs, ours in (addresses | {each: f"127.0.0.1:{port}" for each, port in ports.items()}).items():
            assert theirs in text
            text = text.replace(theirs, ours)
        config = folder / "collector.yml"
        # Its own metrics would want a port that somebody else may have.
        config.write_text(text + "  telemetry:\n    metrics:\n      level: none\n", encoding="utf-8")
        self._log = folder / "collector.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([binary, "--config", config], stdout=log, stderr=subprocess.STDOUT)
        port = ports["0.0.0.0:4317"]
        self.endpoint = f"http://127.0.0.1:{port}"
        deadline = monotonic() + PATIENCE
        while not self._listens(port):
            assert self._process.poll() is None, self._log.read_text()
            assert monotonic() < deadline, self._log.read_text()
            sleep(0.05)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    @staticmethod
    def _listens(port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return False
        return True
