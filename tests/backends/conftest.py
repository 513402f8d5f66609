from __future__ import annotations

from pathlib import Path

import pytest
from support.backends import need
from support.jaeger import OwnJaeger, find_running
from support.prometheus import Prometheus
from support.victorialogs import VictoriaLogs


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory):
    """Any real Jaeger."""
    running = find_running()
    if running:
        yield running
        return
    own = OwnJaeger(need("jaeger"), tmp_path_factory.mktemp("jaeger"))
    yield own
    own.kill()


@pytest.fixture
def own_jaeger(tmp_path: Path):
    """A Jaeger that the test may kill and start again."""
    own = OwnJaeger(need("jaeger"), tmp_path)
    yield own
    own.kill()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory):
    """A Prometheus as the compose file has it."""
    own = Prometheus(need("prometheus"), tmp_path_factory.mktemp("prometheus"))
    yield own
    own.stop()


@pytest.fixture
def victorialogs(tmp_path: Path):
    """A VictoriaLogs without records."""
    own = VictoriaLogs(need("victoria-logs"), tmp_path)
    yield own
    own.stop()
