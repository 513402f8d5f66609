"""A real Prometheus, with the compose file's configuration and options, but for how often it looks at alerts."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from support.backends import free_port

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


class Prometheus:
    """Starts at once; ``stop`` ends it."""

    def __init__(self, binary: Path, folder: Path) -> None:
        compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        text = (ROOT / "grafana/prometheus.yml").read_text(encoding="utf-8")
        text, replaced = re.subn("(evaluation_interval:) 15s", r"\1 1s", text)
        assert replaced
        config = folder / "prometheus.yml"
        config.write_text(text.replace("rules/", f"{ROOT}/grafana/rules/"), encoding="utf-8")
        ours = {"--config.file": str(config), "--storage.tsdb.path": str(folder / "data")}
        options = [
            f"{name}={ours.get(name, value)}" if sign else name
            for name, sign, value in (each.partition("=") for each in compose["services"]["prometheus"]["command"])
        ]
        self._log = folder / "prometheus.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [binary, *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
            )
        self.wait(self._is_ready)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression is now."""
        return self._ask("query", query=expression)["result"]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """What an expression was, from start to end."""
        return self._ask("query_range", query=expression, start=start, end=end, step=step)["result"]

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        now = time()
        found = self._ask("query_exemplars", query=expression, start=now - 3600, end=now)
        return [{**series["seriesLabels"], **each} for series in found for each in series["exemplars"]]

    def labels(self, label: str, selector: str) -> list[str]:
        return self._ask(f"label/{label}/values", **{"match[]": selector})

    def alerts(self) -> dict[str, str]:
        """State by name of alerts that are pending or firing."""
        return {each["labels"]["alertname"]: each["state"] for each in self._ask("alerts")["alerts"]}

    def wait(self, enough: Callable[[], Any], instead: Callable[[], Any] = str) -> Any:
        """Ask until the answer is true, and return it. Prometheus has no event to wait for."""
        deadline = monotonic() + PATIENCE
        while not (answer := enough()):
            assert self._process.poll() is None, self._log.read_text()
            assert monotonic() < deadline, instead()
            sleep(0.2)
        return answer

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False

    def _ask(self, path: str, **parameters: Any) -> Any:
        try:
            with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
