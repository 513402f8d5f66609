"""A real VictoriaLogs, which takes log records over OTLP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from support.backends import free_port

PATIENCE = 60.0


class VictoriaLogs:
    """Starts at once; ``stop`` ends it."""

    def __init__(self, binary: Path, folder: Path) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        #: For OTEL_EXPORTER_OTLP_LOGS_ENDPOINT, over HTTP.
        self.endpoint = f"{self._url}/insert/opentelemetry/v1/logs"
        self._log = folder / "victorialogs.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [binary, f"-httpListenAddr=127.0.0.1:{port}", f"-storageDataPath={folder / 'data'}"],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._wait(self._is_ready)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def records(self, query: str, count: int) -> list[dict[str, Any]]:
        """Ask until there are so many records, and return them. VictoriaLogs has no event to wait for."""
        return self._wait(lambda: found if len(found := self._query(query)) >= count else None)

    def _query(self, query: str) -> list[dict[str, Any]]:
        with urlopen(f"{self._url}/select/logsql/query?{urlencode({'query': query})}", timeout=30) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def _wait(self, enough: Callable[[], Any]) -> Any:
        deadline = monotonic() + PATIENCE
        while not (answer := enough()):
            assert self._process.poll() is None, self._log.read_text()
            assert monotonic() < deadline, self._query("*")
            sleep(0.1)
        return answer

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"{self._url}/health", timeout=5) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False
