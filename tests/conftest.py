"""Which package is tested (``support.environment``), and how the tests are spread over the processors."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from support.environment import PATHS, python_path


def pytest_configure(config: pytest.Config) -> None:
    sys.path[:0] = [path for path in PATHS if path not in sys.path]
    os.environ["PYTHONPATH"] = python_path()


#: Whose tests share something costly: what they wait for together, a Prometheus with metrics, a cluster with a web
#: service, a process to fork from.
TOGETHER = (
    "tests/test_exits.py",
    "tests/backends/test_prometheus.py",
    "tests/backends/test_request_traces.py",
    "tests/random_runs/test_runs.py",
)


@pytest.fixture(scope="session", autouse=True)
def _frequent_heartbeats():
    """Segments wait for heartbeats: half a second, and a second after a worker's start, would be most of many tests."""
    from distributed import Worker, scheduler  # not in xdist's own process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "heartbeat_interval", lambda workers: 0.1)
        patch.setitem(Worker.__init__.__kwdefaults__, "heartbeat_interval", "100ms")
        yield


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.hasplugin("xdist"):  # ``-p no:xdist``: pyproject.toml gives its options all the same
        for option in ("--numprocesses", "--dist"):
            parser.addoption(option, help="ignored without pytest-xdist")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: many tests wait, for a cluster or a back-off."""
    given = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    return int(given) if given else (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out each test alone, or a whole file. Groups of pytest-xdist's own have no effect with pytest 9.2."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in TOGETHER else nodeid

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes long, or one worker would still be at it when the others are done."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
